"""Tars in webdataset's layout: members ``KEY.jpg`` (or another picture) with ``KEY.txt`` (a caption) or ``KEY.json``
(an object with texts, see `texts`).

The headers are read once, when the source is opened; members are then read by their place, in any order, so a
compressed tar is refused.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fwd2bot_index.errors import InputError
from fwd2bot_index.listing import IMAGE_EXTENSIONS
from fwd2bot_training.config import SourceConfig
from fwd2bot_training.data.records import parse_json
from fwd2bot_training.data.rows import RowSource
from fwd2bot_training.data.texts import Routing, Texts, Unusable, read_texts


class _Span(NamedTuple):
    start: int
    size: int


class _Sample(NamedTuple):
    tar: int
    key: str
    image: _Span | None
    caption: _Span | None
    record: _Span | None


class WebDatasetSource(RowSource):
    """
    Args:
        stop: whether samples that lack their picture or their texts are an error before anything is read.
    Raises:
        InputError: a tar cannot be read, is cut short or compressed, or holds no sample.
    """

    def __init__(self, config: SourceConfig, tars: Sequence[Path], routing: Routing, *, stop: bool) -> None:
        super().__init__(config, routing)
        self._tars = list(tars)
        self._samples: list[_Sample] = []
        for i, tar in enumerate(self._tars):
            samples = _scan(i, tar)
            for what, lacking in (
                ("picture", [s.key for s in samples if s.image is None]),
                ("text (KEY.txt or KEY.json)", [s.key for s in samples if s.caption is None and s.record is None]),
            ):
                if lacking and (stop or len(lacking) == len(samples)):
                    raise InputError(
                        f"{len(lacking)} of {len(samples)} samples of {tar} have no {what}, the first {lacking[0]}."
                    )
            self._samples += samples
        if not self._samples:
            raise InputError(f"{self._tars[0]} holds no samples: no member KEY.jpg with KEY.txt or KEY.json.")

    def __len__(self) -> int:
        return len(self._samples)

    def length(self, index: int) -> int:
        sample = self._samples[index]
        return sum(span.size for span in (sample.caption, sample.record) if span)

    def where(self, index: int) -> str:
        sample = self._samples[index]
        return f"{self._tars[sample.tar]}, sample {sample.key}"

    def _texts(self, index: int) -> Texts:
        sample = self._samples[index]
        row = parse_json(self._read(sample.tar, sample.record)) if sample.record else {}
        if sample.caption and isinstance(row, dict):
            try:
                row = {**row, "text": self._read(sample.tar, sample.caption).decode("utf-8-sig")}
            except UnicodeDecodeError as e:
                raise Unusable("its text is not UTF-8") from e
        return read_texts(row, kind=self.name)

    def _picture(self, index: int) -> bytes:
        sample = self._samples[index]
        if sample.image is None:
            raise Unusable("it has no picture")
        return self._read(sample.tar, sample.image)

    def _read(self, tar: int, span: _Span) -> bytes:
        try:
            with open(self._tars[tar], "rb") as f:
                f.seek(span.start)
                data = f.read(span.size)
        except OSError as e:
            raise Unusable(f"it cannot be read: {e.strerror or e}") from e
        if len(data) < span.size:
            raise Unusable("the tar is shorter than it was")
        return data


def _scan(number: int, path: Path) -> list[_Sample]:
    members: dict[str, dict[str, _Span]] = {}
    last = "nothing"
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isreg():
                    continue
                last = member.name
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                folder, name = os.path.split(member.name)
                base, _, extension = name.partition(".")
                if base:
                    span = _Span(member.offset_data, member.size)
                    members.setdefault(os.path.join(folder, base), {})["." + extension.lower()] = span
                tar.members = []  # type: ignore[attr-defined]  # it keeps every header otherwise
            end = tar.offset
        # tarfile takes a damaged header, and none, for the end
        with open(path, "rb") as f:
            f.seek(end)
            if f.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("unexpected end of data")
    except tarfile.ReadError as e:
        if "end of data" in str(e):
            raise InputError(f"{path} is cut short or damaged after {last}: copy it again.") from e
        raise InputError(f"{path} is not an uncompressed tar ({e}); decompress it first.") from e
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror or e}.") from e
    samples = []
    for key, parts in members.items():
        image = next((span for extension, span in parts.items() if extension in IMAGE_EXTENSIONS), None)
        sample = _Sample(number, key, image, parts.get(".txt"), parts.get(".json"))
        if sample.image or sample.caption or sample.record:
            samples.append(sample)
    return samples
