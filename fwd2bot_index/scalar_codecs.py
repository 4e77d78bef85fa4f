"""Codecs that know nothing of the corpus: each number is rounded by itself, after a rotation where bits are few.

``int4`` and ``int2`` rotate blocks of each token first, which makes their coordinates nearly normal whatever they were:
then one scale a block and the fixed levels that are best for a normal variable suffice.

Numpy only. Shapes: B batch, K summary tokens, D hidden size, G blocks of a token.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from fwd2bot_index.payloads import Bytes, Float32, block_size, check_finite, check_size, damaged, parts, rotation

_FLOAT16_MAX: Final = float(np.finfo(np.float16).max)
_FLOAT16_INFINITY: Final = 0x7C00
_INT8_MAX: Final = 127
# float32's largest / 127 rounds up, and 127 of those would be infinite.
_LARGEST_SCALE: Final = np.nextafter(np.finfo(np.float32).max / np.float32(_INT8_MAX), np.float32(0))


class Float16Codec:
    """Two bytes a number, rounded to nearest: a relative error of at most 2^-11 for normal numbers.

    Values beyond the largest float16 (65504) are clamped to it, the nearest that can be written: LLMs have a few such
    coordinates at most, and one of them is no reason to leave a picture out.
    """

    name = "float16"

    def payload_bytes(self, k: int, d: int) -> int:
        return 2 * k * d

    def encode(self, tokens: Float32) -> Bytes:
        check_finite(tokens)
        halves = np.clip(tokens, -_FLOAT16_MAX, _FLOAT16_MAX).astype("<f2")
        return halves.reshape(len(tokens), -1).view(np.uint8)

    def decode(self, payload: Bytes, *, k: int, d: int) -> Float32:
        check_size(self.name, self.payload_bytes(k, d), payload, k=k, d=d)
        payload = np.ascontiguousarray(payload)
        # infinity and NaN are the largest of all bit patterns: two passes over two bytes a number, not over four
        if (payload.view("<u2") & 0x7FFF).max(initial=0) >= _FLOAT16_INFINITY:
            raise damaged("are not finite")
        return payload.view("<f2").astype(np.float32).reshape(-1, k, d)


class Int8Codec:
    """One byte a number and one float32 scale a token (its largest magnitude / 127): an error of half a scale at most.

    A payload is the K scales, then the K x D integers, token by token.
    """

    name = "int8"

    def payload_bytes(self, k: int, d: int) -> int:
        return k * (4 + d)

    def encode(self, tokens: Float32) -> Bytes:
        check_finite(tokens)
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
        check_size(self.name, self.payload_bytes(k, d), payload, k=k, d=d)
        scales = np.ascontiguousarray(payload[:, : 4 * k]).view("<f4").astype(np.float32)
        if not ((scales >= 0) & (scales <= _LARGEST_SCALE)).all():
            raise damaged("have impossible scales")
        tokens: Float32 = payload[:, 4 * k :].view(np.int8).astype(np.float32).reshape(-1, k, d)
        tokens *= scales[..., None]
        return tokens


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
_LARGEST_BLOCK: Final = 192
_STEPS_PER_OCTAVE: Final = 16
_ZERO: Final = 255
"""The scale of a block that is zero, or 2^-16 of the picture's largest."""


