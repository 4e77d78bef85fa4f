"""LLaVA-style conversations: JSON or JSON Lines with ``image`` (a file) and ``conversations`` (turns), and what other
texts a row may have. Records without a picture are left out, and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fwd2bot_index.decoding import read_file
from fwd2bot_index.errors import InputError
from fwd2bot_training.config import SourceConfig
from fwd2bot_training.data.records import Records
from fwd2bot_training.data.rows import RowSource, check_pictures
from fwd2bot_training.data.texts import CAPTION_KEYS, Routing, Texts, Unusable, read_texts


class ConversationSource(RowSource):
    """
    Args:
        images: folder of the pictures; None: the folder of each file.
        stop: whether missing pictures are an error before anything is read.
    Raises:
        InputError: a file cannot be read or has no record with a picture, or pictures are missing.
    """

    def __init__(
        self, config: SourceConfig, files: Sequence[Path], routing: Routing, *, images: Path | None, stop: bool
    ) -> None:
        super().__init__(config, routing)
        self._files = [Records(file) for file in files]
        self._images = [file.parent if images is None else images for file in files]
        lengths = []
        for records, folder in zip(self._files, self._images, strict=True):
            names, kept = [], []
            for i, record in enumerate(records):
                if isinstance(record, Mapping) and not record.get("image"):
                    self.left_out += 1
                    continue
                kept.append(i)
                lengths.append(_characters(record))
                if isinstance(record, Mapping) and isinstance(record["image"], str):
                    names.append(record["image"])
            records.keep(np.array(kept, np.int64))
            check_pictures(names, folder=folder, file=records.file, stop=stop)
        self._starts = np.cumsum([0, *map(len, self._files)])
        self._lengths: npt.NDArray[np.int32] = np.array(lengths, np.int32)
        if not lengths:
            raise InputError(f"{files[0]} has no record with an image ({self.left_out} without).")

    def __len__(self) -> int:
        return len(self._lengths)

    def length(self, index: int) -> int:
        return int(self._lengths[index])

    def where(self, index: int) -> str:
        file, record = self._find(index)
        return self._files[file].where(record)

    def _find(self, index: int) -> tuple[int, int]:
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        return file, index - int(self._starts[file])

    def _record(self, index: int) -> Any:
        file, record = self._find(index)
        return self._files[file][record]

    def _texts(self, index: int) -> Texts:
        return read_texts(self._record(index), kind=self.name)

    def _picture(self, index: int) -> bytes:
        name = self._record(index)["image"]
        if not isinstance(name, str):
            raise Unusable(f"its image is {name!r}, not the name of one file")
        return read_file(self._images[self._find(index)[0]] / name)


def _characters(record: Any) -> int:
    if not isinstance(record, Mapping):
        return 0
    turns = record.get("conversations")
    said = [t.get("value") for t in turns if isinstance(t, Mapping)] if isinstance(turns, list) else []
    said += [record.get(key) for key in CAPTION_KEYS]
    return sum(len(text) for text in said if isinstance(text, str))
