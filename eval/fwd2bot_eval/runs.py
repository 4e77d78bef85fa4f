"""Running a task over a model: in chunks of pictures, each written down when it is done, so that memory does not grow
with the data and an interrupted run goes on where it stopped.

A run's folder::

    run.json            what is evaluated: another task, model, setting or precision does not go on here
    records/000000.parquet ...   a chunk each; readable with pandas, for a look at single items
    pictures/           of the examples in the report
    skipped.jsonl       with ``--allow-missing``: what could not be scored, and why
    result.json, report.md

Shapes: B pictures of a chunk.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from fwd2bot_eval.results import Example, Skipped, Summary, TaskResult
from fwd2bot_eval.subjects import Float32, Picture, Seen, Subject, TextTooLongError
from fwd2bot_index.decoding import MAX_SIDE, content_id, decode_image
from fwd2bot_index.errors import ImageError, InputError, ModelError

CHUNK_PICTURES: Final = 32
EXAMPLES: Final = 3
"""Successes, and as many failures, of each category in the report."""
_SHOWN_SIDE: Final = 240
_SCORING: Final = 2
"""Of the code that asks and scores: raise it with every change that can move a score, so that no run mixes two."""


@dataclass(frozen=True, kw_only=True)
class PictureFile:
    """A picture that can be read."""

    key: str
    """Of the picture within its data set: items about one key are resampled together."""
    where: str
    """File (and row), as an error names it."""
    read: Callable[[], bytes]
    """Raises ImageError."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing to score about one or two pictures of its chunk. Tasks subclass it."""

    id: str
    category: str
    rows: tuple[int, ...]
    """Of the chunk's pictures; the first one's key is the item's cluster."""


ItemT = TypeVar("ItemT", bound=Item)


@dataclass(frozen=True, kw_only=True)
class Chunk(Generic[ItemT]):
    pictures: Sequence[PictureFile]
    items: Sequence[ItemT]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What came of one item: numbers and texts by name."""

    item: str
    cluster: str
    category: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    vectors: Mapping[str, Float32] = field(default_factory=dict)
    right: bool | None = None
    """For the report's choice of examples; None: no example."""
    shown: str = ""
    """For the report: Markdown of one example, beside its pictures."""
    rows: tuple[int, ...] = ()
    """Of the chunk's pictures, for the report."""


class Task(Protocol[ItemT]):
    """One benchmark. Tasks read their own files; nothing of a model is known here."""

    @property
    def name(self) -> str: ...

    @property
    def data(self) -> str:
        """Where it was read from, for the result."""
        ...

    @property
    def signature(self) -> str:
        """Changes when the data or a setting of the task does."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What was asked for, for the result."""
        ...

    @property
    def total(self) -> int:
        """How many items there are, those without a usable picture included."""
        ...

    def chunks(self) -> Iterator[Chunk[ItemT]]:
        """The same at every call.

        Raises:
            InputError: a file is missing or a row is malformed; names both.
        """
        ...

    def measure(self, subject: Subject, seen: Seen | None, items: Sequence[ItemT]) -> list[Record]:
        """Records of the items of one chunk, in their order; ``seen`` is None in a chunk without pictures."""
        ...

    def summarise(self, records: Records) -> Summary: ...


