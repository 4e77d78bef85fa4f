"""64-bit hashes that stand for strings where millions are compared: 8 bytes in memory for each instead of a hundred.

Two of a million different strings share one with a probability of 3e-8; of a hundred million, 3e-4.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

UInt64: TypeAlias = npt.NDArray[np.uint64]


def keys_of(strings: Any) -> UInt64:
    """[n] of a column of n strings or fewer, where some are null."""
    values = strings.drop_null().to_pylist()
    digests = (hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest() for value in values)
    return np.frombuffer(b"".join(digests), np.uint64)


def content_keys(ids: Any) -> UInt64:
    """[n]: the first 64 bits of the content ids (32 hexadecimal digits) in a column without nulls; of other strings, as
    :func:`keys_of`."""
    column = ids.combine_chunks() if hasattr(ids, "combine_chunks") else ids
    lengths = pc.binary_length(column)
    if len(column) == 0 or not pc.all(pc.equal(lengths, _ID_DIGITS)).as_py():
        return keys_of(column)
    digits = np.frombuffer(column.buffers()[2], np.uint8)
    start = _ID_DIGITS * column.offset
    digits = digits[start : start + _ID_DIGITS * len(column)].reshape(-1, _ID_DIGITS)[:, :16]
    nibbles = _NIBBLE[digits]
    if (nibbles > 15).any():
        return keys_of(column)
    pairs = (nibbles[:, ::2] << 4) | nibbles[:, 1::2]
    return np.ascontiguousarray(pairs).view(">u8")[:, 0].astype(np.uint64)


def is_among(values: UInt64, known: UInt64) -> npt.NDArray[np.bool_]:
    """[n]: which of ``values`` [n] are in ``known``, which is sorted. (``np.isin`` sorts both, each time.)"""
    if len(known) == 0:
        return np.zeros(len(values), np.bool_)
    place = np.minimum(np.searchsorted(known, values), len(known) - 1)
    found: npt.NDArray[np.bool_] = known[place] == values
    return found


_ID_DIGITS: Final = 32
_NIBBLE: Final = np.full(256, 255, np.uint8)
for _value, _digit in enumerate("0123456789abcdef"):
    _NIBBLE[ord(_digit)] = _value


def is_text(uri: str) -> bool:
    """Whether it can be recorded: some file systems allow names that are no UTF-8."""
    try:
        uri.encode()
    except UnicodeEncodeError:
        return False
    return True
