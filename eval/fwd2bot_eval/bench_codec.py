"""What each token codec costs and loses.

    python -m fwd2bot_eval.bench_codec --data ../shared/data --scores --json codecs.json

Bytes, relative error and speed, on the bundled model's tokens (drawn scenes; with ``--data`` photos of
``flickr8k/test.parquet`` too) and on normal numbers of the shape 16 x 4096 with outliers as in the hidden states of
LLMs. With ``--scores`` also what the model answers from the tokens: questions about scenes by type, the matching
question on hard negatives, and with ``--data`` Visual7W (``visual7w/val.parquet``); each as the difference to float16
on the same items, with the 95 % interval of a paired bootstrap over pictures. Retrieval is by the embedding, which no
codec touches.

Fitted codecs never see a picture of the measurement before. Each is fitted three times: to 256 other pictures of the
same kind, to the first 16 of these, and to 256 of the other kind (photos for scenes, scenes for photos), which is what
becomes of an index whose first pictures are no sample of the later ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from fwd2bot_eval.default_model import BATCH, compress, held_out
from fwd2bot_eval.metrics import Floats, estimate
from fwd2bot_eval.results import Estimate
from fwd2bot_index import scenes
from fwd2bot_index.checkpoints import DEFAULT_MODEL
from fwd2bot_index.codec import CODEC_NAMES, UNFITTED_NAMES, Codec, fit_codec, is_fitted
from fwd2bot_index.model import Fwd2BotModel
from fwd2bot_index.reranking import matching_scores

Float32 = npt.NDArray[np.float32]

FIT_STREAM: Final = "codec fit"
FIT: Final = 256
FEW: Final = 16
HITS: Final = 100
LARGE: Final = (16, 4096)
OUTLIERS: Final = 4
MASSIVE: Final = 0.01
REPEATS: Final = 7
BASELINE: Final = UNFITTED_NAMES[0]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A codec and how it came to be."""

    label: str
    codec: Codec


@dataclass(frozen=True, kw_only=True)
class Signal:
    """One codec on one set of tokens."""

    label: str
    tokens: str
    bytes: int
    """Of a picture."""
    ratio: float
    """Of bfloat16's bytes to these."""
    error: float
    """Frobenius norm of the error over that of the tokens."""
    rest_error: float | None
    """The same without the outlier channels, where there are some."""
    fit_seconds: float
    encode_ms: float
    """Median for 100 pictures; so is the next."""
    decode_ms: float


def fitted(kind: Float32, other: Float32 | None, names: Sequence[str] = CODEC_NAMES) -> list[Fitted]:
    """Every codec, the fitted ones once for each way of fitting.

    Args:
        kind: [N, K, D]: tokens of the kind that will be measured.
        other: [N, K, D]: of another kind.
    """
    plain = [Fitted(label=name, codec=fit_codec(name, kind)) for name in names]
    learned = [name for name in names if is_fitted(name)]
    few = [Fitted(label=f"{n}, fitted to {FEW}", codec=fit_codec(n, kind[:FEW])) for n in learned]
    foreign = [Fitted(label=f"{n}, fitted to other", codec=fit_codec(n, other)) for n in learned if other is not None]
    return plain + few + foreign


def through(codec: Codec, tokens: Float32) -> Float32:
    """[N, K, D] as an index gives them back."""
    _, k, d = tokens.shape
    return codec.decode(codec.encode(tokens), k=k, d=d)


def relative_error(decoded: Float32, tokens: Float32) -> float:
    return float(np.linalg.norm((decoded - tokens).ravel()) / np.linalg.norm(tokens.ravel()))


def outlier_tokens(count: int, k: int, d: int, *, massive: float, seed: int) -> tuple[Float32, npt.NDArray[np.intp]]:
    """Normal numbers [count, k, d], but for a few channels (also returned) that are 50 times as large in every token,
    and 20 times that in a share ``massive`` of the tokens ("Massive activations", arXiv 2402.17762)."""
    rng = np.random.default_rng(seed)
    channels = np.random.default_rng(7).permutation(d)[:OUTLIERS]
    tokens = rng.normal(size=(count, k, d)).astype(np.float32)
    large = 50 * (1 + 0.3 * rng.normal(size=(count, k, OUTLIERS)))
    tokens[..., channels] = large * np.where(rng.random((count, k, 1)) < massive, 20, 1)
    return tokens, channels


