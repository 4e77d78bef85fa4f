"""Storage against quality: answers and retrieval at each number of summary tokens and codec, by bytes per picture.

Every cell is measured on tokens that went through the codec's bytes and back, as an index would give them. *Retrieval
from the tokens* embeds a picture by its stored tokens alone (their mean through the model's head), so that nothing else
has to be stored; *stored embedding* is what an index keeps beside them.

Shapes: N pictures, k summary tokens, D hidden size, E embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from fwd2bot_eval.default_model import held_out
from fwd2bot_eval.metrics import Floats, estimate, ranks_of
from fwd2bot_eval.results import Estimate, Table, TaskResult
from fwd2bot_eval.runs import Progress, machine
from fwd2bot_eval.tasks.captioned import captioned
from fwd2bot_eval.tasks.options import TaskOptions
from fwd2bot_index import scenes
from fwd2bot_index.codec import CODEC_NAMES, get_codec
from fwd2bot_index.decoding import decode_image
from fwd2bot_index.errors import InputError
from fwd2bot_index.model import Fwd2BotModel

SCENES: Final = 200
SCENE_SIDE: Final = 96
PLOT: Final = "budget.png"
_BATCH: Final = 64
_ANSWER_TOKENS: Final = 6
EMBEDDING_BYTES: Final = 2
"""An index stores embeddings in float16."""


@dataclass(frozen=True, kw_only=True)
class _Pictures:
    """A pool with a text for each search; ``of_text`` is the picture that each text is about."""

    name: str
    tokens: torch.Tensor
    """[N, K, D]"""
    embedding: Floats
    """[N, E], of all K tokens"""
    texts: Floats
    """[T, E]"""
    of_text: Sequence[int]
    keys: Sequence[str]


def run_budget(
    model: Fwd2BotModel,
    folder: Path,
    *,
    data: Path | None = None,
    split: str | None = None,
    ks: Sequence[int] | None = None,
    limit: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    command: str = "",
) -> TaskResult:
    """Measure, and write ``result.json`` and the plot into ``folder``.

    Args:
        data: captioned pictures, as the retrieval task takes them; None: drawn scenes only.
        ks: numbers of summary tokens; None: all, and powers of two below.
        limit: pictures of each pool; None: 200 scenes, and all of ``data``.
    Raises:
        InputError: a training-free model, whose tokens are no prefixes of one another, or a k that it does not have.
    """
    import time

    if model.mode != "trained":
        raise InputError(
            f"{model.name} is training-free: its k tokens are pooled anew for each k, so there is no budget."
        )
    started = time.perf_counter()
    own = model.num_summary_tokens
    ks = sorted(set(ks or [own, *(k for k in (64, 32, 16, 8, 4, 2, 1) if k < own)]), reverse=True)
    if bad := [k for k in ks if not 1 <= k <= own]:
        raise InputError(f"{model.name} has {own} summary tokens; it cannot be read at k = {bad[0]}.")
    folder.mkdir(parents=True, exist_ok=True)
    pool, questions, captions = held_out(limit or SCENES)
    images = [scenes.render(s, size=SCENE_SIDE) for s in pool]
    drawn = _embed(
        model,
        "scenes",
        images,
        texts=[str(c) for c in captions],
        of_text=range(len(pool)),
        keys=[str(i) for i in range(len(pool))],
    )
    pools = [drawn, *([_photos(model, data, split=split, limit=limit)] if data else [])]
    asked = sorted(((q, i) for i, qs in enumerate(questions) for q in qs), key=lambda pair: len(pair[0].text))

    answers: dict[str, dict[str, Estimate]] = {}
    found: dict[str, dict[str, dict[str, Estimate]]] = {p.name: {} for p in pools}
    cells = [(k, name) for k in ks for name in CODEC_NAMES]
    points: list[tuple[str, int, int, float]] = []
    for done, (k, name) in enumerate(cells, start=1):
        codec = get_codec(name)
        size = codec.payload_bytes(k, model.token_dim)
        row = f"k={k} {name}"
        bytes_ = _exactly(size)
        tokens = _through(drawn.tokens[:, :k], name)
        right = _answer(model, tokens, asked)
        answers[row] = {"bytes": bytes_, "answers": estimate(right, [str(i) for _, i in asked])}
        points.append((name, k, size, answers[row]["answers"].value))
        for p in pools:
            stored = tokens if p is drawn else _through(p.tokens[:, :k], name)
            embedded = _embedded(model, stored)
            found[p.name][row] = {"bytes": bytes_, **_recalls(p, embedded)}
        if progress is not None:
            progress(Progress(done=done, total=len(cells)))
    size = EMBEDDING_BYTES * model.embedding_dim
    for p in pools:
        half = p.embedding.astype(np.float16).astype(np.float32)
        found[p.name]["stored embedding"] = {"bytes": _exactly(size), **_recalls(p, half)}
    best = f"k={own} {CODEC_NAMES[0]}"
    tables = [
        Table(
            title="answers",
            row_header="tokens",
            columns=["bytes", "answers"],
            rows=answers,
            explanation=f"Exact answers to {len(asked)} questions about {len(pool)} drawn scenes.",
        ),
        *(
            Table(
                title=f"text -> image, {p.name}",
                row_header="tokens",
                columns=["bytes", "R@1", "R@10"],
                rows=found[p.name],
                chance={},
                explanation=f"{len(p.of_text)} texts among {len(p.keys)} pictures, embedded from the tokens alone.",
            )
            for p in pools
        ),
    ]
    notes = [f"Bytes are of one picture; {best} is {get_codec(CODEC_NAMES[0]).payload_bytes(own, model.token_dim)}."]
    note = _plot(points, folder / PLOT)
    if note is not None:
        notes.append(note)
    result = TaskResult(
        task="budget",
        model=model.name,
        fingerprint=model.fingerprint,
        data=str(data) if data else "drawn scenes",
        settings={"ks": list(ks), "codecs": list(CODEC_NAMES), "limit": limit, "split": split},
        tables=tables,
        items=len(asked),
        skipped=[],
        notes=notes,
        seconds=time.perf_counter() - started,
        machine=machine(),
        command=command,
        figures=[PLOT] if note is None else [],
    )
    result.write(folder / "result.json")
    return result


def _photos(model: Fwd2BotModel, data: Path, *, split: str | None, limit: int | None) -> _Pictures:
    """Compressed a batch at a time; only tokens and embeddings stay."""
    source = captioned(TaskOptions(data=data, split=split, limit=limit))
    tokens, embeddings = [], []
    keys: list[str] = []
    texts: list[str] = []
    of_text: list[int] = []
    batch: list[Any] = []

    def flush() -> None:
        if batch:
            made = model.compress(batch)
            tokens.append(made.tokens.cpu())
            embeddings.append(made.embedding.cpu())
            batch.clear()

    for picture, items in source.read(True):
        batch.append(decode_image(picture.read(), max_side=model.decode_side).image)
        for item in items:
            texts += item.references
            of_text += [len(keys)] * len(item.references)
        keys.append(picture.key)
        if len(batch) == _BATCH:
            flush()
    flush()
    return _Pictures(
        name="photos",
        tokens=torch.cat(tokens),
        embedding=torch.cat(embeddings).numpy(),
        texts=_texts(model, texts),
        of_text=of_text,
        keys=keys,
    )


def _embed(
    model: Fwd2BotModel, name: str, images: Sequence[Any], *, texts: Sequence[str], of_text: Sequence[int], keys: Any
) -> _Pictures:
    parts = [model.compress(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)]
    return _Pictures(
        name=name,
        tokens=torch.cat([p.tokens.cpu() for p in parts]),
        embedding=torch.cat([p.embedding.cpu() for p in parts]).numpy(),
        texts=_texts(model, texts),
        of_text=of_text,
        keys=keys,
    )


def _texts(model: Fwd2BotModel, texts: Sequence[str]) -> Floats:
    parts = [model.embed_text(texts[i : i + _BATCH]).cpu().numpy() for i in range(0, len(texts), _BATCH)]
    return np.concatenate(parts)


def _through(tokens: torch.Tensor, name: str) -> torch.Tensor:
    """[N, k, D] as the codec gives them back."""
    codec = get_codec(name)
    _, k, d = tokens.shape
    return torch.from_numpy(codec.decode(codec.encode(tokens.numpy()), k=k, d=d))


@torch.inference_mode()
def _embedded(model: Fwd2BotModel, tokens: torch.Tensor) -> Floats:
    """[N, E]: of these tokens alone."""
    embedded: Floats = model.embed_tokens(tokens.to(model.device)).cpu().numpy()
    return embedded


def _answer(model: Fwd2BotModel, tokens: torch.Tensor, asked: Sequence[tuple[scenes.Question, int]]) -> Floats:
    """[questions]: 1 where the answer is right."""
    right = []
    for start in range(0, len(asked), _BATCH):
        part = asked[start : start + _BATCH]
        answers = model.generate(tokens[[i for _, i in part]], [q.text for q, _ in part], max_new_tokens=_ANSWER_TOKENS)
        right += [float(a == q.answer) for (q, _), a in zip(part, answers, strict=True)]
    return np.array(right)


def _recalls(pictures: _Pictures, embedded: Floats) -> dict[str, Estimate]:
    ranks = ranks_of(pictures.texts, embedded, [[i] for i in pictures.of_text])
    clusters = [pictures.keys[i] for i in pictures.of_text]
    return {f"R@{k}": estimate((ranks <= k).astype(np.float64), clusters) for k in (1, 10)}


def _exactly(size: int) -> Estimate:
    return Estimate(value=size, low=size, high=size, items=0, clusters=0)


def _plot(points: Sequence[tuple[str, int, int, float]], path: Path) -> str | None:
    """Answers over bytes, a line for each codec; a sentence where there is no matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return "There is no plot: it takes matplotlib, `pip install 'fwd2bot[eval]'`."
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for name in dict.fromkeys(p[0] for p in points):
        own = sorted((size, k, value) for n, k, size, value in points if n == name)
        axes.plot([s for s, _, _ in own], [v for _, _, v in own], marker="o", label=name)
        for size, k, value in own:
            axes.annotate(f"k={k}", (size, value), textcoords="offset points", xytext=(4, -10), fontsize=7)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("bytes per picture (summary tokens)")
    axes.set_ylabel("exact answers, share")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return None
