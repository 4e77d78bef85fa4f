"""What the image tokens of a small LLaVA say of the objects under them, before any LLM reads them.

    python -m fwd2bot_eval.probe runs/vision/model

A linear classifier is fitted to the averages of the image tokens under each object of 768 scenes (three quarters of the
objects to fit, the rest to score). What a linear probe cannot read here, training the LLM on top will hardly find.
"""

from __future__ import annotations

import argparse
import math
import sys

import torch
import torch.nn.functional as F

from fwd2bot_index import scenes
from fwd2bot_index.model import Fwd2BotModel

ATTRIBUTES = ("color", "shape", "size", "place")
STREAM = "probe"
BATCH = 64


def image_tokens(model: Fwd2BotModel, pool: list[scenes.Scene]) -> torch.Tensor:
    """[B, N, D]: all image tokens as they enter the LLM, of scenes drawn at the vision tower's own size."""
    size = model.base.config.vision_config.image_size
    return torch.cat(
        [
            model.compress([scenes.render(s, size=size) for s in pool[i : i + BATCH]]).tokens
            for i in range(0, len(pool), BATCH)
        ]
    )


def object_features(tokens: torch.Tensor, pool: list[scenes.Scene]) -> torch.Tensor:
    """[objects, D]: the mean of the tokens (on a square grid) whose cells an object's box reaches into."""
    side = math.isqrt(tokens.shape[1])
    centres, half = (torch.arange(side) + 0.5) / side, 0.5 / side
    rows = []
    for row, scene in zip(tokens, pool, strict=True):
        for t in scene.things:
            across, down = ((centres - at).abs() < t.radius + half for at in (t.x, t.y))
            rows.append(row[(down[:, None] & across).flatten()].mean(0))
    return torch.stack(rows)


def probe(features: torch.Tensor, labels: list[str]) -> float:
    """Held-out accuracy of a logistic regression; [objects, D] standardised, the last quarter is held out."""
    names = sorted(set(labels))
    target = torch.tensor([names.index(label) for label in labels])
    fit = len(features) * 3 // 4
    mean, std = features[:fit].mean(0), features[:fit].std(0).clamp(min=1e-6)
    inputs = F.pad((features - mean) / std, (0, 1), value=1.0)
    weights = torch.zeros(inputs.shape[1], len(names), requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=60)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(inputs[:fit] @ weights, target[:fit]) + 1e-3 * weights.pow(2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return float(((inputs[fit:] @ weights.detach()).argmax(1) == target[fit:]).float().mean())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fwd2bot_eval.probe", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a small LLaVA: a phase of the recipe mini")
    parser.add_argument("--scenes", type=int, default=768)
    args = parser.parse_args(argv)
    pool = [scenes.scene(i, stream=STREAM) for i in range(args.scenes)]
    vision = Fwd2BotModel.from_pretrained(args.model).base.config.vision_config
    # as many pooled tokens as there are image tokens: pooling changes nothing then
    model = Fwd2BotModel.from_pretrained(args.model, num_summary_tokens=(vision.image_size // vision.patch_size) ** 2)
    features = object_features(image_tokens(model, pool), pool)
    print(f"{len(features)} objects")
    for attribute in ATTRIBUTES:
        labels = [getattr(t, attribute) for s in pool for t in s.things]
        print(f"{attribute:6} {probe(features, labels):.3f}  chance {1 / len(set(labels)):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
