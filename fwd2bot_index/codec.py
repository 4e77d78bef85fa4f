"""How summary tokens are written: float32 [B, K, D] to bytes of an exact size and back.

Notable choices:

- The size of a payload follows from the codec, K and D alone, so a reader checks it before allocating anything.
- Scales are kept inside the payload: one payload, one size, one column in the store.
- ``int4`` and ``int2`` rotate each token first (a randomised Hadamard transform), which makes its coordinates nearly
  normal whatever they were: then one scale a token and the fixed levels that are best for a normal variable suffice.
- Numbers are little-endian on every machine. Nothing is pickled.
- Numpy only: an index can be read without torch.

Shapes: B batch, K summary tokens, D hidden size.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from fwd2bot_index.errors import IndexCorruptedError, IndexMismatchError, ModelError

Float32: TypeAlias = npt.NDArray[np.float32]
Bytes: TypeAlias = npt.NDArray[np.uint8]

_FLOAT16_MAX: Final = float(np.finfo(np.float16).max)
_INT8_MAX: Final = 127
# float32's largest / 127 rounds up, and 127 of those would be infinite.
_LARGEST_SCALE: Final = np.nextafter(np.finfo(np.float32).max / np.float32(_INT8_MAX), np.float32(0))


class Codec(Protocol):
    """One way of writing summary tokens."""

    @property
    def name(self) -> str:
        """What the manifest records."""
        ...

    def payload_bytes(self, k: int, d: int) -> int:
        """Size of the payload of one picture of ``k`` tokens of size ``d``."""
        ...

    def encode(self, tokens: Float32) -> Bytes:
        """[B, K, D] -> [B, payload_bytes(K, D)].

        Raises:
            ModelError: a token is NaN or infinite: the model that made it is at fault.
        """
        ...

    def decode(self, payload: Bytes, *, k: int, d: int) -> Float32:
        """[B, payload_bytes(k, d)] -> [B, k, d].

        Raises:
            IndexCorruptedError: the payload has another size, or holds numbers that :meth:`encode` never writes.
        """
        ...


class Float16Codec:
    """Two bytes a number, rounded to nearest: a relative error of at most 2^-11 for normal numbers.

    Values beyond the largest float16 (65504) are clamped to it, the nearest that can be written: LLMs have a few such
    coordinates at most, and one of them is no reason to leave a picture out.
    """

    name = "float16"

    def payload_bytes(self, k: int, d: int) -> int:
        return 2 * k * d

    def encode(self, tokens: Float32) -> Bytes:
        _check_finite(tokens)
        halves = np.clip(tokens, -_FLOAT16_MAX, _FLOAT16_MAX).astype("<f2")
        return halves.reshape(len(tokens), -1).view(np.uint8)

    def decode(self, payload: Bytes, *, k: int, d: int) -> Float32:
        _check_size(self, payload, k, d)
        tokens: Float32 = np.ascontiguousarray(payload).view("<f2").astype(np.float32).reshape(-1, k, d)
        if not np.isfinite(tokens).all():
            raise IndexCorruptedError("Stored summary tokens are not finite; the index is damaged: index again.")
        return tokens


class Int8Codec:
    """One byte a number and one float32 scale a token (its largest magnitude / 127): an error of half a scale at most.

    A payload is the K scales, then the K x D integers, token by token.
    """

    name = "int8"

    def payload_bytes(self, k: int, d: int) -> int:
        return k * (4 + d)

    def encode(self, tokens: Float32) -> Bytes:
        _check_finite(tokens)
        largest = np.abs(tokens).max(axis=-1, initial=0.0)
        scales = np.minimum(largest / np.float32(_INT8_MAX), _LARGEST_SCALE).astype("<f4")
        # A token too small for its scale to be written (a subnormal / 127) becomes zero: the division must not warn.
        divisors = np.where(scales > 0, scales, np.float32(np.inf))[..., None]
        # The quotient can exceed 127 by a rounding error where the scale is subnormal.
        integers = np.clip(np.rint(tokens / divisors), -_INT8_MAX, _INT8_MAX).astype(np.int8)
        rows = len(tokens)
        return np.concatenate(
            [scales.reshape(rows, -1).view(np.uint8), integers.reshape(rows, -1).view(np.uint8)], axis=1
        )

    def decode(self, payload: Bytes, *, k: int, d: int) -> Float32:
        _check_size(self, payload, k, d)
        scales = np.ascontiguousarray(payload[:, : 4 * k]).view("<f4").astype(np.float32)
        if not ((scales >= 0) & (scales <= _LARGEST_SCALE)).all():
            raise IndexCorruptedError(
                "Stored summary tokens have impossible scales; the index is damaged: index again."
            )
        integers = np.ascontiguousarray(payload[:, 4 * k :]).view(np.int8).reshape(-1, k, d)
        return integers.astype(np.float32) * scales[..., None]


_LEVELS: Final = {
    2: np.array([0.4528, 1.5104], np.float32),
    4: np.array([0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326], np.float32),
}
"""By bits: the positive half of the levels of least squared error for a standard normal variable (Max, "Quantizing for
minimum distortion", 1960)."""
_REFINEMENTS: Final = 2
_CELLS: Final = 256
"""Cells per unit of the table that finds the nearest level; it ends at 4 standard deviations, beyond all borders."""
_LARGEST_ROTATED_SCALE: Final = np.float32(2.0**100)
"""A token with larger coordinates than an LLM could compute with is clamped, so that decoding cannot overflow."""


class RotatedCodec:
    """``bits`` (2 or 4) a number after a rotation, and one bfloat16 scale a token.

    The relative error of a token, in the Euclidean norm, is near 0.34 with 2 bits and 0.10 with 4 (0.343 and 0.098 are
    what a normal variable leaves), and a few large coordinates do not change that: the rotation spreads each over its
    block. It is H diag(signs), with H a Hadamard matrix over blocks of the largest power of two that divides D (as in
    QuIP#, arXiv 2402.04396), and signs that are the same for ever.

    A payload is the K scales, then the K x D level numbers, token by token, the first in the lowest bits of its byte.
    """

    def __init__(self, bits: int) -> None:
        self.name = f"int{bits}"
        self._bits = bits
        self._levels = np.concatenate([-_LEVELS[bits][::-1], _LEVELS[bits]])
        borders = (self._levels[1:] + self._levels[:-1]) / 2
        centres = (np.arange(8 * _CELLS) + 0.5) / _CELLS - 4
        self._nearest = np.searchsorted(borders, centres).astype(np.uint8)
        a_byte = np.arange(256)[:, None] >> (np.arange(8 // bits) * bits) & (2**bits - 1)
        self._values = self._levels[a_byte]
        """[256, 8 / bits]: the levels that each byte stands for."""

    def payload_bytes(self, k: int, d: int) -> int:
        return k * (2 + -(-d * self._bits // 8))

    def encode(self, tokens: Float32) -> Bytes:
        _check_finite(tokens)
        # Tokens are brought to a largest magnitude of 1 before anything is squared or added up.
        largest = np.abs(tokens).max(axis=-1, keepdims=True, initial=0.0).astype(np.float32)
        rotated = _rotate(_divide(tokens, largest))
        scale = np.sqrt(np.mean(np.square(rotated), axis=-1, keepdims=True))
        for _ in range(_REFINEMENTS):  # the best scale for these level numbers, then the best numbers for that scale
            values = self._levels[self._numbers(rotated, scale)]
            scale = _divide((rotated * values).sum(-1, keepdims=True), np.square(values).sum(-1, keepdims=True))
        high = _bfloat16(np.minimum(scale.astype(np.float64) * largest, _LARGEST_ROTATED_SCALE).astype(np.float32))
        packed = self._pack(self._numbers(rotated, _divide(_from_bfloat16(high), largest)))
        return np.concatenate([high.reshape(len(tokens), -1).view(np.uint8), packed.reshape(len(tokens), -1)], axis=1)

    def decode(self, payload: Bytes, *, k: int, d: int) -> Float32:
        _check_size(self, payload, k, d)
        scale = _from_bfloat16(np.ascontiguousarray(payload[:, : 2 * k]).view("<u2")).reshape(-1, k, 1)
        if not ((scale >= 0) & (scale <= _LARGEST_ROTATED_SCALE)).all():
            raise IndexCorruptedError(
                "Stored summary tokens have impossible scales; the index is damaged: index again."
            )
        values = self._values[payload[:, 2 * k :]].reshape(len(payload), k, -1)[..., :d]
        return _hadamard(values) * _signs(d) * scale

    def _numbers(self, rotated: Float32, scale: Float32) -> Bytes:
        """[B, K, D] the number of the nearest level, for one scale a token."""
        cells = _divide(rotated, scale / _CELLS) + 4 * _CELLS
        return self._nearest[np.clip(cells, 0, 8 * _CELLS - 1).astype(np.uint16)]

    def _pack(self, numbers: Bytes) -> Bytes:
        """[B, K, D] -> [B, K, ceil(D bits / 8)]."""
        a_byte = 8 // self._bits
        batch, k, d = numbers.shape
        padded = np.zeros((batch, k, -(-d // a_byte) * a_byte), np.uint8)
        padded[..., :d] = numbers
        packed = padded[..., ::a_byte].copy()
        for i in range(1, a_byte):
            packed |= padded[..., i::a_byte] << np.uint8(i * self._bits)
        return packed


def _divide(numbers: Float32, by: npt.NDArray[np.floating]) -> Float32:
    """0 where ``by`` is 0, and no warning where the quotient is too small or too large to be written."""
    with np.errstate(under="ignore", over="ignore"):
        return np.divide(numbers, by, out=np.zeros(numbers.shape, np.float32), where=by > 0)


def _rotate(tokens: Float32) -> Float32:
    return _hadamard(tokens * _signs(tokens.shape[-1]))


def _hadamard(rows: Float32) -> Float32:
    """Over blocks of the last axis; symmetric and orthogonal, so its own inverse.

    H of 2^(a+b) is the Kronecker product of those of 2^a and 2^b: two products with matrices of 64 at most.
    """
    *_, d = rows.shape
    block = d & -d
    right = min(block, 64)
    blocks = rows.reshape(-1, right) @ _hadamard_matrix(right)
    if block > right:
        blocks = _hadamard_matrix(block // right) @ blocks.reshape(-1, block // right, right)
    return blocks.reshape(rows.shape)


@lru_cache(maxsize=16)
def _hadamard_matrix(n: int) -> Float32:
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < n:
        matrix = np.kron(np.array([[1, 1], [1, -1]], np.float32), matrix)
    return (matrix / np.sqrt(np.float32(n))).astype(np.float32)


@lru_cache(maxsize=16)
def _signs(d: int) -> Float32:
    """[D] of +1 and -1, from a hash: numpy does not promise its random streams for ever, and an index must."""
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(b"fwd2bot token rotation").digest(-(-d // 8)), np.uint8))[:d]
    return (1 - 2 * bits.astype(np.float32)).astype(np.float32)


def _bfloat16(numbers: Float32) -> npt.NDArray[np.uint16]:
    """The upper half of each float32, rounded to nearest; numbers are not negative."""
    return ((np.ascontiguousarray(numbers, "<f4").view("<u4") + 0x8000) >> 16).astype("<u2")


def _from_bfloat16(high: npt.NDArray[np.uint16]) -> Float32:
    return (high.astype("<u4") << 16).view("<f4").astype(np.float32)


_CODECS: Final[dict[str, Codec]] = {
    codec.name: codec for codec in (Float16Codec(), Int8Codec(), RotatedCodec(4), RotatedCodec(2))
}
CODEC_NAMES: Final = tuple(_CODECS)


def get_codec(name: str) -> Codec:
    """The codec of that name.

    Raises:
        IndexMismatchError: there is none; this fwd2bot can neither write nor read such an index.
    """
    try:
        return _CODECS[name]
    except KeyError:
        raise IndexMismatchError(f"There is no codec {name!r}; this fwd2bot knows {', '.join(CODEC_NAMES)}.") from None


def _check_finite(tokens: Float32) -> None:
    assert tokens.ndim == 3, tokens.shape
    if not np.isfinite(tokens).all():
        raise ModelError("The model produced summary tokens that are not finite.")


def _check_size(codec: Codec, payload: Bytes, k: int, d: int) -> None:
    expected = codec.payload_bytes(k, d)
    if payload.dtype != np.uint8 or payload.ndim != 2 or payload.shape[1] != expected:
        raise IndexCorruptedError(
            f"Stored summary tokens have the shape {payload.shape} of {payload.dtype}; "
            f"{k} tokens of size {d} in {codec.name} take {expected} bytes."
        )
