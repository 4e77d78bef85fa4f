"""What all codecs share: the types of tokens and payloads, their checks, and the rotation that spreads large
coordinates.

Numpy only. Shapes: B batch, K summary tokens, D hidden size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from fwd2bot_index.errors import IndexCorruptedError, ModelError

Float32: TypeAlias = npt.NDArray[np.float32]
Bytes: TypeAlias = npt.NDArray[np.uint8]

_CACHED_BYTES: Final = 2**20


def check_finite(tokens: Float32) -> None:
    """``tokens``: [B, K, D].

    Raises:
        ModelError: one is NaN or infinite.
    """
    assert tokens.ndim == 3, tokens.shape
    if not np.isfinite(tokens).all():
        raise ModelError("The model produced summary tokens that are not finite.")


def check_size(name: str, expected: int, payload: Bytes, *, k: int, d: int) -> None:
    """``payload``: [B, expected].

    Raises:
        IndexCorruptedError: it is not.
    """
    if payload.dtype != np.uint8 or payload.ndim != 2 or payload.shape[1] != expected:
        raise IndexCorruptedError(
            f"Stored summary tokens have the shape {payload.shape} of {payload.dtype}; "
            f"{k} tokens of size {d} in {name} take {expected} bytes."
        )


def damaged(what: str) -> IndexCorruptedError:
    """Payloads that no encoder writes."""
    return IndexCorruptedError(f"Stored summary tokens {what}; the index is damaged: index again.")


def parts(count: int, bytes_each: int) -> Iterator[slice]:
    """Consecutive parts of ``count`` rows that stay in a processor's cache from one step to the next: at 16 x 4096 that
    halves the time of decoding."""
    step = max(1, _CACHED_BYTES // bytes_each)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def block_size(d: int, *, largest: int) -> int:
    """The largest divisor of ``d`` up to ``largest``."""
    return next(size for size in range(min(d, largest), 0, -1) if d % size == 0)


@lru_cache(maxsize=16)
def rotation(size: int) -> Float32:
    """[size, size], orthogonal, the same for ever: ``blocks @ rotation(size)`` spreads each coordinate over its block.

    It is diag(signs) (H x C), with H the Hadamard matrix of the power of two in ``size`` (as in QuIP#, arXiv
    2402.04396) and C the Hartley matrix of what is left, whose entries are no larger than sqrt(2 / size).
    """
    matrix = np.ones((1, 1))
    while size % (2 * len(matrix)) == 0:
        matrix = np.kron(np.array([[1, 1], [1, -1]]), matrix)
    odd = size // len(matrix)
    angles = 2 * np.pi * (np.outer(np.arange(odd), np.arange(odd)) % odd) / odd
    matrix = np.kron(matrix, np.cos(angles) + np.sin(angles)) / np.sqrt(size)
    return (_signs(size)[:, None] * matrix).astype(np.float32)


def _signs(size: int) -> Float32:
    """[size] of +1 and -1, from a hash: numpy does not promise its random streams for ever, and an index must."""
    digest = hashlib.shake_256(b"fwd2bot token rotation").digest(-(-size // 8))
    return (1 - 2 * np.unpackbits(np.frombuffer(digest, np.uint8))[:size].astype(np.float32)).astype(np.float32)
