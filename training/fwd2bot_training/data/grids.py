"""Look-alikes of SHAPES (Andreas et al., "Neural Module Networks", arXiv 1511.02799) as a source: endless pictures and
questions of its kind, because its training split asks only ten different questions.

A picture is a black 3 x 3 grid of 30 x 30 pixels whose cells hold a red, green or blue circle, square or triangle, or
nothing. A question is a chain: "is a square left of above a circle" asks whether a square stands left of a place above
a circle; some ask where, instead. Left of, right of, above and below mean the very next cell, whether or not it is
empty, as in SHAPES' own answers (by test).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from fwd2bot_training.data.example import DESCRIBE, Endless, Example, Region, Rng, Segment

COLORS = ("red", "green", "blue")
SHAPES = ("circle", "square", "triangle")
STEPS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
"""Rows and columns from a place to what is left of it, and so on."""
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
SIDE = 3
CELL = 10
"""Pixels."""
OCCUPIED = 0.83
"""Share of the cells that hold something; this, the sizes and the tones are those measured in SHAPES' pictures."""
RADII = ((2.3, 3.0), (3.6, 4.2))
LONGEST_CHAIN = 2
QUESTIONS = 7
ASKED_WHERE = 4
"""Questions for the places that a chain leads to: yes or no tells little of them."""
DESCRIBED = 0.3
"""Share of the grids that are described, too: long, and soon learned."""
TEXTS_SAMPLED = 500
_OVERSAMPLED = 8

Grid = dict[tuple[int, int], tuple[str, str]]
"""Colour and shape of what stands in a (row, column)."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """``is a SUBJECT STEPS a TARGET``; subject and target are a colour or a shape."""

    subject: str
    steps: tuple[str, ...]
    target: str

    def __str__(self) -> str:
        if self.steps or self.target in SHAPES:
            return " ".join(["is", "a", _noun(self.subject), *self.steps, "a", _noun(self.target)])
        return f"is a {_noun(self.subject)} {self.target}"

    def led_to(self, grid: Grid) -> list[tuple[int, int]]:
        """The places that lie so from a target, whatever stands there, in reading order."""
        places = {place for place, thing in grid.items() if self.target in thing}
        for step in reversed(self.steps):
            down, right = STEPS[step]
            places = {(row + down, column + right) for row, column in places}
        return sorted(p for p in places if min(p) >= 0 and max(p) < SIDE)

    def found(self, grid: Grid) -> list[tuple[int, int]]:
        """Those of them where a subject stands."""
        return [place for place in self.led_to(grid) if self.subject in grid.get(place, ())]

    def holds(self, grid: Grid) -> bool:
        return bool(self.found(grid))


@dataclass(frozen=True, kw_only=True)
class GridSource(Endless):
    """Fresh grids, whatever ``index`` is. With ``held_out`` the grid of ``index``, the same for ever."""

    name: str = "grids"
    held_out: bool = False

    def example(self, index: int, rng: Rng, *, step: int) -> Example:
        if self.held_out:
            rng = np.random.default_rng([*b"held-out grids", index])
        grid = sample_grid(rng)
        asked = [
            Segment(prompt=asked_as(c), answer="yes" if c.holds(grid) else "no", kind="grid") for c in ask(grid, rng)
        ]
        located = [Segment(prompt=text, answer=answer, kind="where grid") for text, answer in ask_where(grid, rng)]
        described = rng.random() < DESCRIBED
        whole = [Segment(prompt=DESCRIBE, answer=describe(grid), kind="describe grid")] if described else []
        return Example(image=render(grid, rng), segments=(*asked, *located, *whole), regions=regions(grid))

    def texts(self, rng: Rng) -> Iterator[str]:
        for _ in range(TEXTS_SAMPLED):
            grid = sample_grid(rng)
            yield describe(grid)
            yield from (asked_as(chain) for chain in ask(grid, rng))
            yield from (text for text, _ in ask_where(grid, rng))


def asked_as(chain: Chain) -> str:
    """With the question mark that SHAPES' own questions, which have none, are given when they are read (`texts.py`)."""
    return f"{chain}?"


