"""The scores in the bundled model's card.

    python -m fwd2bot_eval.default_model --data ../shared/data --control runs/control/model --json scores.json

On 1,000 held-out scenes (free placement, 1-6 objects; a stream of seeds that training never draws from): answers by
type from k summary tokens, from those that each codec (fitted to 1,024 other scenes) gives back, and from all image
tokens of the control (the same base, trained as long without compression); text->image retrieval against its ceiling,
also among as many pictures that hold each scene's swapped twins; hard negatives by cosine and by the matching question.
On the Flickr8k test split: retrieval both ways; on Visual7W val: exact answers. Without ``--data`` the photos are left
out, without ``--control`` the control. ``--training-free runs/base/model`` adds what the plain base scores.
``--draws 3`` scores three draws of as many scenes (the codecs on the first alone) and adds the mean, the least and the
greatest of every figure.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from fwd2bot_eval.metrics import above_chance, ranks, recall_at
from fwd2bot_index import scenes
from fwd2bot_index.codec import CODEC_NAMES, fit_codec
from fwd2bot_index.model import Fwd2BotModel
from fwd2bot_index.product_codec import FIT_PICTURES
from fwd2bot_index.reranking import matching_scores

BATCH = 64
STREAM = "held out"
FIT_STREAM = "codec fit"
MENTIONS = 4


def held_out(
    count: int, stream: str = STREAM
) -> tuple[list[scenes.Scene], list[list[scenes.Question]], list[scenes.Caption]]:
    """Scenes, each with its questions (one of each type that it can answer) and a caption."""
    pool = [scenes.scene(i, stream=stream) for i in range(count)]
    rngs = [np.random.default_rng([7, i]) for i in range(count)]
    questions = [scenes.questions(s, r) for s, r in zip(pool, rngs, strict=True)]
    captions = [scenes.caption(s, r, max_mentions=MENTIONS) for s, r in zip(pool, rngs, strict=True)]
    return pool, questions, captions


def could_caption(caption: scenes.Caption, scene: scenes.Scene) -> bool:
    """Whether `scenes.caption` could have said this of ``scene``: it mentions as much as it can."""
    return len(caption.mentions) == min(MENTIONS, len(scene.things)) and caption.fits(scene)


def retrieval_ceiling(pool: Sequence[scenes.Scene], captions: Sequence[scenes.Caption]) -> float:
    """Expected R@1 of a searcher that understands everything: a caption that n scenes could have is a guess in n."""
    return float(np.mean([1 / sum(could_caption(c, s) for s in pool) for c in captions]))


def _batches(count: int) -> Iterator[slice]:
    for start in range(0, count, BATCH):
        yield slice(start, min(start + BATCH, count))


def compress(model: Fwd2BotModel, images: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [N, K, D] and embeddings [N, E]."""
    parts = [model.compress(images[b]) for b in _batches(len(images))]
    return torch.cat([p.tokens for p in parts]), torch.cat([p.embedding for p in parts])


def answer_accuracy(
    model: Fwd2BotModel, tokens: torch.Tensor, questions: Sequence[Sequence[scenes.Question]]
) -> dict[str, float]:
    """Share of exact answers by question type."""
    flat = sorted(((q, i) for i, qs in enumerate(questions) for q in qs), key=lambda x: len(x[0].text))
    right: dict[str, list[bool]] = defaultdict(list)
    for b in _batches(len(flat)):
        asked = flat[b]
        rows = tokens[[i for _, i in asked]]
        answers = model.generate(rows, [q.text for q, _ in asked], max_new_tokens=6)
        for (q, _), a in zip(asked, answers, strict=True):
            right[q.type].append(a == q.answer)
    return {t: float(np.mean(right[t])) for t in scenes.QUESTION_TYPES if t in right}


def fit_tokens(model: Fwd2BotModel, count: int = FIT_PICTURES) -> torch.Tensor:
    """[count, K, D], of scenes of a stream of their own: a codec is fitted to these where others are scored."""
    images = [scenes.render(scenes.scene(i, stream=FIT_STREAM), size=96) for i in range(count)]
    return compress(model, images)[0].cpu()


