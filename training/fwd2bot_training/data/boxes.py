"""Look-alikes of NLVR (Suhr et al., "A Corpus of Natural Language for Visual Reasoning", ACL 2017) as a source: endless
pictures and statements of its kind, because its pictures are too few to learn to look at them.

A picture is three boxes side by side, 400 x 100 pixels. In each box stands a tower of one to four blocks, or lie one to
eight circles, squares and triangles, black, blue or yellow, of three sizes; some touch a wall. A statement is asked
as the matching question, and is true or false; instead of some it is asked how many there are, or which. What the words
mean was measured in the labels of NLVR's ``dev``: a bare number is exact ("there are 2 blue blocks", "there is 1 tower
with ..."), "a" is at least one, and what is over a block lies on it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

import numpy as np
from PIL import Image, ImageDraw

from fwd2bot_index.config import MATCHING_PROMPT
from fwd2bot_training.data.example import Endless, Example, Region, Rng, Segment

COLORS: Final = {"black": (0, 0, 0), "blue": (0, 153, 255), "yellow": (255, 255, 0)}
SHAPES: Final = ("circle", "square", "triangle")
RADII: Final = {"small": 5, "medium": 10, "big": 15}
"""Pixels, half of a side."""
SIDE: Final = 100
GAP: Final = 50
"""Pixels between two boxes."""
BACKGROUND, BETWEEN = (211, 211, 211), (128, 128, 128)
NAMES: Final = ("left", "middle", "right")
TALLEST: Final = 4
MOST: Final = 8
TOWERS: Final = 0.55
"""Share of the pictures, as in NLVR; of the held-out ones."""
TOWERS_TRAINED: Final = 0.8
"""Share of the pictures to learn from. At a resolution of 96, for 400, a small thing that lies scattered is 2.4 pixels
wide, and was not learned (training/LOG.md, fourteenth session)."""
QUESTIONS: Final = 10
COUNTED: Final = 0.3
"""Of what can be said with a number: how often it is asked for instead, as yes or no tells little."""
NAMED: Final = 0.25
"""Of what can be said of some of the boxes: how often it is asked which."""
TEXTS_SAMPLED: Final = 1500
_AT_A_WALL: Final = 0.3
_OFF_A_WALL: Final = 3
"""Pixels at least between a wall and what does not touch it, so that the picture shows the difference."""
_TRIES: Final = 40
_OVERSAMPLED: Final = 2
_WORDS: Final = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight")


@dataclass(frozen=True, kw_only=True)
class Thing:
    color: str
    shape: str
    size: str
    x: int
    """Of its centre, in pixels from the left side of its box."""
    y: int
    """From the top."""

    @property
    def walls(self) -> frozenset[str]:
        """Which it touches: of left, right, top, bottom."""
        radius = RADII[self.size]
        gaps = {"left": self.x, "right": SIDE - self.x, "top": self.y, "bottom": SIDE - self.y}
        return frozenset(wall for wall, gap in gaps.items() if gap <= radius)


T = TypeVar("T")
Box: TypeAlias = tuple[Thing, ...]
"""From the bottom up."""
Boxes: TypeAlias = tuple[Box, ...]
Clause: TypeAlias = tuple[str, Callable[[Box], bool]]
"""What is said of a box or tower, after "with", and whether it holds."""
Answer: TypeAlias = bool | int | str
Asked: TypeAlias = tuple[str, Callable[[Boxes], Answer | None]]
"""A statement and whether it is true of a picture, "how many ... are there?" and the number, or "which ... are there?"
and the names; None: it speaks of what is not there, or there twice, or more often than there are words for."""


@dataclass(frozen=True, kw_only=True)
class BoxSource(Endless):
    """Fresh boxes, whatever ``index`` is. With ``held_out`` the boxes of ``index``, the same for ever."""

    name: str = "boxes"
    held_out: bool = False

    def example(self, index: int, rng: Rng, *, step: int) -> Example:
        towers: bool | None = None
        if self.held_out:
            rng = np.random.default_rng([*b"held-out boxes", index])
        else:
            towers = bool(rng.random() < TOWERS_TRAINED)
        boxes = sample_boxes(rng, towers=towers)
        asked = (_segment(text, answer) for text, answer in ask(boxes, rng))
        return Example(image=render(boxes), segments=(*asked, _described(boxes, rng)), regions=regions(boxes))

    def texts(self, rng: Rng) -> Iterator[str]:
        for _ in range(TEXTS_SAMPLED):
            boxes = sample_boxes(rng)
            segments = (*(_segment(text, answer) for text, answer in ask(boxes, rng)), _described(boxes, rng))
            yield from (f"{s.prompt}\n{s.answer}" for s in segments)


# ---- pictures


def sample_boxes(rng: Rng, *, towers: bool | None = None) -> Boxes:
    """``towers``: None, as often as in NLVR."""
    if towers is None:
        towers = bool(rng.random() < TOWERS)
    return tuple((_tower if towers else _scattered)(rng) for _ in NAMES)


def are_towers(boxes: Boxes) -> bool:
    return all(t.shape == "square" and t.size == "medium" and t.x == SIDE // 2 for box in boxes for t in box)


def render(boxes: Boxes) -> Image.Image:
    """RGB, 400 x 100 pixels."""
    wide = _width(boxes)
    canvas = Image.new("RGB", (wide * _OVERSAMPLED, SIDE * _OVERSAMPLED), BETWEEN)
    draw = ImageDraw.Draw(canvas)
    for place, box in enumerate(boxes):
        start = place * (SIDE + GAP)
        corners = (start, 0, start + SIDE, SIDE)
        draw.rectangle([c * _OVERSAMPLED - (i > 1) for i, c in enumerate(corners)], fill=BACKGROUND)
        for t in box:
            _draw(draw, t, start)
    return canvas.reduce(_OVERSAMPLED)


def regions(boxes: Boxes) -> tuple[Region, ...]:
    """Every thing, for the word loss."""
    wide = _width(boxes)
    return tuple(
        Region(
            box=(
                (place * (SIDE + GAP) + t.x - RADII[t.size]) / wide,
                (t.y - RADII[t.size]) / SIDE,
                (place * (SIDE + GAP) + t.x + RADII[t.size]) / wide,
                (t.y + RADII[t.size]) / SIDE,
            ),
            text=f"{t.size} {t.color} {t.shape} {name}",
        )
        for place, (name, box) in enumerate(zip(NAMES, boxes, strict=True))
        for t in box
    )


def _width(boxes: Boxes) -> int:
    return len(boxes) * SIDE + (len(boxes) - 1) * GAP


def _draw(draw: ImageDraw.ImageDraw, t: Thing, start: int) -> None:
    radius, x, y = RADII[t.size], start + t.x, t.y
    left, top, right, bottom = (v * _OVERSAMPLED for v in (x - radius, y - radius, x + radius, y + radius))
    match t.shape:
        case "circle":
            draw.ellipse((left, top, right - 1, bottom - 1), fill=COLORS[t.color])
        case "square":
            draw.rectangle((left, top, right - 1, bottom - 1), fill=COLORS[t.color])
        case _:
            draw.polygon([(x * _OVERSAMPLED, top), (right - 1, bottom - 1), (left, bottom - 1)], fill=COLORS[t.color])


def _tower(rng: Rng) -> Box:
    radius = RADII["medium"]
    return tuple(
        # a line of the background shows between two blocks
        Thing(
            color=_one(COLORS, rng), shape="square", size="medium", x=SIDE // 2, y=SIDE - radius - i * (2 * radius + 1)
        )
        for i in range(int(rng.integers(1, TALLEST + 1)))
    )


def _scattered(rng: Rng) -> Box:
    things: list[Thing] = []
    wanted = int(rng.integers(1, MOST + 1))
    for _ in range(_TRIES):
        size = _one(RADII, rng)
        radius = RADII[size]
        near = radius + _OFF_A_WALL
        place = [int(v) for v in rng.integers(near, SIDE - near + 1, size=2)]
        if rng.random() < _AT_A_WALL:
            for axis in (0, 1) if rng.random() < 0.2 else (int(rng.integers(2)),):
                place[axis] = radius if rng.random() < 0.5 else SIDE - radius
        x, y = place
        if all(max(abs(x - t.x), abs(y - t.y)) > radius + RADII[t.size] for t in things):
            things.append(Thing(color=_one(COLORS, rng), shape=_one(SHAPES, rng), size=size, x=x, y=y))
        if len(things) == wanted:
            break
    return tuple(sorted(things, key=lambda t: -t.y))


# ---- statements


def ask(boxes: Boxes, rng: Rng) -> list[tuple[str, Answer]]:
    """Up to `QUESTIONS` different statements and questions, with the answers. Only what a second picture of the kind
    would answer otherwise is asked: so each statement is as often true as false, and no text tells its answer."""
    towers = are_towers(boxes)
    other, forms = sample_boxes(rng, towers=towers), _OF_TOWERS if towers else _OF_THINGS
    found: dict[str, Answer] = {}
    for _ in range(_TRIES * QUESTIONS):
        text, answer = forms[int(rng.integers(len(forms)))](rng)
        here, there = answer(boxes), answer(other)
        if here is not None and there is not None and here != there:
            found[text] = here
        if len(found) == QUESTIONS:
            break
    return list(found.items())


def _segment(text: str, answer: Answer) -> Segment:
    if isinstance(answer, bool):
        prompt = MATCHING_PROMPT.replace("{text}", text)
        return Segment(prompt=prompt, answer="yes" if answer else "no", kind="boxes")
    if isinstance(answer, str):
        return Segment(prompt=text, answer=answer, kind="which boxes")
    return Segment(prompt=text, answer=_WORDS[answer], kind="count boxes")


def _described(boxes: Boxes, rng: Rng) -> Segment:
    """One of the boxes, from the bottom up."""
    place = int(rng.integers(len(boxes)))
    box = boxes[place]
    if are_towers(boxes):
        return Segment(
            prompt=f"what is the {NAMES[place]} tower made of?",
            answer=", ".join(t.color for t in box),
            kind="describe boxes",
        )
    answer = ", ".join(f"{t.size} {t.color} {t.shape}{' touching' if t.walls else ''}" for t in box)
    return Segment(prompt=f"what is in the {NAMES[place]} box?", answer=answer, kind="describe boxes")


def _there(one: str, many: str, rng: Rng, count: Callable[[Boxes], int]) -> Asked:
    """ "there is a ...", "there are exactly two ...", "how many ... are there?", of what ``count`` counts."""
    if rng.random() < COUNTED:
        return f"how many {many} are there?", lambda boxes: n if (n := count(boxes)) < len(_WORDS) else None
    number = int(rng.choice(5, p=(0.06, 0.44, 0.3, 0.14, 0.06)))
    if number == 0:
        return f"there is no {one}", lambda boxes: count(boxes) == 0
    opening, least = _pick({"": False, "exactly ": False, "only ": False, "at least ": True}, rng)
    if number > 1:
        text = f"there are {opening}{_number(number, rng)} {many}"
    elif rng.random() < 0.4:
        text, least = f"there is {_article(one)} {one}", True
    else:
        text = f"there is {opening}{_number(number, rng)} {one}"
    return text, lambda boxes: count(boxes) >= number if least else count(boxes) == number


def _there_with(one: str, many: str, rng: Rng, holds: Callable[[Box], bool]) -> Asked:
    """The same of the boxes or towers of which ``holds``; also "which ... are there?"."""
    if rng.random() < NAMED:
        return (
            f"which {many} are there?",
            lambda boxes: ", ".join(n for n, b in zip(NAMES, boxes, strict=True) if holds(b)) or _WORDS[0],
        )
    return _there(one, many, rng, _boxes_with(holds))


def _boxes_with(holds: Callable[[Box], bool]) -> Callable[[Boxes], int]:
    return lambda boxes: sum(map(holds, boxes))


def _of_towers(rng: Rng) -> Asked:
    clause = _tower_clause(rng)
    text, count = clause[0], _boxes_with(clause[1])
    if rng.random() < 0.1:
        number = int(rng.integers(1, 4))
        return f"{_WORDS[number]} of the three towers has {text}", lambda boxes: count(boxes) == number
    if rng.random() < 0.1:
        return f"{_one(('all', 'all 3'), rng)} towers have {text}", lambda boxes: count(boxes) == len(boxes)
    verb = _one(("with", "with", "with", "having", "that has", "which has"), rng)
    return _there_with(f"tower {verb} {text}", f"towers {verb} {text}", rng, clause[1])


def _tower_clause(rng: Rng) -> Clause:
    color, other = _one(COLORS, rng), _one(COLORS, rng)
    number = int(rng.integers(1, TALLEST + 1))
    blocks, said = "block" if number == 1 else "blocks", _number(number, rng)
    opening, least = _pick({"": False, "exactly ": False, "only ": False, "at least ": True}, rng)
    end, where = _end(rng)
    match int(rng.integers(15)):
        case 0 | 1 | 2:
            if where == "base" and rng.random() < 0.3:
                return f"a {color} base", lambda b: b[0].color == color
            return f"a {color} block at the {where}", lambda b: b[end].color == color
        case 3:
            return f"{opening}{said} {blocks}", lambda b: _is(len(b), number, least)
        case 4:
            return (
                f"{opening}{said} {color} {blocks}",
                lambda b: _is(sum(t.color == color for t in b), number, least),
            )
        case 5 | 6:
            over = _one(("over", "above", "on top of", "on"), rng)
            return f"a {color} block {over} a {other} block", lambda b: _stacked(b, color, other) > 0
        case 7:
            if color == other:
                return f"blocks of {_one(('the same color', 'only one color'), rng)}", lambda b: len(_colors(b)) == 1
            return f"only {color} and {other} blocks", lambda b: _colors(b) == {color, other}
        case 8:
            if color == other:
                return f"blocks of all 3 {_one(('colors', 'colours'), rng)}", lambda b: len(_colors(b)) == len(COLORS)
            return f"a {color} block and a {other} block", lambda b: {color, other} <= _colors(b)
        case 9:
            return (
                f"{opening}{said} {blocks} {_one(('with', 'having'), rng)} a {color} block at the {where}",
                lambda b: _is(len(b), number, least) and b[end].color == color,
            )
        case 10:
            return f"a {color} block as the second block", lambda b: len(b) > 1 and b[1].color == color
        case 11:
            return (
                f"a {color} block below a {other} block",
                lambda b: _stacked(b, other, color) > 0,
            )
        case 12:
            return f"more than {said} {blocks}", lambda b: len(b) > number
        case 13 if color != other:
            return (
                f"a {color} block and {said} {other} {blocks}",
                lambda b: color in _colors(b) and sum(t.color == other for t in b) == number,
            )
        case _:
            return f"two {color} blocks stacked together", lambda b: _stacked(b, color, color) > 0


def _one_color(rng: Rng) -> Asked:
    color, number = _one(COLORS, rng), int(rng.integers(1, TALLEST + 1))
    blocks = f"{_WORDS[number]} {'block' if number == 1 else 'blocks'}"
    opening, of_height = _pick({"with": True, "with only": True, "": False}, rng)
    how = f" {opening} {blocks}" if of_height else ""
    return _there_with(
        f"{color} tower{how}",
        f"{color} towers{how}",
        rng,
        lambda b: _colors(b) == {color} and (not of_height or len(b) == number),
    )


def _of_height(rng: Rng) -> Asked:
    """ "a three blocks tower with ..." """
    number, clause = int(rng.integers(2, TALLEST + 1)), _tower_clause(rng)
    which = f"{_WORDS[number]} blocks tower"
    return _there_with(
        f"{which} with {clause[0]}",
        f"{which}s with {clause[0]}",
        rng,
        lambda b: len(b) == number and clause[1](b),
    )


def _blocks_at_an_end(rng: Rng) -> Asked:
    color, (end, where) = _one(COLORS, rng), _end(rng)
    number = int(rng.integers(2, TALLEST))
    least = rng.random() < 0.6
    how = f" with {'at least' if least else 'exactly'} {_WORDS[number]} blocks"
    if rng.random() < 0.4:
        how, number, least = "", 1, True
    of = f"as the {where} of a tower{how}"
    count = _boxes_with(lambda b: b[end].color == color and _is(len(b), number, least))
    return _there(f"{color} block {of}", f"{color} blocks {of}", rng, count)


def _blocks(rng: Rng) -> Asked:
    color, other = _one(COLORS, rng), _one(COLORS, rng)
    if rng.random() < 0.5:
        return _there(
            f"{color} block", f"{color} blocks", rng, lambda boxes: sum(t.color == color for t in _all(boxes))
        )
    over = _one(("over", "above", "on", "on top of"), rng)
    return _there(
        f"{color} block {over} a {other} block",
        f"{color} blocks {over} {other} blocks",
        rng,
        lambda boxes: sum(_stacked(b, color, other) for b in boxes),
    )


def _the_tower(rng: Rng) -> Asked:
    color, (end, where) = _one(COLORS, rng), _end(rng)
    height = int(rng.integers(1, TALLEST + 1))
    number, blocks = _WORDS[height], "block" if height == 1 else "blocks"
    text = _one(
        (
            f"the tower with {number} {blocks} has a {color} block at the {where}",
            f"the {where} of the {number} {blocks} tower is {color}",
        ),
        rng,
    )

    def holds(boxes: Boxes) -> bool | None:
        meant = [b for b in boxes if len(b) == height]
        return meant[0][end].color == color if len(meant) == 1 else None

    return text, holds


def _towers_alike(rng: Rng) -> Asked:
    what, of = _pick(
        {"height": len, "base color": lambda b: b[0].color, "color at the top": lambda b: b[-1].color}, rng
    )

    def holds(boxes: Boxes) -> bool:
        found = [of(b) for b in boxes]
        return max(found.count(v) for v in found) >= 2

    return f"there are at least two towers with the same {what}", holds


_OF_TOWERS: Final = (
    *5 * (_of_towers,),
    _one_color,
    _of_height,
    _blocks_at_an_end,
    *2 * (_blocks,),
    _the_tower,
    _towers_alike,
)


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """Things of some colour, shape and size, each of which may be any."""

    color: str
    shape: str
    size: str
    noun: str

    def of(self, things: Iterable[Thing]) -> list[Thing]:
        return [
            t
            for t in things
            if self.color in ("", t.color) and self.shape in ("", t.shape) and self.size in ("", t.size)
        ]

    def named(self, number: int = 1) -> str:
        noun = self.shape or self.noun
        return " ".join(w for w in (self.size, self.color, noun if number == 1 else noun + "s") if w)


def _kind(rng: Rng) -> _Kind:
    return _Kind(
        color=_one(COLORS, rng) if rng.random() < 0.75 else "",
        shape=_one(SHAPES, rng) if rng.random() < 0.65 else "",
        size=_one(RADII, rng) if rng.random() < 0.08 else "",
        noun=_one(("item", "object"), rng),
    )


def _touching(rng: Rng) -> tuple[str, Callable[[Thing], bool]]:
    touching = _one(("touching", "closely touching"), rng)
    wall = _one(("the wall", "the edge", "an edge", "any edge", "the side"), rng)
    match int(rng.integers(5)):
        case 0:
            return f"{touching} {wall}", lambda t: bool(t.walls)
        case 1:
            return f"not touching {wall}", lambda t: not t.walls
        case 2:
            place = _one(("the bottom of a box", "the base", "the bottom"), rng)
            return f"{touching} {place}", lambda t: "bottom" in t.walls
        case 3:
            side = _one(("left", "right", "top"), rng)
            return f"{touching} {side} wall of a box", lambda t: side in t.walls
        case _:
            corner = _one(("a corner", "the corner", "a corner of a box"), rng)
            return f"{touching} {corner}", lambda t: len(t.walls) > 1


def _things(rng: Rng) -> Asked:
    kind = _kind(rng)
    where, fits = _touching(rng) if rng.random() < 0.75 else ("", lambda t: True)
    return _there(
        f"{kind.named()} {where}".strip(),
        f"{kind.named(2)} {where}".strip(),
        rng,
        lambda boxes: sum(map(fits, kind.of(_all(boxes)))),
    )


def _of_boxes(rng: Rng) -> Asked:
    clause = _box_clause(rng)
    text, count = clause[0], _boxes_with(clause[1])
    noun = _one(("box", "box", "grey box"), rng)
    draw = rng.random()
    if draw < 0.1:
        return f"each {noun} has {text}", lambda boxes: count(boxes) == len(boxes)
    if draw < 0.2:
        number = int(rng.integers(1, 3))
        square = _one(("square", "box"), rng)
        return f"{_WORDS[number]} of the grey {square} contains {text}", lambda boxes: count(boxes) == number
    if draw < 0.7:
        return f"there is a {noun} with {text}", lambda boxes: count(boxes) > 0
    return _there_with(f"{noun} with {text}", f"{noun}es with {text}", rng, clause[1])


def _box_clause(rng: Rng) -> Clause:
    color, other = (str(c) for c in rng.choice(list(COLORS), size=2, replace=False))
    number, few = int(rng.integers(1, MOST)), int(rng.integers(1, 4))
    items = f"{_number(number, rng)} {_one(('item', 'object'), rng)}{'' if number == 1 else 's'}"
    opening, least = _pick({"": False, "exactly ": False, "only ": False, "at least ": True}, rng)
    counted = rng.random() < 0.4
    a, b = _kind(rng), _kind(rng)
    match int(rng.integers(11)):
        case 0:
            return f"{opening}{items}", lambda box: _is(len(box), number, least)
        case 1:
            return (
                f"{items if counted else 'items'} of {_one(('only ', ''), rng)}{color} and {other} color",
                lambda box: _colors(box) == {color, other} and (not counted or len(box) == number),
            )
        case 2:
            return f"items of {_one(('only one', 'the same'), rng)} color", lambda box: len(_colors(box)) == 1
        case 3:
            return f"only {color} items", lambda box: _colors(box) == {color}
        case 4:
            if counted:
                return "items of 2 different colors", lambda box: len(_colors(box)) == 2
            return _one(("all 3 colors", "items of all 3 different colors"), rng), lambda box: len(_colors(box)) == 3
        case 5 | 6:
            return (
                f"{_article(a.named())} {a.named()} and {_number(few, rng)} {b.named(few)}",
                lambda box: bool(a.of(box)) and len(b.of(box)) == few and len({*a.of(box), *b.of(box)}) > few,
            )
        case 7:
            return (
                f"{_article(a.named())} {a.named()} and no {b.named(2)}",
                lambda box: bool(a.of(box)) and not b.of(box),
            )
        case 8:
            return f"{opening}{_number(few, rng)} {a.named(few)}", lambda box: _is(len(a.of(box)), few, least)
        case 9:
            where, fits = _touching(rng)
            return (
                f"{_number(few, rng)} {a.named(few)} {where}",
                lambda box: sum(map(fits, a.of(box))) == few,
            )
        case _:
            return (
                f"{f'{items} and ' if counted else ''}a {color} {_one(('one', 'item'), rng)} on top",
                lambda box: box[-1].color == color and (not counted or len(box) == number),
            )


def _of_all(rng: Rng) -> Asked:
    kind, wall = _kind(rng), _one(("the wall", "the edge", "any edge"), rng)
    match int(rng.integers(4)):
        case 0:
            return (
                f"all {kind.named(2)} are in the same box",
                lambda boxes: sum(bool(kind.of(b)) for b in boxes) == 1 if kind.of(_all(boxes)) else None,
            )
        case 1:
            return (
                f"none of the {kind.named(2)} are touching {wall}",
                lambda boxes: not any(t.walls for t in things) if (things := kind.of(_all(boxes))) else None,
            )
        case 2:
            return (
                f"all 3 different colors are touching {wall}",
                lambda boxes: len({t.color for t in _all(boxes) if t.walls}) == len(COLORS),
            )
        case _:
            return f"there is at least one {kind.named()} in each box", lambda boxes: all(kind.of(b) for b in boxes)


_OF_THINGS: Final = (*3 * (_things,), *4 * (_of_boxes,), _of_all)


# ---- words


def _all(boxes: Boxes) -> Iterator[Thing]:
    return itertools.chain.from_iterable(boxes)


def _colors(box: Box) -> set[str]:
    return {t.color for t in box}


def _is(count: int, number: int, least: bool) -> bool:
    return count >= number if least else count == number


def _stacked(tower: Box, color: str, other: str) -> int:
    """How many blocks of ``color`` lie on one of ``other``."""
    return sum((upper.color, lower.color) == (color, other) for lower, upper in itertools.pairwise(tower))


def _end(rng: Rng) -> tuple[int, str]:
    """Its place in a tower, and its name."""
    return (-1, "top") if rng.random() < 0.5 else (0, _one(("base", "base", "bottom"), rng))


def _number(number: int, rng: Rng) -> str:
    return _WORDS[number] if rng.random() < 0.5 else str(number)


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _one(words: Iterable[str], rng: Rng) -> str:
    words = tuple(words)
    return words[int(rng.integers(len(words)))]


def _pick(choices: Mapping[str, T], rng: Rng) -> tuple[str, T]:
    key = _one(choices, rng)
    return key, choices[key]
