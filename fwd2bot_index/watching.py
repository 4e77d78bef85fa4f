"""Keeping an index fresh: the same run again and again, which costs little more than listing where nothing has changed.

Polling, because it works on every system and on network disks, follows archives too, and misses nothing that happened
while nobody watched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from fwd2bot_index.errors import IndexBusyError, InputError, NothingToIndexError
from fwd2bot_index.types import IndexReport


def watch(
    run: Callable[[], IndexReport],
    *,
    seconds: float,
    tell: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[IndexReport]:
    """The report of each run, until one is interrupted.

    A folder without pictures, one that is gone for a while (but not at the first run, where it may be misspelt), and
    another process that writes are waited for.

    Args:
        run: brings the index up to date; it holds the index only meanwhile. It should leave files alone that changed
            within the last ``seconds``, which may still be being written.
        seconds: between two runs; more where a run takes longer than that.
        tell: is given a sentence when waiting begins.

    Raises:
        InputError: at the first run only.
        Fwd2BotError: what else ``run`` raises.
    """
    first, told = True, ""
    while True:
        started = time.monotonic()
        problem = ""
        try:
            report = run()
        except (IndexBusyError, NothingToIndexError) as e:
            problem = str(e)
        except InputError as e:
            if first:
                raise
            problem = str(e)
        else:
            yield report
            if report.interrupted:
                return
        if problem and problem != told:
            tell(f"{problem} Looking again every {seconds:g} s.")
        first, told = False, problem
        sleep(max(seconds, time.monotonic() - started))
