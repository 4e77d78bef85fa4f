"""What the benchmarks of :mod:`fwd2bot_eval.tasks.pairs` have in common: scores of captions, and tables of wins.

Everything is a strict comparison: a tie is a loss, as it is in the benchmarks' own code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from fwd2bot_eval.metrics import estimate, macro_average
from fwd2bot_eval.results import Estimate
from fwd2bot_eval.runs import Records
from fwd2bot_eval.scorers import COSINE, fit_scores
from fwd2bot_eval.subjects import Seen, Subject

Bools = npt.NDArray[np.bool_]
Fits = dict[tuple[int, str], dict[str, float]]
"""By picture's row and caption: the score of every scorer."""

SCORERS: Final = "scorers"
"""The text column of a record that names its scorers in their order; a run that is only summarised has no subject."""


def fits_of(subject: Subject, seen: Seen, pairs: Iterable[tuple[int, str]]) -> Fits:
    """Scores of pairs of a picture's row and a caption, each computed once.

    Captions come again (a photo's true one in several categories); beside the time, the same pair in two batches could
    differ by the rounding of another padding, and a tie would be won or lost by chance.
    """
    distinct = list(dict.fromkeys(pairs))
    scores = fit_scores(subject, seen, [row for row, _ in distinct], [text for _, text in distinct])
    return {pair: {name: float(values[i]) for name, values in scores.items()} for i, pair in enumerate(distinct)}


def decisive(names: Sequence[str]) -> str:
    """The scorer by which the report sorts successes from failures: the first that reads tokens, else the cosine."""
    return next((name for name in names if name.startswith("matching ")), COSINE)


def scores_text(names: Sequence[str], fit: Mapping[str, float]) -> str:
    """The decisive score of a caption, and its cosine, for a person."""
    return ", ".join(f"{name} {fit[name]:.3f}" for name in dict.fromkeys([decisive(names), COSINE]))


def names_text(names: Sequence[str]) -> str:
    return json.dumps(list(names))


def scorers_in(records: Records) -> list[str]:
    """The scorers of a run, in the order of :func:`fwd2bot_eval.scorers.scorer_names`."""
    names: list[str] = json.loads(records.column(SCORERS)[0])
    return names


def shares(won: Mapping[str, Bools], clusters: Sequence[str], inside: Bools) -> dict[str, Estimate]:
    """By column: how many of the items ``inside`` [items] were ``won`` [items]; nothing where there are none."""
    if not inside.any():
        return {}
    pictures = [c for c, i in zip(clusters, inside, strict=True) if i]
    return {name: estimate(right[inside].astype(np.float64), pictures) for name, right in won.items()}


def mean_shares(
    won: Mapping[str, Bools], clusters: Sequence[str], labels: Sequence[str | None], over: Sequence[str]
) -> dict[str, Estimate]:
    """By column: the mean over the labels ``over`` of each one's share of wins, whatever their numbers of items.

    Nothing where one of the labels has no item: a mean over the others would be another score under the same name.
    """
    if not over or not set(over) <= set(labels):
        return {}
    inside = np.array([label in set(over) for label in labels])
    pictures = [c for c, i in zip(clusters, inside, strict=True) if i]
    kept = [label for label in labels if label in set(over) and label is not None]
    return {name: macro_average(right[inside].astype(np.float64), kept, pictures) for name, right in won.items()}


def wins_of(records: Records, columns: Iterable[str]) -> dict[str, Bools]:
    """By column: which of the records have a positive margin."""
    return {name: np.asarray(records.numbers(name) > 0) for name in columns}
