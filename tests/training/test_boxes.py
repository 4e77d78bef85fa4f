from __future__ import annotations

import collections
import io
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fwd2bot_index.config import MATCHING_PROMPT
from fwd2bot_training.config import SourceConfig
from fwd2bot_training.data import open_source
from fwd2bot_training.data.boxes import (
    COLORS,
    GAP,
    NAMES,
    QUESTIONS,
    RADII,
    SIDE,
    Boxes,
    BoxSource,
    Thing,
    are_towers,
    ask,
    render,
    sample_boxes,
)

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "nlvr1" / "dev.parquet"

NUMBERS = {w: i for i, w in enumerate(("no", "one", "two", "three", "four"))} | {str(i): i for i in range(1, 5)}
COUNTED = r"there (?:is|are) (no|an?|(?:(?:at least|exactly|only) )?(?:one|two|three|four|[1-4])) "
ENDS = {"top": -1, "base": 0, "bottom": 0}
Towers = list[list[str]]
"""Colours from the base up."""


def thing(color: str, shape: str, size: str, x: int, y: int) -> Thing:
    return Thing(color=color, shape=shape, size=size, x=x, y=y)


def color_at(pixels: np.ndarray, x: int, y: int) -> str | None:
    near = {name: np.abs(pixels[y, x].astype(int) - rgb).max() < 40 for name, rgb in COLORS.items()}
    return next((name for name, there in near.items() if there), None)


