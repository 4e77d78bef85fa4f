"""Reading benchmarks' own files: whatever is wrong with one is said with its name and row."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from fwd2bot_eval.runs import CHUNK_PICTURES, Chunk, Item, PictureFile
from fwd2bot_eval.tasks.options import TaskOptions
from fwd2bot_index.decoding import read_file
from fwd2bot_index.errors import ImageError, InputError

MAX_JSON_BYTES: Final = 2**31
_BATCH: Final = 64
"""Rows of a parquet file that are in memory at once."""

ItemT = TypeVar("ItemT", bound=Item)


def read_json(path: Path) -> Any:
    """
    Raises:
        InputError: missing, too large, or no JSON.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB.")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror or e}.") from e
    except ValueError as e:
        raise InputError(f"{path} is not valid JSON ({e}).") from e


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers, from 1, and their values; blank lines are no rows.

    Raises:
        InputError: missing, or a line that is no JSON.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except ValueError as e:
                        raise InputError(f"{path}, line {number} is not valid JSON ({e}).") from e
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path} cannot be read: {getattr(e, 'strerror', None) or e}.") from e


def text_of(row: Any, key: str, where: str) -> str:
    """The text under ``key``; ``where`` names file and row.

    Raises:
        InputError: there is none.
    """
    value = row.get(key) if isinstance(row, Mapping) else None
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where} has no text under {key!r}.")
    return value


def texts_of(row: Any, key: str, where: str) -> list[str]:
    """The non-empty list of texts under ``key``; as :func:`text_of`."""
    value = row.get(key) if isinstance(row, Mapping) else None
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise InputError(f"{where} has no list of texts under {key!r}.")
    return value


def picture_file(path: Path, *, key: str | None = None) -> PictureFile:
    """A file, read when its turn comes."""
    return PictureFile(key=key or path.name, where=str(path), read=lambda: read_file(path))


def find_picture(folder: Path, stem: str) -> Path:
    """``folder/stem``, with whatever extension a picture may have; the bare name where there is none."""
    for extension in ("", ".jpg", ".png", ".jpeg", ".webp"):
        path = folder / (stem + extension)
        if path.is_file():
            return path
    return folder / f"{stem}.jpg"


def require_pictures(paths: Iterable[Path], *, allow_missing: bool, source: str) -> None:
    """Before hours are spent: how many pictures are missing, and where they come from.

    Raises:
        InputError: any is missing and ``allow_missing`` is not given.
    """
    wanted = list(dict.fromkeys(paths))
    missing = [p for p in wanted if not p.is_file()]
    if missing and not allow_missing:
        raise InputError(
            f"{len(missing)} of {len(wanted)} pictures are missing, the first {missing[0]}. {source} "
            "--allow-missing scores the others and says so."
        )
    if len(missing) == len(wanted):
        raise InputError(f"All {len(wanted)} pictures are missing, the first {missing[0]}. {source}")


def refuse_split(options: TaskOptions) -> None:
    """
    Raises:
        InputError: ``--split`` is given beside a ``--data`` that is one file, all of which is read.
    """
    if options.split is not None:
        raise InputError(f"--split {options.split}: --data {options.data} is a single file; leave the option out.")


def parquet_files(data: Path, split: str) -> list[Path]:
    """The files of a split: ``SPLIT.parquet``, ``SPLIT-*.parquet``.

    Raises:
        InputError: there are none.
    """
    files = sorted([*data.glob(f"{split}.parquet"), *data.glob(f"{split}-*.parquet")])
    if not files:
        raise InputError(f"{data} has no {split}.parquet; name another --split, or the file itself.")
    return files


