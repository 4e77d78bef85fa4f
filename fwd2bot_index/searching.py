"""From an embedding to the rows nearest to it: the trained vector index for what it covers, an exact one for the rest.

A trained index (:mod:`fwd2bot_index.vector_files`) holds *pictures* by their content, so it stays right when rows are
rewritten, renamed or given new columns. Rows of pictures that it does not hold, the *tail*, are compared one by one;
pictures that have lost all their rows are passed over. A small corpus has no trained index: all of it is tail.

Shapes: N rows, n rows found, E embedding size.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fwd2bot_index import vector_files
from fwd2bot_index.errors import IndexWriteError, InputError
from fwd2bot_index.hit_names import HIT_COLUMNS, HitNames
from fwd2bot_index.snapshots import PictureRows, Snapshot
from fwd2bot_index.vector_files import Positions, UnusableError, VectorFiles
from fwd2bot_index.vector_index import ExactIndex, Kind, TrainedIndex, build, engine

if TYPE_CHECKING:
    from fwd2bot_index.payloads import Float32
    from fwd2bot_index.store import Float16, IndexStore

Int64: TypeAlias = npt.NDArray[np.int64]
UInt64: TypeAlias = npt.NDArray[np.uint64]
Bool: TypeAlias = npt.NDArray[np.bool_]
Choice: TypeAlias = Literal["auto", "exact", "ivf", "ivf-rabitq", "hnsw", "lance"]

EXACT_BYTES: Final = 64 * 2**20
"""Of float16 embeddings, which a search compares in some 10 ms on one core: up to there nothing is trained."""
MEMORY_SHARE: Final = 0.25
"""Of the machine's free memory, that an index in full precision may take."""
FETCHED_BYTES: Final = 16 * 2**20
"""Of float16 embeddings in an object store, which a search fetches to compare them all; of more, Lance's own index is
made there, of which a search reads what it needs."""
TAIL_SHARE: Final = 0.1
"""Of the rows, from which a tail is worth building again for."""
FEW: Final = 2000
"""Rows that a condition leaves, whose embeddings are read and compared one by one instead of asking a trained index."""
BACKGROUND: Final = 2048
"""Rows that stand for all, where a score is compared with those of the corpus."""


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """How searches are done, for ``fwd2bot info``."""

    method: str
    """``exact``, ``ivf``, ``ivf-rabitq``, ``hnsw``, or ``lance`` and the kind of Lance's own index."""
    engine: str
    built: VectorFiles | None = None
    tail: int = 0
    """Rows that the trained index does not cover."""
    unusable: str | None = None
    """Why a trained index that is there is not used."""


