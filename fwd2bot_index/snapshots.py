"""One version of the table of pictures, held still while others write: what searches read.

A row is named by its *address* in that version (Lance's fragment and offset, 64 bits), a picture by its *key*: the
first 64 bits of its content id. Two of a million different pictures share a key with a probability of 3e-8.

Shapes: N rows, n rows asked for, E embedding size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fwd2bot_index import conditions
from fwd2bot_index.hit_names import HIT_COLUMNS
from fwd2bot_index.keys import content_keys
from fwd2bot_index.store import BATCH_BYTES, IndexStore, corrupted, or_corrupted

if TYPE_CHECKING:
    from fwd2bot_index.payloads import Float32
    from fwd2bot_index.places import Place
    from fwd2bot_index.store import Float16

UInt64: TypeAlias = npt.NDArray[np.uint64]
T = TypeVar("T")

FOUND: Final = "status = 'ok'"
"""Rows that a search can find."""
_HIDDEN: Final = ("embedding", "checksum")
_READ_ONE_BY_ONE: Final = 2000
"""Rows; more are read by going through the whole table."""


@dataclass(frozen=True)
class PictureRows:
    """Rows that can be found, in the order of the table."""

    address: UInt64
    """[N]"""
    key: UInt64
    """[N]"""


class Snapshot:
    """The rows of one version."""

    def __init__(self, place: Place, dataset: Any, embedding_dim: int) -> None:
        self._place = place
        self._dataset = dataset
        self.embedding_dim = embedding_dim

    @classmethod
    def of(cls, store: IndexStore) -> Snapshot:
        """The latest version."""
        return cls(store.place, store.pinned_images(), store.manifest.embedding_dim)

    @cached_property
    def version(self) -> int:
        return int(self._dataset.version)

    @cached_property
    def files(self) -> str:
        """A digest of the names of the files that hold the rows and say which are deleted. They are drawn at random, so
        where it is the same, so are rows and addresses, in whatever table."""
        pieces = self._read(lambda: [fragment.metadata.to_json() for fragment in self._dataset.get_fragments()])
        return hashlib.sha256(json.dumps(pieces, sort_keys=True).encode()).hexdigest()

    def __len__(self) -> int:
        return int(self._read(partial(self._dataset.count_rows, filter=FOUND)))

    def pictures(self) -> PictureRows:
        """All that can be found."""
        table = self._scan(["id"], where=FOUND)
        return PictureRows(address=_addresses(table), key=content_keys(table.column("id")))

    def matching(self, where: str) -> UInt64:
        """[n], sorted: the addresses of the rows that can be found and fulfil a condition in SQL.

        Raises:
            InputError: the condition cannot be understood.
        """
        found = self._scan(["status"], where=self.checked(where))
        ok = pc.equal(found.column("status"), "ok").to_numpy(zero_copy_only=False).astype(bool)
        return np.sort(_addresses(found)[ok])

    def checked(self, where: str) -> str:
        """The condition, ready to be joined to others.

        Raises:
            InputError: it cannot be understood.
        """

        def plan(condition: str) -> object:
            return self._dataset.scanner(filter=condition, columns=["uri"]).explain_plan()

        return conditions.check(where, plan, [name for name in self._dataset.schema.names if name not in _HIDDEN])

    def embedded(self, take: Callable[[Float16], object]) -> tuple[UInt64, Any]:
        """Addresses [N] and Arrow's ``HIT_COLUMNS`` of all that can be found; ``take`` is given their embeddings, [n,
        E] at a time, so that they are not in memory twice.

        Raises:
            IndexCorruptedError: an embedding is missing or not finite.
        """
        names = [self._dataset.schema.empty_table().select(list(HIT_COLUMNS))]
        addresses = [np.zeros(0, np.uint64)]
        for batch in self._batches([*HIT_COLUMNS, "embedding"], **_WITH_ADDRESS):
            take(self._matrix(batch))
            names.append(batch.select(list(HIT_COLUMNS)))
            addresses.append(_addresses(batch))
        return np.concatenate(addresses), pa.concat_tables(names)

    def name_tables(self) -> Iterator[Any]:
        """Arrow's ``HIT_COLUMNS`` of all that can be found, piece by piece, in the table's order."""
        yield from self._batches(HIT_COLUMNS)

    def embedding_batches(self, chosen: npt.NDArray[np.bool_]) -> Iterator[Float16]:
        """The embeddings of the ``chosen`` [N] of all rows that can be found, batch by batch, in the table's order.

        Raises:
            IndexCorruptedError: as :meth:`embedded`.
        """
        start = 0
        for batch in self._batches(["embedding"]):
            matrix = self._matrix(batch)
            yield matrix[chosen[start : start + len(matrix)]]
            start += len(matrix)

    def rows_at(self, addresses: UInt64, columns: Sequence[str] = HIT_COLUMNS) -> Any:
        """Arrow's columns of the rows at these addresses, in their order."""
        # Lance calls it unstable, and its version is pinned: a scan with `_rowaddr IN (...)` takes a millisecond more
        rows = pa.array(addresses.tolist(), pa.uint64())
        table = self._read(lambda: self._dataset._take_rows(rows, columns=list(columns)))
        if table.num_rows < len(addresses):
            raise corrupted(self._place, "rows that a search found are not there")
        return table

    def embeddings_at(self, addresses: UInt64) -> Float16:
        """[n, E]"""
        return self._matrix(self.rows_at(addresses, ["embedding"]))

    def embeddings_of(self, pictures: PictureRows, chosen: npt.NDArray[np.bool_]) -> Float16:
        """[n, E]: those of the ``chosen`` [N] of all rows."""
        addresses = pictures.address[chosen]
        if len(addresses) <= _READ_ONE_BY_ONE:
            return self.embeddings_at(addresses)
        return np.concatenate(list(self.embedding_batches(chosen)))

    def table(self, where: str | None = None) -> Any:
        """All columns but embeddings and checksums of the rows that can be found.

        Raises:
            InputError: the condition cannot be understood.
        """
        found = FOUND if where is None else f"{self.checked(where)} AND {FOUND}"
        return self.select([name for name in self._dataset.schema.names if name not in _HIDDEN], where=found)

    def select(self, columns: Sequence[str], *, where: str) -> Any:
        """Arrow's columns of the rows that fulfil a condition that is known to be understood."""
        return self._scan(list(columns), where=where).drop_columns(["_rowaddr"])

    def newest(self, top: int, *, skip: int = 0, where: str | None = None) -> Any:
        """Arrow's ``HIT_COLUMNS`` of rows that can be found, those that were written last first.

        Raises:
            InputError: the condition cannot be understood.
        """
        found = FOUND if where is None else f"{self.checked(where)} AND {FOUND}"
        end = self.count(found) - skip
        start = max(0, end - top)
        columns = list(HIT_COLUMNS)

        def read() -> Any:
            return self._dataset.to_table(columns=columns, filter=found, offset=start, limit=max(0, end - start))

        table = self._read(read)
        return table.take(np.arange(table.num_rows)[::-1])

    def count(self, where: str) -> int:
        """How many rows fulfil it."""
        return int(self._read(partial(self._dataset.count_rows, filter=where)))

    # ---- LanceDB's own vector index

    @cached_property
    def vector_index(self) -> str | None:
        """The kind of Lance's own index of the embeddings; None: there is none."""
        found = self._read(self._dataset.describe_indices)
        return next((str(index.index_type) for index in found if "embedding" in index.field_names), None)

    @property
    def not_in_vector_index(self) -> int:
        """Rows that came after it was trained; a search compares them one by one."""
        found = self._read(self._dataset.describe_indices)
        names = [index.name for index in found if "embedding" in index.field_names]
        return sum(int(self._dataset.stats.index_stats(name)["num_unindexed_rows"]) for name in names)

    def nearest(self, query: Float32, k: int, where: str | None) -> tuple[UInt64, Float32]:
        """Addresses and cosines of the rows that Lance's own index finds nearest to ``query`` [E], best first; rows
        that it does not cover yet are compared one by one."""
        condition = FOUND if where is None else f"{self.checked(where)} AND {FOUND}"
        wanted = {"column": "embedding", "q": query, "k": k, "metric": "dot", "nprobes": 64, "refine_factor": 10}

        def read() -> Any:
            return self._dataset.to_table(
                columns=["embedding", "_distance"], nearest=wanted, filter=condition, prefilter=True, **_WITH_ADDRESS
            )

        table = self._read(read)
        addresses = _addresses(table)
        scores = self._matrix(table).astype(np.float32) @ query
        order = np.lexsort((addresses, -scores))[:k]
        return addresses[order], scores[order]

    # ---- helpers

    def _batches(self, columns: Sequence[str], **options: Any) -> Iterator[Any]:
        """Arrow tables of all that can be found, in the table's order."""
        rows = max(1024, BATCH_BYTES // (2 * self.embedding_dim))
        scanner = self._dataset.scanner(columns=list(columns), filter=FOUND, batch_size=rows, **options)
        batches = iter(scanner.to_batches())
        while (batch := self._read(lambda: next(batches, None))) is not None:
            yield pa.table(batch)

    def _scan(self, columns: list[str], *, where: str) -> Any:
        return self._read(partial(self._dataset.to_table, columns=columns, filter=where, **_WITH_ADDRESS))

    def _matrix(self, table: Any) -> Float16:
        column = table.column("embedding")
        numbers = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        matrix: Float16 = numbers.reshape(-1, self.embedding_dim)
        if column.null_count or not np.isfinite(matrix).all():
            raise corrupted(self._place, "an embedding is missing or not finite")
        return matrix

    def _read(self, read: Callable[[], T]) -> T:
        return or_corrupted(self._place, read)


_WITH_ADDRESS: Final = {"with_row_address": True}


def _addresses(table: Any) -> UInt64:
    return np.asarray(table.column("_rowaddr").to_numpy(), np.uint64)
