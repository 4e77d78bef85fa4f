"""What an evaluation says: typed, and the same in memory, as JSON and in the report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A score and its 95 % interval."""

    value: float
    low: float
    """NaN, as ``high`` is: there is no interval, since a single picture says nothing of others."""
    high: float
    items: int
    clusters: int
    """Pictures that the items are about: what was resampled. 0: nothing was, the value is exact."""

    @classmethod
    def exact(cls, value: float) -> Self:
        """A number of bytes, or a difference to itself."""
        return cls(value=value, low=value, high=value, items=0, clusters=0)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Scores by row (category, split) and column (scorer, number of tokens, baseline)."""

    title: str
    row_header: str
    columns: Sequence[str]
    rows: Mapping[str, Mapping[str, Estimate]]
    """A column that a row lacks was not measured there."""
    chance: Mapping[str, float] = field(default_factory=dict)
    """By row, what guessing scores, where that means something."""
    explanation: str = ""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a task makes of its records."""

    tables: Sequence[Table]
    notes: Sequence[str] = ()
    """What a reader must know beside the numbers, each a sentence."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One item as the report shows it."""

    category: str
    right: bool
    text: str
    pictures: Sequence[str]
    """Files, relative to the run's folder."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A picture or a row that could not be scored; only with ``--allow-missing``."""

    where: str
    reason: str
    items: int
    """How many items went with it."""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One task, one model."""

    task: str
    model: str
    fingerprint: str
    data: str
    settings: Mapping[str, Any]
    tables: Sequence[Table]
    items: int
    skipped: Sequence[Skipped]
    notes: Sequence[str]
    seconds: float
    """Wall time, over all the runs that it took; loading the model not included."""
    machine: str
    command: str
    examples: Sequence[Example] = ()
    figures: Sequence[str] = ()
    """Plots, files relative to the run's folder."""

    def table(self, title: str) -> Table:
        return next(t for t in self.tables if t.title == title)

    def to_json(self) -> dict[str, Any]:
        """Plain values; a score or an interval that is undefined is null."""
        return {"format": 1, **_plain(asdict(self))}

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
