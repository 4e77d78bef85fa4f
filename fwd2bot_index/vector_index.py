"""Nearest neighbours by inner product: exact, or by an index that was trained for a large corpus.

Notable choices:

- FAISS does the work. Where it cannot be imported (``faiss-gpu`` without a CUDA runtime), exact search goes on in
  numpy; :func:`engine` says which.
- A trained index is *calibrated* when it is built: its effort (lists probed, ef, candidates re-scored) is the least
  that finds ``TARGET_RECALL`` of the true neighbours of pictures of the corpus, of means of two random ones and of
  means of four, which lie farther off the pictures than texts do.
- ``ivf`` keeps the embeddings' own float16 numbers, so its scores are exact and a filter that leaves few rows is
  answered exactly by probing every list. ``ivf-rabitq`` (arXiv 2405.12497) keeps 4 bits or 1 of each number, and its
  candidates are scored again from the embeddings.
- A file that was read back is data from a disk: rows outside the corpus are refused, never looked up.

This is the only module that imports faiss; it never imports torch. Shapes: N embeddings, Q queries, E embedding size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal, Protocol, Self, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

faiss: Any = None  # its own types leave out what its Python side adds
_WHY_NOT = ""
try:
    faiss = import_module("faiss")
except (ImportError, RuntimeError, OSError) as e:  # faiss-gpu without a CUDA runtime
    _WHY_NOT = " ".join(f"{type(e).__name__}: {e}".split())

Float32: TypeAlias = npt.NDArray[np.float32]
Embeddings: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float16]
Int64: TypeAlias = npt.NDArray[np.int64]
Bool: TypeAlias = npt.NDArray[np.bool_]
Kind: TypeAlias = Literal["ivf", "ivf-rabitq", "hnsw"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

TARGET_RECALL: Final = 0.995
"""Of the nearest 10 and of the nearest 100, for every kind of query that an index is calibrated with."""
MARGIN: Final = 2
"""Texts may lie still farther off than what is calibrated with: measured at 10^6, see docs/querying.md."""
DEPTHS: Final = (10, 100)
"""Numbers of results that the effort is calibrated for; for more it grows in proportion."""

_ROWS_AT_ONCE: Final = 65_536
"""FAISS takes float32 only: float16 is widened piece by piece, not all at once."""
_WIDE: Final = 8192
"""And widened to float64 in smaller ones."""
_QUERIES: Final = 128
"""Of each kind, to calibrate with."""
_MIXED: Final = (1, 2, 4)
"""Pictures whose mean is a query, of each kind."""
_POINTS_PER_LIST: Final = 40
_CANDIDATES: Final = (2, 4, 8, 16)
"""Times the number of results: how many are scored again after RaBitQ."""
_BRUTE_FORCE: Final = 0.2
"""Below this share of allowed rows, a graph (HNSW) finds too few: all are compared."""


class VectorIndex(Protocol):
    """What a search asks of an index over embeddings."""

    def __len__(self) -> int: ...

    def search(self, query: Float32, k: int, *, allowed: Bool | None = None) -> tuple[Int64, Float32]:
        """query [Q, E] -> (rows [Q, min(k, N)], scores [Q, min(k, N)]), best first.

        ``allowed`` [N]: rows that may be found. Where there are fewer than k, the last rows are -1 with score -inf.

        Raises:
            ValueError: a query is not finite or has another size, or k < 1.
        """
        ...


def engine() -> str:
    """What does exact search: ``faiss <version>``, or numpy and why."""
    return f"faiss {faiss.__version__}" if faiss is not None else f"numpy (faiss cannot be imported: {_WHY_NOT})"


class ExactIndex:
    """Compares a query with every embedding.

    Embeddings in float16 stay so in memory (half the bytes, and faster to scan than float32); the products are taken
    in float32, so the scores are those of the numbers given. Equal scores come in the order of the rows, whatever k.
    """

    def __init__(self, embeddings: Embeddings) -> None:
        """``embeddings``: [N, E], finite.

        Raises:
            ValueError: they are not.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] == 0:
            raise ValueError(f"embeddings must be [N, E], not {list(embeddings.shape)}")
        if embeddings.dtype not in (np.float16, np.float32):
            raise ValueError(f"embeddings must be float16 or float32, not {embeddings.dtype}")
        self._dim = embeddings.shape[1]
        self._scan: _Scan = _FaissScan(embeddings) if faiss is not None else _NumpyScan(embeddings)

    def add(self, embeddings: Embeddings) -> None:
        """Take [n, E] more of the same type.

        Raises:
            ValueError: they are not finite.
        """
        self._scan.add(embeddings)
        self.__dict__.pop("_gpu", None)

    @property
    def embeddings(self) -> Embeddings:
        """[N, E]: the memory that is compared with, until there are more."""
        return self._scan.embeddings

    @cached_property
    def _gpu(self) -> _Search | None:
        return _on_gpu(self.embeddings)

    def __len__(self) -> int:
        return len(self._scan)

    def search(self, query: Float32, k: int, *, allowed: Bool | None = None) -> tuple[Int64, Float32]:
        """As :meth:`VectorIndex.search`."""
        query = _checked(query, self._dim, k)
        found = len(self) if allowed is None else int(np.count_nonzero(_mask(allowed, len(self))))
        columns, k = min(k, len(self)), min(k, found)
        rows = np.full((len(query), columns), -1, np.int64)
        scores = np.full((len(query), columns), -np.inf, np.float32)
        if k and len(query):
            scan = self._scan if allowed is not None or self._gpu is None else self._gpu
            rows[:, :k], scores[:, :k] = _in_order(scan, query, k, found, allowed)
        return rows, scores


