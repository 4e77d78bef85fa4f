"""The mean of the weights of two checkpoints, one trained on from the other: often better than either, as in WiSE-FT
(arXiv 2109.01903).

    python -m fwd2bot_training.averaging runs/before/model runs/after/model runs/mean/model
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fwd2bot_index.errors import InputError, ModelError

WEIGHTS = "*.safetensors"


def average(before: Path, after: Path, out: Path, *, weight: float = 0.5) -> None:
    """Write a checkpoint whose weights are ``(1 - weight) * before + weight * after``, in float32, stored as ``after``
    is; all that is no weights is that of ``after``.

    Raises:
        InputError: a folder has no weights, or ``out`` exists.
        ModelError: they have not the same weights by name and shape.
    """
    files = [sorted(path.relative_to(folder) for path in folder.rglob(WEIGHTS)) for folder in (before, after)]
    for folder, found in zip((before, after), files, strict=True):
        if not found:
            raise InputError(f"{folder} holds no weights (*.safetensors).")
    if out.exists():
        raise InputError(f"{out} exists already: give a new folder.")
    if files[0] != files[1]:
        raise ModelError(f"{before} and {after} do not hold the same files of weights.")
    means = {}
    for name in files[0]:
        old, new = load_file(before / name), load_file(after / name)
        if {key: value.shape for key, value in old.items()} != {key: value.shape for key, value in new.items()}:
            raise ModelError(f"{before / name} and {after / name} do not hold the same weights.")
        means[name] = {key: torch.lerp(old[key].float(), new[key].float(), weight).to(new[key].dtype) for key in new}
    shutil.copytree(after, out, ignore=shutil.ignore_patterns(WEIGHTS))
    for name, tensors in means.items():
        with safe_open(after / name, "pt") as file:
            metadata = file.metadata()
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, out / name, metadata=metadata)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weight", type=float, default=0.5, help="of AFTER; default 0.5")
    options = parser.parse_args(arguments)
    average(options.before, options.after, options.out, weight=options.weight)


if __name__ == "__main__":
    main()
