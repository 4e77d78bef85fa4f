"""Pictures with captions that people wrote, in the layouts that such sets are published in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from fwd2bot_eval.runs import Item, PictureFile
from fwd2bot_eval.tasks.files import (
    file_name,
    parquet_rows,
    read_json,
    refuse_split,
    require_pictures,
    row_picture,
    text_of,
    texts_of,
)
from fwd2bot_eval.tasks.options import TaskOptions
from fwd2bot_eval.tasks.vqa_base import Source
from fwd2bot_eval.tasks.vqa_json import json_list, number_of
from fwd2bot_eval.tasks.vqa_parquet import DEFAULT_SPLITS, picture_of, split_files
from fwd2bot_index.errors import InputError

_KEYS: Final = ("captions", "caption")
"""Columns of a Parquet file that may hold the captions, the first there is."""
_KARPATHY: Final = "dataset_*.json"
_COCO: Final = ("captions_*.json", "nocaps_*.json")
_ALL: Final = "all"


@dataclass(frozen=True, kw_only=True)
class Captioned(Item):
    """A picture and what people said of it."""

    cluster: str
    references: tuple[str, ...]
    where: str
    """File and row."""


def captioned(options: TaskOptions) -> Source[Captioned]:
    """The pictures in ``--data``: a file, or a folder with one of

    - ``dataset_flickr30k.json`` and its like (Karpathy's splits of Flickr8k, Flickr30k and COCO); pictures in
      ``images/``, in the row's ``filepath``, or beside the file; split ``test`` unless told otherwise;
    - ``captions_val2017.json`` (COCO) or ``nocaps_val_4500_captions.json``, in ``annotations/`` or beside it, and
      ``--split`` a part of its name; pictures in ``val2017/`` or ``images/``; nocaps' domains become categories;
    - ``SPLIT.parquet`` as training takes it (``image``, and ``captions`` or ``caption``): the first there is of test,
      val and train.

    Raises:
        InputError: none of them or several, a split of what has none, a row is malformed, or pictures are missing
            without ``allow_missing``.
    """
    path = _json_file(options)
    if path is None:
        return _parquet(options)
    document = read_json(path)
    if not isinstance(document, Mapping):
        raise InputError(f"{path} does not hold a JSON object.")
    return _coco(path, document, options) if "annotations" in document else _karpathy(path, document, options)


def _json_file(options: TaskOptions) -> Path | None:
    """None where the data is Parquet."""
    if options.data.is_file():
        return options.data if options.data.suffix == ".json" else None
    folders = (options.data, options.data / "annotations")
    files = sorted({f for folder in folders for pattern in (_KARPATHY, *_COCO) for f in folder.glob(pattern)})
    if options.split is not None:
        files = [f for f in files if options.split in f.stem.split("_") or f.match(_KARPATHY)]
    splits = DEFAULT_SPLITS if options.split is None else (options.split,)
    other = [f for split in splits if (f := options.data / f"{split}.parquet").is_file()]
    if files and (several := [*files, *other])[1:]:
        raise InputError(f"{options.data} has {several[0].name} and {several[1].name}: name one of them as --data.")
    return files[0] if files else None


def _item(picture: PictureFile, name: str, texts: Sequence[str], where: str, *, category: str = _ALL) -> Any:
    item = Captioned(id=name, category=category, rows=(), cluster=picture.key, references=tuple(texts), where=where)
    return picture, [item]


def _parquet(options: TaskOptions) -> Source[Captioned]:
    files = split_files(options)
    key = _column(files[0])

    def read(pictures: bool) -> Iterator[tuple[PictureFile, Sequence[Captioned]]]:
        for where, row in parquet_rows(files, ["image", key] if pictures else [key], limit=options.limit):
            picture, name = picture_of(row.get("image"), where)
            texts = [text_of(row, key, where)] if isinstance(row[key], str) else texts_of(row, key, where)
            yield _item(picture, name, texts, where)

    return Source(files=files, read=read)


def _column(file: Path) -> str:
    try:
        with pq.ParquetFile(file) as parquet:
            names = parquet.schema_arrow.names
    except (OSError, pa.ArrowException) as e:
        raise InputError(f"{file} cannot be read as Parquet: {str(e).splitlines()[0]}.") from e
    for key in _KEYS:
        if key in names:
            return key
    raise InputError(f"{file} has no column {_KEYS[0]!r}.")


def _coco(path: Path, document: Mapping[str, Any], options: TaskOptions) -> Source[Captioned]:
    if options.data.is_file():
        refuse_split(options)
    split = path.stem.removeprefix("captions_")
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    folder = next((f for f in (root / split, root / "images") if f.is_dir()), root / split)
    spoken: dict[int, list[str]] = {}
    for where, row in json_list(path, "annotations", document=document):
        spoken.setdefault(number_of(row, "image_id", where), []).append(text_of(row, "caption", where))
    groups: dict[int, Any] = {}
    paths = []
    for where, row in json_list(path, "images", document=document, limit=options.limit):
        key, name = number_of(row, "id", where), file_name(row, "file_name", where)
        if key not in spoken:
            raise InputError(f"{where} has no caption.")
        if key in groups:
            raise InputError(f"{where} has the id {key} a second time.")
        paths.append(folder / name)
        domain = row.get("domain")
        category = domain if isinstance(domain, str) and domain else _ALL
        picture = row_picture(paths[-1], name, where)
        groups[key] = _item(picture, str(key), spoken[key], where, category=category)
    source = f"They belong into {folder}: COCO's {split}.zip is on cocodataset.org, nocaps' pictures on nocaps.org."
    return _files(path, groups.values(), paths, options, source)


def _karpathy(path: Path, document: Mapping[str, Any], options: TaskOptions) -> Source[Captioned]:
    split = options.split or "test"
    wanted = {split, "restval"} if split == "train" else {split}  # COCO's training split has a second name
    groups: list[Any] = []
    paths: list[Path] = []
    for where, row in json_list(path, "images", document=document):
        if row.get("split") not in wanted:
            continue
        if len(groups) == options.limit:
            break
        name = file_name(row, "filename", where)
        folder = file_name(row, "filepath", where) if "filepath" in row else ""
        places = [path.parent / place / name for place in ("images", folder, f"images/{folder}", ".")]
        paths.append(next((p for p in places if p.is_file()), places[0]))
        texts = [
            text_of(sentence, "raw", f"{said}, of {where}")
            for said, sentence in json_list(path, "sentences", document=row)
        ]
        groups.append(_item(row_picture(paths[-1], f"{folder}/{name}", where), name, texts, where))
    if not groups:
        raise InputError(f"{path} has no pictures of the split {split!r}.")
    source = f"They belong into {path.parent / 'images'}: the set's own page has them."
    return _files(path, groups, paths, options, source)


def _files(path: Path, groups: Any, paths: Sequence[Path], options: TaskOptions, source: str) -> Source[Captioned]:
    require_pictures(paths, allow_missing=options.allow_missing, source=source)

    def read(_: bool) -> Iterator[tuple[PictureFile, Sequence[Captioned]]]:
        yield from groups

    return Source(files=[path], read=read, pictures=paths)