def _in_order(scan: _Search, query: Float32, k: int, found: int, allowed: Bool | None) -> tuple[Int64, Float32]:
    """A scan returns any of the rows that tie for the last place. Fetching one more shows whether some do; then more
    are fetched, until all that tie are there to be put in order."""
    wanted = k
    while True:
        wanted = min(wanted + 1 if wanted == k else wanted * 2, found)
        scores, rows = scan.nearest(query, wanted, allowed)
        if wanted == found or not (scores[:, wanted - 1] == scores[:, k - 1]).any():
            break
    order = np.lexsort((rows, -scores), axis=-1)[:, :k]
    return np.take_along_axis(rows, order, axis=-1), np.take_along_axis(scores, order, axis=-1)


class _Search(Protocol):
    def __len__(self) -> int: ...

    def nearest(self, query: Float32, k: int, allowed: Bool | None) -> tuple[Float32, Int64]:
        """Scores and rows of the k best, k being at most the number of allowed rows."""
        ...


class _Scan(_Search, Protocol):
    @property
    def embeddings(self) -> Embeddings: ...

    def add(self, embeddings: Embeddings) -> None: ...


class _FaissScan:
    def __init__(self, embeddings: Embeddings) -> None:
        dim = embeddings.shape[1]
        self._dtype = embeddings.dtype
        if embeddings.dtype == np.float16:
            self._index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        else:
            self._index = faiss.IndexFlatIP(dim)
        self.add(embeddings)

    def add(self, embeddings: Embeddings) -> None:
        for rows in _widened(embeddings):
            self._index.add(rows)

    @property
    def embeddings(self) -> Embeddings:
        codes = self._index.codes
        view: Embeddings = faiss.rev_swig_ptr(codes.data(), codes.size()).view(self._dtype).reshape(len(self), -1)
        return view

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def nearest(self, query: Float32, k: int, allowed: Bool | None) -> tuple[Float32, Int64]:
        parameters = None if allowed is None else faiss.SearchParameters(sel=_selector(allowed))
        return _searched(self._index, query, k, parameters)


