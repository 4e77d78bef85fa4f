"""The loop: batches in, optimiser steps out; a progress line, a log, checkpoints that a killed run resumes from.

Notable choices:
- batch ``step`` is a pure function of the seed (`data.Mixture`), so a checkpoint is weights + moments + step;
- checkpoints are safetensors in a folder that is renamed into place: a kill leaves the last whole one;
- warm-up, constant, linear decay to zero over the last part: a run can be lengthened or shortened when it is resumed,
  as long as its decay has not begun;
- hidden matrices may be stepped by Muon (Jordan et al. 2024), everything else by AdamW: fewer steps for a model from
  scratch (training/LOG.md);
- with ``bfloat16`` the forward runs under autocast; weights, gradients and moments stay float32;
- a loss that is not finite stops the run before the optimiser step, and names the batch.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset

from fwd2bot_index.errors import Fwd2BotError, InputError
from fwd2bot_training.data import Mixture
from fwd2bot_training.objectives import Batch, CompressObjective, PretrainObjective, StepLosses, collate


class TrainingDivergedError(Fwd2BotError):
    """The loss or a gradient is not finite; the weights are those before the step."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    steps: int
    lr: float = 1e-3
    warmup: int = 100
    decay: float = 0.3
    """Share of the steps, at the end, over which the learning rate falls to zero."""
    weight_decay: float = 0.05
    clip: float = 1.0
    optimizer: Literal["adamw", "muon"] = "muon"
    """What steps the matrices of the layers; everything else is AdamW's."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is twice as fast on a CPU with avx512_bf16 or AMX, and a hundred times slower on one without."""
    save_minutes: float = 5.0
    log_every: int = 20
    loader_workers: int = 1
    """Processes that draw and collate batches; 0: the training process itself."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"--steps must be at least 1, not {self.steps}.")
        if self.loader_workers < 0:
            raise InputError(f"--loader-workers must not be negative, but is {self.loader_workers}.")
        if not 0 <= self.decay <= 1:
            raise InputError(f"--decay must be between 0 and 1, not {self.decay}.")

    def lr_at(self, step: int) -> float:
        """Learning rate of ``step``, counted from 0."""
        rising = (step + 1) / max(self.warmup, 1)
        falling = (self.steps - step) / max(self.decay * self.steps, 1)
        return self.lr * min(1.0, rising, falling)


class _Batches(Dataset[Batch]):
    """Collates in the loader's process; the index is the step."""

    def __init__(self, mixture: Mixture, tokenizer: Any, probes: tuple[str, ...]) -> None:
        self.mixture, self.tokenizer, self.probes = mixture, tokenizer, probes

    def __getitem__(self, step: int) -> Batch:
        source, examples = self.mixture.batch(step)
        return collate(step, source, examples, self.tokenizer, probes=self.probes)


