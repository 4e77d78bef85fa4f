"""The names of the rows that a trained vector index covers, in a file beside it: what a search shows of a hit, without
the table, which takes 3 to 5 ms to be asked.

An Arrow IPC file of :data:`HIT_COLUMNS` and a CRC-32 of each row, in batches of ``BATCH`` rows, mapped into memory: a
search touches the pages of its own hits only. As all beside a trained index it is made of the table: a row that is not
what was written is asked of the table again.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa

HIT_COLUMNS: Final = ("uri", "id", "width", "height")
BATCH: Final = 65_536
_CHECKSUM: Final = "checksum"


class HitNames:
    """[N] rows, in the order that they were written in."""

    def __init__(self, path: Path, rows: int) -> None:
        """Map a file of so many rows.

        Raises:
            OSError, ValueError: it is not there, or not what was written.
        """
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches: dict[int, pa.RecordBatch] = {}
        if self._file.schema.names != [*HIT_COLUMNS, _CHECKSUM] or self._file.num_record_batches != -(-rows // BATCH):
            raise ValueError("its names are not those of its vectors")

    def take(self, chosen: Sequence[int]) -> pa.Table | None:
        """``HIT_COLUMNS`` of the ``chosen`` rows, in their order; None: one of them is not what was written."""
        try:
            rows = [self._batch(i // BATCH).slice(i % BATCH, 1) for i in chosen]
            for row in rows:
                row.validate(full=True)  # offsets lead into the file, and what is there is text
            table = pa.Table.from_batches(rows, self._file.schema)
            *columns, checksums = (column.to_pylist() for column in table.columns)
        except (OSError, ValueError, IndexError, TypeError, OverflowError, pa.ArrowException):
            return None
        if table.num_rows != len(chosen) or [_crc(values) for values in zip(*columns, strict=True)] != checksums:
            return None
        return table.remove_column(len(HIT_COLUMNS))

    def _batch(self, i: int) -> pa.RecordBatch:
        if i not in self._batches:  # reading one takes ten times as long as a row of it, and no memory but the mapped
            self._batches[i] = self._file.get_batch(i)
        return self._batches[i]


def write(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write the rows of ``tables`` with ``HIT_COLUMNS``, one after another, ``BATCH`` rows in memory at a time.

    Raises:
        OSError: it could not be written.
    """
    writer = None
    with pa.OSFile(str(path), "wb") as file:
        for batch in _rebatched(tables):
            columns = [batch.column(name).combine_chunks() for name in HIT_COLUMNS]
            checksums = map(_crc, zip(*(column.to_pylist() for column in columns), strict=True))
            table = pa.record_batch(
                [*columns, pa.array(checksums, pa.uint32(), size=batch.num_rows)], names=[*HIT_COLUMNS, _CHECKSUM]
            )
            writer = writer or pa.ipc.new_file(file, table.schema)
            writer.write_batch(table)
        if writer is not None:
            writer.close()


def _rebatched(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """All of ``BATCH`` rows but the last."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        while sum(t.num_rows for t in held) >= BATCH:
            joined = pa.concat_tables(held)
            yield joined.slice(0, BATCH)
            held = [joined.slice(BATCH)]
    if any(t.num_rows for t in held):
        yield pa.concat_tables(held)


def _crc(values: Iterable[object]) -> int:
    return zlib.crc32(repr(tuple(values)).encode())
