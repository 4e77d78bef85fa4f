"""What a run says of itself while it goes: on stderr, in ``log.jsonl`` and ``validation.jsonl``, to TensorBoard.

Notable choices:

- A line of the log has means over the steps since the line before, not the last step's values. What has been summed
  since then is `Watch.pending`, which belongs into a saved state: a resumed run writes the lines of one never killed.
- On resume at step S the lines after S are dropped, so each step is in the log once, whatever was killed when.
- `TIMING` names what depends on the clock and the machine; everything else in a line depends on the run alone.
- The first step of a process waits for the loader, and the step after a validation for that: neither counts in
  ``pictures_per_second``. The time left does count validations and saving.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from fwd2bot_index.errors import InputError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG: Final = "log.jsonl"
VALIDATION: Final = "validation.jsonl"
TIMING: Final = frozenset({"seconds", "pictures_per_second", "memory_gb"})
"""Keys of a log line that differ between two runs of one configuration."""
TOTAL: Final = "total"
"""Name of the weighted sum among the losses of a step."""

SECONDS_BETWEEN_LINES = 30.0
SMOOTHING = 0.95
"""Share of its old value that a running mean on the screen keeps at each step."""


class Watch:
    """Follows one run; made on the first process only.

    Args:
        folder: the run's; it is made if it is missing.
        steps: of the whole run.
        log_every: steps between two lines of ``log.jsonl``; the last step has one in any case.
        tensorboard: write events to ``folder/tensorboard`` as well.
        quiet: nothing on stderr.

    Raises:
        InputError: ``tensorboard``, and the package is missing.
    """

    def __init__(
        self, folder: Path, *, steps: int, log_every: int, tensorboard: bool = False, quiet: bool = False
    ) -> None:
        self._writer_class = _summary_writer() if tensorboard else None
        self._folder, self._steps, self._log_every = folder, steps, log_every
        self._writer: SummaryWriter | None = None
        self._sums: dict[str, tuple[float, float]] = {}
        self._clock = _Clock(0)
        self._shown: dict[str, dict[str, float]] = {}
        self._screen = _Screen(steps, quiet=quiet)
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, step: int, pending: Mapping[str, Any] | None = None) -> None:
        """Begin after ``step`` finished steps: 0, or that of the state from which the run goes on.

        Args:
            pending: of `pending`, as that state holds it.
        """
        for name in (LOG, VALIDATION):
            _drop_after(self._folder / name, step)
        if self._writer_class is not None:
            self._writer = self._writer_class(str(self._folder / "tensorboard"), purge_step=step + 1)
        self._sums = {k: (total, weight) for k, (total, weight) in (pending or {}).items()}
        self._clock = _Clock(step)
        self._screen.start(step)

    def pending(self) -> dict[str, list[float]]:
        """What has been summed since the last line of the log, for JSON: key -> [sum, weight]."""
        return {k: list(pair) for k, pair in self._sums.items()}

    def step(
        self,
        step: int,
        source: str,
        losses: Mapping[str, float],
        shares: Mapping[str, tuple[float, float]],
        *,
        lr: float,
        size: int,
    ) -> None:
        """Take note of a finished step.

        Args:
            step: counted from 1.
            losses: of the whole step by name, `TOTAL` among them; logged as ``name/source``.
            shares: (sum, count) by name, as in `objectives.Outputs`; logged as their ratio.
            lr: of the schedule, before the factors of single parameters.
            size: pictures of the step, over all processes.
        """
        self._clock.tick(step, size)
        for key, pair in {**{f"{n}/{source}": (v, 1.0) for n, v in losses.items()}, **shares}.items():
            total, weight = self._sums.get(key, (0.0, 0.0))
            self._sums[key] = (total + pair[0], weight + pair[1])
        for label, name, value in _places(source, losses):
            means = self._shown.setdefault(label, {})
            means[name] = SMOOTHING * means.get(name, value) + (1 - SMOOTHING) * value
        self._screen.step(step, self._clock, self._shown)
        if step % self._log_every == 0 or step == self._steps:
            self._log(step, lr)

    def validation(self, step: int, result: Mapping[str, Any]) -> None:
        """Append ``{"step": step, **result}`` to ``validation.jsonl``, in place of an earlier one of this step."""
        _drop_after(self._folder / VALIDATION, step - 1)
        _append(self._folder / VALIDATION, {"step": step, **result})
        scores = dict(_validation_scalars(result))
        self._scalars(step, {f"validation/{k}": v for k, v in scores.items()})
        self._clock.pause()
        self.note(f"step {step:,}, validation: {_summary(result)}")

    def note(self, text: str) -> None:
        """One line on stderr."""
        self._screen.note(text)

    def close(self) -> None:
        """End the bar and the TensorBoard file. The files of the log are whole at any time."""
        self._screen.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _log(self, step: int, lr: float) -> None:
        line: dict[str, float | None] = {"step": step, "seconds": round(self._clock.seconds, 1), "lr": lr}
        if rate := self._clock.take_rate():
            line["pictures_per_second"] = _rounded(rate)
        if memory := _peak_memory():
            line["memory_gb"] = _rounded(memory / 1e9)
        line |= {k: _rounded(total / weight) for k, (total, weight) in sorted(self._sums.items()) if weight}
        self._sums = {}
        _append(self._folder / LOG, line)
        self._scalars(step, {k: v for k, v in line.items() if k not in ("step", "seconds") and v is not None})

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            return
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; none where there is no file. A line that a kill tore is left out."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    found = []
    for text in raw.splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            found.append(line)
    return found


def duration(seconds: float) -> str:
    """For eyes."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def _drop_after(path: Path, step: int) -> None:
    """Rewrite a file of lines without those after ``step`` and without torn ones; untouched if it has neither."""
    kept = "".join(json.dumps(line) + "\n" for line in read_lines(path) if line["step"] <= step).encode()
    if not path.exists() or path.read_bytes() == kept:
        return
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        file.write(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _append(path: Path, line: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _rounded(value: float) -> float | None:
    """Six significant digits; None, null in JSON, for what is not finite, which JSON has no word for."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _places(source: str, losses: Mapping[str, float]) -> Iterator[tuple[str, str, float]]:
    """(row, name, value) of each loss on the screen: the total is one over all sources."""
    for name, value in losses.items():
        yield ("", name, value) if name == TOTAL else (source, name, value)


def _validation_scalars(result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, answers in result.get("answers", {}).items():
        if answers["count"]:
            yield name, answers["right"] / answers["count"]
    for source, scores in result.get("retrieval", {}).items():
        for name, value in scores.items():
            if "R@" in name:
                yield f"{source} {name}", value


def _summary(result: Mapping[str, Any]) -> str:
    """The few numbers of a validation that a line has room for."""
    answers: dict[str, tuple[int, int]] = {}
    for name, found in result.get("answers", {}).items():
        right, count = answers.get(source := name.partition("/")[0], (0, 0))
        answers[source] = (right + found["right"], count + found["count"])
    parts = [f"{source} {right:,} of {count:,} answers right" for source, (right, count) in answers.items()]
    parts += [f"{name} {value:.3f}" for name, value in _validation_scalars(result) if name.endswith(" R@1")]
    return "; ".join(parts) or "nothing to measure"


def _peak_memory() -> int | None:
    """Bytes: of the GPU where this process has used one, else resident in this process (loader processes apart)."""
    import torch  # not above: whatever reads a log needs none of it

    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _summary_writer() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as e:
        raise InputError(
            "train.tensorboard needs a package that is not installed: pip install 'fwd2bot[train]', "
            "or set train.tensorboard = false."
        ) from e
    return SummaryWriter


class _Clock:
    """Times of one process's steps."""

    def __init__(self, step: int) -> None:
        self.began = time.monotonic()
        self.first = self.last = step
        self.first_at: float | None = None
        self.last_at: float | None = None
        self.counted = (0, 0.0)
        """Pictures, and the seconds that they took, since the last line of the log."""
        self.rate: float | None = None
        """Pictures per second up to the last line of the log."""

    def tick(self, step: int, size: int) -> None:
        now = time.monotonic()
        if self.first_at is None:
            self.first, self.first_at = step, now
        if self.last_at is not None:
            pictures, seconds = self.counted
            self.counted = (pictures + size, seconds + now - self.last_at)
        self.last, self.last_at = step, now

    def pause(self) -> None:
        """The time up to the next step is not only that step's."""
        self.last_at = None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def pictures_per_second(self) -> float | None:
        pictures, seconds = self.counted
        return self.rate or (pictures / seconds if seconds > 0 else None)

    def take_rate(self) -> float | None:
        """That of the steps since the last call; None if none of them counts."""
        pictures, seconds = self.counted
        self.counted = (0, 0.0)
        if seconds <= 0:
            return None
        self.rate = pictures / seconds
        return self.rate

    def seconds_left(self, steps: int) -> float | None:
        done = self.last - self.first
        if self.first_at is None or not done:
            return None
        return (time.monotonic() - self.first_at) / done * (steps - self.last)


class _Bar(Progress):
    """A bar, and the running means below it."""

    means: RenderableType = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        yield self.means


class _Screen:
    """stderr: a bar on a terminal, a plain line now and then elsewhere."""

    def __init__(self, steps: int, *, quiet: bool) -> None:
        self._steps, self._quiet = steps, quiet
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = not quiet and sys.stderr.isatty() and not self._console.is_dumb_terminal
        self._bar: _Bar | None = None
        self._task = TaskID(0)
        self._line_at = time.monotonic()

    def start(self, step: int) -> None:
        self._line_at = time.monotonic()
        if not self._live:
            return
        self._bar = _Bar(
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[rates]}"),
            console=self._console,
            redirect_stdout=False,  # stdout may be a file
            refresh_per_second=2,
        )
        self._task = self._bar.add_task("", total=self._steps, completed=step, rates="waiting for the first step")
        self._bar.start()

    def step(self, step: int, clock: _Clock, means: Mapping[str, Mapping[str, float]]) -> None:
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.means = _grid(means)
            self._bar.update(self._task, completed=step, rates=_rates(clock, self._steps))
        elif (now := time.monotonic()) - self._line_at >= SECONDS_BETWEEN_LINES or step == self._steps:
            self._line_at = now
            rows = [" ".join(filter(None, (label, _row(row)))) for label, row in sorted(means.items())]
            self.note("; ".join([f"{step:,}/{self._steps:,} steps, {_rates(clock, self._steps)}", *rows]))

    def note(self, text: str) -> None:
        if not self._quiet:
            self._console.print(Text(text))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _rates(clock: _Clock, steps: int) -> str:
    rate, left = clock.pictures_per_second(), clock.seconds_left(steps)
    known = [f"{rate:,.{0 if rate >= 10 else 1}f} pictures/s"] if rate else []
    return ", ".join([*known, f"{duration(left)} left"] if left is not None else [*known, "time left unknown"])


def _row(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in sorted(values.items()))


def _grid(means: Mapping[str, Mapping[str, float]]) -> Table:
    """One row for each source, one column for each loss; the total first."""
    names = sorted({name for row in means.values() for name in row if name != TOTAL})
    grid = Table.grid(padding=(0, 2))
    for _ in range(len(names) + 1):
        grid.add_column(no_wrap=True)
    for label, row in sorted(means.items()):
        if label:
            grid.add_row(Text(label), *(f"{name} {row[name]:.3f}" if name in row else "" for name in names))
        else:
            grid.add_row(TOTAL, f"{row[TOTAL]:.3f}")
    return grid