def stored(tokens: torch.Tensor, codec_name: str, *, fit: torch.Tensor | None = None) -> torch.Tensor:
    """``tokens`` [N, K, D] as an index with this codec gives them back.

    Args:
        fit: [F, K, D], of the pictures that the codec is fitted to; None: it is an index of the pictures themselves.
    """
    codec = fit_codec(codec_name, (tokens if fit is None else fit).numpy())
    _, k, d = tokens.shape
    return torch.from_numpy(codec.decode(codec.encode(tokens.numpy()), k=k, d=d))


def blind_accuracy(questions: Sequence[Sequence[scenes.Question]]) -> dict[str, float]:
    """What the most frequent answer of each type scores."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for q in (q for qs in questions for q in qs):
        answers[q.type][q.answer] += 1
    return {t: c.most_common(1)[0][1] / c.total() for t, c in answers.items()}


def scene_scores(
    model: Fwd2BotModel,
    control: Fwd2BotModel | None,
    *,
    count: int,
    ks: Sequence[int],
    codecs: Sequence[str] = CODEC_NAMES,
    stream: str = STREAM,
) -> dict[str, Any]:
    pool, questions, captions = held_out(count, stream)
    images = [scenes.render(s, size=96) for s in pool]
    tokens, embeddings = compress(model, images)
    columns = {f"k={k}": answer_accuracy(model, tokens[:, :k], questions) for k in ks}
    fit = fit_tokens(model) if codecs else None
    for name in codecs:
        columns[f"k={tokens.shape[1]}, {name}"] = answer_accuracy(model, stored(tokens, name, fit=fit), questions)
    if control is not None:
        columns["all tokens (control)"] = answer_accuracy(control, compress(control, images)[0], questions)
    columns["blind"] = blind_accuracy(questions)
    counts = Counter(q.type for qs in questions for q in qs)

    scores: dict[str, Any] = {
        "scenes": count,
        "questions": counts.total(),
        "accuracy": {
            name: {"mean of types": float(np.mean(list(by_type.values()))), **by_type}
            for name, by_type in columns.items()
        },
    }
    if control is not None:
        full = scores["accuracy"]["all tokens (control)"]
        for k in ks:
            own = scores["accuracy"][f"k={k}"]
            chance = scores["accuracy"]["blind"]
            scores[f"k={k} over control"] = {
                "accuracy": own["mean of types"] / full["mean of types"],
                "above chance": float(
                    np.mean([above_chance(own[t], chance[t]) for t in counts])
                    / np.mean([above_chance(full[t], chance[t]) for t in counts])
                ),
            }

    scores["text->image"] = retrieval_scores(model, pool, captions, embeddings)
    scores["text->image among swapped twins"] = twin_scores(model, count, stream)
    scores["hard negatives (chance 0.5)"] = hard_negative_scores(model, tokens, embeddings, pool, captions)
    return scores


def retrieval_scores(
    model: Fwd2BotModel, pool: Sequence[scenes.Scene], captions: Sequence[scenes.Caption], embeddings: torch.Tensor
) -> dict[str, float]:
    """Of each scene by its own caption. Where others could have that caption it is luck: see the ceiling."""
    count = len(pool)
    texts = torch.cat([model.embed_text([str(c) for c in captions[b]]) for b in _batches(count)])
    found = ranks((texts @ embeddings.T).numpy(), [[i] for i in range(count)])
    ceiling = retrieval_ceiling(pool, captions)
    return {
        "pool": count,
        "R@1": recall_at(found, 1),
        "R@5": recall_at(found, 5),
        "R@1 ceiling": ceiling,
        "R@1 over ceiling": recall_at(found, 1) / ceiling,
        "R@1 chance": 1 / count,
    }


@dataclass(frozen=True, kw_only=True)
class TwinPool:
    """Scenes, each beside its twins."""

    pool: list[scenes.Scene]
    captions: list[scenes.Caption]
    """One of each."""
    pairs: dict[str, list[tuple[int, int]]]
    """By kind of twin: a scene and its twin of that kind."""


def twin_pool(stream: str, count: int) -> TwinPool:
    """``count`` scenes or a few less, so that every twin is there."""
    found = TwinPool(pool=[], captions=[], pairs={"swap_attribute": [], "swap_relation": []})
    for i in itertools.count():
        scene = scenes.scene(i, stream=stream)
        caption = scenes.caption(scene, np.random.default_rng([7, i]), max_mentions=MENTIONS, relation=1.0)
        false = scenes.hard_negatives(scene, caption, np.random.default_rng([8, i]))
        made = scenes.twins(scene, caption, false)
        first = len(found.pool)
        if first + 1 + len(made) > count:
            return found
        for j, kind in enumerate(made, start=1):
            found.pairs[kind].append((first, first + j))
        found.pool.extend([scene, *made.values()])
        found.captions.extend([caption, *(false[kind] for kind in made)])
    raise AssertionError("there are always more scenes")


def twin_scores(model: Fwd2BotModel, count: int, stream: str = STREAM) -> dict[str, Any]:
    """Retrieval among ``count`` pictures, where scenes stand beside their twins, each with its caption; and how often a
    scene's caption is nearer to its scene than to the twin."""
    twins = twin_pool(stream, count)
    _, embeddings = compress(model, [scenes.render(s, size=96) for s in twins.pool])
    scores: dict[str, Any] = dict(retrieval_scores(model, twins.pool, twins.captions, embeddings))
    for kind, rows in twins.pairs.items():
        own, other = (list(side) for side in zip(*rows, strict=True))
        texts = model.embed_text([str(twins.captions[i]) for i in own])
        nearer = (texts * (embeddings[own] - embeddings[other])).sum(-1) > 0
        scores[f"before its twin by {kind} (chance 0.5)"] = {"cosine": nearer.float().mean().item(), "items": len(own)}
    return scores


