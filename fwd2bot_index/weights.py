"""Tensors of safetensors files as numpy arrays, widened to float32, without torch.

The ``safetensors`` package cannot give numpy a bfloat16 tensor, because numpy has no such type. A bfloat16 number is
the upper half of the float32 number of the same value, so widening it is a shift. The format is an 8-byte length, a
JSON header of that length, and the bytes that it describes; every size is checked against the file before memory is
taken.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fwd2bot_index.errors import ModelError

Float32: TypeAlias = NDArray[np.float32]

_LENGTH_BYTES: Final = 8
_MAX_HEADER: Final = 100 * 2**20
"""As in the safetensors package."""
_STORED_AS: Final[Mapping[str, str]] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True, kw_only=True)
class _Place:
    path: Path
    stored: str
    """The ``dtype`` of the header."""
    shape: tuple[int, ...]
    start: int
    """Bytes from the beginning of the file."""
    stop: int


class Weights:
    """The floating-point tensors of one model: ``name -> array``, each read when it is asked for."""

    def __init__(self, places: Mapping[str, _Place]) -> None:
        self._places = places

    @classmethod
    def of_file(cls, path: Path) -> Self:
        """Read the header of one file.

        Raises:
            ModelError: it cannot be read, or is no whole safetensors file.
        """
        return cls(_places(path))

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """``model.safetensors``, or else the shards that its index names.

        Raises:
            ModelError: a file is missing, cannot be read, or is no whole safetensors file.
        """
        whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
        if whole.is_file() or not index.is_file():
            return cls.of_file(whole)
        try:
            homes = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
            shards = {name: _places(folder / name) for name in sorted(set(homes.values()))}
            return cls({tensor: shards[shard][tensor] for tensor, shard in homes.items() if tensor in shards[shard]})
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise ModelError(f"{index} cannot be used: {_reason(e)}.") from e

    def shape(self, name: str) -> tuple[int, ...] | None:
        """None: there is no such tensor, or its numbers are neither float32 nor of half precision."""
        place = self._places.get(name)
        return place.shape if place else None

    def names(self) -> set[str]:
        return set(self._places)

    def read(self, name: str, *, rows: NDArray[np.int64] | None = None) -> Float32:
        """A whole tensor, or the given rows of it: only their bytes are read.

        Raises:
            KeyError: its :meth:`shape` is None.
            IndexError: there is no such row.
            ModelError: the file cannot be read any more.
        """
        place = self._places[name]
        try:
            stored = np.memmap(place.path, np.uint8, mode="r")[place.start : place.stop]
        except (OSError, ValueError) as e:
            raise ModelError(f"Cannot read {place.path}: {_reason(e)}.") from e
        numbers = stored.view(_STORED_AS[place.stored]).reshape(place.shape)
        taken = np.array(numbers if rows is None else numbers[rows])
        if place.stored == "BF16":
            return (taken.astype(np.uint32) << 16).view(np.float32)
        return taken.astype(np.float32, copy=False)


def _places(path: Path) -> dict[str, _Place]:
    """Where each floating-point tensor of a file lies."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if size < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, _MAX_HEADER):
                raise ValueError("its header is cut off")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        first = _LENGTH_BYTES + length
        places = {name: _place(path, entry, first) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise ModelError(f"{path} is not a whole safetensors file ({_reason(e)}): fetch or copy it again.") from e
    end = max((place.stop for place in places.values()), default=0)
    if end > size:
        raise ModelError(
            f"{path} is not a whole safetensors file ({size} of {end} bytes are there): fetch or copy it again."
        )
    return {name: place for name, place in places.items() if place.stored in _STORED_AS}


def _place(path: Path, entry: Any, first: int) -> _Place:
    stored, shape = str(entry["dtype"]), tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, stop)) or start > stop:
        raise ValueError("its header holds sizes that are none")
    if stored in _STORED_AS and stop - start != math.prod(shape) * np.dtype(_STORED_AS[stored]).itemsize:
        raise ValueError("its header contradicts itself")
    return _Place(path=path, stored=stored, shape=shape, start=first + start, stop=first + stop)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
