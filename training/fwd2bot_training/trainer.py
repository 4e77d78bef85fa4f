"""The loop: batches in, optimiser steps out; states that a killed run resumes from; the checkpoint at the end.

Notable choices:
- batch ``step`` is a pure function of the seed (`data.Mixture`), drawn and collated in the loader's processes;
- before each step the processes tell one another what came up (a bad row, Ctrl-C, time to save) and all do the same:
  none of them is left waiting for one that has gone;
- the first Ctrl-C or SIGTERM ends the run after the step at hand, with a state; another Ctrl-C at once, without.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from fwd2bot_index.errors import Fwd2BotError, InputError
from fwd2bot_training import states
from fwd2bot_training.config import TrainConfig
from fwd2bot_training.distributed import Parallel, Processes
from fwd2bot_training.stepping import Stepper, TrainingDivergedError, lr_at, warn_of_emulation
from fwd2bot_training.watching import TOTAL

if TYPE_CHECKING:
    from fwd2bot_training.data import Mixture
    from fwd2bot_training.objectives import Batch, Objective

_CHECK_GRADIENTS_AFTER = 50
_ONE_CTRL_C = 1.0
"""Seconds within which two are one."""


class Watch(Protocol):
    """Whoever looks on. Only the first process's is told."""

    def start(self, step: int, pending: dict[str, Any] | None = None) -> None:
        """Before the first step; ``step`` steps were done before, when ``pending`` was what it gave."""

    def pending(self) -> dict[str, Any]:
        """What it must be given again to go on from here: plain JSON."""

    def step(
        self,
        step: int,
        source: str,
        losses: dict[str, float],
        shares: dict[str, tuple[float, float]],
        *,
        lr: float,
        size: int,
    ) -> None:
        """After ``step`` steps (the first is 1): the losses, means over all processes, of the last one's ``size``
        pictures, and their weighted sum as `TOTAL`."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class _Note:
    """What one process has to say before a step."""

    error: Fwd2BotError | None
    stop: bool
    save: bool


class _Batches(Dataset[Any]):
    """One process's micro-batches; the index is the step. An error is handed over, not raised: a loader would wrap its
    one sentence in a traceback."""

    def __init__(
        self,
        mixture: Mixture,
        collate: Callable[..., Batch],
        processes: Processes,
        micro_batch_size: int,
    ) -> None:
        self.mixture, self.collate, self.micro_batch_size = mixture, collate, micro_batch_size
        self.rank, self.world = processes.rank, processes.size

    def __getitem__(self, step: int) -> list[Batch] | Fwd2BotError:
        try:
            source, examples = self.mixture.batch(step, rank=self.rank, world=self.world)
            size = self.micro_batch_size or len(examples)
            return [self.collate(step, source, examples[i : i + size]) for i in range(0, len(examples), size)]
        except Fwd2BotError as e:
            return e


class Trainer:
    """Runs an objective over a mixture.

    Args:
        objective: its trainable parameters are those with ``requires_grad``; nothing else moves. On the device of
            ``processes`` already (see `Parallel`).
        folder: takes ``state-<step>/``.
        export: called at the end in the first process, to write the model in its own format.
        validate: called with the number of steps done, in every process, every ``every`` steps (0: not in between) and
            at the end. The objective is in eval mode then.
        workers: processes that draw and collate; 0: this one.

    Raises:
        InputError: the batch size cannot be shared out.
    """

    def __init__(
        self,
        objective: Objective,
        mixture: Mixture,
        train: TrainConfig,
        folder: Path,
        *,
        export: Callable[[], None],
        watch: Watch,
        validate: Callable[[int], None] | None = None,
        every: int = 0,
        workers: int = 0,
        processes: Processes | None = None,
    ) -> None:
        self.mixture, self.train, self.folder, self.export, self.watch = mixture, train, folder, export, watch
        self.validate, self.every, self.workers = validate, every, workers
        self.processes = processes or Processes()
        if train.batch_size % self.processes.size:
            raise InputError(
                f"train.batch_size = {train.batch_size} must be a multiple of the {self.processes.size} processes."
            )
        # asked before wrapping, which may replace parameters
        self._collate = objective.collator()
        self.parallel = Parallel(objective, self.processes, train.sharding)
        self.stepper = Stepper(self.parallel, train)
        self.step = 0
        """Steps done."""
        self._without_gradient = set(self.stepper.named)
        self._saved: int | None = None
        self._pending: dict[str, Any] | None = None

    def resume(self) -> bool:
        """Continue from the newest state that can be read, if there is one.

        Raises:
            InputError: it is a state of another run.
        """
        progress = states.resume(self.folder, self.stepper)
        if progress is None:
            return False
        self.step = self._saved = progress.step
        self._pending = progress.pending
        return True

    def save(self) -> None:
        """Write a state, unless this step's is there."""
        if self._saved != self.step:
            states.save(self.folder, self.step, self.stepper, pending=self.watch.pending())
            self._saved = self.step

    def run(self) -> None:
        """Train to ``train.steps``, validate, export.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM; a state is saved.
            TrainingDivergedError: a loss is not finite; the state before the step is saved.
            InputError: a row that cannot be used (a state is saved), or too little memory.
        """
        self.parallel.objective.train()
        if self.processes.rank == 0:
            warn_of_emulation(self.train.precision, self.processes.device)
            self.watch.start(self.step, self._pending)
        try:
            with _Signals() as signals:
                self._train(signals)
            self._validate()
            self.parallel.gather_whole()
            if self.processes.rank == 0:
                self.export()
        finally:
            if self.processes.rank == 0:
                self.watch.close()

    def check_gradients(self) -> list[str]:
        """Names of the trainable parameters that had no gradient in any step of this process yet."""
        return sorted(self._without_gradient)

    def _train(self, signals: _Signals) -> None:
        first, saved = self.step, time.monotonic()
        batches = self._batches()
        try:
            while True:
                drawn = next(batches, None)
                error = drawn if isinstance(drawn, Fwd2BotError) else None
                overdue = time.monotonic() - saved > 60 * self.train.save_minutes
                notes = self.processes.gather(_Note(error=error, stop=signals.asked, save=overdue))
                if found := next((n.error for n in notes if n.error), None):
                    self.save()
                    raise found
                if any(n.stop for n in notes):
                    self.save()
                    raise KeyboardInterrupt
                if drawn is None:
                    break
                if notes[0].save:  # the first process's clock is everyone's
                    self.save()
                    saved = time.monotonic()
                assert not isinstance(drawn, Fwd2BotError)
                self._step(drawn)
                if self.step - first == _CHECK_GRADIENTS_AFTER:
                    self._warn_of_idle_parameters()
                if self.every and self.step % self.every == 0 and self.step < self.train.steps:
                    self._validate()
        finally:
            # Else an exception keeps the loader until the interpreter leaves, whose SIGTERM its processes ignore.
            batches.close()
        self.save()

    def _step(self, batches: list[Batch]) -> None:
        try:
            done = self.stepper.step(self.step, batches)
        except TrainingDivergedError:
            self.save()
            raise
        except RuntimeError as e:
            if not _out_of_memory(e):
                raise
            raise InputError(self._too_large(batches, str(e).splitlines()[0])) from e
        if self._without_gradient:
            self._without_gradient -= {n for n, p in self.stepper.named.items() if p.grad is not None}
        lr = lr_at(self.train, self.step)
        self.step += 1
        if self.processes.rank == 0:
            weights = self.parallel.objective.weights
            total = sum(weights[n] * value for n, value in done.losses.items())
            self.watch.step(self.step, done.source, {TOTAL: total, **done.losses}, done.shares, lr=lr, size=done.size)

    def _batches(self) -> Generator[list[Batch] | Fwd2BotError]:
        # A Ctrl-C reaches the loader's processes too, and must not take away the batches of the step at hand.
        several: dict[str, Any] = {
            "multiprocessing_context": _start_method(),
            "prefetch_factor": 4,
            "worker_init_fn": _ignore_signals,
        }
        yield from DataLoader(
            _Batches(self.mixture, self._collate, self.processes, self.train.micro_batch_size),
            batch_size=None,
            sampler=range(self.step, self.train.steps),
            num_workers=self.workers,
            pin_memory=self.processes.device.type == "cuda",
            **(several if self.workers else {}),
        )

    def _validate(self) -> None:
        if self.validate is not None:
            with self.parallel.evaluating():
                self.validate(self.step)

    def _warn_of_idle_parameters(self) -> None:
        if (names := self.check_gradients()) and self.processes.rank == 0:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            print(
                f"warning: no gradient in {_CHECK_GRADIENTS_AFTER} steps for {', '.join(names[:8])}{more}: nothing "
                "trains them.",
                file=sys.stderr,
            )

    def _too_large(self, batches: list[Batch], said: str) -> str:
        largest = max(b.size for b in batches)
        lower = [f"train.micro_batch_size to {largest // 2}"] if largest > 1 else []
        raises = [] if self.train.gradient_checkpointing else ["train.gradient_checkpointing = true"]
        told = "; then ".join(
            [*(f"lower {x}" for x in lower), *(f"set {x}" for x in (*raises, "model.quantize = '4bit'"))]
        )
        return f"Step {self.step + 1} needs more memory than there is: {told}. ({said})"


class _Signals:
    """Inside, Ctrl-C and SIGTERM are noted, for the loop to act on between two steps."""

    def __init__(self) -> None:
        self._first: float | None = None

    @property
    def asked(self) -> bool:
        return self._first is not None

    def __enter__(self) -> _Signals:
        # a Ctrl-C that nohup would have ignored is heard as well
        self._before = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is not None:
            # torchrun hands on the Ctrl-C that the terminal may have sent already: that one is not impatience
            if number == signal.SIGINT and now - self._first > _ONE_CTRL_C:
                raise KeyboardInterrupt
            return
        self._first = now
        os.write(2, b"\nStopping after this step; Ctrl-C stops at once, and loses what is not saved.\n")


def _start_method() -> str:
    """Of the loader's processes: forked, but not from this one, whose threads (torch's, lance's) would not survive it.

    Spawned, they start one after another: each is sent the texts of all sources, and reads them only once it has
    imported everything.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    multiprocessing.set_forkserver_preload(["fwd2bot_training.objectives", "fwd2bot_training.trainer"])
    return "forkserver"


def _ignore_signals(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _out_of_memory(e: RuntimeError) -> bool:
    """On a CPU torch has no class of its own for it."""
    return isinstance(e, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(e)
