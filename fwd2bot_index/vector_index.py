"""Nearest neighbours by inner product.

This is the only module that imports faiss; it never imports torch. Shapes: N embeddings, Q queries, E embedding size.
"""

from __future__ import annotations

from typing import Final, Protocol, TypeAlias

import faiss
import numpy as np
import numpy.typing as npt

Float32: TypeAlias = npt.NDArray[np.float32]
Embeddings: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float16]

_ROWS_AT_ONCE: Final = 65_536
"""FAISS takes float32 only: float16 is widened piece by piece, not all at once."""


class VectorIndex(Protocol):
    """What a search asks of an index over embeddings."""

    def __len__(self) -> int: ...

    def search(self, query: Float32, k: int) -> tuple[npt.NDArray[np.int64], Float32]:
        """query [Q, E] -> (rows [Q, min(k, N)], scores [Q, min(k, N)]), best first.

        Raises:
            ValueError: a query is not finite or has another size, or k < 1.
        """
        ...


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
        dim = embeddings.shape[1]
        self._index: faiss.Index
        if embeddings.dtype == np.float16:
            self._index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        elif embeddings.dtype == np.float32:
            self._index = faiss.IndexFlatIP(dim)
        else:
            raise ValueError(f"embeddings must be float16 or float32, not {embeddings.dtype}")
        for start in range(0, len(embeddings), _ROWS_AT_ONCE):
            rows = np.ascontiguousarray(embeddings[start : start + _ROWS_AT_ONCE], np.float32)
            if not np.isfinite(rows).all():
                raise ValueError("embeddings must be finite")
            self._index.add(rows)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(self, query: Float32, k: int) -> tuple[npt.NDArray[np.int64], Float32]:
        """As :meth:`VectorIndex.search`."""
        if query.ndim != 2 or query.shape[1] != self._index.d:
            raise ValueError(f"a query must be [Q, {self._index.d}], not {list(query.shape)}")
        if not np.isfinite(query).all():
            raise ValueError("a query must be finite")
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        wanted = k = min(k, len(self))
        if k == 0 or len(query) == 0:
            return np.zeros((len(query), k), np.int64), np.zeros((len(query), k), np.float32)
        query = np.ascontiguousarray(query, np.float32)
        # FAISS returns any of the rows that tie for the last place. Fetching one more shows whether some do; then
        # more are fetched, until all that tie are there to be put in order.
        while True:
            wanted = min(wanted + 1 if wanted == k else wanted * 2, len(self))
            scores, rows = self._index.search(query, wanted)
            if wanted == len(self) or not (scores[:, wanted - 1] == scores[:, k - 1]).any():
                break
        order = np.lexsort((rows, -scores), axis=-1)[:, :k]
        return np.take_along_axis(rows, order, axis=-1), np.take_along_axis(scores, order, axis=-1)
