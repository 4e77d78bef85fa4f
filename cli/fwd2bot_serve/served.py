"""The index that is served, as it is now, and the model behind it.

Every commit of another process is seen by the next search (:class:`fwd2bot_index.corpus.Corpus`). An index that is
removed is missed, and one that is there again, even another one of another model, is opened: its manifest is looked at
before every request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from fwd2bot_index.config import Manifest
from fwd2bot_index.corpus import Corpus
from fwd2bot_index.errors import Fwd2BotError, IndexEmptyError, IndexNotFoundError
from fwd2bot_index.places import MANIFEST, Mark, Place
from fwd2bot_index.store import IndexStore, StoreStats
from fwd2bot_index.types import Compressor
from fwd2bot_serve.batching import BatchedModel, ModelThread
from fwd2bot_serve.failures import LoadingError

if TYPE_CHECKING:
    from fwd2bot_index.facets import Facet
    from fwd2bot_index.text_encoder import TextEncoder

ModelState: TypeAlias = Literal["loading", "ready", "failed"]
_WARM_UP: Final = "a picture"
_RETRY: Final = 60.0
"""Seconds after which a model that could not be loaded is tried again: what was in the way may have passed."""
_LOOKS: Final = 1.0
"""Seconds between looks for an index that is not there."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """Of the index."""

    version: int
    stats: StoreStats
    is_being_written: bool


class ServedIndex:
    """An index that other processes may change, remove and make again."""

    def __init__(
        self,
        place: Place,
        *,
        load: Callable[[Manifest], Compressor],
        text_encoder: Callable[[Manifest], TextEncoder | None],
        thread: ModelThread,
    ) -> None:
        """
        Args:
            load: the model that made an index.
            text_encoder: what embeds texts as long as the model is being loaded; None where only the model can.
            thread: the model's.
        """
        self.place = place
        self._load = load
        self._text_encoder = text_encoder
        self._thread = thread
        self._lock = threading.Lock()
        self._stamp: Mark | None = None
        self._corpus: Corpus | None = None
        self._model: BatchedModel | None = None
        self._model_error: Fwd2BotError | None = None
        self._failed = 0.0
        """When, by the monotonic clock."""
        self._wanted = ""
        """The fingerprint of the model that is there or being loaded."""
        self._facets: tuple[int, list[Facet]] | None = None
        self._stats: tuple[int, StoreStats] | None = None
        self.is_warm = False
        """A search was made, so that what it loads is there."""
        self.hindrance: str | None = None
        """Why not, if it is no matter of waiting."""

    @property
    def model_state(self) -> ModelState:
        if self._model is not None:
            return "ready"
        return "failed" if self._model_error is not None else "loading"

    def corpus(self) -> Corpus:
        """The index, open.

        Raises:
            IndexNotFoundError: it is not there (any more).
            IndexCorruptedError, IndexMismatchError, ObjectStoreError: it cannot be read.
        """
        stamp = self.look()
        with self._lock:
            if self._corpus is None or stamp != self._stamp:
                self._corpus = self._open()
                self._stamp, self._facets, self._stats = stamp, None, None
            if self._model_error is not None and time.monotonic() > self._failed + _RETRY:
                self._begin_loading(self._corpus.manifest)
            return self._corpus

    def to_write(self) -> Corpus:
        """The index, open once more: for a thread that writes.

        Raises:
            As :meth:`corpus`.
        """
        return Corpus.open(self.place, model=self.corpus().model)

    def warm_up(self) -> None:
        """Make the first search, which loads what all need; wait for an index where there is none.

        The model comes after that: a search for a text may do without.
        """
        while not self.is_warm:
            try:
                self._first_search()
            except LoadingError:
                time.sleep(0.05)
            except Fwd2BotError as e:
                self.hindrance = str(e)
                time.sleep(_LOOKS)
            else:
                self.is_warm, self.hindrance = True, None

    def status(self) -> Status:
        """
        Raises:
            As :meth:`corpus`.
        """
        corpus = self.corpus()
        version = corpus.version
        known = self._stats  # once: another thread may forget it meanwhile
        if known is None or known[0] != version:
            self._stats = known = version, corpus.stats()
        return Status(version=version, stats=known[1], is_being_written=self.place.is_being_written())

    def facets(self) -> list[Facet]:
        """
        Raises:
            As :meth:`corpus`.
        """
        corpus = self.corpus()
        version = corpus.version
        known = self._facets
        if known is None or known[0] != version:
            self._facets = known = version, corpus.facets()
        return known[1]

    def look(self) -> Mark:
        """Which manifest is there.

        Raises:
            IndexNotFoundError: none.
            ObjectStoreError: it cannot be said.
        """
        try:
            return self.place.mark(MANIFEST)
        except OSError:
            raise IndexNotFoundError(
                f"There is no index in {self.place} any more: this server goes on as soon as there is one again."
            ) from None

    def _open(self) -> Corpus:
        manifest = IndexStore.open(self.place).manifest
        if manifest.model_fingerprint != self._wanted:
            self._wanted, self._model = manifest.model_fingerprint, None
            self._begin_loading(manifest)
        corpus = Corpus.open(
            self.place, model=partial(self._loaded, manifest), text_encoder=partial(self._text_encoder, manifest)
        )
        if self._model is not None:
            _ = corpus.model
        return corpus

    def _begin_loading(self, manifest: Manifest) -> None:
        self._model_error = None
        threading.Thread(target=self._load_model, args=(manifest,), name="loading", daemon=True).start()

    def _load_model(self, manifest: Manifest) -> None:
        model, error = None, None
        try:
            model = BatchedModel(self._load(manifest), self._thread)
            model.embed_text([_WARM_UP])
        except Fwd2BotError as e:
            error = e
        except Exception as e:  # a person is told, whatever it is
            error = Fwd2BotError(f"The model {manifest.model} could not be loaded: {type(e).__name__}: {e}")
        with self._lock:
            if self._wanted != manifest.model_fingerprint:
                return
            self._model, self._model_error = model if error is None else None, error
            self._failed = time.monotonic()
            corpus = self._corpus
        if corpus is not None and error is None:
            _ = corpus.model  # from now on texts are embedded by the model, many in one call

    def _loaded(self, manifest: Manifest) -> Compressor:
        model, error = self._model, self._model_error  # once: another thread may begin anew meanwhile
        if model is not None:
            return model
        if error is not None:
            raise error
        raise LoadingError(f"The model {manifest.model} is being loaded: try again in a moment.")

    def _first_search(self) -> None:
        corpus = self.corpus()
        try:
            for _ in range(2):
                corpus.search(_WARM_UP, top=1)
        except IndexEmptyError:
            pass
