"""What an indexing run has done and not yet committed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, cast

import numpy as np

from fwd2bot_index.payloads import Bytes, Float32
from fwd2bot_index.store import ImageRow, IndexStore
from fwd2bot_index.timing import timed

COMMIT_BYTES: Final = 64 * 2**20
"""Summary tokens are committed before their time when this many bytes wait."""
FIRST_SECONDS: Final = 300.0
"""An index is made after that long, however few pictures there are to fit its codec to."""


@dataclass(frozen=True)
class Outcome:
    """What became of one file."""

    uri: str
    id: str | None
    error: str | None
    """None: it can be found by a search."""


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A file whose content is, or will be, that of another."""

    uri: str
    id: str
    size: int
    mtime_ns: int


class WriteBuffer:
    """Collects rows and commits them together. The index is made with the first picture, not before."""

    def __init__(
        self,
        store: IndexStore | None,
        create: Callable[[Float32], IndexStore],
        *,
        commit_seconds: float,
        first: int = 1,
        keep_first: Callable[[Sequence[ImageRow], dict[str, Float32]], None] = lambda rows, tokens: None,
    ) -> None:
        """
        Args:
            store: None: there is no index yet.
            create: makes the index, knowing the tokens [N, K, D] of the first pictures of it.
            commit_seconds: what has come together is committed after that long.
            first: how many pictures ``create`` should know. It gets fewer where that takes ``FIRST_SECONDS``, or where
                :meth:`commit` is called before.
            keep_first: keeps what has come together so far, while ``create`` has to wait.
        """
        self.store = store
        """None: nothing was committed, and there was no index before."""
        self.outcomes: list[Outcome] = []
        """Of all files so far, committed or not, but for copies whose original is not done."""
        self.skipped = 0
        """How many of them have an error."""
        self._create = create
        self._commit_seconds = commit_seconds
        self._first = first
        self._keep_first = keep_first
        self._last_kept = time.perf_counter()
        self._last_commit = time.perf_counter()
        self._rows: list[ImageRow] = []
        self._tokens: dict[str, Float32 | Bytes] = {}
        self._waiting_bytes = 0
        self._copies: list[Copy] = []

    def add(self, row: ImageRow, tokens: Float32 | Bytes | None = None) -> None:
        """``tokens``: [K, D] of a new picture, or what the codec of the index made of them."""
        self._rows.append(row)
        self.outcomes.append(Outcome(row.uri, row.id, row.error))
        self.skipped += row.error is not None
        if tokens is not None:
            assert row.id is not None
            self._tokens[row.id] = tokens
            self._waiting_bytes += tokens.nbytes

    def add_copy(self, copy: Copy) -> None:
        """It gets the row of its original, however that comes out, as soon as that is known."""
        self._copies.append(copy)

    def commit_if_due(self) -> None:
        """Commit where enough time has passed, or enough has come together.

        Raises:
            IndexWriteError: see :meth:`commit`.
        """
        patience = self._commit_seconds
        if self.store is None and len(self._tokens) < self._first:
            if self._tokens and time.perf_counter() - self._last_kept >= patience:
                self._keep_first(self._rows, cast(dict[str, Float32], self._tokens))  # no codec, so far
                self._last_kept = time.perf_counter()
            patience = max(patience, FIRST_SECONDS)
        if time.perf_counter() - self._last_commit >= patience or self._waiting_bytes >= COMMIT_BYTES:
            self.commit()

    def commit(self) -> None:
        """Write what has come together; without an index, not before there is a picture for it.

        Raises:
            IndexWriteError: the index is as it was after the last commit.
        """
        self._resolve_copies()
        if self._rows and (self.store is not None or any(row.status == "ok" for row in self._rows)):
            if self.store is None:
                with timed("codec"):  # fitting it
                    self.store = self._create(np.stack(list(self._tokens.values())))
            with timed("write"):
                self.store.commit(self._rows, self._tokens)
            self._rows, self._tokens, self._waiting_bytes = [], {}, 0
        self._last_commit = time.perf_counter()

    def commit_and_take_stranded(self) -> list[Copy]:
        """Commit, and give up the copies whose original is nowhere: those of a picture that had a row when the run
        began, which a commit since then has overwritten, as happens where files change names with each other.

        Raises:
            IndexWriteError: see :meth:`commit`.
        """
        self.commit()
        stranded, self._copies = self._copies, []
        return stranded

    def _resolve_copies(self) -> None:
        if not self._copies:
            return
        originals = {row.id: row for row in self._rows}
        absent = {copy.id for copy in self._copies} - set(originals)
        if self.store is not None:
            stored = self.store.rows(ids=sorted(absent))
            # A picture may be usable under one name and have failed under another (too slow, say): take the usable.
            originals.update({row.id: row for row in sorted(stored, key=lambda row: row.status == "ok")})
        waiting = []
        for copy in self._copies:
            if original := originals.get(copy.id):
                self.add(replace(original, uri=copy.uri, size=copy.size, mtime_ns=copy.mtime_ns))
            else:
                waiting.append(copy)
        self._copies = waiting
