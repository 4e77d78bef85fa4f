"""A result as Markdown: tables with intervals, and pictures of successes and failures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

from fwd2bot_eval.results import Estimate, Example, Table, TaskResult


def write_report(result: TaskResult, folder: Path) -> Path:
    """``report.md`` in the run's folder, next to the pictures that it shows."""
    path = folder / "report.md"
    path.write_text("\n".join(_lines(result)) + "\n", encoding="utf-8")
    return path


def markdown_table(table: Table, *, intervals: bool = True) -> str:
    """One row a line; a dash where a column was not measured."""
    header = [table.row_header, *table.columns, *(["chance"] if table.chance else []), "items"]
    lines = ["| " + " | ".join(_cell(h) for h in header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    for name, cells in table.rows.items():
        values = [_value(cells.get(c), intervals) for c in table.columns]
        if table.chance:
            values.append(f"{table.chance[name]:.3f}" if name in table.chance else "–")
        items = max((e.items for e in cells.values()), default=0)
        lines.append("| " + " | ".join([_cell(name), *values, str(items)]) + " |")
    return "\n".join(lines)


def _value(estimate: Estimate | None, intervals: bool) -> str:
    if estimate is None or math.isnan(estimate.value):
        return "–"
    exact = estimate.clusters == 0
    if exact and estimate.value == round(estimate.value) and abs(estimate.value) >= 10:
        return f"{estimate.value:.0f}"  # bytes
    digits = 3 if abs(estimate.value) < 10 else 1
    number = f"{estimate.value:.{digits}f}"
    if exact or not intervals:
        return number
    if math.isnan(estimate.low):
        return f"{number} [–]"
    return f"{number} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def _lines(result: TaskResult) -> Iterator[str]:
    yield f"# {result.task}: {_cell(result.model)}"
    yield ""
    yield f"{result.items} items of `{_code(result.data)}`, {result.seconds:.0f} s on {result.machine}."
    yield "In brackets: 95 % intervals, by bootstrap over pictures (or what else has several items); where all agree,"
    yield "Clopper and Pearson's. A dash: a single picture has none."
    yield ""
    if result.command:
        yield f"    {_code(result.command)}"
        yield ""
    if result.skipped:
        lost = sum(s.items for s in result.skipped)
        yield f"**{len(result.skipped)} pictures could not be used; {lost} items were left out:**"
        yield ""
        for s in result.skipped[:20]:
            yield f"- `{_code(s.where)}`: {_cell(s.reason)}"
        if len(result.skipped) > 20:
            yield f"- and {len(result.skipped) - 20} more, in `result.json`"
        yield ""
    for note in result.notes:
        yield f"- {note}"
    if result.notes:
        yield ""
    for table in result.tables:
        yield f"## {table.title}"
        yield ""
        if table.explanation:
            yield table.explanation
            yield ""
        yield markdown_table(table)
        yield ""
    for name in result.figures:
        yield f"![{_cell(name)}]({name})"
        yield ""
    for right, title in ((False, "Failures"), (True, "Successes")):
        shown = [e for e in result.examples if e.right is right]
        if shown:
            yield f"## {title}"
            yield ""
            for example in shown:
                yield from _example(example)
    yield "## Settings"
    yield ""
    yield f"- model: `{_code(result.model)}`, fingerprint `{result.fingerprint}`"
    for name, value in result.settings.items():
        yield f"- {name}: `{_code(str(value)) or 'none'}`"


def _example(example: Example) -> Iterator[str]:
    yield f"**{_cell(example.category)}**"
    yield ""
    yield " ".join(f"![picture {i + 1}]({name})" for i, name in enumerate(example.pictures))
    yield ""
    yield example.text
    yield ""


def _cell(text: str) -> str:
    """Somebody else's text in a cell or a line: no line breaks, no bars, no markup."""
    return re.sub(r"([|\\`*_<>\[\]])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    return " ".join(text.split()).replace("`", "'")
