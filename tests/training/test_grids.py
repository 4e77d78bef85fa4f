from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fwd2bot_eval.tasks.vqa_base import as_asked
from fwd2bot_index.errors import InputError
from fwd2bot_training.config import SourceConfig
from fwd2bot_training.data import open_source
from fwd2bot_training.data.grids import (
    ASKED_WHERE,
    CELL,
    COLORS,
    COLUMNS,
    ROWS,
    SHAPES,
    SIDE,
    STEPS,
    Chain,
    Grid,
    GridSource,
    ask,
    ask_where,
    describe,
    regions,
    render,
    sample_grid,
)

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "shapes"

GRID: Grid = {(0, 0): ("red", "circle"), (0, 1): ("green", "square"), (2, 1): ("blue", "circle")}


def cell(picture: npt.NDArray[np.uint8], row: int, column: int) -> npt.NDArray[np.uint8]:
    return picture[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]


def colors_of(picture: Image.Image) -> Grid:
    """The colours in the cells, told from the pixels; the shapes are left out."""
    pixels = np.asarray(picture.convert("RGB"))
    found: Grid = {}
    for row in range(SIDE):
        for column in range(SIDE):
            lit = cell(pixels, row, column).reshape(-1, 3)
            lit = lit[lit.max(1) > 60]
            if len(lit) > 2:
                found[row, column] = (COLORS[int(lit.sum(0, dtype=np.int64).argmax())], "")
    return found


@pytest.mark.parametrize(
    ("chain", "said", "holds"),
    [
        (Chain(subject="red", steps=(), target="circle"), "is a red shape a circle", True),
        (Chain(subject="red", steps=(), target="green"), "is a red shape green", False),
        (Chain(subject="circle", steps=("left of",), target="square"), "is a circle left of a square", True),
        (Chain(subject="square", steps=("left of",), target="circle"), "is a square left of a circle", False),
        # the cell between is empty, and a diagonal is no neighbour
        (Chain(subject="green", steps=("above", "above"), target="blue"), "", True),
        (Chain(subject="green", steps=("above",), target="blue"), "", False),
        (Chain(subject="red", steps=("above",), target="square"), "", False),
        # the first word moves last: left of (what is above (above the blue circle))
        (Chain(subject="red", steps=("left of", "above", "above"), target="blue"), "", True),
        # the place in the middle may lie outside the grid, and a thing may be what it is above the one below
        (Chain(subject="red", steps=("below", "above"), target="red"), "", True),
    ],
)
def test_a_chain_steps_from_cell_to_next_cell(chain: Chain, said: str, holds: bool) -> None:
    assert chain.holds(GRID) is holds
    assert str(chain) == said or not said


def test_an_article_and_shape_word_as_shapes_has_them() -> None:
    chain = Chain(subject="square", steps=("right of", "above"), target="red")
    assert str(chain) == "is a square right of above a red shape"


def test_half_of_the_questions_hold() -> None:
    answers = []
    for i in range(100):
        rng = np.random.default_rng(i)
        grid = sample_grid(rng)
        asked = ask(grid, rng)
        assert len(set(asked)) == len(asked)
        answers += [c.holds(grid) for c in asked]
    assert len(answers) > 600
    assert abs(np.mean(answers) - 0.5) < 0.03