def hard_negative_scores(
    model: Fwd2BotModel,
    tokens: torch.Tensor,
    embeddings: torch.Tensor,
    pool: Sequence[scenes.Scene],
    captions: Sequence[scenes.Caption],
) -> dict[str, dict[str, float]]:
    """How often the true caption beats each false one: by cosine, and by log P("yes") - log P("no") of the matching
    question, answered from the summary tokens. Ties count against us."""
    pairs = [
        (kind, i, str(caption), str(false))
        for i, (scene, caption) in enumerate(zip(pool, captions, strict=True))
        for kind, false in scenes.hard_negatives(scene, caption, np.random.default_rng([8, i])).items()
    ]
    wins: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    pairs.sort(key=lambda p: len(p[2]))  # little padding
    for b in _batches(len(pairs)):
        part = pairs[b]
        rows = [i for _, i, _, _ in part]
        cosine, matching = [], []
        for said in ([p[2] for p in part], [p[3] for p in part]):
            cosine.append((model.embed_text(said) * embeddings[rows]).sum(-1))
            matching.append(matching_scores(model, tokens[rows], said))
        for (kind, *_), c, m in zip(part, cosine[0] > cosine[1], matching[0] > matching[1], strict=True):
            wins[kind].append((bool(c), bool(m)))
    return {
        kind: {
            "cosine": float(np.mean([c for c, _ in won])),
            "matching question": float(np.mean([m for _, m in won])),
            "items": len(won),
        }
        for kind, won in sorted(wins.items())
    }