class Records:
    """All records of a run, read by column."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = list(files)

    def column(self, name: str) -> list[Any]:
        """Values of ``item``, ``cluster``, ``category``, or of a number, text or vector; None where a record has
        none."""
        values: list[Any] = []
        for file in self._files:
            with pq.ParquetFile(file) as parquet:
                has = name in parquet.schema_arrow.names
                count = parquet.metadata.num_rows
                values += parquet.read(columns=[name]).column(0).to_pylist() if has else [None] * count
        return values

    def numbers(self, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """[records], NaN where a record has none."""
        return np.array([np.nan if v is None else v for v in self.column(name)], np.float64)

    def vectors(self, name: str) -> Float32:
        """[records that have it, E]."""
        parts: list[Float32] = []
        for file in self._files:
            with pq.ParquetFile(file) as parquet:
                if name not in parquet.schema_arrow.names:
                    continue
                there = parquet.read(columns=[name]).column(0).drop_null().combine_chunks()
            if len(there):  # by Arrow's own buffer: Python's floats would take ten times the memory
                parts.append(there.flatten().to_numpy().reshape(len(there), -1))
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

    @property
    def clusters(self) -> list[str]:
        return self.column("cluster")

    @property
    def categories(self) -> list[str]:
        return self.column("category")

    def __len__(self) -> int:
        return sum(pq.read_metadata(file).num_rows for file in self._files)


@dataclass(frozen=True, kw_only=True)
class Progress:
    done: int
    """Items."""
    total: int


def run(
    task: Task[Any],
    subject: Subject,
    folder: Path,
    *,
    allow_missing: bool = False,
    progress: Callable[[Progress], None] | None = None,
    command: str = "",
) -> TaskResult:
    """Score ``subject`` on ``task``; what ``folder`` holds of the same run is not computed again.

    Raises:
        InputError: bad data (with file and row), a picture that cannot be used, or a folder with another run.
        ModelError: a score is not a number.
    """
    claim(folder, _identity(task, subject))
    store = _Store(folder)
    started = time.perf_counter()
    before = store.seconds
    done = 0
    for number, chunk in enumerate(task.chunks()):
        if not store.has(number):
            pictures, items, skipped = _read(chunk, subject, allow_missing=allow_missing)
            seen = subject.see(pictures) if pictures else None
            try:
                records = task.measure(subject, seen, items) if items else []
            except TextTooLongError as e:
                raise InputError(f"{task.data}, item {_of_text(items, e.text)}: {e}") from e
            _check(records)
            store.write(number, records, pictures, skipped, seconds=before + time.perf_counter() - started)
        done += len(chunk.items)
        if progress is not None:
            progress(Progress(done=done, total=task.total))
    records_ = store.records()
    if not len(records_):
        raise InputError(f"Nothing could be scored in {task.data}.")
    summary = task.summarise(records_)
    result = TaskResult(
        task=task.name,
        model=subject.name,
        fingerprint=subject.fingerprint,
        data=task.data,
        settings={**task.settings, **subject.settings},
        tables=summary.tables,
        items=len(records_),
        skipped=store.skipped(),
        notes=[*summary.notes, *subject.notes],
        seconds=store.seconds,
        machine=machine(subject.settings),
        command=command,
        examples=store.examples(),
    )
    result.write(folder / "result.json")
    return result


def run_id(task: Task[Any], subject: Subject) -> str:
    """Eight hex digits that name a run: its task with its data, its model, and the settings of both."""
    return hash_of(_identity(task, subject))


def hash_of(identity: str) -> str:
    """Eight hex digits that name the run of that :func:`identity_of`."""
    return hashlib.blake2b(identity.encode(), digest_size=4).hexdigest()


def machine(settings: Mapping[str, Any]) -> str:
    """Cores, processor, the GPU that was used and the precision, in words; ``settings`` have ``device`` and ``dtype``
    (:func:`fwd2bot_eval.subjects.computing`)."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    words = [f"{os.cpu_count()} cores", name]
    if settings["device"] == "cuda":
        words.append(torch.cuda.get_device_name())
    return ", ".join([*words, settings["dtype"]])


def identity_of(*, task: str, data: str, model: str, settings: Mapping[str, Any]) -> str:
    """What a run's ``run.json`` says: ``data`` is a signature, ``model`` a fingerprint."""
    described = {"scoring": _SCORING, "task": task, "data": data, "model": model, "settings": settings}
    return json.dumps(described, indent=2, sort_keys=True)


def _identity(task: Task[Any], subject: Subject) -> str:
    return identity_of(task=task.name, data=task.signature, model=subject.fingerprint, settings=subject.settings)


def claim(folder: Path, identity: str) -> None:
    """Make ``folder`` that of the run, or find that it is already.

    Raises:
        InputError: it holds another run, or something else.
    """
    path = folder / "run.json"
    if path.is_file():
        if path.read_text(encoding="utf-8") != identity:
            raise InputError(
                f"{folder} holds a run of another task, model, data or setting: give another --out, or remove it."
            )
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no evaluation: give another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    _write_whole(path, identity.encode())


def _read(
    chunk: Chunk[Any], subject: Subject, *, allow_missing: bool
) -> tuple[list[Picture], list[Any], list[Skipped]]:
    """Decode; items of a picture that cannot be used are left out, or the run is."""
    import dataclasses

    pictures: list[Picture] = []
    place: dict[int, int] = {}
    skipped: list[Skipped] = []
    for row, file in enumerate(chunk.pictures):
        try:
            data = file.read()
            image = decode_image(data, max_side=subject.decode_side or MAX_SIDE).image
        except ImageError as e:
            if not allow_missing:
                raise InputError(f"{file.where} cannot be used: {e.reason}. Use --allow-missing to go on.") from e
            lost = sum(row in item.rows for item in chunk.items)
            skipped.append(Skipped(where=file.where, reason=e.reason, items=lost))
            continue
        place[row] = len(pictures)
        pictures.append(Picture(image=image, content_id=content_id(data)))
    items = [
        dataclasses.replace(item, rows=tuple(place[r] for r in item.rows))
        for item in chunk.items
        if all(r in place for r in item.rows)
    ]
    return pictures, items, skipped


