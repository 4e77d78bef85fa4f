"""A folder of pictures with captions: in ``metadata.jsonl`` or ``metadata.csv`` (``file_name`` and the keys of
`texts`), or, where there is neither, in ``NAME.txt`` beside each picture, also in folders below."""

from __future__ import annotations

import csv
import os
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from fwd2bot_index.decoding import read_file
from fwd2bot_index.errors import InputError
from fwd2bot_index.listing import list_files
from fwd2bot_training.config import SourceConfig
from fwd2bot_training.data.records import Records
from fwd2bot_training.data.rows import RowSource, check_pictures
from fwd2bot_training.data.texts import TEXT_KEYS, Routing, Texts, Unusable, read_texts

FILE_NAME = "file_name"


class _Rows(Protocol):
    @property
    def file(self) -> Path: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def where(self, index: int) -> str: ...


class _CsvRows:
    def __init__(self, file: Path) -> None:
        self.file = file
        self._rows: list[dict[str, str]] = []
        self._lines: list[int] = []
        try:
            with open(file, encoding="utf-8-sig", newline="") as f:
                reader = csv.DictReader(f)
                for row in reader:
                    self._rows.append(row)
                    self._lines.append(reader.line_num)
                columns = reader.fieldnames or []
        except (OSError, UnicodeDecodeError, csv.Error) as e:
            raise InputError(f"{file} cannot be read as CSV: {e}.") from e
        if FILE_NAME not in columns or not {*columns} & {*TEXT_KEYS}:
            raise InputError(f"{file} needs the columns file_name and caption; it has {', '.join(columns)}.")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index]

    def where(self, index: int) -> str:
        return f"{self.file}, line {self._lines[index]}"


def open_folder(config: SourceConfig, folder: Path, routing: Routing, *, stop: bool) -> RowSource:
    """
    Args:
        stop: whether missing pictures or texts are an error before anything is read.
    Raises:
        InputError: it is no folder, there are no pictures, some are missing, or some have no text.
    """
    if not folder.is_dir():
        raise InputError(f"The source {config.name!r}: {folder} is not a folder.")
    if (lines := folder / "metadata.jsonl").exists():
        return MetadataFolder(config, folder, Records(lines), routing, stop=stop)
    if (table := folder / "metadata.csv").exists():
        return MetadataFolder(config, folder, _CsvRows(table), routing, stop=stop)
    return TextFileFolder(config, folder, routing, stop=stop)


class _FolderSource(RowSource):
    @abstractmethod
    def _file(self, index: int) -> Path:
        """Of the picture. Raises `Unusable`."""

    def _picture(self, index: int) -> bytes:
        return read_file(self._file(index))


class MetadataFolder(_FolderSource):
    def __init__(self, config: SourceConfig, folder: Path, rows: _Rows, routing: Routing, *, stop: bool) -> None:
        super().__init__(config, routing)
        self._folder = folder
        self._rows = rows
        if not len(rows):
            raise InputError(f"{rows.file} has no rows.")
        names = []
        self._lengths = []
        for i in range(len(rows)):
            try:
                row = rows[i]
            except Unusable:
                row = None  # reading it again, as an example, says why
            row = row if isinstance(row, Mapping) else {}
            self._lengths.append(sum(len(str(row[k])) for k in TEXT_KEYS if row.get(k)))
            if isinstance(name := row.get(FILE_NAME), str):
                names.append(name)
        check_pictures(names, folder=folder, file=rows.file, stop=stop)

    def __len__(self) -> int:
        return len(self._rows)

    def length(self, index: int) -> int:
        return self._lengths[index]

    def where(self, index: int) -> str:
        return self._rows.where(index)

    def _texts(self, index: int) -> Texts:
        return read_texts(self._rows[index], kind=self.name)

    def _file(self, index: int) -> Path:
        row = self._rows[index]
        if not isinstance(name := row.get(FILE_NAME), str) or not name:
            raise Unusable("it has no file_name")
        return self._folder / name


class TextFileFolder(_FolderSource):
    def __init__(self, config: SourceConfig, folder: Path, routing: Routing, *, stop: bool) -> None:
        super().__init__(config, routing)
        self._files = list_files([folder], archives=False).uris
        if not self._files:
            raise InputError(f"The source {config.name!r}: there are no pictures in {folder}.")
        sizes = [_size(_text_file(file)) for file in self._files]
        missing = [file for file, size in zip(self._files, sizes, strict=True) if size is None]
        if missing and (stop or len(missing) == len(sizes)):
            raise InputError(
                f"{len(missing)} of {len(sizes)} pictures in {folder} have no text, the first {missing[0]} (looked for "
                f"{_text_file(missing[0]).name} beside it; neither metadata.jsonl nor metadata.csv is there)."
            )
        self._lengths = [size or 0 for size in sizes]

    def __len__(self) -> int:
        return len(self._files)

    def length(self, index: int) -> int:
        return self._lengths[index]

    def where(self, index: int) -> str:
        return self._files[index]

    def _texts(self, index: int) -> Texts:
        try:
            text = _text_file(self._files[index]).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as e:
            raise Unusable(f"its text cannot be read: {e}") from e
        return read_texts({"text": text}, kind=self.name)

    def _file(self, index: int) -> Path:
        return Path(self._files[index])


def _text_file(picture: str) -> Path:
    return Path(picture).with_suffix(".txt")


def _size(file: Path) -> int | None:
    try:
        return os.stat(file).st_size
    except OSError:
        return None
