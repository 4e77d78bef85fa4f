from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fwd2bot_index import scenes
from fwd2bot_index.errors import InputError
from fwd2bot_training.config import DataConfig, SourceConfig
from fwd2bot_training.data import DESCRIBE, Example, Mixture, Region, Rng, SceneSource, Segment


@dataclass
class Numbered:
    """Rows whose caption is their number, some of them bad."""

    rows: int
    name: str = "numbered"
    bad: frozenset[int] = frozenset()
    lengths: list[int] = field(default_factory=list)
    segments: int = 0
    negatives: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.rows

    def length(self, index: int) -> int:
        return self.lengths[index] if self.lengths else 1

    def example(self, index: int, rng: Rng, *, step: int) -> Example:
        if index in self.bad:
            raise InputError(f"rows.txt, row {index}: it is bad.")
        return Example(
            image=Image.new("RGB", (2, 2)),
            segments=tuple(Segment(prompt=f"{i}?", answer=str(i)) for i in range(self.segments)),
            caption=str(index),
            negatives=self.negatives,
        )

    def texts(self, rng: Rng) -> Iterator[str]:
        yield from map(str, range(self.rows))


def mixture(*sources: Any, seed: int = 0, batch_size: int = 4, **settings: Any) -> Mixture:
    skipped_to = settings.pop("skipped_to", None)
    data = DataConfig(**settings)
    return Mixture([(s, 1.0) for s in sources], seed=seed, batch_size=batch_size, data=data, skipped_to=skipped_to)


def rows(m: Mixture, steps: range, **part: int) -> list[list[int]]:
    return [[int(e.caption or -1) for e in m.batch(step, **part)[1]] for step in steps]


def seen(example: Example) -> tuple[bytes, object, object]:
    return example.image.tobytes(), example.segments, example.caption


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    def batch(seed: int, step: int, before: int = 0) -> list[object]:
        m = mixture(SceneSource(size=48), seed=seed, batch_size=3)
        for earlier in range(before):
            m.batch(earlier)
        return [seen(e) for e in m.batch(step)[1]]

    assert batch(1, 5) == batch(1, 5, before=5)
    assert batch(1, 5) != batch(1, 6)
    assert batch(1, 5) != batch(2, 5)


@pytest.mark.parametrize("grouped", [False, True])
def test_every_row_comes_once_per_epoch_in_another_order(grouped: bool) -> None:
    # 7 rows in batches of 4: batches straddle the epochs
    m = mixture(Numbered(7), length_grouped=grouped)
    stream = [r for batch in rows(m, range(21)) for r in batch]
    epochs = [stream[i : i + 7] for i in range(0, 84, 7)]
    assert all(sorted(e) == list(range(7)) for e in epochs)
    assert len({tuple(e) for e in epochs}) > 6
    assert rows(mixture(Numbered(7), length_grouped=grouped), range(20, 21)) == [stream[80:]]


def test_the_rows_of_a_source_go_on_where_its_last_batch_ended() -> None:
    sources = [Numbered(12, "a"), Numbered(30, "b")]
    m = mixture(*sources)
    drawn: dict[str, list[int]] = {"a": [], "b": []}
    for step in range(40):
        name, examples = m.batch(step)
        drawn[name] += [int(e.caption or -1) for e in examples]
    for s in sources:
        stream = drawn[s.name]
        whole = len(stream) // s.rows
        assert whole >= 2
        for i in range(whole):
            assert sorted(stream[i * s.rows : (i + 1) * s.rows]) == list(range(s.rows))


def test_steps_beyond_a_block_of_choices_continue_the_count() -> None:
    m = mixture(Numbered(10**6, "a"), Numbered(10**6, "b"), batch_size=1, length_grouped=False)
    names = [m._draw(step) for step in range(9000)]
    for number in (0, 1):
        assert [count for n, count in names if n == number] == list(range(sum(n == number for n, _ in names)))
    fresh = mixture(Numbered(10**6, "a"), Numbered(10**6, "b"), batch_size=1, length_grouped=False)
    assert fresh._draw(8999) == names[8999]
    assert fresh._draw(17) == names[17]


