"""The rounds of a watch, and files that are still being written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import FakeModel
from pictures import RED, plain, write

from fwd2bot_index.errors import IndexBusyError, IndexWriteError, InputError, NothingToIndexError
from fwd2bot_index.indexing import index_images
from fwd2bot_index.store import IndexStore, writing
from fwd2bot_index.types import IndexReport
from fwd2bot_index.watching import watch

DONE = IndexReport(added=1)


def rounds(*outcomes: IndexReport | Exception) -> tuple[Callable[[], IndexReport], list[float]]:
    waiting = list(outcomes)

    def run() -> IndexReport:
        outcome = waiting.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return run, []


def test_what_is_waited_for_is_told_once_and_ends_with_an_interruption() -> None:
    busy, gone, none = IndexBusyError("busy."), InputError("gone."), NothingToIndexError("none.")
    run, slept = rounds(none, none, DONE, busy, busy, gone, DONE, busy, IndexReport(interrupted=True))
    told: list[str] = []
    reports = list(watch(run, seconds=2, tell=told.append, sleep=slept.append))
    assert reports == [DONE, DONE, IndexReport(interrupted=True)]
    assert [text.split(".")[0] for text in told] == ["none", "busy", "gone", "busy"]
    assert told[0] == "none. Looking again every 2 s."
    assert slept == [2] * 8


@pytest.mark.parametrize("error", [InputError("misspelt"), IndexWriteError("full")])
def test_what_is_not_waited_for(error: Exception) -> None:
    run, slept = rounds(error)
    with pytest.raises(type(error)):
        next(watch(run, seconds=1, tell=print, sleep=slept.append))


def test_the_index_is_busy_while_another_writes(tmp_path: Path) -> None:
    write(tmp_path / "photos", {"a.png": plain(RED)})
    with writing(tmp_path / "index"), pytest.raises(IndexBusyError):
        index_images([tmp_path / "photos"], tmp_path / "index", FakeModel())


def test_files_that_may_still_be_written_wait(tmp_path: Path) -> None:
    photos, index = tmp_path / "photos", tmp_path / "index"
    write(photos, {"old.png": plain(RED), "new.png": plain(RED, (5, 5)), "future.png": plain(RED, (6, 6))})
    os.utime(photos / "old.png", (10**9, 10**9))
    os.utime(photos / "future.png", (time.time() + 10**6,) * 2)  # a clock that is wrong must not hide it for ever

    def run(seconds: float) -> IndexReport:
        return index_images([photos], index, FakeModel(), settle_seconds=seconds)

    report = run(600)
    assert (report.added, report.waiting) == (2, 1)
    assert run(0).added == 1
    write(photos, {"old.png": plain(RED, (7, 7))})
    report = run(600)
    assert (report.updated, report.unchanged, report.waiting, report.removed) == (0, 2, 1, 0)
    assert IndexStore.open(index).stats().files == 3  # as it was, until it is settled


def test_nothing_is_settled_yet(tmp_path: Path) -> None:
    write(tmp_path / "photos", {"new.png": plain(RED)})
    report = index_images([tmp_path / "photos"], tmp_path / "index", FakeModel(), settle_seconds=600)
    assert report.waiting == 1
    assert not (tmp_path / "index").exists()
