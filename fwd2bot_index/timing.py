"""Which part of a run takes how long.

Code says what it is at (``with timed("vision")``), which costs nothing unless somebody listens
(``with listening() as clock``). Parts do not overlap: inside another part the outer one stands still.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Clock:
    """Wall time by part."""

    def __init__(self, synchronise: Callable[[], None]) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """What lies outside of every part is under ``other``."""
        self._synchronise = synchronise
        self._parts = ["other"]
        self._since = time.perf_counter()

    def enter(self, part: str) -> None:
        self._read()
        self._parts.append(part)

    def leave(self) -> None:
        self._read()
        self._parts.pop()

    def turn(self, part: str) -> None:
        self._read()
        self._parts[-1] = part

    def _read(self) -> None:
        self._synchronise()
        now = time.perf_counter()
        self.seconds[self._parts[-1]] += now - self._since
        self._since = now


_listener: ContextVar[Clock | None] = ContextVar("_listener", default=None)


@contextmanager
def listening(synchronise: Callable[[], None] = lambda: None) -> Iterator[Clock]:
    """Inside, the parts of this thread's work are timed.

    Args:
        synchronise: waits for work that was only begun, as ``torch.cuda.synchronize`` does; called at every change of
            parts.
    """
    clock = Clock(synchronise)
    before = _listener.set(clock)
    try:
        yield clock
    finally:
        clock.leave()
        _listener.reset(before)


@contextmanager
def timed(part: str) -> Iterator[None]:
    """What happens inside is a part of this name."""
    clock = _listener.get()
    if clock is None:
        yield
        return
    clock.enter(part)
    try:
        yield
    finally:
        clock.leave()


def turn_to(part: str) -> None:
    """The rest of the part at hand has this name: for where its end lies inside somebody else's code."""
    if (clock := _listener.get()) is not None:
        clock.turn(part)
