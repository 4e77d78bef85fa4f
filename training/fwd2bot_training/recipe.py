"""What the two recipes have in common on the command line: the data, the schedule, and how a run is started."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from fwd2bot_training.data import DATASETS, Mixture
from fwd2bot_training.trainer import TrainConfig, Trainer

MIXTURE = {
    "scenes": 0.68,
    "flickr8k": 0.20,
    "visual7w": 0.03,
    "easy_vqa": 0.04,
    "cifar100": 0.03,
    "shapes": 0.01,
    "daquar": 0.01,
}


def add_arguments(parser: argparse.ArgumentParser, *, lr: float, decay: float, seed: int) -> None:
    """The shared arguments; ``lr``, ``decay`` and ``seed`` are the recipe's own defaults."""
    parser.add_argument("--data", type=Path, help="folder with flickr8k/, visual7w/, ... (scenes need none)")
    parser.add_argument(
        "--mixture",
        nargs="+",
        type=_source_and_weight,
        metavar="SOURCE=WEIGHT",
        help=f"what batches are drawn from; known: scenes, {', '.join(DATASETS)}",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the log, the state and the model")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument(
        "--optimizer",
        choices=["adamw", "muon"],
        default=TrainConfig.optimizer,
        help="what steps the matrices of the layers",
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16"],
        default=TrainConfig.precision,
        help="bfloat16 where `lscpu` shows avx512_bf16 or amx_bf16: twice as fast there, very slow elsewhere",
    )
    parser.add_argument("--decay", type=float, default=decay, help="share of the steps with a falling learning rate")
    parser.add_argument("--curriculum-steps", type=int, default=0, help="scenes grow from one object to six over these")
    parser.add_argument("--contrastive-weight", type=float, default=0.2)
    parser.add_argument("--loader-workers", type=int, default=1, help="processes that draw batches; 0: none")
    parser.add_argument("--seed", type=int, default=seed)


def _source_and_weight(text: str) -> tuple[str, float]:
    name, equals, weight = text.partition("=")
    try:
        return name, float(weight)
    except ValueError:
        missing = "no weight" if not equals else f"the weight {weight!r}"
        raise argparse.ArgumentTypeError(f"{name!r} has {missing}; write it as {name}=0.5") from None


def mixture_of(args: argparse.Namespace, *, usual: Mapping[str, float], image_size: int) -> Mixture:
    """The sources of ``--mixture``, or the ``usual`` ones."""
    return Mixture.from_weights(
        dict(args.mixture or usual),
        data=args.data,
        image_size=image_size,
        seed=args.seed,
        batch_size=args.batch_size,
        curriculum_steps=args.curriculum_steps,
    )


def config_of(args: argparse.Namespace) -> TrainConfig:
    return TrainConfig(
        steps=args.steps,
        lr=args.lr,
        optimizer=args.optimizer,
        precision=args.precision,
        decay=args.decay,
        loader_workers=args.loader_workers,
    )


def run(trainer: Trainer) -> int:
    """Resume where there is something to resume from, train, export; the exit code."""
    if trainer.resume():
        print(f"resumed at step {trainer.step}", file=sys.stderr)
    trainer.run()
    return 0
