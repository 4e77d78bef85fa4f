"""How far a long run is: a bar where stderr is a terminal, else a plain line now and then."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from fwd2bot_cli.console import Output

if TYPE_CHECKING:
    from fwd2bot_index.indexing import Progress

SECONDS_BETWEEN_LINES = 10.0


class _Speed(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} {self._unit}/s" if task.speed else "")


class RunProgress:
    """Use it as a context manager around the run, and tell it how far that is.

    Args:
        unit: what is counted in the speed; ``things``: what is counted in a plain line.
    """

    def __init__(self, output: Output, *, unit: str = "images", things: str = "files") -> None:
        self._things = things
        self._output = output
        self._bar: Bar | None = None
        self._last_line = time.monotonic()
        if output.live:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _Speed(unit),
                TimeRemainingColumn(),
                console=output.stderr,
                transient=True,
            )
            self._task = self._bar.add_task("starting", total=None)

    def update(self, *, phase: str, done: int, total: int | None, skipped: int = 0) -> None:
        """``total`` None or 0: not known yet, and the bar moves without saying how far."""
        if self._bar is not None:
            self._bar.update(self._task, description=phase, completed=done, total=total or None)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            of = f" of {total}" if total else ""
            left_out = f", {skipped} skipped" if skipped else ""
            self._output.message(f"{phase}: {done}{of} {self._things}{left_out}")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class IndexProgress(RunProgress):
    """Call it with every :class:`~fwd2bot_index.indexing.Progress`."""

    def __call__(self, progress: Progress) -> None:
        self.update(phase=progress.phase, done=progress.done, total=progress.total, skipped=progress.skipped)
