"""Sentences and quotations for a reader of the results."""

from __future__ import annotations

import re


def quoted(text: str) -> str:
    """Somebody else's text in a line of Markdown: no line breaks, no markup."""
    return "“" + re.sub(r"([|\\`*_<>\[\]])", r"\\\1", " ".join(text.split())) + "”"


def coverage_notes(scored: int, total: int, limit: int | None) -> list[str]:
    """Whatever makes this less than the whole benchmark."""
    notes = []
    if limit is not None:
        notes.append(f"Only the first {limit} rows of each file (--limit): no score to compare with published ones.")
    if scored < total:
        notes.append(
            f"{scored} of {total} items were scored: the pictures of the other {total - scored} are missing or cannot "
            "be used (--allow-missing)."
        )
    return notes