class _NumpyScan:
    """What FAISS does, where there is none."""

    def __init__(self, embeddings: Embeddings) -> None:
        self.embeddings = embeddings[:0]
        self.add(embeddings)

    def add(self, embeddings: Embeddings) -> None:
        for _ in _widened(embeddings):
            pass  # sees that all are finite
        self.embeddings = np.concatenate([self.embeddings, embeddings]) if len(self) else embeddings

    def __len__(self) -> int:
        return len(self.embeddings)

    def nearest(self, query: Float32, k: int, allowed: Bool | None) -> tuple[Float32, Int64]:
        scores = np.concatenate([_products(query, rows) for rows in _widened(self.embeddings)], axis=1)
        if allowed is not None:
            scores[:, ~allowed] = -np.inf
        rows = np.argpartition(-scores, k - 1, axis=1)[:, :k].astype(np.int64)
        return np.take_along_axis(scores, rows, axis=1), rows


class _GpuScan:
    """FAISS on the first GPU, in float16 as on the CPU."""

    def __init__(self, embeddings: Embeddings) -> None:
        config = faiss.GpuIndexFlatConfig()
        config.useFloat16 = embeddings.dtype == np.float16
        self._resources = faiss.StandardGpuResources()
        self._index = faiss.GpuIndexFlatIP(self._resources, embeddings.shape[1], config)
        for rows in _widened(embeddings):
            self._index.add(rows)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def nearest(self, query: Float32, k: int, allowed: Bool | None) -> tuple[Float32, Int64]:
        assert allowed is None
        scores, rows = self._index.search(query, k)
        return scores, rows


_GPU_RESULTS: Final = 2048
"""FAISS on a GPU gives no more."""


def _on_gpu(embeddings: Embeddings) -> _Search | None:
    if faiss is None or getattr(faiss, "get_num_gpus", lambda: 0)() == 0 or len(embeddings) > 2**31:
        return None
    try:
        return _GpuScan(embeddings)
    except RuntimeError:  # its memory is full, or its driver does not fit
        return None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What there is to know of a trained index besides its file."""

    kind: Kind
    rows: int
    dim: int
    effort: tuple[int, ...]
    """For each of ``DEPTHS``: lists probed (IVF) or ef (HNSW)."""
    candidates: int = 1
    """How many times the number of results are scored again; 1: the index's own scores are exact."""
    recall: tuple[float, ...] = ()
    """For each of ``DEPTHS``, as measured when it was built, over the worst kind of query."""