def towers_of(picture: Image.Image) -> Towers:
    """Told from the pixels alone."""
    pixels = np.asarray(picture.convert("RGB"))
    towers: Towers = []
    for place in range(3):
        colors = [color_at(pixels, place * (SIDE + GAP) + SIDE // 2, SIDE - 10 - 21 * i) for i in range(4)]
        height = colors.index(None) if None in colors else 4
        towers.append([c for c in colors[:height] if c])
    return towers


def amount(said: str, count: int) -> bool:
    *how, number = said.split()
    if number in ("a", "an"):
        return count >= 1
    return count >= NUMBERS[number] if how == ["at", "least"] else count == NUMBERS[number]


def are_towers_shown(picture: Image.Image) -> bool:
    """All beside the middle of the boxes is their grey."""
    pixels = np.asarray(picture.convert("RGB"))
    return all((pixels[:, p * (SIDE + GAP) : p * (SIDE + GAP) + 38] == 211).all() for p in range(3))


def of_blocks(m: re.Match[str], towers: Towers) -> bool:
    return amount(m[1], sum(t.count(m[2]) for t in towers))


def of_ends(m: re.Match[str], towers: Towers) -> bool:
    return amount(m[1], sum(t[ENDS[m[3]]] == m[2] for t in towers))


def of_stacks(m: re.Match[str], towers: Towers) -> bool:
    return amount(m[1], sum((m[3], m[2]) in itertools.pairwise(t) for t in towers))


def of_heights(m: re.Match[str], towers: Towers) -> bool:
    how, number = (m[2] or "").strip(), NUMBERS[m[3]]
    return amount(m[1], sum(len(t) >= number if how == "at least" else len(t) == number for t in towers))


def of_one_color(m: re.Match[str], towers: Towers) -> bool:
    height = NUMBERS[m[3]] if m[3] else None
    return amount(m[1], sum({*t} == {m[2]} and height in (None, len(t)) for t in towers))


def of_pairs(m: re.Match[str], towers: Towers) -> bool:
    return amount(m[1], sum((m[2], m[2]) in itertools.pairwise(t) for t in towers))


def of_what_is_below(m: re.Match[str], towers: Towers) -> bool:
    return amount(m[1], sum((m[2], m[3]) in itertools.pairwise(t) for t in towers))


def of_tall(m: re.Match[str], towers: Towers) -> bool:
    return amount(m[1], sum(len(t) > NUMBERS[m[2]] for t in towers))


def of_two_colors(m: re.Match[str], towers: Towers) -> bool:
    return amount(m[1], sum(m[2] in t and t.count(m[4]) == NUMBERS[m[3]] for t in towers))


def of_ends_and_height(m: re.Match[str], towers: Towers) -> bool:
    return amount(m[1], sum(len(t) == NUMBERS[m[2]] and t[ENDS[m[4]]] == m[3] for t in towers))


COLOR = "(black|blue|yellow)"
VERB = "(?:with|having|that has|which has)"
READ: dict[str, Callable[[re.Match[str], Towers], bool]] = {
    rf"{COUNTED}{COLOR} blocks?": of_blocks,
    rf"{COUNTED}towers? {VERB} an? {COLOR} block at (?:the )?(top|base|bottom)": of_ends,
    rf"{COUNTED}{COLOR} blocks? as the (top|base|bottom) of a tower": of_ends,
    rf"{COUNTED}towers? {VERB} an? {COLOR} block (?:over|above|on|on top of) an? {COLOR} block": of_stacks,
    rf"{COUNTED}towers? {VERB} (exactly |only |at least )?(one|two|three|four|[1-4]) blocks?": of_heights,
    rf"{COUNTED}{COLOR} towers?(?: (?:with|with only) (one|two|three|four) blocks?)?": of_one_color,
    rf"{COUNTED}towers? {VERB} (?:two|2) {COLOR} blocks stacked together": of_pairs,
    rf"{COUNTED}towers? {VERB} an? {COLOR} block below an? {COLOR} block": of_what_is_below,
    rf"{COUNTED}towers? {VERB} more than (one|two|three|four|[1-4]) blocks?": of_tall,
    rf"{COUNTED}towers? {VERB} an? {COLOR} block and (one|two|three|four|[1-4]) {COLOR} blocks?": of_two_colors,
    rf"{COUNTED}(two|three|four) blocks? towers? with an? {COLOR} block at the (top|base|bottom)": of_ends_and_height,
}


def read(sentence: str, towers: Towers) -> tuple[str, bool] | None:
    """A second reading of a statement, of the words: its form and whether it holds; None: it is of another form."""
    for form, holds in READ.items():
        if m := re.fullmatch(form, " ".join(sentence.lower().rstrip(". ").split())):
            return form, holds(m, towers)
    return None


def test_statements_about_towers_are_read_alike_from_words_and_pixels() -> None:
    seen: collections.Counter[tuple[str, bool]] = collections.Counter()
    counted = named = 0
    for i in range(300):
        rng = np.random.default_rng(i)
        boxes = sample_boxes(rng, towers=True)
        towers = towers_of(render(boxes))
        assert towers == [[t.color for t in box] for box in boxes]
        for text, true in ask(boxes, rng):
            if (again := read(text, towers)) is not None:
                assert again[1] is true, (text, towers)
                seen[again] += 1
            elif m := re.fullmatch(rf"how many {COLOR} blocks are there\?", text):
                assert sum(t.count(m[1]) for t in towers) == true
                counted += 1
            elif m := re.fullmatch(
                rf"which towers {VERB} an? {COLOR} block at the (top|base|bottom) are there\?", text
            ):
                which = [name for name, t in zip(NAMES, towers, strict=True) if t[ENDS[m[2]]] == m[1]]
                assert (", ".join(which) or "none") == true
                named += 1
    assert len(seen) == 2 * len(READ)
    assert counted > 20
    assert named > 20
    assert min(seen.values()) >= 4


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data")
def test_nlvr_means_the_same_by_its_words() -> None:
    """The reading above, which agrees with ours, of what people have written, against their labels."""
    right = []
    for row in pq.read_table(SHARED).to_pylist():
        picture = Image.open(io.BytesIO(row["images"][0]["bytes"]))
        towers = towers_of(picture)
        if not are_towers_shown(picture):
            continue
        if (again := read(row["sentence"], towers)) is not None:
            right.append(again[1] == row["label"])
    assert len(right) > 150
    assert all(right)


THINGS: Boxes = (
    (thing("yellow", "square", "small", 5, 95), thing("black", "circle", "big", 50, 50)),
    (thing("black", "triangle", "medium", 60, 60), thing("blue", "circle", "small", 40, 5)),
    (thing("black", "square", "medium", 90, 30),),
)


ABOUT_THINGS = {
    "there is a box with only black items": True,
    "all black objects are in the same box": False,
    "all yellow objects are in the same box": True,
    "there is a box with items of only black and blue color": True,
    "there is a box with items of only blue and yellow color": False,
    "there is a square not touching any edge": False,
    "there are 2 circles": True,
    "there is 1 circle closely touching top wall of a box": True,
    "there is a yellow object closely touching the corner": True,
    "there is a box with at least 5 items": False,
    "there is a box with exactly two items": True,
    "there are three black items": True,
    "there are at least 4 triangles": False,
    "there is a grey box with a yellow item on top": False,
    "there is a grey box with a blue item on top": True,
    "none of the black squares are touching the wall": False,
    "none of the black circles are touching the wall": True,
    "there is at least one black object in each box": True,
    "there is at least one yellow circle in each box": False,
    "one of the grey square contains only black items": True,
    "there is a box with a black item and one yellow circle": False,
    "there is a grey box with a black circle and no black squares": True,
    "there is a box with a blue object and no black triangles": False,
    "there are two boxes with items of 2 different colors": True,
    "there is a box with items of the same color": True,
    "there is no blue triangle": True,
    "how many circles are there?": 2,
    "how many boxes with only black items are there?": 1,
    "there is 1 yellow object closely touching left wall of a box": True,
    "there is a triangle touching left wall of a box": False,
    "there is a medium black square touching any edge": True,
    "there is at least one medium circle": False,
    "there is only 1 small blue item closely touching the wall": True,
    "which boxes with only black items are there?": "right",
    "which boxes with items of 2 different colors are there?": "left, middle",
}


def test_statements_about_things() -> None:
    asked: dict[str, bool | int | str] = {}
    for seed in range(2500):
        asked.update(ask(THINGS, np.random.default_rng(seed)))
    assert {text: asked[text] for text in ABOUT_THINGS} == ABOUT_THINGS


def test_no_text_tells_its_answer() -> None:
    answers: dict[str, list[bool]] = collections.defaultdict(list)
    for i in range(1500):
        rng = np.random.default_rng(i)
        asked = ask(sample_boxes(rng), rng)
        assert len(asked) <= QUESTIONS
        for text, true in asked:
            if isinstance(true, bool):
                answers[text].append(true)
    assert sum(map(len, answers.values())) > 8000
    often = [a for a in answers.values() if len(a) >= 6]
    assert len(often) > 100
    # of fair coins, the mean of squared standard scores is 1
    assert np.mean([(2 * sum(a) - len(a)) ** 2 / len(a) for a in often]) < 1.3


def test_the_picture_shows_the_things() -> None:
    for seed in range(40):
        boxes = sample_boxes(np.random.default_rng(seed))
        picture = render(boxes)
        assert picture.size == (3 * SIDE + 2 * GAP, SIDE)
        pixels = np.asarray(picture)
        for place, box in enumerate(boxes):
            start = place * (SIDE + GAP)
            mine = pixels[:, start : start + SIDE]
            for t in box:
                assert color_at(mine, t.x, t.y) == t.color
                radius = RADII[t.size]
                assert radius <= t.x <= SIDE - radius
                assert radius <= t.y <= SIDE - radius
                for wall, (x, y) in {
                    "left": (0, t.y),
                    "right": (SIDE - 1, t.y),
                    "top": (t.x, 0),
                    "bottom": (t.x, SIDE - 1),
                }.items():
                    if wall in t.walls and t.shape == "square":
                        assert color_at(mine, x, y) == t.color
        assert (pixels[:, SIDE + 2 : SIDE + GAP - 2] == 128).all()


def test_both_kinds_are_drawn() -> None:
    kinds = [are_towers(sample_boxes(np.random.default_rng(i))) for i in range(400)]
    assert 0.45 < np.mean(kinds) < 0.65
    assert not are_towers(sample_boxes(np.random.default_rng(0), towers=False))


def test_as_a_source_of_training() -> None:
    source = open_source(SourceConfig(name="b", kind="boxes"), root=None)
    assert isinstance(source, BoxSource)
    one, other = (source.example(0, np.random.default_rng(seed), step=0) for seed in (1, 2))
    assert one.segments != other.segments
    *asked, described = one.segments
    before, after = MATCHING_PROMPT.split("{text}")
    for s in asked:
        assert s.prompt.endswith(after)
        assert s.prompt.startswith(before) is (s.answer in ("yes", "no"))
    assert {s.answer for s in asked} > {"yes", "no"}
    assert any(name in described.prompt for name in NAMES)
    shown = [are_towers_shown(source.example(0, np.random.default_rng(seed), step=0).image) for seed in range(200)]
    assert 0.7 < np.mean(shown) < 0.9
    assert one.caption is None
    pixels = np.asarray(one.image)
    for region in one.regions:
        _, color, _, box = region.text.split()
        left, top, right, bottom = (v * n for v, n in zip(region.box, one.image.size * 2, strict=True))
        assert color_at(pixels, int(left + right) // 2, int(top + bottom) // 2) == color
        assert NAMES.index(box) == int(left) // (SIDE + GAP)
    assert {region.text.split()[-1] for region in one.regions} == set(NAMES)
    held = open_source(SourceConfig(name="b", kind="boxes", split="val"), root=None)
    first, again, next_ = (held.example(i, np.random.default_rng(s), step=0) for i, s in ((0, 1), (0, 2), (1, 1)))
    assert first.segments == again.segments != next_.segments
    texts = list(source.texts(np.random.default_rng(0)))
    assert any(t.startswith("what is in the left box?\n") for t in texts)
    assert any("tower" in t for t in texts)
