"""Where words go: data to stdout, everything else to stderr.

Notable choices:

- A table is for eyes. Where stdout is no terminal the same rows come as lines of tab-separated fields, without a
  header, never cut to the width of a screen.
- File names are somebody else's text: control characters in them are shown escaped (and never act on the terminal);
  only ``--paths-only`` gives the raw bytes, which is what ``xargs -0`` wants.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fwd2bot_index.object_stores import is_uri
from fwd2bot_index.places import Place


class Output:
    """The two streams of one invocation; ``quiet`` silences messages, never data, errors or skipped files."""

    def __init__(self, *, quiet: bool = False, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.quiet = quiet
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self.stderr = Console(file=self._err, highlight=False, soft_wrap=True)

    @property
    def live(self) -> bool:
        """Whether a bar or a spinner may move on stderr."""
        return not self.quiet and self._err.isatty() and not self.stderr.is_dumb_terminal

    @property
    def for_eyes(self) -> bool:
        """Whether stdout is a terminal: tables for a person, not lines for a program."""
        return self._out.isatty()

    # ---- stderr

    def message(self, text: str) -> None:
        if not self.quiet:
            self.stderr.print(Text(text))

    def warning(self, text: str) -> None:
        self.stderr.print(Text(text, style="yellow"))

    def error(self, text: str) -> None:
        self.stderr.print(Text.assemble(("error: ", "bold red"), text))

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """A spinner while something takes seconds; nothing where stderr is no terminal."""
        if not self.live:
            yield
            return
        with self.stderr.status(text):
            yield

    # ---- stdout

    def data(self, text: str) -> None:
        self._out.write(text + "\n")

    def flush(self) -> None:
        """What was written so far, for who reads along."""
        self._out.flush()

    def json(self, value: Any) -> None:
        """One document, indented, with nothing but ASCII: file names that are no UTF-8 survive it."""
        self.data(json.dumps(value, indent=2))

    def json_line(self, value: Any) -> None:
        """One document on a line, at once for who reads along."""
        self.data(json.dumps(value))
        self.flush()

    def stream(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """As :meth:`table`, but every row as soon as it is there; for eyes, columns are as wide as they were so far."""
        widths = [len(name) for name in columns]

        def line(cells: Sequence[str]) -> str:
            widths[:] = [max(width, len(cell)) for width, cell in zip(widths, cells, strict=True)]
            return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

        if self.for_eyes:
            self.data(line(columns))
        for row in rows:
            self.data(line(row) if self.for_eyes else "\t".join(row))
            self.flush()

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Rows for eyes, or tab-separated lines where stdout is no terminal."""
        if not self._out.isatty():
            for row in rows:
                self.data("\t".join(row))
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for i, column in enumerate(columns):
            last = i == len(columns) - 1
            table.add_column(column, justify="left" if last else "right", no_wrap=not last, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Console(file=self._out, highlight=False).print(table)

    def fields(self, rows: Sequence[tuple[str, str]]) -> None:
        """Names and values, aligned; tab-separated where stdout is no terminal."""
        width = max(len(name) for name, _ in rows) + 2 if self._out.isatty() else 0
        for name, value in rows:
            self.data(name.ljust(width) + value if width else f"{name}\t{value}")

    def paths(self, paths: Iterable[str], *, null: bool) -> None:
        """Raw file names, each ended by a newline or by a zero byte."""
        end = b"\0" if null else b"\n"
        self._out.flush()
        for path in paths:
            self._out.buffer.write(os.fsencode(path) + end)
        self._out.buffer.flush()


def relative(uri: str) -> str:
    """``uri`` from the current folder, where that is shorter than the whole path."""
    return uri if is_uri(uri) else min(os.path.relpath(uri), uri, key=len)


def printable(text: str) -> str:
    """``text`` with every control or undecodable character escaped: safe for a terminal, one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def printable_lines(text: str) -> str:
    """As :func:`printable`, but with its lines kept: for a text that stands alone."""
    return "\n".join(printable(line) for line in text.splitlines())


def shown(path: str | Path | Place) -> str:
    """A file name for eyes."""
    return printable(relative(str(path)))


def size(count: float) -> str:
    """Bytes for eyes, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