class RotatedCodec:
    """``bits`` (2 or 4) a number after a rotation within blocks, and one scale a block of up to 192 numbers.

    The relative error of a token, in the Euclidean norm, is near 0.34 with 2 bits and 0.10 with 4 (0.343 and 0.098 are
    what a normal variable leaves). A large coordinate does not change that, for the rotation spreads it over its block;
    and the other blocks, with scales of their own, do not feel it.

    A payload is the largest scale of the picture in bfloat16, the scale of each block as sixteenths of an octave below
    that, one byte each, and the K x D level numbers, token by token, the first in the lowest bits of its byte.
    """

    def __init__(self, bits: int) -> None:
        self.name = f"int{bits}"
        self._bits = bits
        self._levels = np.concatenate([-_LEVELS[bits][::-1], _LEVELS[bits]])
        borders = (self._levels[1:] + self._levels[:-1]) / 2
        centres = (np.arange(8 * _CELLS) + 0.5) / _CELLS - 4
        self._nearest = np.searchsorted(borders, centres).astype(np.uint8)

    @cached_property
    def _values(self) -> Float32:
        """[65536, 16 / bits]: the levels that each two bytes stand for."""
        two_bytes = np.arange(65536)[:, None] >> (np.arange(16 // self._bits) * self._bits)
        return self._levels[two_bytes & (2**self._bits - 1)]

    def payload_bytes(self, k: int, d: int) -> int:
        return 2 + k * (d // _block(d) + self._row_bytes(d))

    def _row_bytes(self, d: int) -> int:
        return -(-d * self._bits // 8)

    def encode(self, tokens: Float32) -> Bytes:
        check_finite(tokens)
        rows, k, d = tokens.shape
        # Blocks are brought to a largest magnitude of 1 before anything is squared or added up.
        blocks = tokens.reshape(rows, -1, _block(d)).astype(np.float32, copy=False)
        largest = np.abs(blocks).max(axis=-1, keepdims=True, initial=0.0)
        rotated = _divide(blocks, largest) @ rotation(_block(d))
        scale = np.sqrt(np.mean(np.square(rotated), axis=-1, keepdims=True))
        for _ in range(_REFINEMENTS):  # the best scale for these level numbers, then the best numbers for that scale
            values = self._levels[self._numbers(rotated, scale)]
            scale = _divide((rotated * values).sum(-1, keepdims=True), np.square(values).sum(-1, keepdims=True))
        scale = np.minimum(scale.astype(np.float64) * largest, _LARGEST_ROTATED_SCALE).astype(np.float32)
        high = _bfloat16(scale.max(axis=1, initial=0.0))
        below = _below(scale[..., 0], _from_bfloat16(high))
        written = _scales(below, _from_bfloat16(high))[..., None]
        packed = self._pack(self._numbers(rotated, _divide(written, largest)).reshape(rows, k, d))
        return np.concatenate([high.view(np.uint8), below, packed.reshape(rows, -1)], axis=1)

    def decode(self, payload: Bytes, *, k: int, d: int) -> Float32:
        check_size(self.name, self.payload_bytes(k, d), payload, k=k, d=d)
        size = _block(d)
        largest = _from_bfloat16(np.ascontiguousarray(payload[:, :2]).view("<u2"))
        if not ((largest >= 0) & (largest <= _LARGEST_ROTATED_SCALE)).all():
            raise damaged("have impossible scales")
        at = 2 + k * (d // size)
        scales = _scales(payload[:, 2:at], largest)
        length = k * self._row_bytes(d)
        packed = np.zeros((len(payload), length + length % 2), np.uint8)
        packed[:, :length] = payload[:, at:]
        blocks = np.empty((len(payload), k * d // size, size), np.float32)
        for part in parts(len(payload), 4 * k * d):
            values = np.take(self._values, packed[part].view("<u2"), axis=0).reshape(len(blocks[part]), -1)
            values = values[:, : length * 8 // self._bits].reshape(len(values), k, -1)[..., :d]
            np.matmul(values.reshape(-1, size), rotation(size).T, out=blocks[part].reshape(-1, size))
            blocks[part] *= scales[part, :, None]
        return blocks.reshape(-1, k, d)

    def _numbers(self, rotated: Float32, scale: Float32) -> Bytes:
        """The number of the nearest level, for one scale along the last axis."""
        cells = _divide(rotated, scale / _CELLS) + 4 * _CELLS
        return self._nearest[np.clip(cells, 0, 8 * _CELLS - 1).astype(np.uint16)]

    def _pack(self, numbers: Bytes) -> Bytes:
        """[B, K, D] -> [B, K, ceil(D bits / 8)]."""
        a_byte = 8 // self._bits
        batch, k, d = numbers.shape
        padded = np.zeros((batch, k, self._row_bytes(d) * a_byte), np.uint8)
        padded[..., :d] = numbers
        packed = padded[..., ::a_byte].copy()
        for i in range(1, a_byte):
            packed |= padded[..., i::a_byte] << np.uint8(i * self._bits)
        return packed


def _block(d: int) -> int:
    return block_size(d, largest=_LARGEST_BLOCK)


def _divide(numbers: Float32, by: npt.NDArray[np.floating]) -> Float32:
    """0 where ``by`` is 0, and no warning where the quotient is too small or too large to be written."""
    with np.errstate(under="ignore", over="ignore"):
        return np.divide(numbers, by, out=np.zeros(numbers.shape, np.float32), where=by > 0)


def _below(scale: Float32, largest: Float32) -> Bytes:
    """[B, K G] scales as steps below ``largest`` [B, 1], or ``_ZERO``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.rint(_STEPS_PER_OCTAVE * (np.log2(largest) - np.log2(scale)))
    # NaN where all is zero, and infinity where one is: neither is below _ZERO
    return np.where(steps < _ZERO, np.maximum(steps, 0), _ZERO).astype(np.uint8)


def _scales(below: Bytes, largest: Float32) -> Float32:
    """[B, K G], the inverse of :func:`_below`."""
    factors = np.exp2(-np.arange(256, dtype=np.float32) / _STEPS_PER_OCTAVE)
    factors[_ZERO] = 0
    scales: Float32 = factors[below] * largest
    return scales


def _bfloat16(numbers: Float32) -> npt.NDArray[np.uint16]:
    """The upper half of each float32, rounded to nearest; numbers are not negative."""
    return ((np.ascontiguousarray(numbers, "<f4").view("<u4") + 0x8000) >> 16).astype("<u2")


def _from_bfloat16(high: npt.NDArray[np.uint16]) -> Float32:
    return (high.astype("<u4") << 16).view("<f4").astype(np.float32)
