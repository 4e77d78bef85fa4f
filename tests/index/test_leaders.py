"""Leader clustering against its definition, in blocks small enough that every path is taken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fwd2bot_index import leaders
from fwd2bot_index.leaders import follow_leaders


def by_definition(embeddings: np.ndarray, order: np.ndarray, threshold: float) -> np.ndarray:
    wide = embeddings[order].astype(np.float64)
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    leader = np.full(len(order), -1)
    for i in range(len(order)):
        if leader[i] < 0:
            leader[(leader < 0) & (unit @ unit[i] >= threshold - 1e-6)] = i
    return leader


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaders, "BLOCK", 3)
    monkeypatch.setattr(leaders, "SKETCH", 2)


def scattered(count: int, dim: int, clusters: int, seed: int) -> np.ndarray:
    """Vectors around a few centres, near ones and far ones."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, dim))
    spread = rng.choice([0.0, 0.1, 1.0], size=(count, 1))
    vectors: np.ndarray = (centres[rng.integers(clusters, size=count)] + spread * rng.normal(size=(count, dim))).astype(
        np.float16
    )
    return vectors


@pytest.mark.usefixtures("small_blocks")
def test_small_blocks_are_used() -> None:
    done: list[tuple[int, int]] = []
    follow_leaders(np.eye(7, dtype=np.float16), np.arange(7), threshold=0.5, progress=lambda *a: done.append(a))
    assert done == [(3, 7), (6, 7), (7, 7)]


@given(
    count=st.integers(1, 40),
    dim=st.integers(1, 12),
    clusters=st.integers(1, 8),
    seed=st.integers(0, 2**32 - 1),
    threshold=st.sampled_from([0.01, 0.3, 0.7, 0.9, 0.99, 1.0]),
)
@settings(deadline=None, max_examples=200)
def test_equals_the_definition(count: int, dim: int, clusters: int, seed: int, threshold: float) -> None:
    embeddings = scattered(count, dim, clusters, seed)
    order = np.random.default_rng(seed).permutation(count)[: count - count // 4]  # not all of the rows
    wide = embeddings[order].astype(np.float64)
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    # float32 cannot tell on which side of the threshold such a pair lies
    assume((np.abs(unit @ unit.T - (threshold - 1e-6)) > 5e-7).all())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaders, "BLOCK", 3)
        patch.setattr(leaders, "SKETCH", 2)
        leader, cosine = follow_leaders(embeddings, order, threshold=threshold)
    np.testing.assert_array_equal(leader, by_definition(embeddings, order, threshold))
    np.testing.assert_allclose(cosine, np.einsum("ne,ne->n", unit, unit[leader]), atol=1e-6)
    assert cosine.max() <= 1


@pytest.mark.parametrize("dim", [2, 40, 200])
def test_sketches_never_fall_short_of_the_cosine(dim: int) -> None:
    for clusters, seed in ((1, 0), (3, 1), (500, 2)):
        embeddings = scattered(300, dim, clusters, seed)
        sketches = leaders._sketches(embeddings, np.arange(300))
        unit = leaders._unit(embeddings)
        assert sketches.shape == (300, min(dim, leaders.SKETCH) + 1)
        assert (sketches @ sketches.T >= unit @ unit.T).all()


def test_sketches_tell_what_is_unlike() -> None:
    embeddings = np.random.default_rng(0).normal(size=(2000, 192)).astype(np.float16)
    sketches = leaders._sketches(embeddings, np.arange(2000))
    assert np.triu(sketches @ sketches.T >= 0.98, 1).mean() < 0.001


@pytest.mark.usefixtures("small_blocks")
def test_small_steps_do_not_chain() -> None:
    angles = np.radians([0, 5, 10, 15, 20, 25, 30])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    leader, _ = follow_leaders(embeddings, np.arange(7), threshold=float(np.cos(np.radians(7))))
    assert leader.tolist() == [0, 0, 2, 2, 4, 4, 6]
    leader, _ = follow_leaders(embeddings, np.array([1, 0, 2, 3, 4, 5, 6]), threshold=float(np.cos(np.radians(7))))
    assert leader.tolist() == [0, 0, 0, 3, 3, 5, 5]


def test_a_hundred_thousand_equal_ones() -> None:
    """Ten thousand million pairs, which nobody may hold."""
    leader, cosine = follow_leaders(np.full((100_000, 8), 0.3, np.float16), np.arange(100_000), threshold=1.0)
    assert not leader.any()
    np.testing.assert_allclose(cosine, 1, atol=1e-6)


@pytest.mark.usefixtures("small_blocks")
def test_zero_is_like_no_other() -> None:
    embeddings = np.array([[0, 0], [1, 0], [0, 0], [2, 0], [0, 0]], np.float16)
    assert follow_leaders(embeddings, np.arange(5), threshold=0.01)[0].tolist() == [0, 1, 2, 1, 4]