class Searcher:
    """Searches one version of the index."""

    def __init__(
        self, snapshot: Snapshot, trained: tuple[TrainedIndex, Positions, HitNames, VectorFiles] | None
    ) -> None:
        self.snapshot = snapshot
        self._lance = snapshot.vector_index if trained is None else None
        self._trained = trained
        self._load()

    @classmethod
    def of(cls, store: IndexStore) -> Searcher:
        """For the latest version. What cannot be used of a trained index is done without."""
        snapshot = Snapshot.of(store)
        try:
            files = vector_files.described(store.place)
            trained = None if files is None else (*vector_files.read(store.place, files), files)
        except UnusableError:  # `fwd2bot info` says why
            trained = None
        return cls(snapshot, trained)

    def _load(self) -> None:
        for cached in ("_order", "_rows_order"):  # of what was loaded before
            self.__dict__.pop(cached, None)
        self._table: Any = None
        """Arrow's ``HIT_COLUMNS`` of the tail, where that is all there is."""
        self._names: HitNames | None = None
        """Of the rows that the trained index covers, where they are those of this version."""
        self._alive: Bool | None = None
        """[positions]; None: all pictures of the trained index have rows."""
        none = np.zeros(0, np.uint64)
        self._rows = Positions(key=none, address=none, position=np.zeros(0, np.int64), row=np.zeros(0, np.int64))
        if self._lance is not None:
            self._tail_address = none
        elif self._trained is None:
            self._tail = ExactIndex(np.zeros((0, self.snapshot.embedding_dim), np.float16))
            self._tail_address, table = self.snapshot.embedded(self._tail.add)
            self._table = table.combine_chunks()  # taking a few rows out of many chunks takes a millisecond more
        else:
            index, positions, names, files = self._trained
            if files.rows_of == self.snapshot.files:
                self._rows, self._tail_address, self._names = positions, none, names
                tail = np.zeros((0, index.settings.dim), np.float16)
            else:
                now = self.snapshot.pictures()
                self._rows, covered = _at_present(positions, now)
                self._tail_address = now.address[~covered]
                tail = self.snapshot.embeddings_of(now, ~covered)
            alive = np.zeros(len(index), np.bool_)
            alive[self._rows.position] = True
            self._alive = None if alive.all() else alive
            self._tail = ExactIndex(tail)

    def __len__(self) -> int:
        if self._lance is not None:
            return len(self.snapshot)
        return len(self._rows.address) + len(self._tail_address)

    # ---- finding

    def nearest(self, query: Float32, k: int, *, where: str | None = None) -> tuple[UInt64, Float32]:
        """Addresses and cosines [n <= k] of the rows nearest to ``query`` [E], best first; equal ones in the order of
        the table.

        Raises:
            InputError: ``where`` cannot be understood.
        """
        if self._lance is not None:
            return self.snapshot.nearest(query, min(k, max(1, len(self))), where)
        kept = None if where is None else self.snapshot.matching(where)
        if kept is not None and self._trained is not None and len(kept) <= FEW:
            return self._nearest_of(kept, query, k)
        addresses, scores = [], []
        if self._trained is not None:
            try:
                found = self._nearest_trained(query, k, kept)
            except ValueError:  # its file is damaged: the embeddings themselves are there
                self._trained = None
                self._load()
            else:
                addresses.append(found[0])
                scores.append(found[1])
        allowed = None if kept is None else _chosen(kept, *self._order)
        rows, cosines = self._tail.search(query[None], k, allowed=allowed)
        there = rows[0] >= 0
        addresses.append(self._tail_address[rows[0][there]])
        scores.append(cosines[0][there])
        address, score = np.concatenate(addresses), np.concatenate(scores)
        order = np.lexsort((address, -score))[:k]
        return address[order], score[order]

    def _nearest_of(self, addresses: UInt64, query: Float32, k: int) -> tuple[UInt64, Float32]:
        """Of these rows, by their stored embeddings: sooner than all lists are probed for them."""
        scores = self.embeddings(addresses) @ query
        order = np.lexsort((addresses, -scores))[:k]
        return addresses[order], scores[order]

    def _nearest_trained(self, query: Float32, k: int, kept: UInt64 | None) -> tuple[UInt64, Float32]:
        assert self._trained is not None
        index, *_ = self._trained
        rows, allowed, among = self._rows, self._alive, None
        if kept is not None:
            among = _chosen(kept, *self._rows_order)
            allowed = np.zeros(len(index), np.bool_)
            allowed[rows.position[among]] = True
        positions, scores = index.search(query[None], k, allowed=allowed, vectors=self._vectors)
        there = positions[0] >= 0
        positions, scores = positions[0][there], scores[0][there]
        first, last = (np.searchsorted(rows.position, positions, side) for side in ("left", "right"))
        each = [np.arange(a, b) for a, b in zip(first, last, strict=True)]
        if among is not None:
            each = [rows_of[among[rows_of]] for rows_of in each]
        chosen = np.concatenate([*each, np.zeros(0, np.int64)]).astype(np.int64)
        return rows.address[chosen], np.repeat(scores, [len(rows_of) for rows_of in each])

    def _vectors(self, positions: Int64) -> Float16:
        first = np.searchsorted(self._rows.position, positions)
        return self.snapshot.embeddings_at(self._rows.address[first])

    def alone(self, query: Float32, k: int) -> object:
        """What a vector index by itself would answer: :meth:`nearest` without the rows. For benchmarks."""
        if self._lance is not None:
            return self.snapshot.nearest(query, k, None)
        if self._trained is None:
            return self._tail.search(query[None], k)
        return self._trained[0].search(query[None], k, vectors=self._vectors)

    # ---- what is known of rows

    def rows(self, addresses: UInt64, columns: Sequence[str] = HIT_COLUMNS) -> Any:
        """Arrow's columns of these rows, in their order."""
        if self._table is not None and set(columns) <= set(HIT_COLUMNS):
            table = self._table if tuple(columns) == HIT_COLUMNS else self._table.select(list(columns))
            # made of numpy's array it would import numpy.ma, for 40 ms
            return table.take(pa.array(self._place(addresses).tolist(), pa.int64()))
        if self._names is not None and tuple(columns) == HIT_COLUMNS:
            order, ascending = self._rows_order
            named = self._names.take(self._rows.row[order[np.searchsorted(ascending, addresses)]].tolist())
            if named is not None:
                return named
        return self.snapshot.rows_at(addresses, columns)

    def embeddings(self, addresses: UInt64) -> Float32:
        """[n, E]"""
        if self._table is not None:
            return self._tail.embeddings[self._place(addresses)].astype(np.float32)
        return self.snapshot.embeddings_at(addresses).astype(np.float32)

    @cached_property
    def background(self) -> Float32:
        """[n, E]: the embeddings of ``BACKGROUND`` rows drawn at random, or of all, where there are fewer."""
        if self._lance is not None:
            addresses = self.snapshot.pictures().address
        else:
            addresses = np.concatenate([self._rows.address, self._tail_address])
        if len(addresses) > BACKGROUND:
            addresses = np.sort(np.random.default_rng(0).choice(addresses, BACKGROUND, replace=False))
        return self.embeddings(addresses)

    def _place(self, addresses: UInt64) -> Int64:
        order, ascending = self._order
        return order[np.searchsorted(ascending, addresses)]

    @cached_property
    def _order(self) -> tuple[Int64, UInt64]:
        return _sorted(self._tail_address)

    @cached_property
    def _rows_order(self) -> tuple[Int64, UInt64]:
        return _sorted(self._rows.address)