def over_draws(draws: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of figures that all of several results have: their mean, least and greatest, in the same nesting."""
    found: dict[str, Any] = {}
    for name in draws[0]:
        values = [draw[name] for draw in draws if name in draw]
        if len(values) < len(draws):
            continue
        if isinstance(values[0], dict):
            found[name] = over_draws(values)
        else:
            found[name] = {"mean": float(np.mean(values)), "least": min(values), "greatest": max(values)}
    return found


def flickr_scores(model: Fwd2BotModel, path: Path) -> dict[str, Any]:
    """Retrieval on photos with five captions each: the published R@k, both ways."""
    rows = pq.read_table(path).to_pylist()
    _, embeddings = compress(model, [r["image"]["bytes"] for r in rows])
    captions = [(c, i) for i, r in enumerate(rows) for c in r["captions"]]
    texts = torch.cat([model.embed_text([c for c, _ in captions[b]]) for b in _batches(len(captions))])
    similarities = (texts @ embeddings.T).numpy()
    to_image = ranks(similarities, [[i] for _, i in captions])
    of_image: list[list[int]] = [[] for _ in rows]
    for j, (_, i) in enumerate(captions):
        of_image[i].append(j)
    to_text = ranks(similarities.T, of_image)
    return {
        "photos": len(rows),
        "captions": len(captions),
        "text->image": {f"R@{k}": recall_at(to_image, k) for k in (1, 5, 10)},
        "image->text": {f"R@{k}": recall_at(to_text, k) for k in (1, 5, 10)},
        "text->image chance": {f"R@{k}": k / len(rows) for k in (1, 5, 10)},
    }


def visual7w_questions(rows: Sequence[dict[str, Any]]) -> list[tuple[int, str, str]]:
    """Row, question and answer, as the bundled model was trained to write them."""
    return [
        (i, q["question"].lower(), q["options"][q["answer_index"]].lower().rstrip(". "))
        for i, r in enumerate(rows)
        for q in r["qa"]
    ]


def visual7w_scores(model: Fwd2BotModel, path: Path) -> dict[str, Any]:
    """Exact answers to who / when / where questions about photos, from a photo's own summary tokens and from those of
    another photo: what the second has over nothing, the first owes to the question alone."""
    rows = pq.read_table(path).to_pylist()
    tokens, _ = compress(model, [r["image"]["bytes"] for r in rows])
    asked = visual7w_questions(rows)

    def accuracy(shift: int) -> float:
        right = 0
        for b in _batches(len(asked)):
            shown = tokens[[(i + shift) % len(rows) for i, _, _ in asked[b]]]
            answers = model.generate(shown, [q for _, q, _ in asked[b]], max_new_tokens=12)
            right += sum(a == said for a, (_, _, said) in zip(answers, asked[b], strict=True))
        return right / len(asked)

    return {"photos": len(rows), "questions": len(asked), "own photo": accuracy(0), "another photo": accuracy(1)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fwd2bot_eval.default_model", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--control", help="folder of the all-token control, a plain LVLM")
    parser.add_argument("--training-free", help="folder of a plain LVLM to score training-free, as a baseline")
    parser.add_argument("--data", type=Path, help="folder with flickr8k/test.parquet and visual7w/val.parquet")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=1, help="so many different draws of scenes")
    parser.add_argument("--ks", type=int, nargs="+", default=[16, 8, 4])
    parser.add_argument("--json", type=Path, help="write the scores here as well")
    args = parser.parse_args(argv)

    model = Fwd2BotModel.from_pretrained(args.model)
    control = None
    if args.control:
        # training-free with as many pooled tokens as there are image tokens: pooling changes nothing then
        control = Fwd2BotModel.from_pretrained(args.control)
        side = control.base.config.vision_config.image_size // control.base.config.vision_config.patch_size
        control = Fwd2BotModel.from_pretrained(args.control, num_summary_tokens=side * side)
    scores: dict[str, Any] = {"scenes": scene_scores(model, control, count=args.scenes, ks=args.ks)}
    if args.draws > 1:
        others = [
            scene_scores(model, control, count=args.scenes, ks=args.ks, codecs=(), stream=f"{STREAM} {draw}")
            for draw in range(1, args.draws)
        ]
        scores[f"scenes, {args.draws} draws"] = over_draws([scores["scenes"], *others])
    if args.data:
        scores["flickr8k test"] = flickr_scores(model, args.data / "flickr8k" / "test.parquet")
        scores["visual7w val"] = visual7w_scores(model, args.data / "visual7w" / "val.parquet")
    if args.training_free:
        plain = Fwd2BotModel.from_pretrained(args.training_free, num_summary_tokens=max(args.ks))
        baseline = {"scenes": scene_scores(plain, None, count=args.scenes, ks=[max(args.ks)])}
        if args.data:
            baseline["flickr8k test"] = flickr_scores(plain, args.data / "flickr8k" / "test.parquet")
        scores["training-free base"] = baseline
    text = json.dumps(scores, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
