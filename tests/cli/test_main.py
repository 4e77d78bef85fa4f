"""What holds for every command: help, version, errors, exits, and a start without the heavy libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_helpers import FakeModels, Run
from typer.main import get_command

from fwd2bot_cli.main import app, main
from fwd2bot_cli.models import ModelChoice
from fwd2bot_cli.session import Session
from fwd2bot_index.types import Compressor

COMMANDS = (
    "index",
    "search",
    "ask",
    "annotate",
    "serve",
    "dedup",
    "info",
    "verify",
    "optimize",
    "train",
    "eval",
    "demo",
    "bench",
)


def python(code: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def test_every_command_and_option_has_help() -> None:
    group = get_command(app)
    commands = group.commands  # type: ignore[attr-defined]
    assert tuple(commands) == COMMANDS
    for name, command in commands.items():
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of(fwd2bot: Run, command: str) -> None:
    for flag in ("--help", "-h"):
        outcome = fwd2bot(command, flag)
        assert outcome.code == 0
        assert f"fwd2bot {command}" in outcome.out


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["info"], ["info", "--json"], ["dedup", "--quiet", "--json"], ["index", "--help"]],
)
def test_starts_without_torch_and_transformers(indexed: Path, arguments: list[str]) -> None:
    code = (
        "import sys\nfrom fwd2bot_cli.main import main\ncode = main(sys.argv[1:])\n"
        "heavy = {'torch', 'transformers', 'peft'} & set(sys.modules)\nassert not heavy, heavy\nsys.exit(code)"
    )
    done = python(code, *arguments, cwd=indexed)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_a_search_starts_without_pandas(indexed: Path, tmp_path: Path) -> None:
    """pyarrow imports it wherever it is installed. The model of this index is a fake: its absence is where it ends."""
    (tmp_path / "pandas.py").write_text("raise RuntimeError('pandas was imported')")
    code = (
        "import sys\nsys.path.insert(0, sys.argv.pop(1))\nfrom fwd2bot_cli.main import run\n"
        "sys.argv[0] = 'fwd2bot'\nrun()"
    )
    done = python(code, str(tmp_path), "search", "red", "--where", "width > 10000", cwd=indexed)
    assert "pandas" not in done.stderr


def test_version(fwd2bot: Run) -> None:
    outcome = fwd2bot("--version")
    assert outcome.code == 0
    assert outcome.out.startswith("fwd2bot 0.")


def test_usage_errors(fwd2bot: Run) -> None:
    for arguments in (["nonsense"], ["search", "--nonsense"], ["index"], ["index", ".", "--batch-size", "0"]):
        outcome = fwd2bot(*arguments)
        assert outcome.code == 2, arguments
        assert "Traceback" not in outcome.err
        assert outcome.out == ""


class BrokenModels(FakeModels):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def load(self, choice: ModelChoice) -> Compressor:
        raise self.error


def test_a_bug_is_one_line_and_debug_shows_it(fwd2bot: Run, indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = BrokenModels(ZeroDivisionError("two\nlines"))
    outcome = fwd2bot("search", "red", models=models)
    assert outcome.code == 1
    assert outcome.sentence.startswith("error: ZeroDivisionError: two lines. This is a bug")
    assert "--debug" in outcome.sentence

    for arguments in (["--debug", "search", "red"], ["search", "red", "--debug"]):
        outcome = fwd2bot(*arguments, models=models)
        assert outcome.code == 1
        assert "Traceback (most recent call last)" in outcome.err
        assert "error: ZeroDivisionError" in outcome.err
    monkeypatch.setenv("FWD2BOT_DEBUG", "1")
    assert "Traceback" in fwd2bot("search", "red", models=models).err


def test_debug_shows_where_an_expected_error_came_from(fwd2bot: Run, place: Path) -> None:
    assert "Traceback" not in fwd2bot("info").err
    assert "IndexNotFoundError" in fwd2bot("info", "--debug").err


def test_interrupted_anywhere(fwd2bot: Run, indexed: Path) -> None:
    outcome = fwd2bot("search", "red", models=BrokenModels(KeyboardInterrupt()))
    assert outcome.code == 130
    assert "Traceback" not in outcome.err


def test_a_reader_that_had_enough(indexed: Path) -> None:
    """As before a ``| head`` that has ended: the end of the pipe is closed."""
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from fwd2bot_cli.main import run; run()"
    done = subprocess.run(
        [sys.executable, "-c", code, "info"],
        cwd=indexed,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("to", ["/dev/full", None])
def test_output_that_goes_nowhere(indexed: Path, to: str | None) -> None:
    """A full disk, or a stdout that whoever started it has closed."""
    if to is not None and not os.path.exists(to):
        pytest.skip(f"there is no {to}")
    shell = f'exec "$@" > {to}' if to else 'exec "$@" >&-'
    code = "import sys; from fwd2bot_cli.main import run; run()"
    done = subprocess.run(
        ["sh", "-c", shell, "sh", sys.executable, "-c", code, "info"],
        cwd=indexed,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == ((1, "error: No space left on device.\n") if to else (0, ""))


def test_no_colour_codes_in_pipes(fwd2bot: Run, indexed: Path) -> None:
    for arguments in (["search", "red"], ["info"], ["annotate", "ask", "?"], ["search"], ["--help"]):
        outcome = fwd2bot(*arguments)
        assert "\x1b" not in outcome.out + outcome.err


def test_main_returns_instead_of_leaving(place: Path) -> None:
    assert main(["info", "--quiet"], Session(models=FakeModels())) == 2
