"""The exact index against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

from fwd2bot_index.vector_index import ExactIndex, VectorIndex

DTYPES = [np.float16, np.float32]


def unit(n: int, e: int, seed: int, dtype: type = np.float32) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, e))
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "q", "k"), [(1, 1, 1), (500, 1, 10), (500, 64, 500), (2000, 33, 7)])
def test_equals_sorting_all_products(dtype: type, n: int, q: int, k: int) -> None:
    embeddings, queries = unit(n, 24, 0, dtype), unit(q, 24, 1)
    index: VectorIndex = ExactIndex(embeddings)
    rows, scores = index.search(queries, k)
    products = queries.astype(np.float64) @ embeddings.astype(np.float64).T
    best = -np.sort(-products, axis=1)[:, :k]
    assert (rows.dtype, scores.dtype) == (np.int64, np.float32)
    np.testing.assert_allclose(scores, best, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(products, rows, axis=1), best, atol=1e-6)
    assert all(len(set(row)) == k for row in rows.tolist())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 40])
def test_ties_come_in_the_order_of_the_rows_whatever_k(dtype: type, queries: int) -> None:
    embeddings = unit(3, 16, 2, dtype)[np.arange(300) % 3]
    index = ExactIndex(embeddings)
    query = np.repeat(embeddings[1:2].astype(np.float32), queries, axis=0)
    tied = np.arange(1, 300, 3)
    for k in (1, 2, 7, 99, 100, 300):
        rows, scores = index.search(query, k)
        np.testing.assert_array_equal(rows[:, :100], np.repeat(tied[None, :k], queries, axis=0))
        assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_than_there_are(dtype: type) -> None:
    rows, scores = ExactIndex(unit(3, 8, 0, dtype)).search(unit(2, 8, 1), 10)
    assert rows.shape == scores.shape == (2, 3)
    assert sorted(rows[0].tolist()) == [0, 1, 2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_to_find(dtype: type) -> None:
    index = ExactIndex(np.zeros((0, 8), dtype))
    assert len(index) == 0
    rows, scores = index.search(unit(2, 8, 1), 10)
    assert rows.shape == scores.shape == (2, 0)
    assert ExactIndex(unit(3, 8, 0)).search(np.zeros((0, 8), np.float32), 2)[0].shape == (0, 2)


def test_what_is_not_a_number_is_refused() -> None:
    bad = unit(4, 8, 0)
    bad[2, 3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        ExactIndex(bad)
    with pytest.raises(ValueError, match="finite"):
        ExactIndex(unit(4, 8, 0)).search(bad, 1)


def test_other_shapes_and_types_are_refused() -> None:
    index = ExactIndex(unit(4, 8, 0))
    with pytest.raises(ValueError, match=r"\[Q, 8\]"):
        index.search(unit(1, 9, 0), 1)
    with pytest.raises(ValueError, match="at least 1"):
        index.search(unit(1, 8, 0), 0)
    with pytest.raises(ValueError, match=r"\[N, E\]"):
        ExactIndex(np.zeros(8, np.float32))
    with pytest.raises(ValueError, match="float64"):
        ExactIndex(np.zeros((2, 8)))  # type: ignore[arg-type]