def test_regions_name_what_is_seen_there() -> None:
    grid = sample_grid(np.random.default_rng(3))
    picture = render(grid, np.random.default_rng(0))
    side = picture.width
    found = {}
    for region in regions(grid):
        color, _, *place = region.text.split()
        left, top, right, bottom = (round(side * share) for share in region.box)
        assert np.asarray(picture.crop((left, top, right, bottom))).mean((0, 1)).argmax() == COLORS.index(color)
        found[top // (side // 3), left // (side // 3)] = tuple(region.text.split()[:2])
        assert place == [ROWS[top // (side // 3)], COLUMNS[left // (side // 3)]]
    assert found == grid


def test_where_a_chain_leads_to() -> None:
    chain = Chain(subject="green", steps=("above", "above"), target="blue")
    assert chain.led_to(GRID) == chain.found(GRID) == [(0, 1)]
    assert Chain(subject="red", steps=("above", "above"), target="blue").found(GRID) == []
    # a place outside may lie in the middle of a chain, but is no answer
    assert Chain(subject="red", steps=("below", "above"), target="red").led_to(GRID) == [(0, 0)]
    assert Chain(subject="red", steps=("above",), target="red").led_to(GRID) == []
    asked: dict[str, str] = {}
    for seed in range(1500):
        asked.update(ask_where(GRID, np.random.default_rng(seed)))
    assert asked["where is above a blue shape?"] == "middle center"
    assert asked["where is below a circle?"] == "middle left"
    assert asked["where is left of a square?"] == "top left"
    assert asked["where is a red shape left of a square?"] == "top left"
    assert asked["where is a blue shape left of a square?"] == "nowhere"
    assert asked["where is a blue shape a circle?"] == "bottom center"
    assert asked["where is left of right of a circle?"] == "top left, bottom center"


def test_the_picture_shows_the_grid() -> None:
    for i in range(30):
        rng = np.random.default_rng(i)
        grid = sample_grid(rng)
        picture = render(grid, rng)
        assert picture.size == (SIDE * CELL, SIDE * CELL)
        assert {p: c for p, (c, _) in colors_of(picture).items()} == {p: c for p, (c, _) in grid.items()}


def test_the_shapes_differ_in_the_pixels() -> None:
    filled = {}
    for shape in SHAPES:
        pixels = np.asarray(render({(1, 1): ("red", shape)}, np.random.default_rng(3)))[..., 0] > 100
        rows = pixels.sum(1)[pixels.any(1)]
        filled[shape] = (rows[0] / rows.max(), rows[-1] / rows.max())
    assert filled["square"] == (1.0, 1.0)
    assert filled["triangle"][0] < 0.5 < filled["triangle"][1]
    assert filled["circle"][0] < 1
    assert filled["circle"][1] < 1


def test_a_grid_is_described_in_reading_order() -> None:
    assert describe(GRID) == "red circle top left, green square top center, blue circle bottom center"


def test_as_a_source_of_training() -> None:
    source = open_source(SourceConfig(name="g", kind="grids"), root=None)
    assert isinstance(source, GridSource)
    one, other = (source.example(0, np.random.default_rng(seed), step=0) for seed in (1, 2))
    assert one.caption is None
    assert {s.answer for s in one.segments if s.kind == "grid"} == {"yes", "no"}
    assert sum(s.kind == "where grid" for s in one.segments) == ASKED_WHERE
    kinds = [source.example(0, np.random.default_rng(seed), step=0).segments[-1].kind for seed in range(200)]
    assert 0.2 < np.mean([k == "describe grid" for k in kinds]) < 0.4
    assert one.segments != other.segments
    held_out = open_source(SourceConfig(name="g", kind="grids", split="val"), root=None)
    same = [held_out.example(5, np.random.default_rng(seed), step=0) for seed in (1, 2)]
    assert same[0].segments == same[1].segments
    assert same[0].image.tobytes() == same[1].image.tobytes()
    assert held_out.example(6, np.random.default_rng(1), step=0).segments != same[0].segments
    with pytest.raises(InputError, match="split is train or val, not 'test'"):
        open_source(SourceConfig(name="g", kind="grids", split="test"), root=None)
    with pytest.raises(InputError, match="crop means nothing to the kind 'grids'"):
        SourceConfig(name="g", kind="grids", crop=True)


@pytest.mark.skipif(not SHARED.is_dir(), reason="SHAPES is not here")
def test_the_answers_of_shapes_follow_from_the_same_rule() -> None:
    """Of the questions about colours alone, for which no shape has to be told from pixels."""
    checked = 0
    for split in ("train", "val"):
        for row in pq.read_table(SHARED / f"{split}.parquet").to_pylist():
            (asked,) = row["qa"]
            chain = _parsed(asked["question"])
            if chain is None:
                continue
            grid = colors_of(Image.open(io.BytesIO(row["image"]["bytes"])))
            assert ("yes" if chain.holds(grid) else "no") == asked["answer"], asked
            checked += 1
    assert checked > 400


def _parsed(question: str) -> Chain | None:
    words = question.removeprefix("is a ")
    subject, *rest = words.split(" shape", 1)
    if subject not in COLORS:
        return None
    steps = []
    said = rest[0].strip()
    while step := next((s for s in STEPS if said.startswith(s)), None):
        steps.append(step)
        said = said.removeprefix(step).strip()
    target = said.removeprefix("a ").removesuffix(" shape")
    return Chain(subject=subject, steps=tuple(steps), target=target) if target in COLORS else None


def test_questions_are_asked_as_those_of_shapes_are() -> None:
    """By the benchmark's own tidying, which is training's."""
    asked = [s.prompt for s in GridSource().example(0, np.random.default_rng(0), step=0).segments[:-1]]
    assert asked
    assert [as_asked(question.removesuffix("?")) for question in asked] == asked
