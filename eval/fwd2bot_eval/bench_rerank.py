"""What re-ranking by the second pass is worth, against the cosine alone.

    python -m fwd2bot_eval.bench_rerank --data ../shared/data --json rerank.json

Text->image retrieval among 1,000 drawn scenes, among as many that stand beside their swapped twins, and among the 1,000
photos of Flickr8k's test part: ``--queries`` texts of each, whose first ``--candidates`` pictures by cosine are scored
again from their summary tokens in float32. Then hard negatives of drawn scenes. Weights are tried on another stream of
scenes and on Flickr8k's val part (*tuning*), and the same ones on what is held out, so that what is chosen by the first
is not judged by it.
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

from fwd2bot_eval.default_model import MENTIONS, compress, held_out
from fwd2bot_index import scenes
from fwd2bot_index.checkpoints import DEFAULT_MODEL
from fwd2bot_index.reranking import Weights, caption_scores, combined, matching_scores

if TYPE_CHECKING:
    from fwd2bot_index.model import Fwd2BotModel
    from fwd2bot_index.payloads import Float32

TRIED = {
    "cosine": Weights(cosine=1, matching=0, caption=0),
    "matching": Weights(cosine=0, matching=1, caption=0),
    "caption": Weights(cosine=0, matching=0, caption=1),
    **{
        f"1 : {m:g} : {c:g}": Weights(cosine=1, matching=m, caption=c)
        for m, c in itertools.product((0, 0.5, 1, 2), (0, 0.5, 1, 2))
        if m or c
    },
}


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Queries [Q], each with its C best candidates by cosine."""

    rows: Any
    """[Q, C], of the pool."""
    cosine: Float32
    matching: Float32
    caption: Float32
    """[Q, C] each."""
    right: Sequence[int]
    """[Q]: the row that each query is of."""

    def recall(self, weights: Weights, k: int) -> float:
        order = np.argsort(-combined(self.cosine, self.matching, self.caption, weights), axis=1, kind="stable")[:, :k]
        found = np.take_along_axis(self.rows, order, axis=1)
        return float((found == np.asarray(self.right)[:, None]).any(axis=1).mean())


def scored(
    model: Fwd2BotModel, images: Sequence[Any], texts: Sequence[str], right: Sequence[int], candidates: int
) -> Scored:
    """Search for each text and score its candidates again."""
    tokens, embeddings = compress(model, images)
    queries = model.embed_text(list(texts)) if texts else embeddings[:0]
    cosines = queries @ embeddings.T
    best = cosines.topk(min(candidates, len(images)), dim=1)
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
        right=right,
    )


def scene_sets(stream: str, count: int, queries: int) -> dict[str, tuple[list[Any], list[str], list[int]]]:
    """Pictures, texts, and the picture of each text: of scenes alone, and beside their twins."""
    pool = [scenes.scene(i, stream=stream) for i in range(count)]
    captions = [
        str(scenes.caption(s, np.random.default_rng([7, i]), max_mentions=MENTIONS)) for i, s in enumerate(pool)
    ]
    beside: list[scenes.Scene] = []
    said: list[str] = []
    for i in itertools.count():
        scene = scenes.scene(i, stream=stream)
        caption = scenes.caption(scene, np.random.default_rng([7, i]), max_mentions=MENTIONS, relation=1.0)
        false = scenes.hard_negatives(scene, caption, np.random.default_rng([8, i]))
        made = scenes.twins(scene, caption, false)
        if len(beside) + 1 + len(made) > count:
            break
        beside += [scene, *made.values()]
        said += [str(caption), *(str(false[kind]) for kind in made)]

    def some(pictures: list[scenes.Scene], texts: list[str]) -> tuple[list[Any], list[str], list[int]]:
        chosen = np.linspace(0, len(texts) - 1, min(queries, len(texts))).astype(int).tolist()
        return [scenes.render(s, size=96) for s in pictures], [texts[i] for i in chosen], chosen

    return {"scenes": some(pool, captions), "scenes and twins": some(beside, said)}


