"""Parquet files with an ``image`` column (the usual struct of bytes and path) and columns with texts.

The texts are in memory. Pictures are read by row group, the smallest piece that can be read, and the last groups are
kept. A file whose pictures exceed what is kept is shuffled in windows: its row groups in a random order, the rows of as
many groups as fit in a random order, and so on, so that each group is read once per epoch.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from fwd2bot_index.errors import InputError
from fwd2bot_training.config import SourceConfig
from fwd2bot_training.data.example import Rng
from fwd2bot_training.data.rows import RowSource
from fwd2bot_training.data.tables import IMAGE, TextTables, image_bytes, text_columns
from fwd2bot_training.data.texts import Routing, Texts, Unusable, read_texts

KEPT_BYTES: Final = 256 * 2**20
"""Of pictures (as files), for each source and loader process."""


class ParquetSource(RowSource):
    """
    Raises:
        InputError: a file is none, has no rows, or lacks columns.
    """

    def __init__(
        self, config: SourceConfig, files: Sequence[Path], routing: Routing, *, kept_bytes: int = KEPT_BYTES
    ) -> None:
        super().__init__(config, routing)
        self._files = list(files)
        self._kept_bytes = kept_bytes
        tables, starts, sizes = [], [], []
        for file in self._files:
            try:
                with pq.ParquetFile(file) as parquet:
                    columns = text_columns(parquet.schema_arrow.names, str(file))
                    tables.append(parquet.read(columns=columns, use_threads=False))
                    metadata = parquet.metadata
            except (OSError, pa.ArrowException) as e:
                raise InputError(f"{file} cannot be read as Parquet: {str(e).splitlines()[0]}") from e
            rows = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
            starts.append(np.cumsum([0, *rows]))
            sizes += [_picture_bytes(metadata.row_group(g)) for g in range(metadata.num_row_groups)]
        self._rows = TextTables(tables)
        if not len(self._rows):
            raise InputError(f"{self._files[0]} has no rows.")
        first, _, after = config.rows.partition(":")
        self._first, self._after = int(first or 0), int(after or len(self._rows))
        """Rows of this source, counted over all files."""
        if not self._first < self._after <= len(self._rows):
            raise InputError(f"{self._files[0]}: there are no rows {config.rows} of {len(self._rows)}.")
        self._group_starts = starts
        """For each file [groups + 1], in rows of the file."""
        self._group_bytes = np.array(sizes, np.int64)
        """[groups of all files]"""
        self._kept: OrderedDict[tuple[int, int], pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __len__(self) -> int:
        return self._after - self._first

    def length(self, index: int) -> int:
        return int(self._rows.lengths[self._first + index])

    def where(self, index: int) -> str:
        file, row = self._rows.find(self._first + index)
        return f"{self._files[file]}, row {row} (the first is 0)"

    def order(self, rng: Rng) -> npt.NDArray[np.int64]:
        if self._group_bytes.sum() <= self._kept_bytes:
            return rng.permutation(len(self))
        bounds = [
            (int(start + a), int(start + b))
            for start, groups in zip(self._rows.starts, self._group_starts, strict=False)
            for a, b in itertools.pairwise(groups)
        ]
        order: list[npt.NDArray[np.int64]] = []
        window: list[npt.NDArray[np.int64]] = []
        held = 0
        for group in rng.permutation(len(bounds)):
            # half of what is kept: a batch may reach into the next window
            if window and held + self._group_bytes[group] > self._kept_bytes // 2:
                order.append(rng.permutation(np.concatenate(window)))
                window, held = [], 0
            window.append(np.arange(*bounds[group]))
            held += int(self._group_bytes[group])
        order.append(rng.permutation(np.concatenate(window)))
        whole = np.concatenate(order)
        return whole[(whole >= self._first) & (whole < self._after)] - self._first

    def _texts(self, index: int) -> Texts:
        return read_texts(self._rows.row(self._first + index), kind=self.name)

    def _picture(self, index: int) -> bytes:
        file, row = self._rows.find(self._first + index)
        starts = self._group_starts[file]
        group = int(np.searchsorted(starts, row, side="right")) - 1
        with self._lock:
            cells = self._group(file, group)
        return image_bytes(cells[row - int(starts[group])].as_py(), self._files[file].parent)

    def _group(self, file: int, group: int) -> pa.ChunkedArray:
        key = (file, group)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        try:
            with pq.ParquetFile(self._files[file]) as parquet:
                # without threads: Arrow's pool does not survive the fork of a loader process
                read = parquet.read_row_group(group, columns=[IMAGE], use_threads=False).column(0)
        except (OSError, pa.ArrowException) as e:
            raise Unusable(f"its row group cannot be read: {str(e).splitlines()[0]}") from e
        self._kept[key] = read
        while len(self._kept) > 1 and sum(c.nbytes for c in self._kept.values()) > self._kept_bytes:
            self._kept.popitem(last=False)
        return read


def _picture_bytes(group: pq.RowGroupMetaData) -> int:
    columns = (group.column(i) for i in range(group.num_columns))
    return sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] == IMAGE)