def _of_text(items: Sequence[Item], text: str) -> str:
    """The id of the item that ``text`` is of, or was made from."""

    def said(value: Any) -> bool:
        if isinstance(value, tuple):
            return any(said(v) for v in value)
        return isinstance(value, str) and len(value) > len(text) // 2 and value in text

    return next((i.id for i in items if any(said(v) for v in vars(i).values())), "unknown")


def _check(records: Sequence[Record]) -> None:
    """A NaN would drop out of an average unseen."""
    for record in records:
        for name, value in record.numbers.items():
            if not np.isfinite(value):
                raise ModelError(f"The model's {name} of item {record.item} is not a number.")
        for name, vector in record.vectors.items():
            if not np.isfinite(vector).all():
                raise ModelError(f"The model's {name} embedding of item {record.item} is not finite.")


class _Store:
    """The folder of one run. A chunk is there when its file is: everything else of it is written before."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "records").mkdir(exist_ok=True)
        (folder / "pictures").mkdir(exist_ok=True)
        self._shown: dict[tuple[str, bool], int] | None = None

    def _file(self, number: int) -> Path:
        return self._folder / "records" / f"{number:06d}.parquet"

    def has(self, number: int) -> bool:
        return self._file(number).is_file()

    def _files(self) -> list[Path]:
        return sorted((self._folder / "records").glob("*.parquet"))

    def records(self) -> Records:
        return Records(self._files())

    @property
    def seconds(self) -> float:
        files = self._files()
        return max((self._metadata(f)["seconds"] for f in files), default=0.0)

    def skipped(self) -> list[Skipped]:
        return [Skipped(**s) for f in self._files() for s in self._metadata(f)["skipped"]]

    def examples(self) -> list[Example]:
        return [Example(**e) for f in self._files() for e in self._metadata(f)["examples"]]

    @staticmethod
    def _metadata(file: Path) -> dict[str, Any]:
        return dict(json.loads(pq.read_metadata(file).metadata[b"fwd2bot"]))

    def write(
        self,
        number: int,
        records: Sequence[Record],
        pictures: Sequence[Picture],
        skipped: Sequence[Skipped],
        *,
        seconds: float,
    ) -> None:
        examples = self._choose(number, records, pictures)
        metadata = {
            "seconds": seconds,
            "skipped": [vars(s) for s in skipped],
            "examples": [vars(e) for e in examples],
        }
        table = _table(records).replace_schema_metadata({"fwd2bot": json.dumps(metadata)})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        _write_whole(self._file(number), sink.getvalue().to_pybytes())

    def _choose(self, number: int, records: Sequence[Record], pictures: Sequence[Picture]) -> list[Example]:
        """The first few successes and failures of each category, with small copies of their pictures."""
        if self._shown is None:
            self._shown = {}
            for e in self.examples():
                self._shown[e.category, e.right] = self._shown.get((e.category, e.right), 0) + 1
        chosen: list[Example] = []
        for i, record in enumerate(records):
            if record.right is None or self._shown.get((record.category, record.right), 0) >= EXAMPLES:
                continue
            key = (record.category, record.right)
            self._shown[key] = self._shown.get(key, 0) + 1
            names = []
            for row in record.rows:
                name = f"pictures/{number:06d}-{i}-{row}.jpg"
                image = pictures[row].image.copy()
                image.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
                image.save(self._folder / name, quality=85)
                names.append(name)
            chosen.append(Example(category=record.category, right=record.right, text=record.shown, pictures=names))
        return chosen


def _table(records: Sequence[Record]) -> pa.Table:
    columns: dict[str, Any] = {
        "item": pa.array([r.item for r in records], pa.string()),
        "cluster": pa.array([r.cluster for r in records], pa.string()),
        "category": pa.array([r.category for r in records], pa.string()),
    }
    for kind, type_ in (("numbers", pa.float64()), ("texts", pa.string()), ("vectors", pa.list_(pa.float32()))):
        for name in dict.fromkeys(n for r in records for n in getattr(r, kind)):
            if name in columns:
                raise ValueError(f"two columns are called {name!r}")
            columns[name] = pa.array([getattr(r, kind).get(name) for r in records], type_)
    return pa.table(columns)


def _write_whole(path: Path, data: bytes) -> None:
    """All of it or nothing, also after a crash."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