def photo_set(path: Path, queries: int) -> tuple[list[Any], list[str], list[int]]:
    """Photos, one caption each of some of them, and their rows."""
    rows = pq.read_table(path).to_pylist()
    chosen = np.linspace(0, len(rows) - 1, min(queries, len(rows))).astype(int).tolist()
    return [r["image"]["bytes"] for r in rows], [rows[i]["captions"][0] for i in chosen], chosen


def hard_negatives(model: Fwd2BotModel, count: int) -> dict[str, dict[str, float]]:
    """How often the true caption of a scene beats a false one, by each score as it is; ties count against it."""
    pool, _, captions = held_out(count)
    tokens, embeddings = compress(model, [scenes.render(s, size=96) for s in pool])
    pairs = [
        (kind, i, str(captions[i]), str(false))
        for i, scene in enumerate(pool)
        for kind, false in scenes.hard_negatives(scene, captions[i], np.random.default_rng([8, i])).items()
    ]
    own = embeddings[[i for _, i, _, _ in pairs]]
    true_ones, false_ones = (model.embed_text(list(texts)) for texts in list(zip(*pairs, strict=True))[2:])
    won = {"cosine": ((true_ones - false_ones) * own).sum(-1).gt(0).tolist(), "matching": [], "caption": []}
    with model.merged("generate"):
        for _, i, true, false in pairs:
            for name, score in (("matching", matching_scores), ("caption", caption_scores)):
                one, other = (float(score(model, tokens[i : i + 1], text)[0]) for text in (true, false))
                won[name].append(one > other)
    found: dict[str, dict[str, float]] = {}
    for kind in sorted({kind for kind, *_ in pairs}):
        of_kind = [n for n, pair in enumerate(pairs) if pair[0] == kind]
        found[kind] = {"items": len(of_kind), **{n: float(np.mean([w[j] for j in of_kind])) for n, w in won.items()}}
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
    parser.add_argument("--queries", type=int, default=200, help="of each set")
    parser.add_argument("--candidates", type=int, default=50)
    parser.add_argument("--negatives", type=int, default=300, help="scenes with hard negatives")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args(arguments)

    from fwd2bot_index.model import Fwd2BotModel

    model = Fwd2BotModel.from_pretrained(given.model)
    figures: dict[str, Any] = {}
    for part, stream, photos in (("tuning", "val", "val.parquet"), ("held out", "held out", "test.parquet")):
        sets = scene_sets(stream, given.pool, given.queries)
        if given.data:
            sets["photos"] = photo_set(given.data / "flickr8k" / photos, given.queries)
        results = {name: scored(model, *one, given.candidates) for name, one in sets.items()}
        depth = {name: 10 if name == "photos" else 1 for name in results}
        sizes = ", ".join(f"{len(r.right)} {name} of {len(sets[name][0])}" for name, r in results.items())
        print(f"\n{part}: {sizes}; the first {given.candidates} are scored again\n")
        print("| cosine : matching : caption | " + " | ".join(f"{n} R@{depth[n]}" for n in results) + " | mean |")
        print("|---" * (len(results) + 2) + "|")
        figures[part] = {}
        for name, weights in TRIED.items():
            recalls = {n: r.recall(weights, depth[n]) for n, r in results.items()}
            figures[part][name] = recalls
            cells = " | ".join(f"{value:.3f}" for value in recalls.values())
            print(f"| {name} | {cells} | {np.mean(list(recalls.values())):.3f} |", flush=True)
    figures["hard negatives"] = hard_negatives(model, given.negatives)
    print("\n| hard negatives (chance .5) | items | cosine | matching | caption |\n|---|---|---|---|---|")
    for kind, by in figures["hard negatives"].items():
        print(f"| {kind} | {by['items']} | {by['cosine']:.3f} | {by['matching']:.3f} | {by['caption']:.3f} |")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
