"""A table of what is known of pictures besides their pixels, to be joined to an index: a row per file.

Notable choices:

- CSV, JSON lines and Parquet, read by pyarrow, which also finds the types. Kept are booleans, numbers, text, dates and
  times; what is nested has no place in a filter.
- A Parquet table in a folder of pictures is in nobody's way: without a column of image bytes it is no archive.
- One column names the file, under one of ``KEYS`` (``file_name`` is what the Hugging Face hub's folders of images use):
  an absolute path, or one from the folder of the table, or else from a folder that is indexed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from fwd2bot_index.errors import InputError
from fwd2bot_index.object_stores import joined
from fwd2bot_index.store import OWN_COLUMNS

KEYS: Final = ("path", "file", "file_name", "filename", "uri", "image")
LARGEST: Final = 2**30
"""Bytes of a file; its table is held in memory."""
_EMPTY_IS_NULL: Final = pyarrow.csv.ConvertOptions(
    null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
)
"""And nothing else is: NA may be Namibia."""
_OWN: Final = {name.lower() for name in OWN_COLUMNS}
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SQL: Final = frozenset({
    "all", "any", "current_date", "current_time", "current_timestamp", "exists", "false", "interval", "not", "null",
    "select", "some", "trim", "true", "with",
})  # fmt: skip
"""Words that Lance's conditions take for something else than a column; all other words of SQL may be one."""


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """A table that was read and found usable."""

    path: Path
    keys: Sequence[str]
    """What the rows name their files."""
    columns: Any
    """Arrow's table of the other columns, a row for each key."""


@dataclass(frozen=True, kw_only=True)
class Joined:
    """The rows of a table whose files are in an index."""

    uris: Sequence[str]
    """Each once."""
    columns: Any
    """A row for each uri."""
    unmatched: Sequence[str]
    """Keys of the other rows."""


def read_metadata(path: str | Path) -> Metadata:
    """Read a table.

    Raises:
        InputError: it cannot be read, is larger than ``LARGEST``, does not name files, or has a column that cannot be
            kept.
    """
    path = Path(os.path.abspath(path))
    table = _read(path)
    keys = [name for name in table.column_names if name in KEYS]
    if len(keys) != 1:
        found = f"has {' and '.join(keys)}" if keys else f"has the columns {', '.join(table.column_names) or '(none)'}"
        called = f"{', '.join(KEYS[:-1])} or {KEYS[-1]}"
        raise InputError(f"{path} must name each file in one column called {called}; it {found}.")
    [key] = keys
    try:
        names = table.column(key).cast(pa.string()).to_pylist()
    except pa.ArrowException as e:
        kind = table.schema.field(key).type
        raise InputError(f"The column {key} of {path} should name files; it is of the type {kind}.") from e
    for i, name in enumerate(names, start=1):
        if not name:
            raise InputError(f"Row {i} of {path} names no file in its column {key}.")
    columns = table.drop_columns([key])
    _check_names(path, columns.column_names)
    if not columns.column_names:
        raise InputError(f"{path} has no column besides {key}.")
    return Metadata(path=path, keys=names, columns=_plain(path, columns))


def join(metadata: Metadata, known: Any, folders: Sequence[str | Path]) -> Joined:
    """The rows of the files in an index.

    Args:
        known: Arrow's column of all uris of the index.
        folders: where relative keys may start, after the folder of the table.

    Raises:
        InputError: two rows tell different things of one file, or no row is of a file in the index.
    """
    row_of = np.full(len(metadata.keys), -1, np.int64)
    for folder in (metadata.path.parent, *folders):
        open_ = np.flatnonzero(row_of < 0)
        if len(open_) == 0:
            break
        uris = [joined(folder, metadata.keys[i]) for i in open_.tolist()]
        row_of[open_] = pc.index_in(pa.array(uris, pa.string()), value_set=known).fill_null(-1).to_numpy()
    unmatched = [metadata.keys[i] for i in np.flatnonzero(row_of < 0).tolist()]
    matched = np.flatnonzero(row_of >= 0)
    if len(matched) == 0:
        raise InputError(
            f"None of the {len(metadata.keys)} files named in {metadata.path} is in the index; the first is "
            f"{metadata.keys[0] if metadata.keys else '(none)'}. Paths count from the folder of the table, or from a "
            "folder that is indexed."
        )
    _, first, where = np.unique(row_of[matched], return_index=True, return_inverse=True)
    for i in np.flatnonzero(first[where] != np.arange(len(matched))):
        one, other = int(matched[first[where[i]]]), int(matched[i])
        if metadata.columns.slice(one, 1) != metadata.columns.slice(other, 1):
            raise InputError(
                f"Rows {one + 1} and {other + 1} of {metadata.path} tell different things of {metadata.keys[other]}."
            )
    chosen = matched[np.sort(first)]
    return Joined(
        uris=known.take(pa.array(row_of[chosen])).to_pylist(),
        columns=metadata.columns.take(pa.array(chosen)),
        unmatched=unmatched,
    )


def _read(path: Path) -> Any:
    readers = {
        ".csv": lambda: pyarrow.csv.read_csv(path, convert_options=_EMPTY_IS_NULL),
        ".jsonl": lambda: pyarrow.json.read_json(path),
        ".ndjson": lambda: pyarrow.json.read_json(path),
        ".parquet": lambda: pyarrow.parquet.read_table(path),
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path} is no table of metadata: give a .csv, .jsonl or .parquet file.")
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise InputError(
                f"{path} has {size / 2**30:.1f} GiB; a table of metadata may have {LARGEST / 2**30:g} GiB."
            )
        return reader()
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror or e}.") from e
    except pa.ArrowException as e:
        raise InputError(f"{path} cannot be read: {str(e).strip().splitlines()[0].rstrip('.')}.") from e


def check_column_name(name: str) -> None:
    """
    Raises:
        InputError: no filter could name it, or the index itself uses it.
    """
    if problem := _name_problem(name):
        raise InputError(f"The column {name!r} {problem}: choose another.")


def _name_problem(name: str) -> str | None:
    if not _NAME.fullmatch(name):
        return "needs a plain name (letters, digits and _, no digit first)"
    if name.lower() in _OWN:
        return "has the name of a column of the index"
    return "has a name that is a word of SQL" if name.lower() in _SQL else None


def _check_names(path: Path, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if problem := _name_problem(name):
            raise InputError(f"The column {name!r} of {path} {problem}: rename it.")
        if name.lower() in seen:
            raise InputError(f"{path} has two columns called {name}.")
        seen.add(name.lower())


def _plain(path: Path, columns: Any) -> Any:
    """With types that Lance filters on."""
    fields = []
    for field in columns.schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if pa.types.is_null(kind) or pa.types.is_large_string(kind):
            kind = pa.string()
        kept = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_string)
        if not any(is_kind(kind) for is_kind in (*kept, pa.types.is_date, pa.types.is_timestamp)):
            raise InputError(f"The column {field.name} of {path} is of the type {field.type}, which cannot be kept.")
        fields.append(pa.field(field.name, kind))
    columns = columns.cast(pa.schema(fields)).combine_chunks()
    for i, field in enumerate(fields):
        if pa.types.is_floating(field.type):  # not a number is nothing: it would never equal what is stored
            values = columns.column(i)
            columns = columns.set_column(i, field, pc.if_else(pc.is_nan(values), pa.scalar(None, field.type), values))
    return columns