def _sorted(addresses: UInt64) -> tuple[Int64, UInt64]:
    order = np.argsort(addresses, kind="stable")  # they nearly are: a tenth of the time
    return order, addresses[order]


def _chosen(kept: UInt64, order: Int64, ascending: UInt64) -> Bool:
    """[N]: which of N addresses, given by :func:`_sorted`, are in ``kept`` [n], which is sorted: in n log N steps."""
    chosen = np.zeros(len(order), np.bool_)
    if len(order):
        place = np.minimum(np.searchsorted(ascending, kept), len(order) - 1)
        chosen[order[place[ascending[place] == kept]]] = True
    return chosen


def _at_present(positions: Positions, now: PictureRows) -> tuple[Positions, Bool]:
    """The rows that have the pictures of a trained index in another version of the table than the one that it was built
    for; and [N], whether each row is one of them."""
    if len(positions.key) == 0 or len(now.key) == 0:
        none = np.zeros(0, np.int64)
        nothing = replace(positions, address=none.astype(np.uint64), position=none, row=none)
        return nothing, np.zeros(len(now.key), np.bool_)
    order = np.argsort(positions.key)
    place = np.minimum(np.searchsorted(positions.key[order], now.key), len(order) - 1)
    position = order[place]
    covered = positions.key[position] == now.key
    by_position = np.argsort(position[covered], kind="stable")
    rows = replace(
        positions,
        address=now.address[covered][by_position],
        position=position[covered][by_position].astype(np.int64),
        row=np.zeros(0, np.int64),  # names are those of the version that the index was built for
    )
    return rows, covered


def plan_of(store: IndexStore) -> SearchPlan:
    """How searches of the latest version would be done, found out without reading embeddings."""
    snapshot = Snapshot.of(store)
    if kind := snapshot.vector_index:
        return SearchPlan(method=f"lance {kind}", engine="lance")
    try:
        if (files := vector_files.described(store.place)) is not None:
            index, positions, _ = vector_files.read(store.place, files)
            tail = 0
            if files.rows_of != snapshot.files:
                tail = int((~_at_present(positions, snapshot.pictures())[1]).sum())
            return SearchPlan(method=index.settings.kind, engine=engine(), built=files, tail=tail)
    except UnusableError as e:
        return SearchPlan(method="exact", engine=engine(), unusable=str(e))
    return SearchPlan(method="exact", engine=engine())


# ---- building


def choose(rows: int, dim: int, *, memory: int | None = None) -> tuple[Literal["exact"] | Kind, int]:
    """The kind of index for so many embeddings, and the bits that it keeps of each number, for ``ivf-rabitq``.

    ``memory``: bytes that are free; None: as the system says.
    """
    size = 2 * rows * dim
    memory = free_memory() if memory is None else memory
    if size <= EXACT_BYTES:
        return "exact", 16
    if size <= MEMORY_SHARE * memory:
        return "ivf", 16
    return "ivf-rabitq", rabitq_bits(rows, dim, memory=memory)


