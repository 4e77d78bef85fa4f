"""Records of a JSON list or a JSON Lines file, read by their place in the file: large files stay on the disk."""

from __future__ import annotations

import codecs
import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fwd2bot_index.errors import InputError
from fwd2bot_training.data.texts import Unusable

_SPACE = re.compile(r"[ \t\r\n]*")


class Records:
    """
    Raises:
        InputError: the file cannot be read, or is neither of the two; names the record.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            size = file.stat().st_size
            if size == 0:
                raise InputError(f"{file} is empty.")
            with open(file, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
                # Latin-1 keeps one character a byte, and all that separates records is ASCII.
                text = codecs.latin_1_decode(content)[0]
        except OSError as e:
            raise InputError(f"{file} cannot be read: {e.strerror or e}.") from e
        start = 3 if text.startswith("\xef\xbb\xbf") else 0
        start = _after_space(text, start)
        self.is_list = text[start : start + 1] == "["
        spans = _list_spans(text, start + 1, file) if self.is_list else _line_spans(text, start)
        self._spans: npt.NDArray[np.int64] = np.array(spans, np.int64).reshape(-1, 3)
        """[records, (first byte, last byte + 1, number)]"""

    def __len__(self) -> int:
        return len(self._spans)

    def where(self, index: int) -> str:
        number = int(self._spans[index, 2])
        return f"{self.file}, record {number} (the first is 0)" if self.is_list else f"{self.file}, line {number}"

    def __getitem__(self, index: int) -> Any:
        """Raises `Unusable`."""
        first, last, _ = (int(v) for v in self._spans[index])
        try:
            with open(self.file, "rb") as f:
                f.seek(first)
                raw = f.read(last - first)
        except OSError as e:
            raise Unusable(f"it cannot be read: {e.strerror or e}") from e
        return parse_json(raw)

    def __iter__(self) -> Iterator[Any]:
        """Each record, or None for one that cannot be read: asking for it by index says why."""
        with open(self.file, "rb") as f:
            for first, last, _ in self._spans:
                f.seek(int(first))
                try:
                    yield parse_json(f.read(int(last - first)))
                except Unusable:
                    yield None

    def keep(self, indices: npt.NDArray[np.int64]) -> None:
        """Forget all others."""
        self._spans = self._spans[indices]


def parse_json(raw: bytes) -> Any:
    """Raises `Unusable`."""
    try:
        return json.loads(raw)
    except ValueError as e:
        raise Unusable(f"it is not valid JSON: {e}") from e


def _after_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    assert space is not None  # it matches nothing, too
    return space.end()


def _list_spans(text: str, at: int, file: Path) -> list[tuple[int, int, int]]:
    spans: list[tuple[int, int, int]] = []
    decoder = json.JSONDecoder()
    at = _after_space(text, at)
    if text[at : at + 1] == "]":
        return spans
    while True:
        try:
            _, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as e:
            reason = e.msg if isinstance(e, json.JSONDecodeError) else str(e)
            raise InputError(
                f"{file}: record {len(spans)} (the first is 0) is not valid JSON ({reason}, after byte {at}); was the "
                "file cut short?"
            ) from e
        spans.append((at, end, len(spans)))
        at = _after_space(text, end)
        match text[at : at + 1]:
            case ",":
                at = _after_space(text, at + 1)
            case "]":
                return spans
            case _:
                raise InputError(f"{file}: the list ends without ] after record {len(spans) - 1}; was it cut short?")


def _line_spans(text: str, at: int) -> list[tuple[int, int, int]]:
    spans = []
    number = text.count("\n", 0, at) + 1
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        if _after_space(text, at) < end:
            spans.append((at, end, number))
        at, number = end + 1, number + 1
    return spans
