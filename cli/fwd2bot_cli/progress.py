"""How far an indexing run is: a bar where stderr is a terminal, else a plain line now and then."""

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
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} images/s" if task.speed else "")


class IndexProgress:
    """Call it with every :class:`~fwd2bot_index.indexing.Progress`; use it as a context manager around the run."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._bar: Bar | None = None
        self._last_line = time.monotonic()
        if output.live:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _Speed(),
                TimeRemainingColumn(),
                console=output.stderr,
                transient=True,
            )
            self._task = self._bar.add_task("starting", total=None)

    def __call__(self, progress: Progress) -> None:
        if self._bar is not None:
            total = progress.total or None  # None: a bar that moves without saying how far
            self._bar.update(self._task, description=progress.phase, completed=progress.done, total=total)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            skipped = f", {progress.skipped} skipped" if progress.skipped else ""
            self._output.message(f"{progress.phase}: {progress.done} of {progress.total} files{skipped}")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
