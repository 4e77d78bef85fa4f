"""What queries are made of, and what is done with the order that they find."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fwd2bot_index.errors import InputError
from fwd2bot_index.queries import Background, Selection, Term, changes, combined, diversified, near_duplicates


def unit(*rows: list[float]) -> np.ndarray:
    x = np.array(rows, np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"text": "a", "like": "b"},
        {"text": " "},
        {"text": "x" * 10_001},
        {"text": "a", "weight": 0.0},
        {"text": "a", "weight": math.nan},
    ],
)
def test_terms_that_make_no_sense(parts: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(InputError):
        Term(**parts)


@pytest.mark.parametrize(
    "parts",
    [
        {"top": 0},
        {"skip": -1},
        {"diversity": 1.1},
        {"diversity": math.nan},
        {"collapse": 0.0},
        {"percentile": -1.0},
        {"percentile": 101.0},
        {"min_z": math.inf},
    ],
)
def test_selections_that_make_no_sense(parts: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(InputError):
        Selection(**parts)


def test_one_term_is_itself() -> None:
    e = unit([1, 2, 3])
    np.testing.assert_array_equal(combined(e, [5.0], e), e[0])
    np.testing.assert_array_equal(combined(e, [-1.0], e), -e[0])


def test_terms_count_by_standardised_cosines() -> None:
    rng = np.random.default_rng(0)
    background = unit(*rng.normal(size=(500, 8)).tolist())
    background[:, 0] *= 10  # the first direction tells pictures apart ten times as well
    terms = unit([1, 0, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0])
    weights = [2.0, -1.0]
    query = combined(terms, weights, background)
    assert np.linalg.norm(query) == pytest.approx(1, abs=1e-6)
    cosines = background @ terms.T
    expected = (cosines / cosines.std(axis=0)) @ weights
    np.testing.assert_array_equal(np.argsort(background @ query), np.argsort(expected))


def test_terms_that_cancel_each_other_out() -> None:
    e = unit([1, 2, 3], [1, 2, 3])
    with pytest.raises(InputError, match="cancel"):
        combined(e, [1.0, -1.0], e)


def test_a_background_gives_scores_a_meaning() -> None:
    scores = np.linspace(0, 1, 101, dtype=np.float32)
    background = Background(scores)
    assert background.z(0.5) == pytest.approx(0, abs=1e-5)
    assert background.z(0.5 + float(scores.std())) == pytest.approx(1, abs=1e-4)
    assert background.least(Selection()) == -math.inf
    assert background.least(Selection(percentile=90)) == pytest.approx(0.9)
    assert background.least(Selection(percentile=10, min_z=1)) == pytest.approx(0.5 + float(scores.std()), abs=1e-5)
    assert Background(np.ones(3, np.float32)).z(1.0) is None
    assert Background(np.zeros(0, np.float32)).least(Selection(percentile=90)) == -math.inf


def test_different_ones_come_first() -> None:
    embeddings = unit([1, 0], [1, 0.01], [1, 0.02], [0, 1])
    scores = np.array([0.9, 0.89, 0.88, 0.5], np.float32)
    assert diversified(scores, embeddings, 4, 0.0) == [0, 1, 2, 3]
    assert diversified(scores, embeddings, 2, 0.6) == [0, 3]
    assert sorted(diversified(scores, embeddings, 9, 1.0)) == [0, 1, 2, 3]
    assert diversified(scores[:1], embeddings[:1], 3, 0.5) == [0]


def test_near_duplicates_follow_their_leader() -> None:
    embeddings = unit([1, 0], [0, 1], [1, 0.01], [0, 1], [1, 1])
    leaders = near_duplicates(embeddings, list("abcde"), 0.99)
    assert leaders.tolist() == [0, 1, 0, 1, 4]
    assert near_duplicates(embeddings, list("abcdb"), 1.1).tolist() == [0, 1, 2, 3, 1]  # the same bytes


@pytest.mark.parametrize(
    ("words", "toward", "away"),
    [
        ("at night", "at night", None),
        ("with a red car instead of the blue bus", "a red car", "the blue bus"),
        ("a man rather than a woman.", "a man", "a woman"),
        ("Without people", None, "people"),
        ("with no cars", None, "cars"),
        ("a street with no cars", "a street", "cars"),
        ("in winter and without snow", "in winter", "snow"),
        ("a house, not a barn", "a house", "a barn"),
        ("but not at night", None, "at night"),
        ("a knot and another note", "a knot and another note", None),
        ("the word not", "the word not", None),
    ],
)
def test_what_is_to_go_is_a_term_of_its_own(words: str, toward: str | None, away: str | None) -> None:
    expected = [Term(text=toward, weight=0.5)] if toward else []
    assert changes(words, weight=0.5) == [*expected, *([Term(text=away, weight=-0.5)] if away else [])]


def test_words_that_say_what_is_to_go_count_less() -> None:
    assert [t.weight for t in changes("at night")] == [0.85]
    assert [t.weight for t in changes("a car instead of a bus")] == [0.6, -0.6]


def test_a_change_needs_words() -> None:
    with pytest.raises(InputError, match="is empty"):
        changes("  ")