def rabitq_bits(rows: int, dim: int, *, memory: int | None = None) -> Literal[1, 4]:
    """Bits of each number that ``ivf-rabitq`` keeps of so many embeddings: 4, where they fit."""
    memory = free_memory() if memory is None else memory
    return 4 if rows * dim / 2 <= MEMORY_SHARE * memory else 1


def free_memory() -> int:
    """Bytes that new work may take, roughly."""
    try:
        with open("/proc/meminfo", encoding="ascii") as f:
            for line in f:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 8 * 2**30


def refresh_vectors(store: IndexStore) -> VectorFiles | None:
    """What ends an indexing run: train a vector index where there should be one, and again where the tail of one has
    grown to ``TAIL_SHARE``. Whoever calls it holds ``store.writing``. Returns what was built.

    Raises:
        IndexCorruptedError: an embedding is missing or not finite.
    """
    snapshot = Snapshot.of(store)
    if snapshot.vector_index is not None:
        if snapshot.not_in_vector_index > TAIL_SHARE * len(snapshot):
            store.index_vectors()
        return None
    if store.place.folder is None:
        if 2 * len(snapshot) * store.manifest.embedding_dim > FETCHED_BYTES:
            store.index_vectors()
        return None
    if not engine().startswith("faiss"):
        return None
    try:
        files = vector_files.described(store.place)
        if files is not None:
            _, positions, _ = vector_files.read(store.place, files)
            keys = np.unique(snapshot.pictures().key)
            held = int(np.isin(keys, positions.key).sum())
            stale = (len(keys) - held) + (len(positions.key) - held)
            return build_vectors(store, files.settings.kind) if stale > TAIL_SHARE * len(positions.key) else None
    except UnusableError:
        pass
    if choose(len(snapshot), store.manifest.embedding_dim)[0] == "exact":
        return None
    return build_vectors(store)


def build_vectors(store: IndexStore, choice: Choice = "auto") -> VectorFiles | None:
    """Train a vector index over all pictures and put it into the index; whoever calls it holds ``store.writing``.

    Args:
        choice: ``exact`` takes away what is there; ``auto`` is :func:`choose`.

    Returns: what was built; None for ``exact``, and for ``lance``, whose index is a part of the table.

    Raises:
        InputError: there are no pictures, or FAISS is not at hand.
        IndexCorruptedError: an embedding is missing or not finite.
        IndexWriteError: it could not be written.
    """
    if store.place.folder is None:
        if choice not in ("auto", "exact", "lance"):
            raise InputError(
                f"{store.place} is in an object store, where the vector index is Lance's own: not {choice}."
            )
        fetched = 2 * len(Snapshot.of(store)) * store.manifest.embedding_dim <= FETCHED_BYTES
        choice = "exact" if choice == "exact" or (choice == "auto" and fetched) else "lance"
    if choice == "lance":
        vector_files.remove(store.place)
        store.index_vectors()
        return None
    store.drop_vector_index()
    snapshot = Snapshot.of(store)
    now = snapshot.pictures()
    dim = store.manifest.embedding_dim
    kind, bits = choose(len(now.key), dim) if choice == "auto" else (choice, rabitq_bits(len(now.key), dim))
    if kind == "exact":
        vector_files.remove(store.place)
        return None
    if len(now.key) == 0:
        raise InputError("There are no pictures to train a vector index on.")
    start = time.perf_counter()
    key, first, position = np.unique(now.key, return_index=True, return_inverse=True)
    # positions in the order of the table, because that is how the embeddings come
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    position = rank[position]
    chosen = np.zeros(len(now.key), np.bool_)
    chosen[first] = True
    try:
        index = build(kind, lambda: snapshot.embedding_batches(chosen), rows=len(key), dim=dim, bits=bits)
    except ValueError as e:
        raise InputError(f"No vector index of kind {kind} can be built: {e}.") from e
    by_position = np.argsort(position, kind="stable")
    positions = Positions(
        key=key[order],
        address=now.address[by_position],
        position=position[by_position].astype(np.int64),
        row=by_position.astype(np.int64),
    )
    seconds = time.perf_counter() - start
    try:
        names = snapshot.name_tables()
        return vector_files.write(store.place, index, positions, names, rows_of=snapshot.files, seconds=seconds)
    except (OSError, RuntimeError) as e:  # FAISS knows no kind of error but the latter
        raise IndexWriteError(f"The vector index in {store.place} could not be written: {e}.") from e
