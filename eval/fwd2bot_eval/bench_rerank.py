"""What re-ranking by the second pass is worth, against the cosine alone.

    python -m fwd2bot_eval.bench_rerank --data ../shared/data --json rerank.json

Text->image retrieval among 1,000 drawn scenes, among as many that stand beside their swapped twins, and among the 1,000
photos of Flickr8k's test part: the first ``--candidates`` pictures by cosine of each text are scored again from their
summary tokens, as the default codec gives them back. Then hard negatives of drawn scenes: whether the true caption
beats a false one. Weights are tried on another stream of scenes and on Flickr8k's val part (*tuning*), and the same
ones on what is held out, so that what is chosen by the first is not judged by it.

*Ceiling*: what a searcher scores that understands everything, where several scenes could have a caption, and that has
only these candidates.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import torch

from fwd2bot_eval.default_model import MENTIONS, compress, could_caption, held_out, stored, twin_pool
from fwd2bot_index import scenes
from fwd2bot_index.checkpoints import DEFAULT_MODEL
from fwd2bot_index.config import DEFAULT_CODEC
from fwd2bot_index.reranking import CANDIDATES, Weights, caption_scores, combined, matching_scores

if TYPE_CHECKING:
    from fwd2bot_index.model import Fwd2BotModel
    from fwd2bot_index.payloads import Float32

TRIED = {
    "cosine": Weights(cosine=1, matching=0, caption=0),
    "matching": Weights(cosine=0, matching=1, caption=0),
    "caption": Weights(cosine=0, matching=0, caption=1),
    **{
        f"1 : {m:g} : {c:g}": Weights(cosine=1, matching=m, caption=c)
        for m, c in itertools.product((0, 0.25, 0.5, 1), (0, 0.25, 0.5, 1))
        if m or c
    },
}
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Searches:
    """Pictures, and texts that each look for one of them."""

    images: Sequence[Any]
    texts: Sequence[str]
    right: Sequence[int]
    """The picture of each text."""
    fitting: Sequence[Sequence[int]] | None = None
    """All pictures that each text could be of, where that is known."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Q texts, each with its C best candidates by cosine."""

    rows: Any
    """[Q, C], of the pictures."""
    cosine: Float32
    matching: Float32
    caption: Float32
    """[Q, C] each."""
    right: Sequence[int]
    """[Q]: the picture that each text is of."""

    def recall(self, weights: Weights, k: int) -> float:
        order = np.argsort(-combined(self.cosine, self.matching, self.caption, weights), axis=1, kind="stable")[:, :k]
        return float(self._right(np.take_along_axis(self.rows, order, axis=1)).any(axis=1).mean())

    def ceiling(self, fitting: Sequence[Sequence[int]] | None) -> float:
        """Of R@1: a text that n of its candidates could have is a guess in n."""
        if fitting is None:
            return float(self._right(self.rows).any(axis=1).mean())
        among = [
            1 / len(set(fits) & set(row)) if right in row else 0.0
            for fits, row, right in zip(fitting, self.rows.tolist(), self.right, strict=True)
        ]
        return float(np.mean(among))

    def _right(self, rows: Any) -> Any:
        return rows == np.asarray(self.right)[:, None]


def scored(model: Fwd2BotModel, searches: Searches, candidates: int) -> Scored:
    """Search for each text and score its candidates again."""
    tokens, embeddings = compress(model, searches.images)
    tokens = stored(tokens, DEFAULT_CODEC)
    texts = searches.texts
    queries = torch.cat([model.embed_text(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)])
    best = (queries @ embeddings.T).topk(min(candidates, len(tokens)), dim=1)
    matching, caption = [], []
    with model.merged("generate"):
        for text, rows in zip(texts, best.indices, strict=True):
            matching.append(matching_scores(model, tokens[rows], text))
            caption.append(caption_scores(model, tokens[rows], text))
    return Scored(
        rows=best.indices.numpy(),
        cosine=best.values.numpy(),
        matching=np.stack(matching),
        caption=np.stack(caption),
        right=searches.right,
    )


def scene_searches(stream: str, count: int, queries: int) -> dict[str, Searches]:
    """Of scenes alone, and beside their twins."""
    pool = [scenes.scene(i, stream=stream) for i in range(count)]
    captions = [scenes.caption(s, np.random.default_rng([7, i]), max_mentions=MENTIONS) for i, s in enumerate(pool)]
    twins = twin_pool(stream, count)

    def some(pictures: Sequence[scenes.Scene], captions: Sequence[scenes.Caption]) -> Searches:
        chosen = _spread(len(captions), queries)
        return Searches(
            images=[scenes.render(s, size=96) for s in pictures],
            texts=[str(captions[i]) for i in chosen],
            right=chosen,
            fitting=[[j for j, s in enumerate(pictures) if could_caption(captions[i], s)] for i in chosen],
        )

    return {"scenes": some(pool, captions), "scenes and twins": some(twins.pool, twins.captions)}


def photo_searches(path: Path, queries: int) -> Searches:
    """Photos, and the first caption of some of them."""
    rows = pq.read_table(path).to_pylist()
    chosen = _spread(len(rows), queries)
    return Searches(
        images=[r["image"]["bytes"] for r in rows], texts=[rows[i]["captions"][0] for i in chosen], right=chosen
    )


