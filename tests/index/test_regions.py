"""How image tokens are averaged: closed forms."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fwd2bot_index.regions import grid_shape, grid_weights, region_weights


def pooled(height: int, width: int, side: int) -> torch.Tensor:
    """[side*side, height*width]: adaptive average pooling as a matrix, from torch's own."""
    basis = torch.eye(height * width).reshape(height * width, 1, height, width)
    return F.adaptive_avg_pool2d(basis, side).reshape(height * width, side * side).T


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_full_levels_span_exactly_the_averages_of_their_grid(level: int) -> None:
    side = 2**level
    weights = region_weights(side * side, 8, 8)
    grid = pooled(8, 8, side)
    assert torch.linalg.matrix_rank(weights) == side * side
    assert torch.linalg.matrix_rank(torch.cat([weights, grid])) == side * side


@pytest.mark.parametrize(("height", "width"), [(8, 8), (24, 24), (5, 7), (2, 9), (1, 1), (27, 27)])
def test_every_region_is_a_cell_of_its_level(height: int, width: int) -> None:
    weights = region_weights(64, height, width)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(64))
    for first, last, side in ((0, 1, 1), (1, 4, 2), (4, 16, 4), (16, 64, 8)):
        cells = pooled(height, width, side)
        distance = torch.cdist(weights[first:last].double(), cells.double()).amin(dim=1)
        assert distance.max() < 1e-6


@pytest.mark.parametrize("k", [1, 2, 3, 5, 16, 17, 40])
def test_fewer_regions_are_a_prefix_of_more(k: int) -> None:
    assert torch.equal(region_weights(k, 9, 6), region_weights(64, 9, 6)[:k])


def test_any_prefix_within_a_level_is_spread_over_the_picture() -> None:
    """Four more cells, after full levels, lie one in each quarter; sixteen more one in each sixteenth."""
    weights = region_weights(256, 16, 16)
    for start, count, side in ((4, 4, 2), (16, 4, 2), (16, 16, 4), (64, 64, 8)):
        parts = pooled(16, 16, side) > 0
        touched = weights[start : start + count] > 0
        assert ((touched.float() @ parts.float().T) > 0).sum(dim=0).tolist() == [1] * count


def test_training_after_inference_can_use_the_cached_weights() -> None:
    with torch.inference_mode():
        weights = region_weights(7, 3, 11)
    assert not weights.is_inference()


@pytest.mark.parametrize(
    ("k", "height", "width", "shape"),
    [
        (16, 8, 8, (4, 4)),
        (4, 24, 24, (2, 2)),
        (8, 8, 16, (2, 4)),
        (8, 16, 8, (4, 2)),
        (7, 8, 8, (1, 7)),
        (12, 6, 8, (3, 4)),
    ],
)
def test_pooling_grid_has_the_shape_of_the_picture(k: int, height: int, width: int, shape: tuple[int, int]) -> None:
    assert grid_shape(k, height, width) == shape
    basis = torch.eye(height * width).reshape(height * width, 1, height, width)
    expected = F.adaptive_avg_pool2d(basis, shape).reshape(height * width, k).T
    torch.testing.assert_close(grid_weights(k, height, width), expected)