class TrainedIndex:
    """An index that looks at a part of the embeddings only. Make one by :func:`build` or :meth:`read`."""

    def __init__(self, index: Any, settings: Settings) -> None:
        self._index = index
        self.settings = settings
        self._lists = 0 if settings.kind == "hnsw" else int(faiss.extract_index_ivf(index).nlist)

    def __len__(self) -> int:
        return self.settings.rows

    @classmethod
    def read(cls, path: Path, settings: Settings) -> Self:
        """An index from a file, mapped into memory where its kind can be.

        Raises:
            ValueError: the file is not what the settings say.
        """
        if faiss is None:
            raise ValueError(f"faiss cannot be imported ({_WHY_NOT})")
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP if settings.kind == "ivf" else 0)
            found = cls(index, settings)
        except RuntimeError as e:
            raise ValueError(f"faiss cannot read it ({' '.join(str(e).split())[-200:]})") from e
        if index.ntotal != settings.rows or index.d != settings.dim:
            raise ValueError(f"it holds {index.ntotal} x {index.d} numbers, not {settings.rows} x {settings.dim}")
        return found

    def write(self, path: Path) -> None:
        faiss.write_index(self._index, str(path))

    def search(
        self,
        query: Float32,
        k: int,
        *,
        allowed: Bool | None = None,
        vectors: Callable[[Int64], Embeddings] | None = None,
    ) -> tuple[Int64, Float32]:
        """As :meth:`VectorIndex.search`, but for the rows that are missed.

        ``vectors``: the embeddings [n, E] of rows [n], from which candidates are scored again; needed where
        ``settings.candidates`` is more than 1.

        Raises:
            ValueError: also for a row that cannot be: the file is damaged.
        """
        query = _checked(query, self.settings.dim, k)
        columns = min(k, len(self))
        share = 1.0
        if allowed is not None:
            share = np.count_nonzero(_mask(allowed, len(self))) / max(1, len(self))
        if columns == 0 or len(query) == 0 or share == 0:
            return np.full((len(query), columns), -1, np.int64), np.full((len(query), columns), -np.inf, np.float32)
        scores, rows = self._nearest(query, columns * self.settings.candidates, self._effort(k), allowed, share)
        if self.settings.candidates > 1:
            assert vectors is not None, "RaBitQ's candidates are scored again"
            rows, scores = rescored(query, rows, vectors)
        scores = np.where(rows < 0, -np.inf, scores)
        order = np.lexsort((rows, -scores), axis=-1)[:, :columns]
        return np.take_along_axis(rows, order, axis=-1), np.take_along_axis(scores, order, axis=-1)

    def candidates(self, query: Float32, k: int) -> Int64:
        """[Q, n]: the rows that a search for the ``k`` best looks at last; -1 where there are fewer."""
        return self._nearest(query, k * self.settings.candidates, self._effort(k), None, 1.0)[1]

    def _effort(self, k: int) -> int:
        for depth, effort in zip(DEPTHS, self.settings.effort, strict=True):
            if k <= depth:
                return effort
        return self.settings.effort[-1] * math.ceil(k / DEPTHS[-1])

    def _nearest(
        self, query: Float32, k: int, effort: int, allowed: Bool | None, share: float
    ) -> tuple[Float32, Int64]:
        k = min(k, len(self))
        selector: dict[str, Any] = {} if allowed is None else {"sel": _selector(allowed)}
        index = self._index
        if self.settings.kind == "hnsw" and share < _BRUTE_FORCE:
            index, parameters = faiss.downcast_index(index.storage), faiss.SearchParameters(**selector)
        elif self.settings.kind == "hnsw":
            parameters = faiss.SearchParametersHNSW(efSearch=max(math.ceil(effort / share), k), **selector)
        else:
            # of few allowed rows each list holds few: with all of them probed, none is missed
            probed = min(self._lists, math.ceil(effort / share**2))
            parameters = faiss.SearchParametersIVF(nprobe=probed, **selector)
            if self.settings.kind == "ivf-rabitq":
                parameters = faiss.SearchParametersPreTransform(index_params=parameters)
        scores, rows = _searched(index, query, k, parameters)
        if (rows >= len(self)).any():
            raise ValueError("it names rows that are not there")
        return scores, rows


def _searched(index: Any, query: Float32, k: int, parameters: Any) -> tuple[Float32, Int64]:
    """Scores and rows. FAISS shares queries among threads: a single one has no use for more than one, and the others
    would wait for work in a loop, for milliseconds in which whoever comes next does not have their cores."""
    threads = faiss.omp_get_max_threads()
    if len(query) == 1:
        faiss.omp_set_num_threads(1)
    try:
        scores, rows = index.search(query, k, params=parameters)
    finally:
        faiss.omp_set_num_threads(threads)
    return scores, rows


def rescored(query: Float32, rows: Int64, vectors: Callable[[Int64], Embeddings]) -> tuple[Int64, Float32]:
    """Rows [Q, n] with their exact scores [Q, n]; -1 stays, with score -inf."""
    unique = np.unique(rows[rows >= 0])
    scores = np.full(rows.shape, -np.inf, np.float32)
    if len(unique):
        embeddings = np.asarray(vectors(unique), np.float32)
        for i, (one, found) in enumerate(zip(query, rows, strict=True)):
            there = found >= 0
            scores[i, there] = _products(one[None], embeddings[np.searchsorted(unique, found[there])])
    return rows, scores


