"""What a person may say about any task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Everything that a task is made from."""

    data: Path
    split: str | None = None
    """None: the task's own, ``test`` or ``val``."""
    limit: int | None = None
    """At most so many rows of the benchmark's file (the first ones)."""
    allow_missing: bool = False
    """Score what is there where pictures are missing or broken."""

    @property
    def settings(self) -> dict[str, Any]:
        """For a result: what decides which items of the data were scored."""
        return {"split": self.split, "limit": self.limit, "allow_missing": self.allow_missing}
