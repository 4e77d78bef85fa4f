"""The scene world is ground truth: it must never say what is not in the picture."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from fwd2bot_index import scenes
from fwd2bot_index.scenes import COLORS, Caption, Mention, Scene, Thing

POOL = [scenes.scene(i) for i in range(150)]


def _thing(shape: str, color: str, x: float, y: float, *, size: str = "small") -> Thing:
    return Thing(shape=shape, color=color, size=size, x=x, y=y, radius=0.08)


PAIR = Scene(things=(_thing("circle", "red", 0.2, 0.2), _thing("star", "blue", 0.8, 0.5, size="large")), ground=255)


def test_a_seed_is_a_scene_for_ever_and_streams_differ() -> None:
    assert scenes.scene(5) == scenes.scene(5)
    assert scenes.scene(5) != scenes.scene(6)
    assert scenes.scene(5) != scenes.scene(5, stream="held out")


def test_objects_lie_inside_and_do_not_touch() -> None:
    for scene in POOL:
        assert 1 <= len(scene.things) <= scenes.MAX_OBJECTS
        for t in scene.things:
            assert t.radius < t.x < 1 - t.radius
            assert t.radius < t.y < 1 - t.radius
        for a, b in itertools.combinations(scene.things, 2):
            assert (a.x - b.x) ** 2 + (a.y - b.y) ** 2 > (a.radius + b.radius) ** 2


def test_scenes_of_things_that_are_alike() -> None:
    def kinds(alike: bool) -> list[tuple[int, int]]:
        drawn = [scenes.sample_scene(np.random.default_rng(i), alike=alike).things for i in range(100)]
        return [(len({t.color for t in things}), len({t.shape for t in things})) for things in drawn]

    assert {max(pair) for pair in kinds(alike=True)} == {1, 2}
    assert max(max(pair) for pair in kinds(alike=False)) > 2


@pytest.mark.parametrize("size", [96, 40])
def test_pixels_show_each_object_in_its_colour(size: int) -> None:
    for scene in POOL[:40]:
        pixels = np.asarray(scenes.render(scene, size=size)).astype(int)
        assert pixels.shape == (size, size, 3)
        for t in scene.things:
            centre = pixels[int(t.y * size), int(t.x * size)]
            assert np.abs(centre - COLORS[t.color]).max() <= 3
        assert (pixels[0, 0] == scene.ground).all()


def test_every_shape_looks_different() -> None:
    pictures = {
        s: np.asarray(scenes.render(Scene(things=(_thing(s, "red", 0.5, 0.5),), ground=0))).tobytes()
        for s in scenes.SHAPES
    }
    assert len(set(pictures.values())) == len(scenes.SHAPES)


def test_captions_are_true_and_hard_negatives_are_false() -> None:
    kinds = set()
    for i, scene in enumerate(POOL):
        rng = np.random.default_rng(i)
        caption = scenes.caption(scene, rng)
        assert caption.fits(scene)
        for kind, negative in scenes.hard_negatives(scene, caption, rng).items():
            kinds.add(kind)
            assert not negative.fits(scene)
            assert str(negative) != str(caption)
    assert kinds == {"swap_attribute", "swap_relation", "replace_attribute", "replace_object", "add"}


def test_swaps_keep_the_words_and_change_the_meaning() -> None:
    red, blue = Mention(shape="circle", color="red"), Mention(shape="star", color="blue")
    caption = Caption(mentions=(red, blue), relations=((0, "left of", 1),))
    assert str(caption) == "a red circle left of a blue star"
    made = scenes.hard_negatives(PAIR, caption, np.random.default_rng(0))
    assert str(made["swap_attribute"]) == "a blue circle left of a red star"
    assert str(made["swap_relation"]) == "a blue star left of a red circle"


def test_each_mention_needs_an_object_of_its_own() -> None:
    red = Mention(shape="circle", color="red")
    assert Caption(mentions=(red,)).fits(PAIR)
    assert not Caption(mentions=(red, red)).fits(PAIR)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("what color is the star?", "blue"),
        ("what shape is the red object?", "circle"),
        ("what size is the blue star?", "large"),
        ("where is the red circle?", "top left"),
        ("what is the rightmost object?", "blue star"),
        ("how many objects are there?", "2"),
        ("how many stars are there?", "1"),
        ("is there a blue circle?", "no"),
        ("is the red circle left of the blue star?", "yes"),
        ("is the blue star left of the red circle?", "no"),
        ("is the red circle above the blue star?", "yes"),
        ("is the red circle left or right of the blue star?", "left"),
        ("is the blue star above or below the red circle?", "below"),
    ],
)
def test_known_answers(text: str, answer: str) -> None:
    asked = {q.text: q.answer for seed in range(300) for q in scenes.questions(PAIR, np.random.default_rng(seed))}
    assert asked[text] == answer


def test_every_count_of_a_scene() -> None:
    scene = Scene(things=(*PAIR.things, _thing("star", "red", 0.2, 0.8)), ground=0)
    answers = {q.text: int(q.answer) for q in scenes.counts(scene)}
    assert len(answers) == 1 + len(COLORS) + len(scenes.SHAPES)
    assert {text: n for text, n in answers.items() if n} == {
        "how many objects are there?": 3,
        "how many red objects are there?": 2,
        "how many blue objects are there?": 1,
        "how many circles are there?": 1,
        "how many stars are there?": 2,
    }
    assert answers["how many crosses are there?"] == 0
    drawn = [scenes.ask(s, "count", np.random.default_rng(i)) for i, s in enumerate(POOL)]
    assert all(q in scenes.counts(s) for q, s in zip(drawn, POOL, strict=True))


def test_yes_and_no_are_balanced() -> None:
    for kind in ("exist", "relation", "match"):
        answers = [
            q.answer
            for i, s in enumerate(POOL)
            for seed in range(3)
            if (q := scenes.ask(s, kind, np.random.default_rng([i, seed])))
        ]
        assert 0.42 < answers.count("yes") / len(answers) < 0.58, kind


def test_an_orange_and_a_red() -> None:
    orange, red = Mention(shape="circle", color="orange"), Mention(shape="star", color="red")
    assert str(Caption(mentions=(orange, red))) == "an orange circle and a red star"


def test_a_scene_of_one_object_has_no_relations() -> None:
    alone = Scene(things=PAIR.things[:1], ground=0)
    rng = np.random.default_rng(0)
    assert scenes.ask(alone, "relation", rng) is None
    assert scenes.ask(alone, "side", rng) is None
    assert scenes.ask(alone, "extreme", rng) is None
    assert scenes.describe(alone) == "small red circle top left"


def test_a_twin_is_its_scene_but_for_one_exchange() -> None:
    kinds = []
    for i, scene in enumerate(POOL):
        rng = np.random.default_rng(i)
        caption = scenes.caption(scene, rng, relation=1.0)
        false = scenes.hard_negatives(scene, caption, rng)
        for kind, twin in scenes.twins(scene, caption, false).items():
            kinds.append(kind)
            (a, new_a), (b, new_b) = [(x, y) for x, y in zip(scene.things, twin.things, strict=True) if x != y]
            if kind == "swap_attribute":
                assert (new_a, new_b) == (replace(a, color=b.color), replace(b, color=a.color))
            else:
                assert (new_a, new_b) == (replace(a, x=b.x, y=b.y), replace(b, x=a.x, y=a.y))
            assert false[kind].fits(twin)
            assert not caption.fits(twin)
    assert min(kinds.count("swap_attribute"), kinds.count("swap_relation")) > 60


def test_a_twin_whose_objects_would_touch_is_none() -> None:
    small, large = PAIR.things
    caption = Caption(
        mentions=(Mention(shape="circle", color="red"), Mention(shape="star", color="blue")),
        relations=((0, "left of", 1),),
    )
    false = scenes.hard_negatives(PAIR, caption, np.random.default_rng(0))
    assert set(scenes.twins(PAIR, caption, false)) == {"swap_attribute", "swap_relation"}
    crowded = replace(PAIR, things=(small, replace(large, radius=0.18), _thing("cross", "green", 0.2, 0.4)))
    assert set(scenes.twins(crowded, caption, false)) == {"swap_attribute"}
    at_the_edge = replace(PAIR, things=(replace(small, x=0.09), replace(large, radius=0.18)))
    assert set(scenes.twins(at_the_edge, caption, false)) == {"swap_attribute"}
