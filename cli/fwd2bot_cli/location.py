"""Which index a command means."""

from __future__ import annotations

from pathlib import Path

from fwd2bot_index.corpus import INDEX_FOLDER, find_index
from fwd2bot_index.errors import IndexNotFoundError
from fwd2bot_index.places import Place


def existing_index(given: str | None) -> Place:
    """The one that was given, else the nearest ``.fwd2bot`` from the current folder upward.

    Raises:
        IndexNotFoundError: there is none.
        InputError: it is in a store that is not known.
    """
    return Place.of(given if given is not None else find_index(Path.cwd()))


def index_to_write(given: str | None) -> Place:
    """As :func:`existing_index`, but where there is none it will be made in the current folder."""
    try:
        return existing_index(given)
    except IndexNotFoundError:
        return Place.of(Path.cwd() / INDEX_FOLDER)
