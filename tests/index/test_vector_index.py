"""The exact index against plain numpy, trained ones against the exact one."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fwd2bot_index import vector_index
from fwd2bot_index.vector_index import KINDS, ExactIndex, Kind, TrainedIndex, VectorIndex, build

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


# ---- only some rows


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_rows_that_are_allowed(dtype: type) -> None:
    embeddings, queries = unit(300, 8, 0, dtype), unit(5, 8, 1)
    allowed = np.zeros(300, bool)
    allowed[[3, 7, 200, 299]] = True
    rows, scores = ExactIndex(embeddings).search(queries, 6, allowed=allowed)
    assert rows.shape == (5, 6)
    assert (rows[:, 4:] == -1).all()
    assert np.isneginf(scores[:, 4:]).all()
    expected = np.flatnonzero(allowed)[np.argsort(-(queries @ embeddings[allowed].T.astype(np.float32)), axis=1)]
    np.testing.assert_array_equal(rows[:, :4], expected)
    assert (ExactIndex(embeddings).search(queries, 3, allowed=np.zeros(300, bool))[0] == -1).all()
    with pytest.raises(ValueError, match="300 booleans"):
        ExactIndex(embeddings).search(queries, 3, allowed=np.ones(299, bool))


# ---- without faiss


@pytest.mark.parametrize(("queries", "threads"), [(1, 1), (2, 2)])
def test_one_query_has_one_thread(queries: int, threads: int) -> None:
    faiss = vector_index.faiss
    seen = []

    class Watched:
        def search(self, *_: object, params: object) -> tuple[int, int]:
            seen.append(faiss.omp_get_max_threads())
            return 0, 0

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    try:
        vector_index._searched(Watched(), unit(queries, 8, 0), 1, None)
        assert (seen, faiss.omp_get_max_threads()) == ([threads], 2)
    finally:
        faiss.omp_set_num_threads(before)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("with_faiss", [True, False])
def test_embeddings_may_come_in_pieces(dtype: type, with_faiss: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not with_faiss:
        monkeypatch.setattr(vector_index, "faiss", None)
    embeddings, queries = unit(300, 16, 0, dtype), unit(4, 16, 1)
    index = ExactIndex(embeddings[:0])
    for start in (0, 7, 207):
        assert len(index) == start
        index.add(embeddings[start : {0: 7, 7: 207, 207: 300}[start]])
    np.testing.assert_array_equal(index.embeddings, embeddings)
    assert index.embeddings.dtype == dtype
    for found, expected in zip(index.search(queries, 5), ExactIndex(embeddings).search(queries, 5), strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="finite"):
        index.add(np.full((1, 16), np.nan, dtype))


def test_numpy_does_what_faiss_does(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, queries = unit(3, 16, 2, np.float16)[np.arange(300) % 3], unit(9, 16, 1)
    allowed = np.arange(300) % 2 == 0
    expected = [ExactIndex(embeddings).search(queries, k, allowed=a) for k in (1, 7, 150) for a in (None, allowed)]
    monkeypatch.setattr(vector_index, "faiss", None)
    monkeypatch.setattr(vector_index, "_WHY_NOT", "RuntimeError: no CUDA runtime")
    found = [ExactIndex(embeddings).search(queries, k, allowed=a) for k in (1, 7, 150) for a in (None, allowed)]
    for (rows, scores), (right, right_scores) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(rows, right)
        np.testing.assert_allclose(scores, right_scores, atol=1e-6)
    assert vector_index.engine() == "numpy (faiss cannot be imported: RuntimeError: no CUDA runtime)"
    with pytest.raises(ValueError, match="no CUDA runtime"):
        build("ivf", lambda: iter([embeddings]), rows=300, dim=16)


def _instructions() -> set[str]:
    told = Path("/proc/cpuinfo")
    return set(told.read_text(encoding="utf-8").split()) if told.exists() else set()


@pytest.mark.parametrize("core", ["Haswell", "SkylakeX"])  # OpenBLAS adds in other orders for each
def test_copies_come_in_the_order_of_rows_without_faiss_on_any_processor(core: str) -> None:
    code = (
        "import numpy as np; from fwd2bot_index import vector_index as v; v.faiss = None\n"
        "draw = np.random.default_rng(2); e = draw.normal(size=(3, 16)).astype('f2')[np.arange(300) % 3]\n"
        "q = draw.normal(size=(9, 16)).astype('f4'); first = v.ExactIndex(e).search(q, 7)[0]\n"
        "assert (np.diff(first) == 3).all() and (first[:, 0] < 3).all(), first\n"
        "scores = v.rescored(q, np.tile(np.arange(300), (9, 1)), lambda rows: e[rows])[1]\n"
        "assert (scores.reshape(9, 100, 3) == scores[:, None, :3]).all(), scores"
    )
    if core == "SkylakeX" and "avx512f" not in _instructions():
        pytest.skip("OpenBLAS for SkylakeX needs AVX-512, which this processor has not")
    environment = {**os.environ, "OPENBLAS_CORETYPE": core}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_a_faiss_that_cannot_be_imported_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "faiss.py").write_text("raise RuntimeError('libcudart.so.12 is not there')\n")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import numpy as np; from fwd2bot_index import vector_index as v; "
        "e = np.eye(4, dtype=np.float32); print(v.engine(), v.ExactIndex(e).search(e[2:3], 1))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=300
    )
    assert "libcudart.so.12 is not there" in done.stdout
    assert "array([[2]])" in done.stdout


# ---- trained

CENTRES = unit(50, 24, 9)


def clustered(n: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    x = CENTRES[draw.integers(len(CENTRES), size=n)] + 0.1 * draw.normal(size=(n, 24))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_index(kind: Kind, tmp_path: Path) -> None:
    embeddings = clustered(3000, 0)
    queries = np.concatenate([clustered(20, 1), unit(20, 24, 3)]).astype(np.float32)
    index = build(kind, lambda: (embeddings[i : i + 700] for i in range(0, 3000, 700)), rows=3000, dim=24)
    assert min(index.settings.recall) >= 0.98
    assert len(index.settings.effort) == len(index.settings.recall) == 2
    index.write(tmp_path / "index")
    again = TrainedIndex.read(tmp_path / "index", index.settings)
    assert len(again) == 3000
    for allowed in (None, np.arange(3000) % 3 == 0, np.arange(3000) % 100 == 0):
        _, best = ExactIndex(embeddings).search(queries, 10, allowed=allowed)
        for one in (index, again):
            rows, scores = one.search(queries, 10, allowed=allowed, vectors=lambda rows: embeddings[rows])
            assert (scores >= best[:, -1:] - 1e-5).mean() > 0.97
            there = rows >= 0
            assert allowed is None or allowed[rows[there]].all()
            np.testing.assert_allclose(
                scores[there], np.einsum("qe,qke->qk", queries, embeddings[rows].astype(np.float32))[there], atol=2e-3
            )


def test_what_is_trained_again_is_the_same() -> None:
    embeddings = clustered(2000, 0)
    one, two = (build("ivf", lambda: iter([embeddings]), rows=2000, dim=24) for _ in range(2))
    assert one.settings == two.settings
    query = unit(5, 24, 7)
    np.testing.assert_array_equal(one.search(query, 10)[0], two.search(query, 10)[0])


def test_few_bits_find_less_and_say_so() -> None:
    embeddings = unit(3000, 24, 0, np.float16)  # in all directions: the worst there is
    four, one = (
        build("ivf-rabitq", lambda: iter([embeddings]), rows=3000, dim=24, bits=bits).settings for bits in (4, 1)
    )
    assert four.candidates <= one.candidates
    assert min(four.recall) >= min(one.recall)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    embeddings = clustered(500, 0)
    index = build("hnsw", lambda: iter([embeddings]), rows=500, dim=24)
    index.write(tmp_path / "index")
    with pytest.raises(ValueError, match="not 501 x 24"):
        TrainedIndex.read(tmp_path / "index", replace(index.settings, rows=501))
    (tmp_path / "index").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot read"):
        TrainedIndex.read(tmp_path / "index", index.settings)
    with pytest.raises(ValueError, match="500 embeddings, not 600"):
        build("ivf", lambda: iter([embeddings]), rows=600, dim=24)
    with pytest.raises(ValueError, match="finite"):
        build("ivf", lambda: iter([np.full((500, 24), np.nan, np.float16)]), rows=500, dim=24)
