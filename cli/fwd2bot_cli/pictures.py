"""A picture file that was named on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fwd2bot_cli.console import shown
from fwd2bot_index.archives import picture_exists
from fwd2bot_index.errors import Fwd2BotError, ImageError, InputError


@contextmanager
def named_picture(path: str) -> Iterator[None]:
    """Around whatever opens it, a file or ``ARCHIVE!/MEMBER``: what goes wrong is told with the name of the file.

    Raises:
        InputError: there is no such file.
        Fwd2BotError: it is no picture that could be used.
    """
    if not picture_exists(path):
        raise InputError(f"There is no picture {shown(path)}.")
    try:
        yield
    except ImageError as e:
        raise Fwd2BotError(f"{shown(path)} cannot be used: {e.reason}.") from e
