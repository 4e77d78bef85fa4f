"""What a search is made of, and what is done with the order that it finds. Only numpy.

Shapes: T terms, n candidates, E embedding size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from fwd2bot_index.errors import InputError
from fwd2bot_index.keys import is_text
from fwd2bot_index.payloads import Float32
from fwd2bot_index.types import Hit, ImageInput

MAX_TEXT: Final = 10_000
"""Characters of one text."""
MAX_TERMS: Final = 100
CHANGE_WEIGHT: Final = 0.85
"""Of words that say how a picture should differ, beside 1 of the picture ..."""
EXCHANGE_WEIGHT: Final = 0.6
"""... and of each side, where they say what is to go: both push the same way. See docs/querying.md."""
_WEIGHTED: Final = re.compile(r"(?P<what>.+)\^(?P<weight>[-+]?\d+(\.\d*)?)", re.DOTALL)
_AWAY: Final = re.compile(
    r"(?:with\s+)?(?P<toward>.*?)[\s,;:]*(?:\b(?:but|and|with|has|is|are)\s+)*"
    r"\b(?:without|instead of|rather than|not|no)\s+(?P<away>.*?)[\s.]*",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class Term:
    """One part of a query: exactly one of a text, a picture, or a picture of the index.

    Raises:
        InputError: there is none or more than one of them, or the weight is no number or 0.
    """

    text: str | None = None
    image: ImageInput | None = None
    like: Hit | str | None = None
    """A hit, or the path or the beginning of the id of a picture of the index; it is not found itself."""
    weight: float = 1.0
    """Below 0: pictures like it come last."""

    def __post_init__(self) -> None:
        if sum(part is not None for part in (self.text, self.image, self.like)) != 1:
            raise InputError("A term of a query is one text, one picture, or one picture of the index.")
        if not math.isfinite(self.weight) or self.weight == 0:
            raise InputError(f"The weight of a term must be a number other than 0, not {self.weight}.")
        if self.text is not None and not self.text.strip():
            raise InputError("The text to search for is empty.")
        if self.text is not None and not is_text(self.text):
            raise InputError("The text to search for is not valid UTF-8.")
        if self.text is not None and len(self.text) > MAX_TEXT:
            raise InputError(f"The text to search for has {len(self.text):,} characters; {MAX_TEXT:,} are the most.")


def weighted(text: str) -> tuple[str, float]:
    """``WORDS^WEIGHT`` as a person writes it; the weight is 1 where none is said."""
    found = _WEIGHTED.fullmatch(text)
    return (found["what"], float(found["weight"])) if found else (text, 1.0)


def changes(words: str, *, weight: float | None = None) -> list[Term]:
    """The terms of words that say how a picture should differ.

        "at night"                              -> + at night
        "a red car instead of the blue bus"     -> + a red car, - the blue bus
        "without people", "with no people"      -> - people

    Embedded whole, "without people" lies near pictures of people: what is to go has to be a term of its own. English
    only; any other words are one term.

    Args:
        weight: of each term; None: what was best.

    Raises:
        InputError: there are no words, or ``weight`` makes no sense.
    """
    found = _AWAY.fullmatch(words)
    if found is None or not found["away"]:
        return [Term(text=words, weight=CHANGE_WEIGHT if weight is None else weight)]
    weight = EXCHANGE_WEIGHT if weight is None else weight
    toward = [Term(text=found["toward"], weight=weight)] if found["toward"].strip() else []
    return [*toward, Term(text=found["away"], weight=-weight)]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which of the pictures that a query finds are given, and in what order.

    Raises:
        InputError: a number makes no sense.
    """

    top: int = 10
    """How many."""
    skip: int = 0
    """How many better ones are left out: those of the pages before."""
    where: str | None = None
    """A condition in SQL on the columns of the index."""
    diversity: float = 0.0
    """From 0 to 1, see :func:`diversified`."""
    collapse: float | None = None
    """The cosine from which pictures are copies of one, of which only the best is given; above 1: the same bytes."""
    percentile: float | None = None
    """Only pictures that score better than so many per cent of the corpus."""
    min_z: float | None = None
    """Only pictures that score so many standard deviations above the mean of the corpus."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise InputError(f"At least one result must be asked for, not {self.top}.")
        if self.skip < 0:
            raise InputError(f"Results cannot be skipped backwards ({self.skip}).")
        if not 0 <= self.diversity <= 1:
            raise InputError(f"Diversity lies between 0 and 1, not at {self.diversity}.")
        if self.collapse is not None and self.collapse <= 0:
            raise InputError(f"The cosine of copies must lie above 0, not at {self.collapse}.")
        if self.percentile is not None and not 0 <= self.percentile <= 100:
            raise InputError(f"A percentile lies between 0 and 100, not at {self.percentile}.")
        if self.min_z is not None and not math.isfinite(self.min_z):
            raise InputError(f"A z-score is a number, not {self.min_z}.")


def combined(embeddings: Float32, weights: Sequence[float], background: Float32) -> Float32:
    """[E], unit length: one query of several terms.

    The cosines of texts and of pictures with the pictures of a corpus differ in spread by far (the *modality gap*,
    arXiv 2203.02053), so each term counts by its weight over the standard deviation of its cosines with the corpus: the
    query ranks by the weighted sum of standardised cosines.

    Args:
        embeddings: [T, E], unit length.
        background: [n, E]: pictures that stand for the corpus.

    Raises:
        InputError: the terms cancel each other out.
    """
    if len(embeddings) == 1:
        return embeddings[0] if weights[0] > 0 else -embeddings[0]
    spread = (background @ embeddings.T).std(axis=0) if len(background) > 1 else np.ones(len(embeddings), np.float32)
    spread = np.where(spread > 1e-6, spread, 1.0)
    query = (np.asarray(weights, np.float32) / spread) @ embeddings
    length = float(np.linalg.norm(query))
    if length < 1e-4 * float(np.abs(np.asarray(weights) / spread).sum()):
        raise InputError("The terms of this query cancel each other out.")
    return np.asarray(query / length, np.float32)


class Background:
    """How the pictures of a corpus score for a query."""

    def __init__(self, scores: Float32) -> None:
        """``scores``: [n], of pictures that stand for all."""
        self._scores = scores
        self._mean, self._deviation = (float(scores.mean()), float(scores.std())) if len(scores) else (0.0, 0.0)

    def z(self, score: float) -> float | None:
        """Standard deviations above the mean; None where there is no deviation."""
        return (score - self._mean) / self._deviation if self._deviation > 1e-6 else None

    def least(self, selection: Selection) -> float:
        """The lowest score that counts."""
        least = -math.inf
        if len(self._scores) and selection.percentile is not None:
            least = float(np.quantile(self._scores, selection.percentile / 100))
        if len(self._scores) and selection.min_z is not None:
            least = max(least, self._mean + selection.min_z * self._deviation)
        return least


def diversified(scores: Float32, embeddings: Float32, count: int, diversity: float) -> list[int]:
    """The places of ``count`` of n candidates, by maximal marginal relevance (Carbonell & Goldstein 1998): each next
    one is good by its score and unlike those before.

    Args:
        scores: [n], best first.
        embeddings: [n, E], unit length.
        diversity: 0: the scores alone; 1: unlikeness alone, after the first. Scores and likenesses are both stretched
            over [0, 1] first, because the cosines of a text lie much closer together than those of pictures.
    """
    likeness = _stretched(embeddings @ embeddings.T)
    relevance = _stretched(scores)
    chosen: list[int] = []
    closest = np.zeros(len(scores), np.float32)
    left = np.ones(len(scores), np.bool_)
    while len(chosen) < min(count, len(scores)):
        value = np.where(left, (1 - diversity) * relevance - (diversity if chosen else 0.0) * closest, -np.inf)
        best = int(value.argmax()) if chosen else 0
        chosen.append(best)
        left[best] = False
        closest = np.maximum(closest, likeness[best])
    return chosen


def near_duplicates(embeddings: Float32, ids: Sequence[str], threshold: float) -> npt.NDArray[np.int64]:
    """[n]: for each candidate, best first, the place of the first one of which it is a near copy: by its id, or by a
    cosine of ``threshold``. Its own place, where it is none."""
    leader = np.arange(len(ids))
    leaders: list[int] = []
    for i, (embedding, id_) in enumerate(zip(embeddings, ids, strict=True)):
        if leaders:
            cosines = embeddings[leaders] @ embedding
            same = [k for k, j in enumerate(leaders) if ids[j] == id_]
            best = same[0] if same else int(cosines.argmax())
            if same or cosines[best] >= threshold:
                leader[i] = leaders[best]
                continue
        leaders.append(i)
    return leader


def _stretched(values: Float32) -> Float32:
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    return np.asarray((values - low) / (high - low) if high > low else np.zeros_like(values), np.float32)