def build(
    kind: Kind,
    batches: Callable[[], Iterator[Embeddings]],
    *,
    rows: int,
    dim: int,
    bits: int = 4,
    seed: int = 0,
) -> TrainedIndex:
    """Train, fill and calibrate an index. Memory: the index, and 40 embeddings for each of its 4 sqrt(N) lists.

    Args:
        batches: the embeddings [n, E], unit length, of all rows in order; read twice.
        bits: of each number in ``ivf-rabitq``.

    Raises:
        ValueError: there are no embeddings, or they are not finite.
    """
    if faiss is None:
        raise ValueError(f"faiss cannot be imported ({_WHY_NOT})")
    if rows < 1:
        raise ValueError("there are no embeddings")
    rng = np.random.default_rng(seed)
    lists = max(1, min(int(4 * rows**0.5), rows // _POINTS_PER_LIST))
    sample = _sample(batches(), np.sort(rng.choice(rows, min(rows, lists * _POINTS_PER_LIST), replace=False)))
    queries = _calibration_queries(sample, rng)
    index = faiss.index_factory(dim, _factory(kind, lists, bits), faiss.METRIC_INNER_PRODUCT)
    if kind == "hnsw":
        index.hnsw.efConstruction = 80
    else:
        inverted = faiss.extract_index_ivf(index)
        inverted.cp.min_points_per_centroid = 1  # few for a few rows; it would complain on stderr
        if kind == "ivf":
            inverted.by_residual = False  # the codes are the very float16 numbers
    index.train(sample)
    del sample
    truth = _Truth(queries)
    for batch in batches():
        for piece in _widened(batch):
            truth.compare(piece, start=int(index.ntotal))
            index.add(piece)
    if index.ntotal != rows:
        raise ValueError(f"there are {index.ntotal} embeddings, not {rows}")
    return _calibrated(index, Settings(kind=kind, rows=rows, dim=dim, effort=(1,) * len(DEPTHS)), truth)


class _Truth:
    """The true neighbours of some queries, of embeddings that come piece by piece."""

    def __init__(self, queries: Float32) -> None:
        self.queries = queries
        self.scores = np.zeros((len(queries), 0), np.float32)
        self.rows = np.zeros((len(queries), 0), np.int64)

    def compare(self, piece: Float32, *, start: int) -> None:
        depth = min(DEPTHS[-1], len(piece))
        scores, rows = faiss.knn(self.queries, piece, depth, metric=faiss.METRIC_INNER_PRODUCT)
        scores = np.concatenate([self.scores, scores], axis=1)
        rows = np.concatenate([self.rows, rows + start], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : DEPTHS[-1]]
        self.scores = np.take_along_axis(scores, order, axis=1)
        self.rows = np.take_along_axis(rows, order, axis=1)

    def recall(self, found: TrainedIndex, depth: int) -> float:
        """Over the worst kind of query."""
        if found.settings.candidates == 1:  # by their scores, because rows may tie
            _, scores = found.search(self.queries, depth)
            right = scores >= self.scores[:, : scores.shape[1]][:, -1:] - 1e-5
        else:  # candidates, which would be put in order by their true scores
            rows = found.candidates(self.queries, depth)
            true = self.rows[:, :depth]
            right = np.stack([np.isin(one, there) for one, there in zip(true, rows, strict=True)])
        each = right.mean(axis=1)
        return float(each.reshape(len(_MIXED), _QUERIES).mean(axis=1).min())


def _factory(kind: Kind, lists: int, bits: int) -> str:
    """FAISS's name of an empty index."""
    match kind:
        case "ivf":
            return f"IVF{lists},SQfp16"
        case "ivf-rabitq":
            return f"RR,IVF{lists},RaBitQ{'' if bits == 1 else bits}"
        case "hnsw":
            return "HNSW24,SQfp16"


def _sample(batches: Iterator[Embeddings], chosen: Int64) -> Float32:
    """The ``chosen`` rows, which are sorted."""
    parts, start = [], 0
    for batch in batches:
        first, last = np.searchsorted(chosen, [start, start + len(batch)])
        parts.append(np.asarray(batch[chosen[first:last] - start], np.float32))
        start += len(batch)
    found = np.ascontiguousarray(np.concatenate(parts))
    if not np.isfinite(found).all():
        raise ValueError("embeddings must be finite")
    return found


def _calibration_queries(sample: Float32, rng: np.random.Generator) -> Float32:
    """[Q, E], unit length: ``_QUERIES`` of each kind, one kind after another."""
    queries = np.concatenate([sample[rng.integers(len(sample), size=(_QUERIES, n))].mean(axis=1) for n in _MIXED])
    return np.asarray(queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12), np.float32)


def _calibrated(index: Any, settings: Settings, truth: _Truth) -> TrainedIndex:
    """``MARGIN`` times the least effort, and as many more candidates, than reach ``TARGET_RECALL`` at every depth; all
    of them where none do."""

    def recall(effort: int, candidates: int, depth: int) -> float:
        trial = replace(settings, effort=(effort,) * len(DEPTHS), candidates=candidates)
        return truth.recall(TrainedIndex(index, trial), depth)

    most = settings.rows if settings.kind == "hnsw" else int(faiss.extract_index_ivf(index).nlist)
    efforts = [*(2**i for i in range(int(math.log2(most)) + 1)), most]
    if settings.kind == "hnsw":
        efforts = [effort for effort in efforts if effort >= 16 or effort == most]
    factors = _CANDIDATES if settings.kind == "ivf-rabitq" else (1,)
    chosen = tuple(
        min(most, MARGIN * next((e for e in efforts if recall(e, factors[-1], depth) >= TARGET_RECALL), most))
        for depth in DEPTHS
    )

    def worst(factor: int) -> float:
        return min(recall(e, factor, depth) for e, depth in zip(chosen, DEPTHS, strict=True))

    factor = next((f for f in factors if worst(f) >= TARGET_RECALL), factors[-1])
    if settings.kind == "ivf-rabitq":
        factor = min(factors[-1], MARGIN * factor)
    measured = tuple(recall(e, factor, depth) for e, depth in zip(chosen, DEPTHS, strict=True))
    return TrainedIndex(index, replace(settings, effort=chosen, candidates=factor, recall=measured))


def _widened(embeddings: Embeddings) -> Iterator[Float32]:
    """float32, piece by piece.

    Raises:
        ValueError: some are not finite.
    """
    for start in range(0, len(embeddings), _ROWS_AT_ONCE):
        rows = np.ascontiguousarray(embeddings[start : start + _ROWS_AT_ONCE], np.float32)
        if not np.isfinite(rows).all():
            raise ValueError("embeddings must be finite")
        yield rows


def _products(query: Float32, rows: Float32) -> Float32:
    """[Q, N]. BLAS adds in another order at the edge of a matrix, on some processors, so equal rows would differ in the
    last bit of float32, and copies of a picture would come in any order. What float64 leaves of that is rounded off.
    """
    products = np.empty((len(query), len(rows)), np.float32)
    for start in range(0, len(rows), _WIDE):
        piece = slice(start, start + _WIDE)
        products[:, piece] = query.astype(np.float64) @ rows[piece].T.astype(np.float64)
    return products


def _checked(query: Float32, dim: int, k: int) -> Float32:
    if query.ndim != 2 or query.shape[1] != dim:
        raise ValueError(f"a query must be [Q, {dim}], not {list(query.shape)}")
    if not np.isfinite(query).all():
        raise ValueError("a query must be finite")
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    return np.ascontiguousarray(query, np.float32)


def _mask(allowed: Bool, rows: int) -> Bool:
    if allowed.shape != (rows,) or allowed.dtype != np.bool_:
        raise ValueError(f"allowed must be {rows} booleans, not {allowed.dtype}{list(allowed.shape)}")
    return allowed


def _selector(allowed: Bool) -> Any:
    return faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
