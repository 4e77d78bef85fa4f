import numpy as np
import pytest

from fwd2bot_eval.default_model import could_caption, held_out, retrieval_ceiling
from fwd2bot_eval.metrics import above_chance, ranks, recall_at


def test_ties_count_against_us() -> None:
    flat = np.zeros((1, 4))
    assert ranks(flat, [[2]]).tolist() == [4]
    assert ranks(np.array([[0.1, 0.9, 0.9, 0.2]]), [[1]]).tolist() == [2]


def test_the_best_of_several_right_answers_counts() -> None:
    assert ranks(np.array([[0.5, 0.9, 0.7]]), [[0, 2]]).tolist() == [2]
    assert ranks(np.array([[0.5, 0.9, 0.9]]), [[1, 2]]).tolist() == [1], "right answers are no rivals of each other"


def test_recall() -> None:
    assert recall_at(np.array([1, 2, 6, 11]), 5) == 0.5


def test_above_chance() -> None:
    assert above_chance(0.5, 0.5) == 0
    assert above_chance(1.0, 0.3) == 1
    assert above_chance(0.75, 0.5) == pytest.approx(0.5)


def test_the_ceiling_is_what_a_perfect_reader_scores() -> None:
    """Simulated: a reader that picks at random among the scenes that could have this caption."""
    pool, questions, captions = held_out(60)
    assert all(q.answer for qs in questions for q in qs)
    assert all(could_caption(c, s) for c, s in zip(captions, pool, strict=True))
    ceiling = retrieval_ceiling([*pool, *pool], captions)
    assert ceiling <= 0.5, "every scene twice: nobody can tell the twins apart"
    assert ceiling == pytest.approx(retrieval_ceiling(pool, captions) / 2)