def _spread(count: int, some: int) -> list[int]:
    chosen: list[int] = np.linspace(0, count - 1, min(some, count)).astype(int).tolist()
    return chosen


def hard_negatives(model: Fwd2BotModel, count: int) -> dict[str, dict[str, float]]:
    """How often the true caption of a scene beats a false one; ties count against it. Sums are of scores that were
    standardised over all pairs."""
    pool, _, captions = held_out(count)
    tokens, embeddings = compress(model, [scenes.render(s, size=96) for s in pool])
    tokens = stored(tokens, DEFAULT_CODEC)
    pairs = [
        (kind, i, str(captions[i]), str(false))
        for i, scene in enumerate(pool)
        for kind, false in scenes.hard_negatives(scene, captions[i], np.random.default_rng([8, i])).items()
    ]
    pairs.sort(key=lambda p: len(p[2]))  # little padding
    scores: list[list[Float32]] = [[], [], []]
    for start in range(0, len(pairs), BATCH):
        part = pairs[start : start + BATCH]
        rows = [i for _, i, _, _ in part]
        for texts in ([p[2] for p in part], [p[3] for p in part]):
            scores[0].append((model.embed_text(texts) * embeddings[rows]).sum(-1).numpy())
            scores[1].append(matching_scores(model, tokens[rows], texts))
            said = model.score_answers(tokens[rows], model.caption_prompt, texts)
            scores[2].append(said.logprob.float().numpy())
    # every other batch is of true captions
    cosine, matching, caption = (np.concatenate([*of[0::2], *of[1::2]]) for of in scores)
    found: dict[str, dict[str, float]] = {}
    kinds = np.array([kind for kind, *_ in pairs])
    for name, weights in TRIED.items():
        total = combined(cosine, matching, caption, weights)
        won = total[: len(pairs)] > total[len(pairs) :]
        for kind in sorted(set(kinds.tolist())):
            found.setdefault(kind, {"items": int((kinds == kind).sum())})[name] = float(won[kinds == kind].mean())
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fwd2bot_eval.bench_rerank",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="the folder that holds flickr8k/val.parquet and test.parquet")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--pool", type=int, default=1000, help="scenes")
    parser.add_argument("--queries", type=int, default=300, help="of each set")
    parser.add_argument("--captions", type=int, default=400, help="of photos held out")
    parser.add_argument("--candidates", type=int, default=CANDIDATES)
    parser.add_argument("--negatives", type=int, default=500, help="scenes with hard negatives")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args(arguments)

    from fwd2bot_index.model import Fwd2BotModel

    model = Fwd2BotModel.from_pretrained(given.model)
    figures: dict[str, Any] = {}
    for part, stream, photos, captions in (
        ("tuning", "val", "val.parquet", given.queries),
        ("held out", "held out", "test.parquet", given.captions),
    ):
        sets = scene_searches(stream, given.pool, given.queries)
        if given.data:
            sets["photos"] = photo_searches(given.data / "flickr8k" / photos, captions)
        figures[part] = report(part, sets, {n: scored(model, s, given.candidates) for n, s in sets.items()})
    figures["hard negatives"] = hard_negatives(model, given.negatives)
    kinds = figures["hard negatives"]
    print("\nhard negatives (chance .5)\n")
    print("| cosine : matching : caption | " + " | ".join(f"{k} ({by['items']})" for k, by in kinds.items()) + " |")
    print("|---" * (len(kinds) + 1) + "|")
    for name in TRIED:
        print(f"| {name} | " + " | ".join(_share(by[name], int(by["items"])) for by in kinds.values()) + " |")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def report(part: str, sets: dict[str, Searches], results: dict[str, Scored]) -> dict[str, dict[str, float]]:
    """Prints a table in Markdown and returns what is in it: R@1 and, of photos, R@10."""
    columns = [(n, k) for n in results for k in ((1, 10) if n == "photos" else (1,))]
    sizes = ", ".join(f"{len(r.right)} texts to {n} ({len(sets[n].images)})" for n, r in results.items())
    depth = max(r.rows.shape[1] for r in results.values())
    print(f"\n{part}: {sizes}; the first {depth} are scored again; chance of R@1 is 1 in the number of pictures\n")
    print("| cosine : matching : caption | " + " | ".join(f"{n} R@{k}" for n, k in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    found: dict[str, dict[str, float]] = {}
    for name, weights in TRIED.items():
        found[name] = {f"{n} R@{k}": results[n].recall(weights, k) for n, k in columns}
        cells = (_share(found[name][f"{n} R@{k}"], len(results[n].right)) for n, k in columns)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    found["ceiling"] = {f"{n} R@{k}": results[n].ceiling(sets[n].fitting) for n, k in columns}
    print("| ceiling | " + " | ".join(f"{value:.3f}" for value in found["ceiling"].values()) + " |", flush=True)
    return found


def _share(value: float, count: int) -> str:
    """With its standard error."""
    return f"{value:.3f} ± {np.sqrt(value * (1 - value) / max(1, count)):.3f}"


if __name__ == "__main__":
    main()
