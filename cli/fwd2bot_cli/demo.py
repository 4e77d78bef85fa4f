"""``fwd2bot demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fwd2bot_cli.options import Debug, Quiet
from fwd2bot_cli.session import session_of


def demo(
    context: typer.Context,
    folder: Annotated[Path, typer.Option(metavar="DIR", help="Where the demo's files go.")] = Path("fwd2bot-demo"),
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw a folder of scenes, index it, search it and question it; needs no network and no pictures of yours."""
    from fwd2bot_cli.tour import tour

    tour(session_of(context), folder)
