"""Parts of a run add up, and nobody is told of what nobody asked for."""

from __future__ import annotations

import time

import pytest

from fwd2bot_index.timing import Clock, listening, timed, turn_to


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds; a test sets it."""
    at = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: at[0])
    return at


def test_an_inner_part_stops_the_outer(now: list[float]) -> None:
    with listening() as clock:
        now[0] += 1
        with timed("outer"):
            now[0] += 2
            with timed("inner"):
                now[0] += 4
            now[0] += 8
        now[0] += 16
    assert clock.seconds == {"other": 17, "outer": 10, "inner": 4}


def test_a_part_may_turn_into_another(now: list[float]) -> None:
    with listening() as clock, timed("vision"):
        now[0] += 1
        turn_to("llm")
        now[0] += 2
    assert clock.seconds == {"other": 0, "vision": 1, "llm": 2}


def test_an_error_ends_its_part(now: list[float]) -> None:
    def fail() -> None:
        with timed("part"):
            now[0] += 1
            raise ValueError("no")

    with listening() as clock:
        with pytest.raises(ValueError, match="no"):
            fail()
        now[0] += 2
    assert clock.seconds == {"other": 2, "part": 1}


def test_nobody_listens(now: list[float]) -> None:
    with timed("part"):
        turn_to("another")
    with listening() as clock:
        now[0] += 1
    with timed("part"):
        now[0] += 1
    assert clock.seconds == {"other": 1}


def test_work_that_was_only_begun_is_waited_for(now: list[float]) -> None:
    def synchronise() -> None:
        now[0] += 0.5

    with listening(synchronise) as clock, timed("part"):
        pass
    assert clock.seconds == {"other": 1.0, "part": 0.5}
    assert isinstance(clock, Clock)
