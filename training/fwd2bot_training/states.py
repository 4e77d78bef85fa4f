"""What a killed run resumes from: ``state-<step>/``, of which the last few are kept.

Weights that train and their moments as safetensors, and ``progress.json``. Batches and random numbers are functions of
(seed, step, process), so nothing else is needed to go on exactly; nothing is pickled. A state is written whole under
another name and renamed into place, and older ones go only after that: a kill at any moment leaves one to resume from.
One that cannot be read all the same (a full disk, a lost write) is passed over for the one before it.

Sharded parameters are stored whole: a run can go on with another number of processes, and with or without shards. Its
processes must see the same folder.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fwd2bot_index.errors import InputError
from fwd2bot_training.config import TrainConfig
from fwd2bot_training.distributed import fill, whole
from fwd2bot_training.muon import FullPrecisionMuon
from fwd2bot_training.stepping import Stepper

_PREFIX = "state-"
_MOMENTS: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.Muon: ("momentum_buffer",),
    FullPrecisionMuon: ("momentum_buffer",),
}
_FIXED = ("seed", "optimizer", "batch_size")
"""Settings that a resumed run may not change: it would be neither the one run nor the other."""


@dataclass(frozen=True)
class Progress:
    """Where a run is."""

    step: int
    """Steps done."""
    pending: dict[str, Any]
    """What has been summed since the last line of the log (`watching.Watch.pending`)."""


@dataclass(frozen=True)
class _State:
    folder: Path
    progress: Progress
    config: dict[str, Any]
    weights: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]


def save(folder: Path, step: int, stepper: Stepper, *, pending: Mapping[str, Any] | None = None) -> None:
    """Write the state after ``step`` steps, then delete all but the last ``train.keep``. A collective: it returns when
    the state is in place."""
    processes, train = stepper.parallel.processes, stepper.train
    moments = {
        f"{key}/{n}": optimizer.state[p][key]
        for n, p in stepper.named.items()
        for optimizer in stepper.optimizers
        if p in optimizer.state
        for key in _MOMENTS[type(optimizer)]
    }
    kept = [_gathered(tensors, keep=processes.rank == 0) for tensors in (stepper.named, moments)]
    if processes.rank == 0:
        _write(folder, Progress(step, dict(pending or {})), train, *kept)
    processes.gather(None)


def resume(folder: Path, stepper: Stepper) -> Progress | None:
    """Load the newest state that can be read; None where there is no state.

    Raises:
        InputError: it is of another run, or no state can be read.
    """
    processes = stepper.parallel.processes
    state = _newest(folder, aloud=processes.rank == 0)
    steps = processes.gather(state.progress.step if state else None)
    if len(set(steps)) > 1:
        raise InputError(
            f"The processes see different states in {folder}: it must be on a disk that all of them share."
        )
    if state is None:
        return None
    _check(state, stepper)
    for n, p in stepper.named.items():
        fill(p.detach(), state.weights[n])
    names = {p: n for n, p in stepper.named.items()}
    for optimizer in stepper.optimizers:
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            keys = _MOMENTS[type(optimizer)]
            found = {k: state.moments[key] for k in keys if (key := f"{k}/{names[p]}") in state.moments}
            # a parameter that has had no gradient yet has no moments
            if found:
                optimizer.state[p] = {
                    k: fill(torch.empty_like(p), m) if m.shape == p.shape and k != "step" else m.to(p.device)
                    for k, m in found.items()
                }
    return state.progress


def _check(state: _State, stepper: Stepper) -> None:
    now = asdict(stepper.train)
    for name in _FIXED:
        if (before := state.config[name]) != now[name]:
            raise InputError(
                f"{state.folder} was trained with train.{name} = {before!r}, not {now[name]!r}: set it back, or train "
                "into another folder."
            )
    there = {n: tuple(w.shape) for n, w in state.weights.items()}
    here = {n: tuple(p.shape) for n, p in stepper.named.items()}
    if there != here:
        name = min(n for n in there.keys() | here.keys() if there.get(n) != here.get(n))
        raise InputError(
            f"{state.folder} holds other parameters than this recipe trains, the first {name}: "
            f"{there.get(name, 'none')} there, {here.get(name, 'none')} here (another model, num_tokens or adapters?). "
            "Train into another folder."
        )


def _gathered(tensors: Mapping[str, torch.Tensor], *, keep: bool) -> dict[str, torch.Tensor]:
    gathered = {}
    for name, tensor in tensors.items():
        values = whole(tensor)  # also where it is not kept: a collective
        if keep:
            gathered[name] = values.cpu().contiguous()
    return gathered


def _write(
    folder: Path,
    progress: Progress,
    train: TrainConfig,
    weights: dict[str, torch.Tensor],
    moments: dict[str, torch.Tensor],
) -> None:
    step = progress.step
    fresh, state = folder / "state.new", folder / f"{_PREFIX}{step}"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file(weights, fresh / "weights.safetensors")
    save_file(moments, fresh / "moments.safetensors")
    (fresh / "progress.json").write_text(json.dumps({**asdict(progress), "config": asdict(train)}))
    for path in fresh.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    # One of this step is there only if it could not be read. Later ones are no part of what this run went on from.
    shutil.rmtree(state, ignore_errors=True)
    os.replace(fresh, state)
    states = _states(folder)
    later = [s for s in states if _step(s) > step]
    for old in later + states[len(later) + train.keep :]:
        shutil.rmtree(old)


def _step(state: Path) -> int:
    return int(state.name.removeprefix(_PREFIX))


def _states(folder: Path) -> list[Path]:
    """Newest first."""
    found = [s for s in folder.glob(f"{_PREFIX}*") if s.name.removeprefix(_PREFIX).isdecimal()]
    return sorted(found, key=_step, reverse=True)


def _newest(folder: Path, *, aloud: bool) -> _State | None:
    states = _states(folder)
    for state in states:
        try:
            progress = json.loads((state / "progress.json").read_text())
            return _State(
                folder=state,
                progress=Progress(progress["step"], progress["pending"]),
                config=progress["config"],
                weights=load_file(state / "weights.safetensors"),
                moments=load_file(state / "moments.safetensors"),
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as e:
            if aloud:
                print(f"{state} cannot be read ({e}): going back to the state before it.", file=sys.stderr)
    if states:
        raise InputError(f"No state in {folder} can be read: delete its state- folders to start from the beginning.")
    return None
