"""Streams, terminals, and words for odd file names."""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from fwd2bot_cli import progress as progress_module
from fwd2bot_cli.console import Output, printable, printable_lines, relative, size
from fwd2bot_cli.progress import IndexProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@dataclass(frozen=True)
class Step:
    """As :class:`fwd2bot_index.indexing.Progress`."""

    done: int
    total: int
    skipped: int = 0
    phase: str = "indexing"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    return Terminal()


def on(terminal: Terminal, *, quiet: bool = False) -> Output:
    """stdout and stderr are this one terminal."""
    return Output(quiet=quiet, out=terminal, err=terminal)


def test_a_table_for_eyes_cuts_no_path(terminal: Terminal) -> None:
    path = "/".join(["folder"] * 20) + "/picture.png"
    on(terminal).table(("rank", "path"), [("1", path), ("2", "[red]b.png")])
    lines = re.sub(r"\x1b\[\d*m", "", terminal.getvalue()).splitlines()
    assert lines[0].split() == ["rank", "path"]
    assert "".join(line.strip() for line in lines[1:-1]).removeprefix("1").strip() == path
    assert "[red]b.png" in lines[-1]  # no markup


def test_tab_separated_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table(("rank", "path"), [("1", "a" * 300), ("2", "b")])
    assert capsys.readouterr().out == f"1\t{'a' * 300}\n2\tb\n"


def test_fields_for_eyes_are_aligned(terminal: Terminal) -> None:
    on(terminal).fields([("a", "1"), ("long", "2")])
    assert terminal.getvalue() == "a     1\nlong  2\n"


def test_no_color(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    on(terminal).error("x")
    assert "\x1b[" in terminal.getvalue()
    terminal.truncate(0)
    monkeypatch.setenv("NO_COLOR", "1")
    on(terminal).error("x")
    assert "\x1b[31m" not in terminal.getvalue()
    assert "error: " in terminal.getvalue()


def test_quiet_keeps_errors_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(quiet=True)
    output.message("a message")
    output.warning("a warning")
    output.error("an error")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "a warning\nerror: an error\n")


def test_a_bar_on_a_terminal(terminal: Terminal) -> None:
    with IndexProgress(on(terminal)) as progress:
        progress(Step(5, 20))  # type: ignore[arg-type]
        progress._bar.refresh()  # type: ignore[union-attr]
        shown = terminal.getvalue()
    assert "indexing" in shown
    assert "5/20" in shown


@pytest.mark.parametrize("quiet", [True, False])
def test_no_bar_elsewhere_but_a_line_now_and_then(
    quiet: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 101.0, 111.0, 111.0, 112.0, 122.0, 122.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    with IndexProgress(Output(quiet=quiet)) as progress:
        for done in (1, 2, 3, 4):
            progress(Step(done, 10, skipped=1))  # type: ignore[arg-type]
    lines = capsys.readouterr().err.splitlines()
    assert lines == ([] if quiet else [f"indexing: {n} of 10 files, 1 skipped" for n in (2, 4)])


@pytest.mark.parametrize("bar", ["quiet", "dumb"])
def test_no_bar_on_a_terminal_that_is_dumb_or_told_to_be_quiet(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, bar: str
) -> None:
    if bar == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    with IndexProgress(on(terminal, quiet=bar == "quiet")) as progress:
        progress(Step(5, 20))  # type: ignore[arg-type]
    assert terminal.getvalue() == ""


def test_control_characters_do_not_act() -> None:
    assert printable("a\x1b[31m\n\t\udcff") == r"a\x1b[31m\n\t\udcff"
    assert printable_lines("one\ntwo\x1b") == "one\ntwo\\x1b"
    assert printable("żółw 龟 [bold]") == "żółw 龟 [bold]"


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    assert relative(str(tmp_path / "a" / "b" / "c.png")) == os.path.join("b", "c.png")
    assert relative(str(tmp_path / "d.png")) == os.path.join("..", "d.png")
    assert relative("/x.png") == "/x.png"


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536 * 1024, "1.5 MiB"), (3 * 2**40, "3.0 TiB")],
)
def test_sizes(count: int, words: str) -> None:
    assert size(count) == words
