"""How the 2-D grid of image tokens is averaged into k rows. Pure functions of sizes; weights are [k, h*w], row-major.

Cells have the borders of ``adaptive_avg_pool2d``: cell i of m over n rows is ``floor(i n / m) .. ceil((i + 1) n / m)``,
so a grid need not be divisible, and a cell is never empty even where there are more cells than tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache

import torch

_QUADRANTS = {"top left": (0, 0), "bottom right": (1, 1), "top right": (0, 1), "bottom left": (1, 0)}


@lru_cache(maxsize=256)
def region_weights(k: int, height: int, width: int) -> torch.Tensor:
    """[k, height*width], rows sum to 1: averages over regions ordered coarse to fine, so that any prefix covers the
    picture.

    Level 0 is the whole picture; level L cuts it into 2^L x 2^L cells. Of the four children of a cell the bottom right
    one is left out, because it follows from the parent and its three siblings, as in a Haar basis. So a level adds
    1, 3, 12, 48, ... regions, and prefixes of 1, 4, 16, 64 span exactly the averages of 1x1, 2x2, 4x4, 8x8 grids
    (exactly where the grid is divisible). Within a level the regions come so that any prefix is spread over the
    picture.
    """
    return _stack(_take(k), height, width)


@lru_cache(maxsize=256)
def grid_weights(k: int, height: int, width: int) -> torch.Tensor:
    """[k, height*width]: 2-D adaptive average pooling to k cells, row-major; see :func:`grid_shape` for their
    layout."""
    rows, cols = grid_shape(k, height, width)
    return _stack(((r, c, rows, cols) for r in range(rows) for c in range(cols)), height, width)


def grid_shape(k: int, height: int, width: int) -> tuple[int, int]:
    """The rows x cols = k whose shape is nearest to that of the picture (1 x k at worst, for a prime k); wide on a
    tie."""
    shapes = [(rows, k // rows) for rows in range(1, k + 1) if k % rows == 0]
    return min(shapes, key=lambda s: (round(abs(math.log(s[0] * width / (s[1] * height))), 6), s[0]))


Cell = tuple[int, int, int, int]
"""Row and column of a cell, rows and columns of the grid that it belongs to."""


def _take(k: int) -> Iterator[Cell]:
    """The first k regions."""
    yield 0, 0, 1, 1
    taken, side = 1, 1
    while taken < k:
        parents = _spread(side)
        side *= 2
        for quadrant in ("top left", "top right", "bottom left"):
            down, right = _QUADRANTS[quadrant]
            for row, col in parents[: k - taken]:
                yield 2 * row + down, 2 * col + right, side, side
            taken = min(k, taken + len(parents))


def _spread(side: int) -> list[tuple[int, int]]:
    """All cells of a side x side grid (a power of two), one of every coarser cell before a second of any."""
    if side == 1:
        return [(0, 0)]
    return [(2 * r + down, 2 * c + right) for down, right in _QUADRANTS.values() for r, c in _spread(side // 2)]


def _stack(cells: Iterable[Cell], height: int, width: int) -> torch.Tensor:
    # kept in a cache, so not as inference tensors: a training step after an evaluation could not use those
    with torch.inference_mode(False):
        return torch.stack([_cell(*cell, height, width) for cell in cells])


def _cell(row: int, col: int, rows: int, cols: int, height: int, width: int) -> torch.Tensor:
    """[height*width]: the average over one cell of a rows x cols grid."""
    weights = torch.zeros(height, width)
    top, bottom = row * height // rows, -(-(row + 1) * height // rows)
    left, right = col * width // cols, -(-(col + 1) * width // cols)
    weights[top:bottom, left:right] = 1 / ((bottom - top) * (right - left))
    return weights.flatten()