def sample_grid(rng: Rng) -> Grid:
    """At least one cell is occupied."""
    while True:
        grid = {
            place: (str(rng.choice(COLORS)), str(rng.choice(SHAPES)))
            for place in itertools.product(range(SIDE), range(SIDE))
            if rng.random() < OCCUPIED
        }
        if grid:
            return grid


def ask(grid: Grid, rng: Rng) -> list[Chain]:
    """`QUESTIONS` different chains: as many that hold as do not, where there are as many of both, so that the answer
    does not follow from the question."""
    wanted = {True: QUESTIONS // 2, False: QUESTIONS // 2}
    wanted[bool(rng.random() < 0.5)] += QUESTIONS % 2
    found: dict[Chain, None] = {}
    for _ in range(20 * QUESTIONS):
        chain = sample_chain(rng)
        holds = chain.holds(grid)
        if wanted[holds] and chain not in found:
            found[chain] = None
            wanted[holds] -= 1
        if not any(wanted.values()):
            break
    return list(found)


def ask_where(grid: Grid, rng: Rng) -> list[tuple[str, str]]:
    """`ASKED_WHERE` questions with the places as answers: where a chain holds, or where it leads to."""
    asked: list[tuple[str, str]] = []
    for _ in range(ASKED_WHERE):
        chain = sample_chain(rng)
        if chain.steps and rng.random() < 0.5:
            text = f"where is {' '.join(chain.steps)} a {_noun(chain.target)}?"
            places = chain.led_to(grid)
        else:
            text, places = f"where {chain}?", chain.found(grid)
        asked.append((text, ", ".join(f"{ROWS[row]} {COLUMNS[column]}" for row, column in places) or "nowhere"))
    return asked


def sample_chain(rng: Rng) -> Chain:
    length = int(rng.choice(LONGEST_CHAIN + 1, p=(0.15, 0.4, 0.45)))
    subject, target = (str(w) for w in rng.choice(COLORS + SHAPES, size=2))
    return Chain(subject=subject, steps=tuple(str(s) for s in rng.choice(list(STEPS), size=length)), target=target)


def describe(grid: Grid) -> str:
    """Everything in the grid, in reading order."""
    return ", ".join(
        f"{color} {shape} {ROWS[row]} {COLUMNS[column]}" for (row, column), (color, shape) in sorted(grid.items())
    )


def regions(grid: Grid) -> tuple[Region, ...]:
    """What stands in each cell, for the word loss."""
    return tuple(
        Region(
            box=(column / SIDE, row / SIDE, (column + 1) / SIDE, (row + 1) / SIDE),
            text=f"{color} {shape} {ROWS[row]} {COLUMNS[column]}",
        )
        for (row, column), (color, shape) in sorted(grid.items())
    )


def render(grid: Grid, rng: Rng) -> Image.Image:
    """An RGB picture of 30 x 30 pixels; sizes and tones are drawn."""
    scale = CELL * _OVERSAMPLED
    canvas = Image.new("RGB", (SIDE * scale, SIDE * scale))
    draw = ImageDraw.Draw(canvas)
    for (row, column), (color, shape) in grid.items():
        x, y = (column + 0.5) * scale, (row + 0.5) * scale
        radius = float(rng.uniform(*RADII[int(rng.integers(len(RADII)))])) * _OVERSAMPLED
        tone = [int(rng.integers(0, 51)) if rng.random() < 0.4 else 0 for _ in COLORS]
        tone[COLORS.index(color)] = int(rng.integers(192, 256))
        left, top, right, bottom = x - radius, y - radius, x + radius, y + radius
        match shape:
            case "circle":
                draw.ellipse((left, top, right, bottom), fill=tuple(tone))
            case "square":
                draw.rectangle((left, top, right, bottom), fill=tuple(tone))
            case _:
                draw.polygon([(x, top), (right, bottom), (left, bottom)], fill=tuple(tone))
    return canvas.reduce(_OVERSAMPLED)


def _noun(word: str) -> str:
    return word if word in SHAPES else f"{word} shape"
