"""The README: every command in it parses, and what it points to is there."""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from pathlib import Path

import pytest
import typer
from cli_helpers import draw_colours
from typer.main import get_command

import fwd2bot_index
from fwd2bot_cli.main import app
from fwd2bot_cli.session import Session
from fwd2bot_index.checkpoints import DEFAULT_MODEL_PATH

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SHELL = [line.strip() for kind, block in BLOCKS if kind in ("bash", "sh", "") for line in block.splitlines()]
INLINE = re.findall(r"`(fwd2bot [^`]+)`", README)
PYTHON = [block for kind, block in BLOCKS if kind == "python"]
COMMANDS = [line for line in [*SHELL, *INLINE] if line.startswith("fwd2bot ")]


def arguments_of(line: str) -> list[str]:
    words = shlex.split(line, comments=True)[1:]
    return words[: words.index("|")] if "|" in words else words


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_line_parses(line: str) -> None:
    group = get_command(app)
    with group.make_context("fwd2bot", arguments_of(line), obj=Session()) as context:
        name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])  # type: ignore[attr-defined]
        with suppress(typer.Exit):  # --help
            command.make_context(name, rest, parent=context)  # raises on what the command does not know


def test_every_command_is_shown() -> None:
    shown = {arguments_of(line)[0] for line in COMMANDS}
    assert shown >= set(get_command(app).commands)  # type: ignore[attr-defined]


def test_a_wrong_line_would_be_noticed() -> None:
    with pytest.raises(Exception, match="--nonsense"):
        test_every_command_line_parses("fwd2bot search red --nonsense")


def test_make_targets_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {
        line.split()[1] for line in [*SHELL, *re.findall(r"`(make [a-z-]+)`", README)] if line.startswith("make ")
    }
    assert targets >= {"demo", "test"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_paths_are_there() -> None:
    for name in re.findall(r"`((?:fwd2bot_index|training|eval|cli|tests)/[\w./]*)`", README):
        assert (ROOT / name).exists(), name


def test_python_block_uses_public_names() -> None:
    (block,) = PYTHON
    (names,) = re.findall(r"^from fwd2bot_index import (.+)$", block, re.MULTILINE)
    assert set(names.split(", ")) <= set(fwd2bot_index.__all__)


@pytest.mark.skipif(
    not (DEFAULT_MODEL_PATH / "config.json").exists(), reason="the bundled model is not in this checkout"
)
def test_python_block_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_colours(place / "images")
    (block,) = PYTHON
    exec(compile(block, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 added, 0 skipped"
    assert len(lines) == 1 + 3