def test_processes_draw_the_parts_of_the_batch_of_one() -> None:
    def parts(world: int) -> list[object]:
        m = [mixture(SceneSource(size=24), seed=4, batch_size=5) for _ in range(world)]
        return [seen(e) for rank in range(world) for e in m[rank].batch(3, rank=rank, world=world)[1]]

    assert parts(1) == parts(2) == parts(5)
    with pytest.raises(InputError, match=r"5 cannot be divided among 6 processes.*batch_size"):
        parts(6)


def test_sources_are_drawn_by_weight() -> None:
    m = Mixture([(Numbered(9, "rare"), 1.0), (Numbered(9, "common"), 9.0)], seed=0, batch_size=1)
    names = Counter(m.batch(step)[0] for step in range(1000))
    assert 60 < names["rare"] < 145


def test_batches_of_some_sources_are_larger() -> None:
    m = Mixture([(Numbered(50, "many"), 1.0)], seed=0, batch_size=3, factors={"many": 2})
    assert [len(b) for b in rows(m, range(2))] == [6, 6]
    assert len(rows(m, range(1), rank=1, world=2)[0]) == 3


def test_batches_are_of_like_length_in_a_shuffled_order() -> None:
    lengths = [int(v) for v in np.random.default_rng(0).permutation(800)]
    source = Numbered(800, lengths=lengths)

    def spreads(grouped: bool) -> tuple[float, list[float], list[list[int]]]:
        batches = [
            [lengths[r] for r in b] for b in rows(mixture(source, batch_size=8, length_grouped=grouped), range(100))
        ]
        return float(np.mean([max(b) - min(b) for b in batches])), [float(np.mean(b)) for b in batches], batches

    grouped, means, batches = spreads(True)
    plain, _, _ = spreads(False)
    assert grouped < 20 < 500 < plain
    assert abs(np.corrcoef(np.arange(100), means)[0, 1]) < 0.3
    assert sum(b == sorted(b) for b in batches) < 5, "or one process had the short ones, another the long ones"


def test_later_epochs_are_grouped_as_well_where_batches_straddle_them() -> None:
    lengths = [int(v) for v in np.random.default_rng(0).permutation(803)]
    m = mixture(Numbered(803, lengths=lengths), batch_size=8)
    batches = [[lengths[r] for r in b] for b in rows(m, range(100, 500))]
    assert np.median([max(b) - min(b) for b in batches]) < 25


def test_a_bad_row_stops_by_name() -> None:
    m = mixture(Numbered(8, bad=frozenset({3})))
    with pytest.raises(InputError, match=r"rows\.txt, row 3: it is bad"):
        rows(m, range(2))


def test_skipped_rows_are_replaced_from_the_next_batch_and_recorded(tmp_path: Path) -> None:
    def run(to: Path | None, steps: range) -> tuple[Mixture, list[list[int]]]:
        m = mixture(Numbered(40, bad=frozenset({3, 17})), bad_rows="skip", skipped_to=to)
        return m, rows(m, steps)

    m, drawn = run(tmp_path / "skipped.jsonl", range(30))
    assert not {3, 17} & {r for b in drawn for r in b}
    assert all(len(set(b)) == 4 for b in drawn), "a row taken from its own batch would be its own false negative"
    assert [(s.source, s.row) for s in m.skipped] in (
        [("numbered", 3), ("numbered", 17)],
        [("numbered", 17), ("numbered", 3)],
    )
    written = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert sorted(w["row"] for w in written) == [3, 17]
    assert written[0]["reason"].startswith("rows.txt, row")
    assert run(None, range(20, 30))[1] == drawn[20:], "whatever was skipped before"


def test_a_source_of_bad_rows_alone_is_refused() -> None:
    with pytest.raises(InputError, match="None of the 5 rows of the source 'numbered'"):
        rows(mixture(Numbered(5, bad=frozenset(range(5))), bad_rows="skip"), range(1))


