"""Scores that know nothing of models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from fwd2bot_eval.results import Estimate

Floats = npt.NDArray[np.floating]
RESAMPLES = 1000
_TAIL = 0.025
"""What a 95 % interval leaves out on each side."""
_ROUNDING = 1e-9
_BLOCK = 2**22
"""Numbers of a similarity matrix, or weights of resamples, that are in memory at once."""


def ranks(similarities: Floats, relevant: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """Rank, from 1, of each query's best relevant item; ties count against us.

    Args:
        similarities: [Q, N].
        relevant: for each query the columns that are right answers.
    Raises:
        ValueError: a similarity is NaN or infinite.
    """
    if not np.isfinite(similarities).all():
        raise ValueError("a similarity is not a number: nothing compares with it, and it would rank first")
    best = np.array([similarities[q, list(columns)].max() for q, columns in enumerate(relevant)])
    not_worse = (similarities >= best[:, None]).sum(axis=1)
    # the relevant items that are as good as the best one are no rivals of it
    own = np.array([(similarities[q, list(c)] >= best[q]).sum() for q, c in enumerate(relevant)])
    return np.asarray(not_worse - own + 1, dtype=np.int64)


def ranks_of(queries: Floats, items: Floats, relevant: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """`ranks` of dot products of ``queries`` [Q, E] with ``items`` [N, E], some queries at a time: exact, and the
    [Q, N] matrix is never whole in memory."""
    step = max(1, _BLOCK // max(1, len(items)))
    parts = [
        ranks(queries[start : start + step] @ items.T, relevant[start : start + step])
        for start in range(0, len(queries), step)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def recall_at(ranks: npt.NDArray[np.int64], k: int) -> float:
    """Share of queries with a right answer among the first k."""
    return float((ranks <= k).mean())


def above_chance(accuracy: float, chance: float) -> float:
    """(accuracy - chance) / (1 - chance): 0 for guessing, 1 for perfect."""
    return (accuracy - chance) / (1 - chance)


def estimate(
    statistics: Floats,
    clusters: Sequence[str],
    *,
    value: Callable[[Floats], Floats] | None = None,
    scale: tuple[float, float] = (0.0, 1.0),
    independent: int | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """A score with its 95 % percentile interval by the bootstrap over clusters (Efron and Tibshirani 1993, chapter 13;
    Cameron, Gelbach and Miller 2008 for the clusters): items of one picture are drawn together.

    Where all clusters agree, resamples know of nothing else, and the bootstrap would be certain. The interval is then
    that of Clopper and Pearson (1934) for an outcome that n clusters did not show once: its share is at most
    1 - 0.025^(1/n). One cluster says nothing of others: it has no interval (NaN).

    Args:
        statistics: [items] or [items, S], of which sums over items are all that the score needs.
        clusters: [items], the picture of each.
        value: from sums [..., S] and, last of them, the number of items [..., S + 1] to the score [...]; None: the mean
            of the only statistic. It may give NaN where a resample leaves it undefined.
        scale: the least and the greatest score that there can be.
        independent: the n of clusters that agree; None: those that the score is defined for.
    Returns:
        An estimate of no items and value NaN where there are none.
    """
    if not len(clusters):
        return Estimate(value=float("nan"), low=float("nan"), high=float("nan"), items=0, clusters=0)
    rows = np.asarray(statistics, np.float64).reshape(len(clusters), -1)
    score = value or (lambda sums: sums[..., 0] / sums[..., -1])
    names, places = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((len(names), rows.shape[1] + 1))
    np.add.at(sums, places, np.concatenate([rows, np.ones((len(rows), 1))], axis=1))
    rng = np.random.default_rng(seed)
    drawn: list[Floats] = []
    step = max(1, _BLOCK // len(names))
    with np.errstate(invalid="ignore", divide="ignore"):
        for start in range(0, resamples, step):
            count = min(step, resamples - start)
            weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=count)
            drawn.append(score(weights @ sums))
        whole = float(score(sums.sum(0)))
    values = np.concatenate(drawn)
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [_TAIL, 1 - _TAIL]) if len(values) else (np.nan, np.nan)
    if len(names) == 1:
        low, high = np.nan, np.nan
    elif len(values) and np.ptp(values) <= _ROUNDING:
        with np.errstate(invalid="ignore", divide="ignore"):
            n = independent or int(np.isfinite(score(sums)).sum())
        unseen = 1 - _TAIL ** (1 / n)
        low, high = whole - unseen * (whole - scale[0]), whole + unseen * (scale[1] - whole)
    return Estimate(value=whole, low=float(low), high=float(high), items=len(rows), clusters=len(names))


def macro_average(right: Floats, categories: Sequence[str], clusters: Sequence[str], *, seed: int = 0) -> Estimate:
    """Mean over categories of each one's mean of ``right`` [items], with its interval.

    Of categories that all agree the smallest tells least: n is its number of clusters, times that of categories. (Of
    shares p_c that n_c clusters did not show once, with the product of (1 - p_c)^n_c at least 0.025, the mean is no
    greater than if every n_c were the least.)
    """
    names = sorted(set(categories))
    inside = np.array([[c == name for name in names] for c in categories], np.float64).reshape(len(categories), -1)
    values = np.asarray(right, np.float64)

    def mean(sums: Floats) -> Floats:
        n = len(names)
        return np.asarray((sums[..., :n] / sums[..., n : 2 * n]).mean(-1))

    behind = [len({place for place, c in zip(clusters, categories, strict=True) if c == name}) for name in names]
    independent = min(len(set(clusters)), len(names) * min(behind, default=0))
    statistics = np.concatenate([inside * values[:, None], inside], axis=1)
    return estimate(statistics, clusters, value=mean, independent=independent, seed=seed)
