"""Which index a command means."""

from __future__ import annotations

from pathlib import Path

from fwd2bot_index.corpus import INDEX_FOLDER, find_index
from fwd2bot_index.errors import IndexNotFoundError


def existing_index(given: Path | None) -> Path:
    """The one that was given, else the nearest ``.fwd2bot`` from the current folder upward.

    Raises:
        IndexNotFoundError: there is none.
    """
    return given if given is not None else find_index(Path.cwd())


def index_to_write(given: Path | None) -> Path:
    """As :func:`existing_index`, but where there is none it will be made in the current folder."""
    try:
        return existing_index(given)
    except IndexNotFoundError:
        return Path.cwd() / INDEX_FOLDER
