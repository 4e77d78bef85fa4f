"""Whether an index is whole: every row and every payload is read once, and nothing is changed.

What is compared:

- every row: its key and status, that what its status promises is there, its embedding with its checksum and with unit
  length; that no file and no picture is there twice;
- every payload: its key and its checksum; a sample of them is decoded;
- both with each other: each picture that a search may find has its tokens. (Tokens without a row are no damage: a run
  that was killed leaves them, and the next one takes or sweeps them.)

Damage in one file of a table does not hide what is in the others. Another process may write meanwhile: what seems to be
missing is looked for once more before it is called so. Memory: 8 bytes for each row and picture,
and what Lance takes to read a piece, some hundred MiB (docs/storage.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fwd2bot_index.errors import IndexBusyError, IndexCorruptedError
from fwd2bot_index.keys import UInt64, keys_of
from fwd2bot_index.store import Fragment, IndexStore, Status, checksums, reason_of

PROBLEMS_NAMED: Final = 100
SAMPLE: Final = 1000
UNIT_TOLERANCE: Final = 0.01
"""Of the length of an embedding: float16 takes less than 0.001."""
_ROW_COLUMNS: Final = ("uri", "id", "size", "width", "height", "status", "error", "embedding", "checksum")
_ID: Final = "^[0-9a-f]{32}$"


@dataclass(kw_only=True)
class Verification:
    """What was found."""

    files: int = 0
    """Rows that a search can find."""
    skipped: int = 0
    archives: int = 0
    pictures: int = 0
    """Payloads."""
    decoded: int = 0
    """Payloads that were decoded, too."""
    orphans: int = 0
    """Pictures without a row."""
    problem_count: int = 0
    problems: list[str] = field(default_factory=list)
    """A sentence for each of the first ``PROBLEMS_NAMED``."""

    @property
    def whole(self) -> bool:
        return self.problem_count == 0

    def add(self, problem: str) -> None:
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_NAMED:
            self.problems.append(problem)


def verify(
    store: IndexStore, *, sample: int = SAMPLE, progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Read all of an index.

    Args:
        sample: about how many payloads are decoded; all, where there are fewer.
        progress: told how many rows and payloads are done, and of how many, now and then.

    Raises:
        IndexBusyError: another process rewrote the index meanwhile, and took away what was being read.
    """
    return _Verifier(store, sample, progress or (lambda done, total: None)).run()


