"""What the columns of an index hold, in short: what a person can filter by without knowing SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from fwd2bot_index.snapshots import FOUND, Snapshot

MOST_VALUES: Final = 30
"""Different values of a column of text, up to which they are counted one by one."""


@dataclass(frozen=True, kw_only=True)
class Facet:
    """One column of the pictures that can be found."""

    name: str
    kind: Literal["text", "number", "boolean", "time"]
    values: dict[str, int] | None
    """Of text with few different values: how many pictures have each, the most frequent first."""
    least: float | str | None
    """Of numbers and times (in ISO's form); None: the column is empty."""
    most: float | str | None


def facets(snapshot: Snapshot, names: Sequence[str]) -> list[Facet]:
    """Of these columns, those of a kind that can be compared."""
    table = snapshot.select(names, where=FOUND)
    return [facet for name in names if (facet := _facet(name, table.column(name))) is not None]


def _facet(name: str, column: Any) -> Facet | None:
    kind = _kind(column.type)
    if kind is None:
        return None
    values: dict[str, int] | None = None
    least: float | str | None = None
    most: float | str | None = None
    if kind == "text":
        counts = pc.value_counts(column.drop_null()).to_pylist()
        if len(counts) <= MOST_VALUES:
            values = {c["values"]: c["counts"] for c in sorted(counts, key=lambda c: (-c["counts"], c["values"]))}
    elif kind != "boolean":
        finite = column.filter(pc.is_finite(column)) if pt.is_floating(column.type) else column
        least, most = (_plain(value) for value in pc.min_max(finite).as_py().values())
    return Facet(name=name, kind=kind, values=values, least=least, most=most)


def _kind(arrow_type: pa.DataType) -> Literal["text", "number", "boolean", "time"] | None:
    if pt.is_string(arrow_type) or pt.is_large_string(arrow_type):
        return "text"
    if pt.is_boolean(arrow_type):
        return "boolean"
    if pt.is_integer(arrow_type) or pt.is_floating(arrow_type):
        return "number"
    return "time" if pt.is_date(arrow_type) or pt.is_timestamp(arrow_type) else None


def _plain(value: Any) -> float | str | None:
    return value.isoformat() if isinstance(value, date) else value
