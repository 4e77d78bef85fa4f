"""Hugging Face datasets: a folder that ``save_to_disk`` wrote, or whatever ``load_dataset`` takes (a hub id, a folder
of its own layouts), with an ``image`` column and columns with texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fwd2bot_index.errors import InputError
from fwd2bot_training.config import SourceConfig
from fwd2bot_training.data.rows import RowSource
from fwd2bot_training.data.tables import IMAGE, TextTables, image_bytes, text_columns
from fwd2bot_training.data.texts import Routing, Texts, read_texts


class HubSource(RowSource):
    """``path``: an existing folder, or a hub id.

    Raises:
        InputError: `datasets` is not installed or cannot load it, it has no such split, no rows, or lacks columns.
    """

    def __init__(self, config: SourceConfig, path: str, routing: Routing) -> None:
        super().__init__(config, routing)
        self._path = path
        self._split = config.split
        data = _load(path, config.split)
        columns = text_columns(data.column_names, path)
        if not len(data):
            raise InputError(f"{path} has no rows in its split {config.split!r}.")
        self._rows = TextTables([data.select_columns(columns).with_format("arrow")[:]])
        pictures = data.select_columns([IMAGE])
        from datasets import Image  # importing it takes a second, and few use it

        if isinstance(pictures.features[IMAGE], Image):
            pictures = pictures.cast_column(IMAGE, Image(decode=False))
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._rows)

    def length(self, index: int) -> int:
        return int(self._rows.lengths[index])

    def where(self, index: int) -> str:
        return f"{self._path} ({self._split}), row {index} (the first is 0)"

    def _texts(self, index: int) -> Texts:
        return read_texts(self._rows.row(index), kind=self.name)

    def _picture(self, index: int) -> bytes:
        return image_bytes(self._pictures[index][IMAGE], Path(self._path))


def _load(path: str, split: str) -> Any:
    try:
        import datasets
    except ImportError as e:
        raise InputError(
            f"The dataset {path} needs the library datasets: pip install 'fwd2bot[train]', or export it to parquet."
        ) from e
    saved = [Path(path) / name for name in ("dataset_dict.json", "state.json")]
    try:
        if not any(file.exists() for file in saved):
            return datasets.load_dataset(path, split=split)
        data = datasets.load_from_disk(path)
    except Exception as e:  # loaders raise nearly everything
        raise InputError(f"datasets cannot load {path} ({split}): {e}") from e
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise InputError(f"{path} has no split {split!r}; it has {', '.join(data)}.")
        return data[split]
    return data