def measure_signal(
    label: str,
    name: str,
    kind: str,
    fit: Float32,
    tokens: Float32,
    *,
    outliers: npt.NDArray[np.intp] | None = None,
    repeats: int = REPEATS,
) -> Signal:
    """One codec, fitted to ``fit`` [M, K, D], on ``tokens`` [N, K, D]."""
    started = time.perf_counter()
    codec = fit_codec(name, fit)
    fit_seconds = time.perf_counter() - started
    _, k, d = tokens.shape
    decoded = through(codec, tokens)
    rest = None
    if outliers is not None:
        rest = relative_error(np.delete(decoded, outliers, axis=-1), np.delete(tokens, outliers, axis=-1))
    hits = np.ascontiguousarray(tokens[:HITS])
    payload = codec.encode(hits)
    size = payload.shape[1]
    return Signal(
        label=label,
        tokens=kind,
        bytes=size,
        ratio=2 * k * d / size,
        error=relative_error(decoded, tokens),
        rest_error=rest,
        fit_seconds=fit_seconds,
        encode_ms=_median_ms(lambda: codec.encode(hits), repeats) * HITS / len(hits),
        decode_ms=_median_ms(lambda: codec.decode(payload, k=k, d=d), repeats) * HITS / len(hits),
    )


def signals(
    kinds: Mapping[str, tuple[Float32, Float32]], *, large: tuple[int, int] = LARGE, repeats: int = REPEATS
) -> list[Signal]:
    """Every codec on the tokens of every kind, given as those to fit to and those to measure, and on outliers.

    A fitted codec is also fitted to few, and to another kind.

    Args:
        large: K and D of the tokens with outliers.
    """
    found = []
    for kind, (fit, tokens) in kinds.items():
        other = next((f for name, (f, _) in kinds.items() if name != kind), None)
        for name in CODEC_NAMES:
            ways = {name: fit}
            if is_fitted(name):
                ways[f"{name}, fitted to {FEW}"] = fit[:FEW]
                if other is not None:
                    ways[f"{name}, fitted to other"] = other
            found += [measure_signal(label, name, kind, to, tokens, repeats=repeats) for label, to in ways.items()]
    k, d = large
    for kind, massive in ((f"{k} x {d}, outliers", 0.0), (f"{k} x {d}, massive", MASSIVE)):
        fit, _ = outlier_tokens(HITS, k, d, massive=massive, seed=1)
        tokens, channels = outlier_tokens(HITS, k, d, massive=massive, seed=2)
        found += [measure_signal(n, n, kind, fit, tokens, outliers=channels, repeats=repeats) for n in CODEC_NAMES]
    return found


Items = Mapping[str, tuple[Floats, Sequence[str]]]
"""By score: what each item scored [items], and its picture [items]."""


def scene_items(
    model: Fwd2BotModel,
    tokens: torch.Tensor,
    questions: Sequence[Sequence[scenes.Question]],
    pairs: Sequence[tuple[str, int, str, str]],
) -> Items:
    """Exact answers by type of question, and hard negatives (kind, picture, caption, false caption) by their kind."""
    items: dict[str, tuple[list[float], list[str]]] = {}

    def add(score: str, right: bool, picture: int) -> None:
        for name in (score, score.split(": ")[0]):
            values, pictures = items.setdefault(name, ([], []))
            values.append(float(right))
            pictures.append(str(picture))

    asked = sorted(((q, i) for i, qs in enumerate(questions) for q in qs), key=lambda pair: len(pair[0].text))
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        answers = model.generate(tokens[[i for _, i in part]], [q.text for q, _ in part], max_new_tokens=6)
        for (q, i), answer in zip(part, answers, strict=True):
            add(f"answers: {q.type}", answer == q.answer, i)
    for start in range(0, len(pairs), BATCH):
        some = pairs[start : start + BATCH]
        rows = tokens[[i for _, i, _, _ in some]]
        true = matching_scores(model, rows, [caption for _, _, caption, _ in some])
        false = matching_scores(model, rows, [caption for _, _, _, caption in some])
        for (kind, i, _, _), won in zip(some, (true > false).tolist(), strict=True):
            add(f"matching: {kind}", won, i)
    return {name: (np.array(values), pictures) for name, (values, pictures) in sorted(items.items())}


def photo_items(model: Fwd2BotModel, tokens: torch.Tensor, asked: Sequence[tuple[int, str, str]]) -> Items:
    """Exact answers to (photo, question, answer)."""
    right = []
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        answers = model.generate(tokens[[i for i, _, _ in part]], [q for _, q, _ in part], max_new_tokens=12)
        right += [float(a == said) for a, (_, _, said) in zip(answers, part, strict=True)]
    return {"visual7w": (np.array(right), [str(i) for i, _, _ in asked])}


def losses(baseline: Items, items: Items) -> dict[str, Estimate]:
    """Points (hundredths) that each score lost against the baseline, on the same items."""
    return {
        name: estimate(100 * (baseline[name][0] - right), pictures, scale=(-100, 100))
        for name, (right, pictures) in items.items()
    }


def measure_scores(
    rows: Sequence[Fitted], tokens: Float32, score: Callable[[torch.Tensor], Items]
) -> dict[str, dict[str, Estimate]]:
    """By row and score: the score of the baseline (in points), then what each of ``rows`` loses against it."""
    baseline = score(torch.from_numpy(through(fit_codec(BASELINE, tokens), tokens)))
    found = {
        BASELINE: {
            name: estimate(100 * right, pictures, scale=(0, 100)) for name, (right, pictures) in baseline.items()
        }
    }
    for row in rows:
        if row.label != BASELINE:
            found[row.label] = losses(baseline, score(torch.from_numpy(through(row.codec, tokens))))
    return found