def test_segments_are_cut_by_drawing() -> None:
    m = mixture(Numbered(4, segments=6), max_segments=4)
    kept = [tuple(int(s.answer) for s in e.segments) for step in range(30) for e in m.batch(step)[1]]
    assert all(len(k) == 4 and list(k) == sorted(k) for k in kept)
    assert Counter(i for k in kept for i in k).keys() == set(range(6))


def test_negatives_as_the_data_says() -> None:
    def negatives(mode: str, source: Any) -> set[tuple[str, ...]]:
        return {e.negatives for e in mixture(source, negatives=mode).batch(0)[1]}

    given = Numbered(4, negatives=("false",))
    assert negatives("none", given) == {()}
    assert negatives("given", given) == negatives("rules", given) == {("false",)}


def test_rules_edit_captions_that_have_none() -> None:
    class Dogs(Numbered):
        def example(self, index: int, rng: Rng, *, step: int) -> Example:
            return Example(image=Image.new("RGB", (2, 2)), segments=(), caption="two red dogs on a bench")

    drawn = [e for step in range(5) for e in mixture(Dogs(9), negatives="rules").batch(step)[1]]
    assert all(len(e.negatives) == 1 and e.negatives[0] != e.caption for e in drawn)
    assert len({e.negatives for e in drawn}) > 8


@pytest.mark.parametrize("weights", [[], [0.0], [1.0, -1.0], [float("nan")]])
def test_a_mixture_of_nothing_is_refused(weights: list[float]) -> None:
    with pytest.raises(InputError, match="weight above 0"):
        Mixture([(Numbered(3), w) for w in weights], seed=0, batch_size=1)


def test_a_mixture_goes_to_other_processes() -> None:
    m = mixture(SceneSource(size=24), Numbered(9))
    again = pickle.loads(pickle.dumps(m))  # noqa: S301 - our own
    assert [seen(e) for e in again.batch(7)[1]] == [seen(e) for e in m.batch(7)[1]]


def test_an_example_without_a_loss_cannot_be_made() -> None:
    image = Image.new("RGB", (2, 2))
    with pytest.raises(ValueError, match="segments or a caption"):
        Example(image=image, segments=(), regions=(Region(box=(0, 0, 1, 1), text="x"),))
    with pytest.raises(ValueError, match="must not be empty"):
        Segment(prompt="who?", answer=" ")


# --- scenes


def test_the_curriculum_grows_the_scenes() -> None:
    m = mixture(SceneSource(size=24, curriculum_steps=100), batch_size=40, max_segments=20)

    def most(step: int) -> int:
        described = [s.answer for e in m.batch(step)[1] for s in e.segments if s.prompt == DESCRIBE]
        return max(d.count(",") + 1 for d in described)

    assert [most(step) for step in (0, 20, 100, 500)] == [1, 2, 6, 6]


def test_partial_captions_leave_objects_out() -> None:
    def mentioned(share: float) -> Counter[int]:
        m = mixture(SceneSource(size=24, partial_captions=share), batch_size=400)
        return Counter((e.caption or "").count(",") + (e.caption or "").count(" and ") + 1 for e in m.batch(0)[1])

    assert max(mentioned(0.0)) == 4
    assert max(mentioned(1.0)) == 3
    assert mentioned(1.0)[1] > 2 * mentioned(0.0)[1]


def test_a_scene_has_a_hard_negative_that_differs_by_an_edit() -> None:
    examples = mixture(SceneSource(size=24), batch_size=40).batch(0)[1]
    assert sum(len(e.negatives) for e in examples) > 35
    for e in examples:
        assert e.caption not in e.negatives
        for negative in e.negatives:
            assert {*negative.split()} & {*(e.caption or "").split()}, "nearly true"


