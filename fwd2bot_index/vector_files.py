"""The trained vector index of an index, on disk.

::

    INDEX/faiss/
      current.json          which of the files below is in use, what made it, its recall and its effort
      NAME.faiss            FAISS's own file: positions 0 to N - 1 of pictures
      NAME.safetensors      key [N] of the picture at each position; address [M] and position [M] of the rows that had
                            those pictures in one version of the table, sorted by position, and row [M] of their names
      NAME.arrow            their names, see :mod:`fwd2bot_index.hit_names`

It is made of the table and can always be made again: what is wrong with it is a reason to search without it, and no
damage to the index. ``current.json`` is written last; a reader that has the files of before goes on with them.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fwd2bot_index import hit_names
from fwd2bot_index.hit_names import HitNames
from fwd2bot_index.places import Place, write_atomically
from fwd2bot_index.vector_index import DEPTHS, KINDS, Settings, TrainedIndex

FOLDER: Final = "faiss"
_CURRENT: Final = "current.json"
_ENDS: Final = (".faiss", ".safetensors", ".arrow")
_ARRAYS: Final = ("key", "address", "position", "row")
_MAX_ROWS: Final = 2**40


class UnusableError(Exception):
    """Why a vector index cannot be used."""


@dataclass(frozen=True, kw_only=True)
class VectorFiles:
    """What ``current.json`` says."""

    name: str
    settings: Settings
    rows_of: str
    """Which rows the addresses are of: :attr:`fwd2bot_index.snapshots.Snapshot.files`, when the index was built."""
    table_rows: int
    """Rows of the table that it covers; more than its pictures where several files have the same bytes."""
    created: str
    """ISO 8601, UTC."""
    seconds: float
    """That building took."""
    written: Mapping[str, tuple[int, str]]
    """The end of each file's name -> its bytes and their SHA-256."""

    @property
    def index_bytes(self) -> int:
        """Of all files."""
        return sum(size for size, _ in self.written.values())

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, raw: str) -> VectorFiles:
        """
        Raises:
            UnusableError: nothing that this version wrote.
        """
        try:
            fields: dict[str, Any] = json.loads(raw)
            inner = fields["settings"]
            effort, recall = inner["effort"], inner["recall"]
            settings = Settings(**{**inner, "effort": tuple(effort), "recall": tuple(recall)})
            written = {end: (int(fields["written"][end][0]), str(fields["written"][end][1])) for end in _ENDS}
            found = cls(**{**fields, "settings": settings, "written": written})
        except (ValueError, TypeError, KeyError, IndexError) as e:
            raise UnusableError(f"its {_CURRENT} cannot be read") from e
        numbers = (settings.rows, settings.dim, settings.candidates, *effort, found.table_rows)
        if not all(isinstance(n, int) and 0 < n < _MAX_ROWS for n in numbers) or len(effort) != len(DEPTHS):
            raise UnusableError(f"its {_CURRENT} has numbers that cannot be")
        if settings.kind not in KINDS or not str(found.name).isalnum() or not isinstance(found.rows_of, str):
            raise UnusableError(f"its {_CURRENT} is of no kind that this version knows")
        return found


@dataclass(frozen=True, kw_only=True)
class Positions:
    """What the positions of a trained index stand for."""

    key: npt.NDArray[np.uint64]
    """[N], of the picture at each position."""
    address: npt.NDArray[np.uint64]
    """[M], of rows."""
    position: npt.NDArray[np.int64]
    """[M], of the picture of each of them; sorted."""
    row: npt.NDArray[np.int64]
    """[M], of the name of each of them."""


def described(place: Place) -> VectorFiles | None:
    """What is said of the vector index of the index there; None: there is none, as in no object store: FAISS reads
    whole files, and Lance's own index what it needs.

    Raises:
        UnusableError: it cannot be understood.
    """
    if place.folder is None:
        return None
    try:
        return VectorFiles.from_json((place.folder / FOLDER / _CURRENT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as e:
        raise UnusableError(f"its {_CURRENT} cannot be read") from e


def read(place: Place, files: VectorFiles) -> tuple[TrainedIndex, Positions, HitNames]:
    """The vector index itself.

    Raises:
        UnusableError: a file is missing, or not what was written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    assert place.folder is not None
    index_path, rows_path, names_path = paths = _paths(place.folder / FOLDER, files.name)
    expected = 8 * files.settings.rows + 24 * files.table_rows
    try:
        sizes = [path.stat().st_size for path in paths]
        if sizes != [size for size, _ in files.written.values()] or not 0 <= sizes[1] - expected < 4096:
            raise UnusableError("a file has another size than was written")
        index = TrainedIndex.read(index_path, files.settings)
        arrays = load_file(rows_path)
        found = Positions(**{name: arrays[name] for name in _ARRAYS})
        names = HitNames(names_path, files.table_rows)
    except (OSError, ValueError, KeyError, SafetensorError) as e:
        raise UnusableError(" ".join(str(e).split())) from e
    kinds = [(array.dtype.name, array.shape) for array in (found.key, found.address, found.position, found.row)]
    rows = (files.table_rows,)
    if kinds != [("uint64", (len(index),)), ("uint64", rows), ("int64", rows), ("int64", rows)]:
        raise UnusableError("its positions are not those of its vectors")
    if len(found.position) and (found.position[0] < 0 or found.position[-1] >= len(index)):
        raise UnusableError("its positions are not those of its vectors")
    return index, found, names


def write(
    place: Place, index: TrainedIndex, positions: Positions, names: Iterable[Any], *, rows_of: str, seconds: float
) -> VectorFiles:
    """Put a vector index in the place of the one before; ``names`` are Arrow's ``HIT_COLUMNS`` of all of its rows,
    piece by piece."""
    from safetensors.numpy import save_file

    assert place.folder is not None
    folder = place.folder / FOLDER
    folder.mkdir(exist_ok=True)
    name = f"{index.settings.kind.replace('-', '')}x{secrets.token_hex(8)}"
    index_path, rows_path, names_path = paths = _paths(folder, name)
    index.write(index_path)
    save_file({name: getattr(positions, name) for name in _ARRAYS}, rows_path)
    hit_names.write(names_path, names)
    files = VectorFiles(
        name=name,
        settings=index.settings,
        rows_of=rows_of,
        table_rows=len(positions.address),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        written={path.suffix: (path.stat().st_size, _sha256(path)) for path in paths},
    )
    write_atomically(folder / _CURRENT, files.to_json().encode())
    _sweep(folder, keep=files.name)
    return files


def remove(place: Place) -> None:
    """Take the vector index away."""
    if place.folder is not None and (folder := place.folder / FOLDER).is_dir():
        (folder / _CURRENT).unlink(missing_ok=True)
        _sweep(folder, keep=None)


def problem(place: Place) -> str | None:
    """What is wrong with the vector index: all of its bytes are read. None: nothing, or there is none."""
    try:
        files = described(place)
        if files is not None:
            read(place, files)
            assert place.folder is not None
            paths = _paths(place.folder / FOLDER, files.name)
            if [_sha256(path) for path in paths] != [sha256 for _, sha256 in files.written.values()]:
                return "its bytes are not those that were written"
    except (UnusableError, OSError) as e:
        return str(e)
    return None


def _paths(folder: Path, name: str) -> list[Path]:
    return [folder / f"{name}{end}" for end in _ENDS]


def _sweep(folder: Path, *, keep: str | None) -> None:
    for path in _files(folder):
        if path.stem != keep:
            path.unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[Path]:
    for end in _ENDS:
        yield from folder.glob(f"*{end}")


def _sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