def hard_negative_pairs(count: int) -> list[tuple[str, int, str, str]]:
    """(kind, scene, caption, false caption) for the held-out scenes, in batches of like length."""
    pool, _, captions = held_out(count)
    pairs = [
        (kind, i, str(caption), str(false))
        for i, (scene, caption) in enumerate(zip(pool, captions, strict=True))
        for kind, false in scenes.hard_negatives(scene, caption, np.random.default_rng([8, i])).items()
    ]
    return sorted(pairs, key=lambda pair: len(pair[2]))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m fwd2bot_eval.bench_codec", description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="as after `fwd2bot index --model`")
    parser.add_argument("--data", type=Path, help="folder with flickr8k/test.parquet and visual7w/val.parquet")
    parser.add_argument("--scores", action="store_true", help="ask the model too (minutes)")
    parser.add_argument("--scenes", type=int, default=1000, help="how many are asked about")
    parser.add_argument("--codecs", nargs="+", default=list(CODEC_NAMES), choices=CODEC_NAMES, help="whose scores")
    parser.add_argument("--large", type=int, nargs=2, default=LARGE, metavar=("K", "D"), help="tokens with outliers")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of which times are the median")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args(arguments)

    model = Fwd2BotModel.from_pretrained(given.model)
    pool, questions, _ = held_out(given.scenes)
    to_fit = [scenes.scene(i, stream=FIT_STREAM) for i in range(FIT)]
    drawn = tuple(_tokens(model, [scenes.render(s, size=96) for s in part]) for part in (to_fit, pool))
    kinds = {"scenes": (drawn[0], drawn[1])}
    if given.data:
        photos = pq.read_table(given.data / "flickr8k" / "test.parquet", columns=["image"]).column("image").to_pylist()
        seen = _tokens(model, [photo["bytes"] for photo in photos])
        kinds["photos"] = (seen[:FIT], seen[FIT:])
    found = signals(kinds, large=tuple(given.large), repeats=given.repeats)
    figures: dict[str, Any] = {"signal": [asdict(s) for s in found]}
    print(_signal_table(found))
    if given.scores:
        photos_fit = kinds["photos"][0] if given.data else None
        rows = fitted(drawn[0], photos_fit, given.codecs)
        pairs = hard_negative_pairs(given.scenes)
        scored = measure_scores(rows, drawn[1], lambda tokens: scene_items(model, tokens, questions, pairs))
        if photos_fit is not None:
            table = pq.read_table(given.data / "visual7w" / "val.parquet").to_pylist()
            asked = [
                (i, q["question"].lower(), q["options"][q["answer_index"]].lower().rstrip(". "))
                for i, row in enumerate(table)
                for q in row["qa"]
            ]
            tokens = _tokens(model, [row["image"]["bytes"] for row in table])
            rows = fitted(photos_fit, drawn[0], given.codecs)
            on_photos = measure_scores(rows, tokens, lambda stored: photo_items(model, stored, asked))
            scored = {label: {**scored[label], **on_photos[label]} for label in scored}
        figures["scores"] = {label: {n: asdict(e) for n, e in row.items()} for label, row in scored.items()}
        print(_score_table(scored))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _tokens(model: Fwd2BotModel, images: Sequence[Any]) -> Float32:
    tokens: Float32 = compress(model, images)[0].float().cpu().numpy()
    return tokens


def _median_ms(run: Callable[[], object], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def _signal_table(found: Sequence[Signal]) -> str:
    head = "| tokens | codec | bytes a picture | of bfloat16 | relative error | encode, ms | decode, ms | fit, s |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for s in found:
        rest = "" if s.rest_error is None else f" (others {s.rest_error:.3f})"
        lines.append(
            f"| {s.tokens} | {s.label} | {s.bytes:,} | 1/{s.ratio:.2f} | {s.error:.4f}{rest} "
            f"| {s.encode_ms:.1f} | {s.decode_ms:.1f} | {s.fit_seconds:.2f} |"
        )
    return "\n".join(lines)


def _score_table(scored: Mapping[str, Mapping[str, Estimate]]) -> str:
    names = list(scored[BASELINE])
    lines = [f"| codec | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    items = " | ".join(str(scored[BASELINE][name].items) for name in names)
    lines.append(f"| items | {items} |")
    for label, row in scored.items():
        cells = [
            f"{e.value:.1f} [{e.low:.1f}, {e.high:.1f}]"
            if label == BASELINE
            else f"{-e.value:+.2f} [{-e.high:+.2f}, {-e.low:+.2f}]"
            for e in (row[name] for name in names)
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
