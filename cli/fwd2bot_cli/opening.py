"""An index, opened with the session's models behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fwd2bot_cli.console import printable
from fwd2bot_cli.location import existing_index
from fwd2bot_cli.models import ModelChoice
from fwd2bot_cli.session import Session

if TYPE_CHECKING:
    from fwd2bot_index.corpus import Corpus
    from fwd2bot_index.types import Compressor


def open_index(session: Session, given: str | None, *, model: str | None = None) -> Corpus:
    """The index that a command means; its model is loaded when something first needs it, with a spinner. ``model``:
    another one with the same first pass.

    Raises:
        IndexNotFoundError, IndexCorruptedError, IndexMismatchError: there is no index to be read.
    """
    from fwd2bot_index.corpus import Corpus

    def load() -> Compressor:
        choice = ModelChoice.of(index.manifest, instead=model)
        with session.output.waiting(f"Loading the model {printable(choice.name)} …"):
            return session.models.load(choice)

    index = Corpus.open(
        existing_index(given), model=load, text_encoder=lambda: session.models.text_encoder(index.manifest)
    )
    return index