class _Verifier:
    def __init__(self, store: IndexStore, sample: int, progress: Callable[[int, int], None]) -> None:
        self._store = store
        self._sample = sample
        self._progress = progress
        self._found = Verification()
        self._done = 0
        self._unreadable = 0

    def run(self) -> Verification:
        images = list(self._store.image_fragments(_ROW_COLUMNS))
        tokens = list(self._store.token_fragments(["id", "payload", "checksum"]))
        total = sum(fragment.rows for fragment in [*images, *tokens])
        self._every = max(1, sum(fragment.rows for fragment in tokens) // max(1, self._sample))
        uris, needed = [], []
        for batch in self._batches(images, total):
            uris.append(keys_of(batch.column("uri")))
            needed.append(keys_of(self._check_rows(batch)))
        held = []
        for batch in self._batches(tokens, total):
            held.append(keys_of(batch.column("id")))
            self._check_payloads(batch)
        self._check_unique(uris, "file", "images.lance")
        self._check_unique(held, "picture", "tokens.lance")
        self._compare(_distinct(needed), _distinct(held))
        return self._found

    def _batches(self, fragments: list[Fragment], total: int) -> Iterator[Any]:
        for fragment in fragments:
            before = self._done
            try:
                for batch in fragment.batches():
                    yield batch
                    self._done += batch.num_rows
                    self._progress(self._done, total)
            except IndexCorruptedError as e:
                if not fragment.is_current:
                    raise IndexBusyError(
                        f"The index in {self._store.place} was rewritten while it was read: verify it again."
                    ) from e
                self._unreadable += 1
                self._found.add(
                    f"{fragment.file} cannot be read ({fragment.rows} rows): {reason_of(e.__cause__ or e)}."
                )
            self._done = before + fragment.rows

    # ---- rows

    def _check_rows(self, batch: Any) -> Any:
        """The ids of those that can be found."""
        found = self._found
        status = batch.column("status")
        ok = pc.equal(status, "ok")
        found.files += pc.sum(ok).as_py() or 0
        found.skipped += pc.sum(pc.equal(status, "skipped")).as_py() or 0
        found.archives += pc.sum(pc.equal(status, "archive")).as_py() or 0
        uri, id_ = batch.column("uri"), batch.column("id")
        known = pc.is_in(status, value_set=pa.array(get_args(Status)))
        self._tell(uri, pc.invert(known), "has a status that no version writes")
        self._tell(uri, pc.and_(ok, pc.invert(_true(pc.match_substring_regex(id_, _ID)))), "has no content id")
        sides = pc.and_(_true(pc.greater(batch.column("width"), 0)), _true(pc.greater(batch.column("height"), 0)))
        self._tell(uri, pc.and_(ok, pc.invert(sides)), "has no width or height")
        unexplained = pc.and_(pc.equal(status, "skipped"), pc.is_null(batch.column("error")))
        self._tell(uri, unexplained, "was skipped without a reason")
        self._tell(uri, pc.less(batch.column("size"), 0), "has a negative size")

        embedding, expected = batch.column("embedding"), batch.column("checksum")
        self._tell(uri, pc.and_(ok, pc.is_null(embedding)), "has no embedding")
        there = pc.is_valid(embedding)
        vectors = embedding.filter(there).flatten().to_numpy(zero_copy_only=False)
        vectors = vectors.reshape(-1, self._store.manifest.embedding_dim)
        where = uri.filter(there)
        differs = checksums(vectors) != expected.filter(there).fill_null(0).to_numpy()
        self._tell(where, pa.array(differs), "has an embedding that is not what was written (checksum)")
        with np.errstate(invalid="ignore", over="ignore"):
            length = np.linalg.norm(vectors.astype(np.float32), axis=1)
            unit = np.abs(length - 1) <= UNIT_TOLERANCE
        self._tell(where, pa.array(~unit & ~differs), "has an embedding that is not of unit length")
        return id_.filter(ok)

    # ---- payloads

    def _check_payloads(self, batch: Any) -> None:
        ids, payload = batch.column("id"), batch.column("payload")
        self._tell(ids, pc.invert(_true(pc.match_substring_regex(ids, _ID))), "is no content id")
        raw = np.frombuffer(b"".join(payload.to_pylist()), np.uint8).reshape(batch.num_rows, -1)
        differs = checksums(raw) != batch.column("checksum").to_numpy()
        self._tell(ids, pa.array(differs), "has summary tokens that are not what was written (checksum)")
        first = -self._found.pictures % self._every
        chosen = np.arange(first, batch.num_rows, self._every)
        self._found.pictures += batch.num_rows
        chosen = chosen[~differs[chosen]]
        self._found.decoded += len(chosen)
        for i in self._not_decoded(raw[chosen]):
            self._found.add(f"{ids[int(chosen[i])].as_py()} has summary tokens that cannot be decoded.")

    def _not_decoded(self, payload: npt.NDArray[np.uint8]) -> list[int]:
        """Which rows; one by one only where some cannot."""

        def fine(rows: npt.NDArray[np.uint8]) -> bool:
            try:
                return bool(np.isfinite(self._store.decode(rows)).all())
            except IndexCorruptedError:
                return False

        if len(payload) == 0 or fine(payload):
            return []
        return [i for i in range(len(payload)) if not fine(payload[i : i + 1])]

    # ---- the whole

    def _check_unique(self, keys: list[UInt64], what: str, table: str) -> None:
        count = sum(map(len, keys))
        if twice := count - len(_distinct(keys)):
            self._found.add(f"{table} has {twice} rows too many: a {what} is there twice.")

    def _compare(self, needed: UInt64, held: UInt64) -> None:
        self._found.orphans = int(np.isin(held, needed, invert=True).sum())
        missing = needed[np.isin(needed, held, invert=True)]
        if self._unreadable:
            if len(missing):
                self._found.add(f"{len(missing)} pictures have no summary tokens that can be read.")
            return
        if len(missing):
            for id_ in self._ids_of(missing):
                # a row that went meanwhile took its tokens with it, and one that came brought them
                if any(row.status == "ok" for row in self._store.rows(ids=[id_])) and not self._has_tokens(id_):
                    self._found.add(f"{id_} has a row and no summary tokens.")

    def _ids_of(self, keys: UInt64) -> set[str]:
        ids: set[str] = set()
        for fragment in self._store.image_fragments(["id"]):
            for batch in fragment.batches():
                column = batch.column("id").drop_null()
                ids.update(column.filter(pa.array(np.isin(keys_of(column), keys))).to_pylist())
        return ids

    def _has_tokens(self, id_: str) -> bool:
        try:
            self._store.tokens([id_])
        except IndexCorruptedError:
            return False
        return True

    def _tell(self, names: Any, wrong: Any, what: str) -> None:
        for name in names.filter(wrong).to_pylist():
            self._found.add(f"{name} {what}.")


def _distinct(keys: list[UInt64]) -> UInt64:
    return np.unique(np.concatenate([*keys, np.zeros(0, np.uint64)]))


def _true(mask: Any) -> Any:
    """Null is not true."""
    return mask.fill_null(False)
