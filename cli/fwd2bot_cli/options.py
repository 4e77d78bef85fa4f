"""Options that several commands share, each with its help and its environment variable in one place."""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeAlias

import typer

from fwd2bot_cli.session import session_of


def _set_quiet(context: typer.Context, value: bool) -> bool:
    session_of(context).quiet |= value
    return value


def _set_debug(context: typer.Context, value: bool) -> bool:
    session_of(context).debug |= value
    return value


Quiet: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", envvar="FWD2BOT_QUIET", callback=_set_quiet, help="No progress and no messages; errors stay."
    ),
]
"""Read by its callback, so that it may stand before the command or after it."""

Debug: TypeAlias = Annotated[
    bool,
    typer.Option("--debug", envvar="FWD2BOT_DEBUG", callback=_set_debug, help="Show the traceback of an error."),
]
"""Read by its callback, as :data:`Quiet` is."""

Dtype: TypeAlias = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option(
        envvar="FWD2BOT_DTYPE",
        help="Numbers that the model computes with. bfloat16 is faster where the processor has instructions for it, "
        "and moves tokens by less than a percent. Default: bfloat16 on a GPU, float32 otherwise.",
        show_default=False,
    ),
]

Compile: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--compile",
        envvar="FWD2BOT_COMPILE",
        help="Compile the model's layers first (torch.compile): half a minute once, then up to a third faster. Worth "
        "it from some 10,000 pictures on.",
    ),
]

IndexFolder: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--index",
        envvar="FWD2BOT_INDEX",
        metavar="PLACE",
        help="The index: a folder, or s3://, gs:// or az:// with bucket and prefix. Default: .fwd2bot in the current "
        "folder or the nearest one above it.",
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]

Choices: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="A,B,...", help="The answers to choose from. A comma inside one is written \\\\,"),
]

Answerer: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="Answer with this one: a checkpoint of which the second pass alone was trained since the index was made. "
        "Default: the model that made the index.",
        show_default=False,
    ),
]


def split_choices(given: str | None) -> list[str] | None:
    """The parts between commas that no backslash protects."""
    if given is None:
        return None
    parts = re.split(r"(?<!\\),", given)
    return [part.replace("\\,", ",").strip() for part in parts]