def parquet_rows(
    files: Sequence[Path], columns: Sequence[str], *, limit: int | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where a row is (file and row, from 0) and its values, some rows in memory at a time.

    Raises:
        InputError: a file is no Parquet, or lacks a column.
    """
    given = 0
    for file in files:
        try:
            with pq.ParquetFile(file) as parquet:
                if missing := [c for c in columns if c not in parquet.schema_arrow.names]:
                    raise InputError(f"{file} has no column {missing[0]!r}.")
                row = 0
                for batch in parquet.iter_batches(batch_size=_BATCH, columns=list(columns)):
                    for values in batch.to_pylist():
                        if limit is not None and given >= limit:
                            return
                        yield f"{file}, row {row}", values
                        row += 1
                        given += 1
        except (OSError, pa.ArrowException) as e:
            raise InputError(f"{file} cannot be read as Parquet: {str(e).splitlines()[0]}.") from e


def parquet_picture(cell: Any, where: str, *, key: str) -> PictureFile:
    """A cell of an image column: the usual struct of bytes and path."""
    data = cell.get("bytes") if isinstance(cell, Mapping) else cell

    def read() -> bytes:
        if not isinstance(data, bytes):
            raise ImageError("its image column holds no bytes")
        return data

    return PictureFile(key=key, where=where, read=read)


def chunked(
    groups: Iterable[tuple[Sequence[PictureFile], Callable[[tuple[int, ...]], Sequence[ItemT]]]],
    *,
    pictures: int = CHUNK_PICTURES,
) -> Iterator[Chunk[ItemT]]:
    """Groups of pictures with the items about them, ``pictures`` or a few more to a chunk.

    Args:
        groups: pictures that belong together (one, or the two of a pair), and what makes their items from the rows that
            the pictures get in the chunk. A picture that comes again within a chunk (by key) is compressed once.
    """
    shown: dict[str, int] = {}
    files: list[PictureFile] = []
    items: list[ItemT] = []
    for group, make in groups:
        if len(files) >= pictures:
            yield Chunk(pictures=files, items=items)
            shown, files, items = {}, [], []
        for picture in group:
            if picture.key not in shown:
                shown[picture.key] = len(files)
                files.append(picture)
        items += make(tuple(shown[p.key] for p in group))
    if items or files:
        yield Chunk(pictures=files, items=items)


def signature_of(files: Iterable[Path], options: TaskOptions, *, pictures: Iterable[Path] = ()) -> str:
    """Changes when one of the files or pictures, or a setting does: names, sizes and times of change, not their
    contents. A picture may be missing: when it comes, that is another run."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        try:
            status = file.stat()
        except OSError as e:
            raise InputError(f"{file} cannot be read: {e.strerror or e}.") from e
        digest.update(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    for picture in dict.fromkeys(pictures):
        try:
            status = picture.stat()
        except OSError:
            digest.update(f"{picture.name} missing\n".encode())
        else:
            digest.update(f"{picture.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    digest.update(json.dumps(options.settings, sort_keys=True).encode())
    return digest.hexdigest()


def placed(items: Sequence[ItemT], rows: tuple[int, ...]) -> list[ItemT]:
    """Items about the pictures in ``rows``."""
    return [dataclasses.replace(item, rows=rows) for item in items]


def need_files(options: TaskOptions, names: Sequence[str], source: str) -> list[Path]:
    """The benchmark's files in ``--data``.

    Raises:
        InputError: one is not there, or a split is asked for where there is none.
    """
    if options.split is not None:
        raise InputError(f"--split {options.split}: this benchmark has a single one; leave the option out.")
    files = [options.data / name for name in names]
    if missing := [f for f in files if not f.is_file()]:
        raise InputError(f"{missing[0]} is missing ({len(missing)} of {len(files)} files). {source}")
    return files


def json_rows(path: Path, limit: int | None) -> Iterator[tuple[str, str, Any]]:
    """Where a row is, its key, and the row: of a JSON object of rows, or of a list of them.

    Raises:
        InputError: the file is neither, or empty.
    """
    document = read_json(path)
    if not isinstance(document, dict | list) or not document:
        raise InputError(f"{path} holds no items: it should be a JSON object or list of them.")
    pairs = document.items() if isinstance(document, dict) else enumerate(document)
    for number, (key, row) in enumerate(pairs):
        if limit is not None and number >= limit:
            return
        yield f"{path}, item {key}", str(key), row


def file_name(row: Any, key: str, where: str) -> str:
    """The name of a picture under ``key``; one that leads out of the folder is refused, since reports show pictures.

    Raises:
        InputError: there is none, or it is refused.
    """
    name = text_of(row, key, where)
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(f"{where} names a picture outside of its folder under {key!r}: {name!r}.")
    return name


def row_picture(path: Path, name: str, where: str) -> PictureFile:
    """The picture ``name`` in ``path``, which errors name with the row ``where`` it is wanted first."""
    return dataclasses.replace(picture_file(path, key=name), where=f"{path} ({where})")
