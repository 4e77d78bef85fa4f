"""Scores that know nothing of models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def ranks(similarities: npt.NDArray[np.floating], relevant: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """Rank, from 1, of each query's best relevant item; ties count against us.

    Args:
        similarities: [Q, N].
        relevant: for each query the columns that are right answers.
    """
    best = np.array([similarities[q, list(columns)].max() for q, columns in enumerate(relevant)])
    not_worse = (similarities >= best[:, None]).sum(axis=1)
    # the relevant items that are as good as the best one are no rivals of it
    own = np.array([(similarities[q, list(c)] >= best[q]).sum() for q, c in enumerate(relevant)])
    return np.asarray(not_worse - own + 1, dtype=np.int64)


def recall_at(ranks: npt.NDArray[np.int64], k: int) -> float:
    """Share of queries with a right answer among the first k."""
    return float((ranks <= k).mean())


def above_chance(accuracy: float, chance: float) -> float:
    """(accuracy - chance) / (1 - chance): 0 for guessing, 1 for perfect."""
    return (accuracy - chance) / (1 - chance)
