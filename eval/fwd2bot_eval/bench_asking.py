"""How far the bundled model's confidence can be trusted, and whether it can read several pictures in one context.

    python -m fwd2bot_eval.bench_asking --json asking.json

*Confidence*: questions about held-out drawn scenes, and Visual7W val with ``--data``, answered freely from summary
tokens: the share of right answers among those of like confidence, and the expected calibration error (arXiv 1706.04599,
ten bins of equal width).

*Together*: "is there a red circle?" about M scenes, asked in one context, and of each scene with the highest share of
"yes" taken. Half of the groups have one scene with such an object, the others none, so that chance is .5; and, where
there is one, how often it is the picture with the largest weight (chance 1 / M).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from fwd2bot_eval.default_model import compress, held_out, visual7w_questions
from fwd2bot_index import scenes
from fwd2bot_index.checkpoints import DEFAULT_MODEL

if TYPE_CHECKING:
    import torch

    from fwd2bot_index.model import Fwd2BotModel

BINS = 10
BATCH = 64


def calibration(confidence: Sequence[float], right: Sequence[bool]) -> dict[str, Any]:
    """By bin of confidence: items, mean confidence, share right; and the expected calibration error."""
    said, was = np.asarray(confidence, float), np.asarray(right, float)
    places = np.minimum((said * BINS).astype(int), BINS - 1)
    bins = [
        {
            "from": b / BINS,
            "items": int((places == b).sum()),
            "confidence": float(said[places == b].mean()),
            "right": float(was[places == b].mean()),
        }
        for b in range(BINS)
        if (places == b).any()
    ]
    error = sum(b["items"] * abs(b["confidence"] - b["right"]) for b in bins) / max(1, len(said))
    return {"items": len(said), "right": float(was.mean()), "error": float(error), "bins": bins}


def scene_calibration(model: Fwd2BotModel, count: int) -> dict[str, Any]:
    """Of all questions about so many scenes."""
    pool, questions, _ = held_out(count)
    tokens, _ = compress(model, [scenes.render(s, size=96) for s in pool])
    asked = [(i, q.text, q.answer) for i, qs in enumerate(questions) for q in qs]
    return _calibration(model, tokens, asked, max_new_tokens=6)


def photo_calibration(model: Fwd2BotModel, path: Path) -> dict[str, Any]:
    """Of the questions of Visual7W about photos."""
    rows = pq.read_table(path).to_pylist()
    tokens, _ = compress(model, [r["image"]["bytes"] for r in rows])
    asked = visual7w_questions(rows)
    return _calibration(model, tokens, asked, max_new_tokens=12)


def _calibration(
    model: Fwd2BotModel, tokens: torch.Tensor, asked: list[tuple[int, str, str]], *, max_new_tokens: int
) -> dict[str, Any]:
    asked = sorted(asked, key=lambda a: len(a[1]))  # little padding
    confidence: list[float] = []
    right: list[bool] = []
    with model.merged("generate"):
        for start in range(0, len(asked), BATCH):
            part = asked[start : start + BATCH]
            said = model.answer(tokens[[i for i, _, _ in part]], [q for _, q, _ in part], max_new_tokens=max_new_tokens)
            confidence += said.logprob.exp().tolist()
            right += [text == answer for text, (_, _, answer) in zip(said.texts, part, strict=True)]
    return calibration(confidence, right)


def together(model: Fwd2BotModel, *, sizes: Sequence[int], groups: int) -> dict[str, dict[str, float]]:
    """See above, for each number of pictures M."""
    pool = [scenes.scene(i, stream="held out") for i in range(400)]
    tokens, _ = compress(model, [scenes.render(s, size=96) for s in pool])
    found = {}
    for m in sizes:
        rng = np.random.default_rng([m])
        in_one, one_by_one, heaviest = [], [], []
        for g in range(groups):
            color, shape = str(rng.choice(list(scenes.COLORS))), str(rng.choice(scenes.SHAPES))
            has = np.array([any((t.color, t.shape) == (color, shape) for t in s.things) for s in pool])
            chosen = rng.choice(np.flatnonzero(~has), m, replace=False)
            right = int(rng.integers(m))
            if g % 2:
                chosen[right] = rng.choice(np.flatnonzero(has))
            question = f"is there {scenes.a_or_an(f'{color} {shape}')}?"
            shown = tokens[chosen]
            said = model.answer_together(shown, question, max_new_tokens=6).texts[0]
            in_one.append(said == ("yes" if g % 2 else "no"))
            shares = model.loglikelihood(shown, question, ["yes", "no"]).softmax(dim=1)[:, 0]
            one_by_one.append(bool((shares.max() > 0.5).item() == bool(g % 2)))
            if g % 2:
                heaviest.append(int(model.weigh_together(shown, question, "yes").argmax()) == right)
        found[str(m)] = {
            "groups": groups,
            "in one context": float(np.mean(in_one)),
            "one by one": float(np.mean(one_by_one)),
            "right picture heaviest": float(np.mean(heaviest)),
            "chance of that": 1 / m,
        }
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fwd2bot_eval.bench_asking",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--data", type=Path, help="the folder that holds visual7w/val.parquet")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--groups", type=int, default=200, help="of pictures that are asked about together")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args(arguments)

    from fwd2bot_index.model import Fwd2BotModel

    model = Fwd2BotModel.from_pretrained(given.model)
    figures: dict[str, Any] = {"scenes": scene_calibration(model, given.scenes)}
    if given.data:
        figures["visual7w val"] = photo_calibration(model, given.data / "visual7w" / "val.parquet")
    for name, one in figures.items():
        print(f"{name}: {one['items']} questions, {one['right']:.3f} right, calibration error {one['error']:.3f}")
        print("| confidence | items | mean | right |\n|---|---|---|---|")
        for b in one["bins"]:
            print(f"| from {b['from']:.1f} | {b['items']} | {b['confidence']:.3f} | {b['right']:.3f} |")
        print()
    figures["together"] = together(model, sizes=given.sizes, groups=given.groups)
    print("| pictures | groups | right in one context | one by one | right picture heaviest | chance of that |")
    print("|---|---|---|---|---|---|")
    for m, by in figures["together"].items():
        print(f"| {m} | " + " | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in by.values()) + " |")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
