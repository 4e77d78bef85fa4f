import numpy as np
import pytest

from fwd2bot_eval.default_model import could_caption, held_out, retrieval_ceiling
from fwd2bot_eval.metrics import above_chance, estimate, macro_average, ranks, ranks_of, recall_at


def test_ties_count_against_us() -> None:
    flat = np.zeros((1, 4))
    assert ranks(flat, [[2]]).tolist() == [4]
    assert ranks(np.array([[0.1, 0.9, 0.9, 0.2]]), [[1]]).tolist() == [2]


def test_what_is_no_number_does_not_rank_first() -> None:
    with pytest.raises(ValueError, match="not a number"):
        ranks(np.array([[np.nan, 0.5]]), [[0]])


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


def test_ranks_in_blocks_are_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    queries, items = rng.integers(-2, 3, (37, 4)).astype(float), rng.integers(-2, 3, (23, 4)).astype(float)
    relevant = [list(rng.choice(23, size=int(rng.integers(1, 4)), replace=False)) for _ in range(37)]
    whole = ranks(queries @ items.T, relevant)
    monkeypatch.setattr("fwd2bot_eval.metrics._BLOCK", 50)
    assert ranks_of(queries, items, relevant).tolist() == whole.tolist()
    assert ranks_of(queries[:0], items, []).shape == (0,)


def test_interval_of_independent_items_is_that_of_the_binomial() -> None:
    right = np.repeat([1.0, 0.0], [300, 100])
    found = estimate(right, [str(i) for i in range(400)])
    assert (found.value, found.items, found.clusters) == (0.75, 400, 400)
    deviation = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert found.low == pytest.approx(0.75 - deviation, abs=0.01)
    assert found.high == pytest.approx(0.75 + deviation, abs=0.01)


def test_items_of_one_picture_are_drawn_together() -> None:
    """Ten equal items a picture say no more than one: the interval is that of 40 pictures."""
    right = np.repeat(np.repeat([1.0, 0.0], [30, 10]), 10)
    together = estimate(right, [str(i // 10) for i in range(400)])
    alone = estimate(np.repeat([1.0, 0.0], [30, 10]), [str(i) for i in range(40)])
    assert together.clusters == 40
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=0.1)


def test_a_ratio_of_sums_has_an_interval() -> None:
    """Precision: of the items said yes, how many are; items not said yes count in neither sum."""
    said, true = np.array([1.0, 1, 1, 0, 0]), np.array([1.0, 1, 0, 1, 0])
    found = estimate(
        np.stack([said * true, said], axis=1), list("abcde"), value=lambda s: s[..., 0] / s[..., 1], resamples=200
    )
    assert found.value == pytest.approx(2 / 3)
    assert 0 <= found.low < found.value < found.high <= 1


def test_the_same_seed_gives_the_same_interval_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    right, names = np.random.default_rng(1).random(50), [str(i % 20) for i in range(50)]
    assert estimate(right, names) == estimate(right, names)
    assert estimate(right, names) != estimate(right, names, seed=1)


@pytest.mark.parametrize(("score", "low", "high"), [(1.0, 0.025 ** (1 / 30), 1.0), (0.0, 0.0, 1 - 0.025 ** (1 / 30))])
def test_where_all_agree_the_interval_is_clopper_and_pearsons(score: float, low: float, high: float) -> None:
    """Of 30 pictures, however many items are about each; by the table of 30 of 30 it is 0.884 to 1."""
    found = estimate(np.full(90, score), [str(i // 3) for i in range(90)])
    assert (found.value, found.low, found.high) == pytest.approx((score, low, high))
    assert pytest.approx(0.8843, abs=1e-4) == (0.025 ** (1 / 30))


def test_the_bound_is_on_the_scale_of_the_score() -> None:
    names = [str(i) for i in range(20)]
    unseen = 1 - 0.025 ** (1 / 20)
    for score, scale in ((0.3, (0.0, 1.0)), (0.0, (-1.0, 1.0)), (100.0, (0.0, 100.0))):
        found = estimate(np.full(20, score), names, scale=scale)
        low, high = score - unseen * (score - scale[0]), score + unseen * (scale[1] - score)
        assert (found.low, found.high) == pytest.approx((low, high))


def test_one_picture_has_no_interval() -> None:
    found = estimate(np.array([1.0, 0, 1]), ["a"] * 3)
    assert found.value == pytest.approx(2 / 3)
    assert np.isnan([found.low, found.high]).all()


def test_a_ratio_counts_the_pictures_that_it_is_of() -> None:
    """Precision 1 of the two pictures that a yes was said of, whatever the others are."""
    said = np.array([1.0, 1, 0, 0, 0, 0])
    found = estimate(np.stack([said, said], axis=1), list("abcdef"), value=lambda s: s[..., 0] / s[..., 1])
    assert (found.low, found.high) == pytest.approx((0.025 ** (1 / 2), 1.0))


def test_a_macro_average_is_as_sure_as_its_smallest_category() -> None:
    found = macro_average(np.ones(12), ["a"] * 10 + ["b"] * 2, [str(i) for i in range(12)])
    assert (found.low, found.high) == pytest.approx((0.025 ** (1 / 4), 1.0))


def test_nothing_has_no_score() -> None:
    found = estimate(np.zeros(0), [])
    assert np.isnan(found.value)
    assert found.items == 0


def test_macro_average_weighs_categories_alike() -> None:
    right = np.array([1.0, 1, 1, 1, 0])
    found = macro_average(right, ["a", "a", "a", "a", "b"], list("vwxyz"))
    assert found.value == pytest.approx(0.5)
    assert found.items == 5


def test_recall_is_trec_evals_success() -> None:
    """Against pytrec_eval, which mteb scores by: the share of queries with a relevant item among the first k."""
    trec = pytest.importorskip("pytrec_eval")
    rng = np.random.default_rng(3)
    queries, items = rng.normal(size=(40, 6)), rng.normal(size=(60, 6))
    relevant = [sorted(rng.choice(60, size=int(rng.integers(1, 5)), replace=False).tolist()) for _ in range(40)]
    judged = {f"q{q}": {f"d{d}": 1 for d in right} for q, right in enumerate(relevant)}
    scores = {f"q{q}": {f"d{d}": float(s) for d, s in enumerate(row)} for q, row in enumerate(queries @ items.T)}
    each = trec.RelevanceEvaluator(judged, {"success"}).evaluate(scores).values()
    found = ranks_of(queries, items, relevant)
    for k in (1, 5, 10):
        assert recall_at(found, k) == pytest.approx(np.mean([e[f"success_{k}"] for e in each]))
