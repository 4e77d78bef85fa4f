"""Leader clustering by cosine (Hartigan 1975): in a given order, the first vector that is in no cluster yet leads a new
one, and every later one in no cluster yet whose cosine with *it* reaches the threshold follows it.

Notable choices:

- Compared is with leaders alone, so chains of small steps never join what is unlike, and no two leaders are alike.
- All pairs count, exactly. What makes that bearable is a bound (Cauchy and Schwarz): with unit vectors x, split by an
  orthogonal projection into a head h(x) and a rest, cos(x, y) <= h(x) . h(y) + |rest(x)| |rest(y)|. That is one
  product of short vectors, ``[h, |rest|]``; only rows and columns with a pair above the threshold are compared in full.
  The head lies along leading principal directions, where it says most.
- Blocks bound the memory, whatever there is to find: a million equal vectors take no more than as many different ones.

Numpy only. Shapes: M vectors, E embedding size, S ``SKETCH``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

Float32: TypeAlias = npt.NDArray[np.float32]
Int64: TypeAlias = npt.NDArray[np.int64]
Embeddings: TypeAlias = npt.NDArray[np.float16] | npt.NDArray[np.float32]

BLOCK: Final = 2048
"""Vectors that are compared with as many at once: 16 MiB of cosines."""
SKETCH: Final = 32
ROUNDING: Final = 1e-6
"""What the float32 cosine of two equal vectors may lack to 1."""
_SLACK: Final = 1e-5
"""More than rounding takes from the bound."""
_SAMPLE: Final = 8192
_ITERATIONS: Final = 4


def follow_leaders(
    embeddings: Embeddings,
    order: Int64,
    *,
    threshold: float,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Int64, Float32]:
    """Who leads each vector.

    Args:
        embeddings: [N, E], finite, of any length; one that is zero is like no other.
        order: [M], the rows of those that are compared, the first to lead first.
        threshold: in (0, 1].
        progress: told how many are done, and M, now and then.

    Returns:
        leader [M], as a place in ``order``: its own where a vector leads; and the cosine [M] with it, at most 1.
    """
    assert 0 < threshold <= 1
    least = threshold - ROUNDING
    count = len(order)
    leader, cosine = np.arange(count), np.ones(count, np.float32)
    leads = np.ones(count, bool)
    sketches = _sketches(embeddings, order)

    def join(followers: Int64, leaders: Int64, cosines: Float32) -> None:
        leader[followers], cosine[followers], leads[followers] = leaders, np.minimum(cosines, 1), False

    for start in range(0, count, BLOCK):
        block = np.arange(start, min(count, start + BLOCK))
        earlier = np.flatnonzero(leads[:start])
        for tile in np.split(earlier, range(BLOCK, len(earlier), BLOCK)):
            if len(tile) == 0:
                break
            bounds = sketches[block] @ sketches[tile].T
            above = bounds.max(axis=1) >= least
            if not above.any():
                continue
            rows, columns = block[above], tile[bounds[above].max(axis=0) >= least]
            cosines = _unit(embeddings[order[rows]]) @ _unit(embeddings[order[columns]]).T
            near = cosines >= least
            found = np.flatnonzero(near.any(axis=1))
            first = near[found].argmax(axis=1)
            join(rows[found], columns[first], cosines[found, first])
            block = block[leads[block]]
        # among themselves, in their order
        unit = _unit(embeddings[order[block]])
        cosines = unit @ unit.T
        near = np.triu(cosines >= least, 1)
        for i in np.flatnonzero(near.any(axis=1)):
            if leads[block[i]]:
                found = np.flatnonzero(near[i] & leads[block])
                join(block[found], block[i], cosines[i, found])
        if progress is not None:
            progress(min(count, start + BLOCK), count)
    return leader, cosine


def _unit(vectors: Embeddings) -> Float32:
    """[n, E] of unit length, but for those that are zero."""
    wide = vectors.astype(np.float32)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: Float32 = np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0)
    return unit


def _sketches(embeddings: Embeddings, order: Int64) -> Float32:
    """[M, S + 1] whose products are no less than the cosines."""
    sample = _unit(embeddings[order[:: -(-len(order) // _SAMPLE)]])
    directions = _leading_directions(sample, min(SKETCH, sample.shape[1]))
    sketches = np.empty((len(order), directions.shape[1] + 1), np.float32)
    for start in range(0, len(order), _SAMPLE):
        part = sketches[start : start + _SAMPLE]
        head = _unit(embeddings[order[start : start + _SAMPLE]]) @ directions
        part[:, :-1] = head
        part[:, -1] = np.sqrt(np.maximum(1 - np.square(head).sum(axis=1), 0) + _SLACK)
    return sketches


def _leading_directions(sample: Float32, count: int) -> Float32:
    """[E, count], orthonormal, near the leading principal directions, by subspace iteration. Any others would do as
    well; they would only take longer."""
    start = np.random.default_rng(0).normal(size=(sample.shape[1], count)).astype(np.float32)
    directions = np.linalg.qr(start).Q
    for _ in range(_ITERATIONS):
        directions = np.linalg.qr(sample.T @ (sample @ directions)).Q
    return directions