class Trainer:
    """Runs an objective over a mixture.

    Args:
        objective: its trainable parameters are those with ``requires_grad``; nothing else moves.
        folder: takes ``log.jsonl``, ``state/`` (to resume from) and whatever ``export`` writes.
        export: called with the objective at the end, to write the model in its own format.
        group_lr: factor on the learning rate of a parameter, by name; 1 where it says nothing.
    """

    def __init__(
        self,
        objective: PretrainObjective | CompressObjective,
        mixture: Mixture,
        config: TrainConfig,
        folder: Path,
        *,
        export: Callable[[], None],
        group_lr: Callable[[str], float] = lambda _: 1.0,
    ) -> None:
        self.objective, self.mixture, self.config, self.folder, self.export = objective, mixture, config, folder, export
        self.named = {n: p for n, p in objective.named_parameters() if p.requires_grad}
        self.optimizers = _make_optimizers(self.named, config, group_lr)
        self.step = 0

    # --- checkpoints

    def save(self) -> None:
        """Weights, moments and step, atomically: the old state is replaced by a rename."""
        fresh = self.folder / "state.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        save_file({n: p.detach().contiguous() for n, p in self.named.items()}, fresh / "weights.safetensors")
        moments = {
            f"{key}/{n}": moment
            for n, p in self.named.items()
            for optimizer in self.optimizers
            if p in optimizer.state
            for key, moment in optimizer.state[p].items()
        }
        save_file({n: t.contiguous() for n, t in moments.items()}, fresh / "moments.safetensors")
        progress = {"step": self.step, "seed": self.mixture.seed, "config": asdict(self.config)}
        (fresh / "progress.json").write_text(json.dumps(progress))
        old, state = self.folder / "state.old", self.folder / "state"
        shutil.rmtree(old, ignore_errors=True)
        if state.exists():
            os.replace(state, old)
        os.replace(fresh, state)
        shutil.rmtree(old, ignore_errors=True)

    def resume(self) -> bool:
        """Continue from ``state/`` where there is one (or from ``state.old``, if a kill fell between two renames)."""
        state = next((s for s in (self.folder / "state", self.folder / "state.old") if s.exists()), None)
        if state is None:
            return False
        progress = json.loads((state / "progress.json").read_text())
        if progress["seed"] != self.mixture.seed:
            raise InputError(f"{state} was trained with --seed {progress['seed']}, not {self.mixture.seed}.")
        if (before := progress["config"]["optimizer"]) != self.config.optimizer:
            raise InputError(f"{state} was trained with --optimizer {before}, not {self.config.optimizer}.")
        weights = load_file(state / "weights.safetensors")
        if set(weights) != set(self.named):
            raise InputError(f"{state} holds other parameters than this recipe trains; use another --out folder.")
        moments = load_file(state / "moments.safetensors")
        with torch.no_grad():
            for n, p in self.named.items():
                p.copy_(weights[n])
        names = {p: n for n, p in self.named.items()}
        for optimizer in self.optimizers:
            for p in (p for group in optimizer.param_groups for p in group["params"]):
                found = {k: moments[key] for k in _MOMENTS[type(optimizer)] if (key := f"{k}/{names[p]}") in moments}
                if found:  # a parameter that has had no gradient yet has no moments
                    optimizer.state[p] = found
        self.step = progress["step"]
        return True

    # --- the loop

    def run(self) -> None:
        """Train to ``config.steps``, then export. Ctrl-C and SIGTERM save and leave by KeyboardInterrupt."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.objective.train()
        # A scheduler's SIGTERM, and a Ctrl-C that nohup would have ignored, save as well.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        saved = time.monotonic()
        line = _ProgressLine(self.config.steps, self.mixture.batch_size)
        try:
            for batch in self._batches():
                losses = self.train_step(batch)
                line.update(self.step, batch.source, losses.parts)
                if self.step % self.config.log_every == 0:
                    with (self.folder / "log.jsonl").open("a") as log:
                        log.write(json.dumps({"step": self.step, **line.averages()}) + "\n")
                if time.monotonic() - saved > 60 * self.config.save_minutes:
                    self.save()
                    saved = time.monotonic()
        finally:
            line.close()
            self.save()
        self.export()

    def _batches(self) -> Iterator[Batch]:
        steps = range(self.step, self.config.steps)
        data = _Batches(self.mixture, self.objective.tokenizer, self.objective.probes)
        if self.config.loader_workers:
            # not forked: neither torch's threads nor lance survive that
            several: dict[str, Any] = {"multiprocessing_context": "spawn", "prefetch_factor": 4}
        else:
            several = {}
        loader = DataLoader(
            data,
            batch_size=None,
            sampler=steps,
            num_workers=self.config.loader_workers,
            **several,
        )
        yield from loader

    def train_step(self, batch: Batch) -> StepLosses:
        """One optimiser step.

        Raises:
            TrainingDivergedError: the loss or the gradient is not finite; nothing was changed.
        """
        for group in (g for optimizer in self.optimizers for g in optimizer.param_groups):
            group["lr"] = self.config.lr_at(self.step) * group["factor"]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            losses: StepLosses = self.objective(batch)
        self.objective.zero_grad(set_to_none=True)
        losses.total.backward()
        loss = losses.total.item()
        norm = torch.nn.utils.clip_grad_norm_(self.named.values(), self.config.clip).item()
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise TrainingDivergedError(
                f"Step {self.step}, a batch of {batch.source!r}: the loss is {loss}, the gradient's "
                f"norm {norm}. Nothing was updated; lower --lr, or look at the batch (seed {self.mixture.seed})."
            )
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        return losses


_MOMENTS: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.Muon: ("momentum_buffer",),
}


def _make_optimizers(
    named: dict[str, torch.nn.Parameter], config: TrainConfig, group_lr: Callable[[str], float]
) -> list[torch.optim.Optimizer]:
    """One AdamW, and one Muon where the config says so. Muon's steps are scaled to AdamW's size, so one learning rate
    serves both."""
    groups: dict[tuple[bool, float, bool], list[torch.nn.Parameter]] = {}
    for name, p in named.items():
        hidden = p.ndim == 2 and ".layers." in name and "lora_" not in name
        groups.setdefault((hidden and config.optimizer == "muon", group_lr(name), p.ndim > 1), []).append(p)

    def of(muon: bool) -> list[dict[str, Any]]:
        return [
            {"params": ps, "factor": factor, "weight_decay": config.weight_decay if matrix else 0.0}
            for (by_muon, factor, matrix), ps in groups.items()
            if by_muon == muon
        ]

    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(of(False), lr=config.lr, betas=(0.9, 0.98), fused=True)
    ]
    if hidden_matrices := of(True):
        optimizers.append(torch.optim.Muon(hidden_matrices, lr=config.lr, adjust_lr_fn="match_rms_adamw"))
    return optimizers


class _ProgressLine:
    """One line on stderr, rewritten on a terminal, printed now and then elsewhere."""

    def __init__(self, steps: int, batch_size: int) -> None:
        self.steps, self.batch_size = steps, batch_size
        self.start = self.shown = time.monotonic()
        self.first: int | None = None
        self.means: dict[str, float] = {}

    def update(self, step: int, source: str, parts: dict[str, float]) -> None:
        if self.first is None:
            self.first = step - 1
        for name, value in parts.items():
            key = f"{name}/{source}" if name in ("ar", "nce", "words") else name
            self.means[key] = 0.95 * self.means.get(key, value) + 0.05 * value
        now = time.monotonic()
        live = sys.stderr.isatty()
        if now - self.shown < (0.5 if live else 30) and step < self.steps:
            return
        self.shown = now
        rate = (step - self.first) / (now - self.start)
        left = (self.steps - step) / rate
        shown = " ".join(f"{k} {v:.2f}" for k, v in sorted(self.means.items()))
        text = f"{step}/{self.steps} {rate * self.batch_size:.0f} images/s, {left / 60:.0f} min left; {shown}"
        print(f"\r\x1b[K{text[:200]}" if live else text, end="" if live else "\n", file=sys.stderr, flush=True)

    def averages(self) -> dict[str, float]:
        return {k: round(v, 4) for k, v in sorted(self.means.items())}

    def close(self) -> None:
        if sys.stderr.isatty():
            print(file=sys.stderr)