def test_a_scene_brings_as_many_hard_negatives_as_asked_for_swaps_first() -> None:
    def drawn(**keys: Any) -> list[Example]:
        return mixture(SceneSource(size=24, **keys), batch_size=300).batch(0)[1]

    assert all(not e.negatives for e in drawn(hard_negatives=0))
    several = drawn(hard_negatives=2, relation_captions=1.0)
    assert sum(len(e.negatives) == 2 for e in several) > 280
    assert all(len(set(e.negatives)) == len(e.negatives) for e in several)
    # the same words in another order: a swap
    related = [e for e in several if any(r in (e.caption or "") for r in scenes.RELATIONS)]
    swapped = [any(sorted(n.split()) == sorted((e.caption or "").split()) for n in e.negatives) for e in related]
    assert len(related) > 200
    assert np.mean(swapped) > 0.6


def test_every_other_scene_is_the_twin_of_the_one_before() -> None:
    """Told by the regions: the same objects, of which two have changed over."""

    def batch(twins: float) -> list[Example]:
        source = SceneSource(size=24, twins=twins, relation_captions=1.0, hard_negatives=5)
        return mixture(source, batch_size=200).batch(0)[1]

    def changed(first: Example, second: Example) -> int:
        boxes = {(r.box, r.text.rsplit(" ", 2)[0]) for r in first.regions}
        return len(boxes - {(r.box, r.text.rsplit(" ", 2)[0]) for r in second.regions})

    examples = batch(1.0)
    pairs = [(a, b) for a, b in zip(examples[::2], examples[1::2], strict=True) if len(a.regions) == len(b.regions)]
    twins = [(a, b) for a, b in pairs if sorted((a.caption or "").split()) == sorted((b.caption or "").split())]
    assert len(twins) > 60, "scenes of one object have none, and crowded ones"
    for a, b in twins:
        assert changed(a, b) <= 2
        assert a.caption != b.caption
        assert a.caption not in b.negatives
        assert b.caption not in a.negatives
        assert len(a.negatives) >= 3, "the others stay"
    questions = [(a.segments, b.segments) for a, b in twins]
    assert sum(x == y for x, y in questions) < len(questions) / 4, "each is asked questions of its own"
    assert len({e.image.tobytes() for e in examples}) == len(examples), "where there is no twin, a fresh scene"
    alone = mixture(SceneSource(size=24, twins=1.0, relation_captions=1.0), batch_size=200)
    assert alone.batch(0, rank=1, world=2)[1][7].image.tobytes() == examples[107].image.tobytes(), "of parts too"


def test_no_scene_has_a_twin_that_is_not_asked_for() -> None:
    examples = mixture(SceneSource(size=24, relation_captions=1.0), batch_size=200).batch(0)[1]
    words = [sorted((e.caption or "").split()) for e in examples]
    assert not any(a == b for a, b in zip(words[::2], words[1::2], strict=True))


def test_captions_relate_objects_as_often_as_asked_for() -> None:
    def related(share: float) -> int:
        m = mixture(SceneSource(size=24, relation_captions=share), batch_size=200)
        return sum(any(r in (e.caption or "") for r in scenes.RELATIONS) for e in m.batch(0)[1])

    assert related(0.0) == 0
    assert related(1.0) > 2 * related(0.3) > 50


def test_favored_questions_come_more_often() -> None:
    def asked(**keys: Any) -> Counter[str]:
        m = mixture(SceneSource(size=24, **keys), batch_size=300, max_segments=20)
        return Counter(s.kind for e in m.batch(0)[1] for s in e.segments)

    plain, favored = asked(), asked(favored=("count", "exist"))
    assert favored["count"] > 1.1 * plain["count"]
    assert favored["exist"] > 1.1 * plain["exist"]
    assert favored["color"] < plain["color"]


