"""The log of a run: its numbers against hand-computed ones, and that a kill leaves no trace in it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fwd2bot_index.errors import InputError
from fwd2bot_training import watching
from fwd2bot_training.watching import TIMING, Watch, read_lines


class Clock:
    """Stands still unless it is moved."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watching, "time", clock)
    return clock


def lines(folder: Path, name: str = "log.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def untimed(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines(folder)]


def take(watch: Watch, step: int) -> None:
    """A step whose numbers depend on its number only, so that any two runs of it agree."""
    source = ("scenes", "photos")[step % 2]
    losses = {"ar": 3 / step, "total": 1 + 0.7 / step}
    if source == "photos":
        losses["contrastive"] = 0.1 * step
    watch.step(step, source, losses, {"acc/color": (step % 3, 3.0)}, lr=1e-3 / step, size=4)


def test_a_line_has_means_over_the_steps_since_the_line_before(tmp_path: Path, clock: Clock) -> None:
    watch = Watch(tmp_path / "run", steps=5, log_every=2, quiet=True)
    watch.start(0)
    for step, source, ar, color in [
        (1, "a", 8.0, (1.0, 4.0)),
        (2, "a", 4.0, (2.0, 2.0)),
        (3, "a", 1.0, (0.0, 1.0)),
        (4, "b", 2.0, (0.0, 0.0)),
        (5, "b", 7.0, (0.0, 0.0)),
    ]:
        watch.step(step, source, {"ar": ar}, {"acc/color": color}, lr=step / 8, size=4)
    watch.close()
    assert untimed(tmp_path / "run") == [
        {"step": 2, "lr": 0.25, "ar/a": 6.0, "acc/color": 0.5},  # 3 of 6, not the mean of 1/4 and 1
        {"step": 4, "lr": 0.5, "ar/a": 1.0, "ar/b": 2.0, "acc/color": 0.0},
        {"step": 5, "lr": 0.625, "ar/b": 7.0},  # the last step has its line; nothing was asked, so no accuracy
    ]


def test_throughput_counts_neither_the_first_step_nor_validations(tmp_path: Path, clock: Clock) -> None:
    watch = Watch(tmp_path, steps=100, log_every=2, quiet=True)
    watch.start(0)
    for step, seconds, size in [(1, 30.0, 8), (2, 2.0, 8), (3, 2.0, 8), (4, 60.0, 8), (5, 1.0, 4), (6, 3.0, 28)]:
        if step == 4:
            watch.validation(3, {"answers": {}, "retrieval": {}})
        clock.now += seconds
        watch.step(step, "a", {"ar": 1.0}, {}, lr=1.0, size=size)
    assert [(line["step"], line["seconds"], line["pictures_per_second"]) for line in lines(tmp_path)] == [
        (2, 32.0, 4.0),
        (4, 94.0, 4.0),
        (6, 98.0, 8.0),
    ]
    assert all(0.01 < line["memory_gb"] < 1000 for line in lines(tmp_path))


@pytest.mark.parametrize(("saved", "killed"), [(0, 7), (1, 7), (5, 7), (5, 13), (6, 12), (7, 7), (12, 12), (12, 14)])
def test_a_killed_and_resumed_run_has_the_log_of_one_that_was_not(tmp_path: Path, saved: int, killed: int) -> None:
    whole = Watch(tmp_path / "whole", steps=20, log_every=3, quiet=True)
    whole.start(0)
    for step in range(1, 21):
        take(whole, step)
    first = Watch(tmp_path / "killed", steps=20, log_every=3, quiet=True)
    first.start(0)
    state = json.dumps(first.pending())
    for step in range(1, killed + 1):
        take(first, step)
        if step == saved:
            state = json.dumps(first.pending())
    second = Watch(tmp_path / "killed", steps=20, log_every=3, quiet=True)
    second.start(saved, json.loads(state))
    for step in range(saved + 1, 21):
        take(second, step)
    assert untimed(tmp_path / "killed") == untimed(tmp_path / "whole")
    assert [line["step"] for line in lines(tmp_path / "whole")] == [3, 6, 9, 12, 15, 18, 20]


def test_resume_drops_later_and_torn_lines_of_both_files_and_nothing_else(tmp_path: Path) -> None:
    for name in ("log.jsonl", "validation.jsonl"):
        (tmp_path / name).write_text('{"step": 10, "ar/a": 0.5}\n{"step": 20, "ar/a": 0.25}\n{"step": 30}\n{"st')
    Watch(tmp_path, steps=40, log_every=10, quiet=True).start(20)
    for name in ("log.jsonl", "validation.jsonl"):
        assert (tmp_path / name).read_text() == '{"step": 10, "ar/a": 0.5}\n{"step": 20, "ar/a": 0.25}\n'
    assert {p.name for p in tmp_path.iterdir()} == {"log.jsonl", "validation.jsonl"}


def test_a_kill_while_the_log_is_rewritten_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = '{"step": 10}\n{"step": 20}\n'
    (tmp_path / "log.jsonl").write_text(before)

    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        Watch(tmp_path, steps=40, log_every=10, quiet=True).start(10)
    assert (tmp_path / "log.jsonl").read_text() == before


def test_a_validation_is_there_once_for_each_step(tmp_path: Path) -> None:
    def result(right: int) -> dict[str, Any]:
        return {"answers": {"a/color": {"right": right, "count": 4}}, "retrieval": {}}

    watch = Watch(tmp_path, steps=40, log_every=10, quiet=True)
    watch.start(0)
    for step, right in [(10, 1), (20, 2), (20, 3)]:
        watch.validation(step, result(right))
    assert lines(tmp_path, "validation.jsonl") == [{"step": 10, **result(1)}, {"step": 20, **result(3)}]


def test_a_number_that_is_none_is_null(tmp_path: Path) -> None:
    watch = Watch(tmp_path, steps=1, log_every=1, quiet=True)
    watch.start(0)
    watch.step(1, "a", {"ar": float("nan"), "total": 1 / 3}, {}, lr=1.0, size=1)
    assert untimed(tmp_path) == [{"step": 1, "lr": 1.0, "ar/a": None, "total/a": 0.333333}]


def test_reading_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none.jsonl") == []
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n\0\0\0\n[1]\n{"lr": 1}\n{"step": 2}\n{"step": 3, "l')
    assert read_lines(tmp_path / "log.jsonl") == [{"step": 1}, {"step": 2}]


def test_plain_lines_come_now_and_then_and_at_the_end(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = Watch(tmp_path, steps=100, log_every=1000)
    watch.start(0)
    for step in range(1, 101):
        clock.now += 1
        watch.step(step, "ab"[step % 2], {"total": 2.0, "ar": 0.5}, {}, lr=1.0, size=32)
    watch.validation(
        100,
        {
            "answers": {"a/color": {"right": 3, "count": 4}, "a/size": {"right": 1, "count": 2}},
            "retrieval": {"b": {"pictures": 9, "text->image R@1": 0.25, "text->image R@5": 0.5}},
        },
    )
    watch.close()
    captured = capsys.readouterr()
    shown = captured.err.splitlines()
    assert captured.out == ""
    assert [line.split()[0] for line in shown] == ["30/100", "60/100", "90/100", "100/100", "step"]
    assert shown[1] == "60/100 steps, 32 pictures/s, 40 s left; total 2.000; a ar 0.500; b ar 0.500"
    assert shown[-1] == "step 100, validation: a 4 of 6 answers right; b text->image R@1 0.250"


def test_quiet_is_silent(tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    watch = Watch(tmp_path, steps=2, log_every=1, quiet=True)
    watch.start(0)
    for step in (1, 2):
        clock.now += 100
        take(watch, step)
    watch.note("hello")
    watch.validation(2, {"answers": {}, "retrieval": {}})
    watch.close()
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar_with_the_running_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    watch = Watch(tmp_path, steps=4, log_every=1)
    watch.start(1)
    for step in (2, 3, 4):
        watch.step(step, "scenes", {"total": 2.0 if step == 2 else 22.0, "ar": 0.5}, {}, lr=1.0, size=32)
    watch.note("saved")
    watch.close()
    watch.close()  # an error path may close twice
    shown = terminal.getvalue()
    last = shown[shown.rindex("4/4") :]
    assert "pictures/s, 0 s left" in last
    assert "total   3.950" in last  # 2, then 2 + 0.05 * 20, then 3 + 0.05 * 19
    assert "scenes  ar 0.500" in last
    assert "saved" in shown
    assert capsys.readouterr().out == ""


def test_tensorboard_has_the_log_and_the_validation(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watch = Watch(tmp_path, steps=10, log_every=2, tensorboard=True, quiet=True)
    watch.start(0)
    for step in range(1, 7):
        take(watch, step)
    watch.validation(
        6, {"answers": {"a/color": {"right": 1, "count": 4}}, "retrieval": {"a": {"text->image R@1": 0.5}}}
    )
    watch.close()
    resumed = Watch(tmp_path, steps=10, log_every=2, tensorboard=True, quiet=True)
    resumed.start(4)
    for step in range(5, 11):
        take(resumed, step)
    resumed.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("ar/scenes")] == [2, 4, 6, 8, 10]
    for line in lines(tmp_path):
        (value,) = [e.value for e in events.Scalars("ar/scenes") if e.step == line["step"]]
        assert value == pytest.approx(line["ar/scenes"])
    # the validation was after the state that the run went on from
    assert [events.Scalars(tag) for tag in ("validation/a/color", "validation/a text->image R@1")] == [[], []]


def test_tensorboard_that_is_not_installed_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(InputError, match=r"pip install 'fwd2bot\[train\]'"):
        Watch(tmp_path / "run", steps=10, log_every=2, tensorboard=True)
    assert not (tmp_path / "run").exists()
