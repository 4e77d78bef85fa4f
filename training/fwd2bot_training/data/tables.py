"""Rows of Arrow tables: what parquet files and Hugging Face datasets have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fwd2bot_index.decoding import read_file
from fwd2bot_index.errors import InputError
from fwd2bot_training.data.texts import CAPTION_KEYS, TEXT_KEYS, Unusable

IMAGE: Final = "image"


def text_columns(names: Sequence[str], where: str) -> list[str]:
    """The columns with texts.

    Raises:
        InputError: there is none, or no image column.
    """
    texts = [n for n in names if n in TEXT_KEYS]
    if IMAGE not in names or not {*texts} - {"negatives"}:
        raise InputError(
            f"{where} needs an image column and one of {', '.join((*CAPTION_KEYS, 'qa', 'conversations', 'word'))}; "
            f"its columns are {', '.join(names)}."
        )
    return texts


class TextTables:
    """The text columns of tables behind each other, in memory as Arrow has them; ``starts`` is [tables + 1]."""

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        self._tables = list(tables)
        self.starts = np.cumsum([0, *(t.num_rows for t in tables)])
        self.lengths: npt.NDArray[np.int64] = np.concatenate([_characters(t) for t in tables])
        """[rows] characters."""

    def __len__(self) -> int:
        return int(self.starts[-1])

    def find(self, index: int) -> tuple[int, int]:
        """The table, and the row in it."""
        table = int(np.searchsorted(self.starts, index, side="right")) - 1
        return table, index - int(self.starts[table])

    def row(self, index: int) -> dict[str, Any]:
        table, row = self.find(index)
        return self._tables[table].slice(row, 1).to_pylist()[0]


def _characters(table: pa.Table) -> npt.NDArray[np.int64]:
    total = np.zeros(table.num_rows, np.int64)
    for column in table.columns:
        at = 0
        for chunk in column.chunks:
            total[at : at + len(chunk)] += _count(chunk)
            at += len(chunk)
    return total


def _count(array: pa.Array) -> npt.NDArray[np.int64]:
    """[len] characters of all texts inside each element."""
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        return pc.fill_null(pc.utf8_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    if pa.types.is_struct(array.type):
        return np.sum([_count(field) for field in array.flatten()], axis=0, dtype=np.int64)
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        sizes = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        ends = np.cumsum(sizes)
        running = np.concatenate([[0], np.cumsum(_count(array.flatten()))])
        return running[ends] - running[ends - sizes]
    return np.zeros(len(array), np.int64)


def image_bytes(cell: Any, folder: Path) -> bytes:
    """The file of a picture in a cell: bytes, or a struct of ``bytes`` and ``path`` (relative to ``folder``).

    Raises:
        Unusable: there is none.
        ImageError: its path cannot be read.
    """
    if isinstance(cell, dict):
        cell, path = cell.get("bytes"), cell.get("path")
        if cell is None and path:
            return read_file(folder / path)
    if not isinstance(cell, bytes):
        raise Unusable("it has no picture")
    return cell