def test_counting_several_times_and_to_larger_numbers() -> None:
    def answers(**keys: Any) -> tuple[Counter[str], set[int]]:
        m = mixture(SceneSource(size=24, **keys), batch_size=400, max_segments=20)
        asked = [[s for s in e.segments if s.kind == "count"] for e in m.batch(0)[1]]
        assert all(len({s.prompt for s in segments}) == len(segments) for segments in asked)
        some = (s for segments in asked for s in segments if "many objects" not in s.prompt)
        return Counter(s.answer for s in some), {len(segments) for segments in asked}

    def large(found: Counter[str]) -> float:
        return sum(n for answer, n in found.items() if int(answer) > 3) / found.total()

    (one, times), (three, thrice), (alike, _) = answers(), answers(counts=3), answers(counts=3, alike=1.0)
    assert (times, thrice) == ({0, 1}, {0, 3})
    assert three.total() > 2 * one.total()
    assert large(alike) > 0.15 > 0.08 > large(three)
    assert 0 < alike["0"] < alike.total() / 3


def test_relations_are_asked_several_times() -> None:
    def asked(relations: int) -> Counter[tuple[str, int]]:
        m = mixture(SceneSource(size=24, relations=relations), batch_size=300, max_segments=20)
        found: Counter[tuple[str, int]] = Counter()
        for e in m.batch(0)[1]:
            assert len({s.prompt for s in e.segments}) == len(e.segments)
            found.update(Counter(s.kind for s in e.segments).items())
        return found

    once, thrice = asked(1), asked(3)
    for kind in ("relation", "side"):
        assert {n for k, n in once if k == kind} == {1}
        assert max(n for k, n in thrice if k == kind) == 3
        assert len({n for k, n in thrice if k == kind}) > 1  # of two objects there are not always three to ask
        assert thrice[kind, 3] > sum(thrice[kind, n] for n in (1, 2))
    assert {n for k, n in thrice if k == "color"} == {1}


def test_more_counts_leave_the_other_questions_as_they_were() -> None:
    few, many = (
        mixture(SceneSource(size=24, counts=counts), batch_size=200, max_segments=20).batch(0)[1] for counts in (1, 3)
    )
    kinds = [[sorted({s.kind for s in e.segments}) for e in batch] for batch in (few, many)]
    same = sum(a == b for a, b in zip(*kinds, strict=True))
    assert same > 150  # what is drawn after a count differs, so a question now and then cannot be asked


def test_questions_and_objects_keep_to_a_budget() -> None:
    for e in mixture(SceneSource(size=24), batch_size=30, max_segments=20).batch(0)[1]:
        objects = e.segments[-1].answer.count(",") + 1
        assert len(e.segments) - 1 <= 10 - objects
        assert len(e.regions) == objects


def test_held_out_scenes_are_those_of_their_index() -> None:
    source = SceneSource(size=24, held_out=True)
    first = source.example(5, np.random.default_rng(0), step=0)
    assert first.image.tobytes() == source.example(5, np.random.default_rng(1), step=9).image.tobytes()
    assert first.image.tobytes() == scenes.render(scenes.scene(5, stream="val"), size=24).tobytes()


def test_scenes_from_the_settings() -> None:
    def source(**keys: Any) -> Any:
        data = DataConfig(sources=(SourceConfig(name="s", kind="scenes", **keys),))
        return Mixture.from_config(data, root=None, seed=0, batch_size=1).sources[0]

    keys: dict[str, Any] = {
        "size": 40,
        "partial_captions": 0.5,
        "relation_captions": 0.7,
        "hard_negatives": 2,
        "twins": 0.4,
        "favored": ("count",),
        "counts": 2,
        "relations": 3,
        "alike": 0.1,
        "curriculum_steps": 9,
    }
    assert source(**keys, split="val") == SceneSource(name="s", **keys, held_out=True)
    with pytest.raises(InputError, match="favored has 'colour'; there are exist, count"):
        source(favored=("colour",))
    with pytest.raises(InputError, match="counts and relations from 1"):
        source(counts=0)
    with pytest.raises(InputError, match="counts and relations from 1"):
        source(relations=0)
    with pytest.raises(InputError, match="twins and alike are shares"):
        source(relation_captions=1.5)
    with pytest.raises(InputError, match="twins and alike are shares"):
        source(twins=-0.1)
    with pytest.raises(InputError, match="split is train or val, not 'test'"):
        source(split="test")
