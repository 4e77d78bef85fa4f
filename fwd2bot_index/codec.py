"""How summary tokens are written: float32 [B, K, D] to bytes of an exact size and back.

Notable choices:

- The size of a payload follows from the codec, K and D alone, so a reader checks it before allocating anything.
- ``int8`` keeps its scales inside the payload: one payload, one size, one column in the store.
- Numbers are little-endian on every machine. Nothing is pickled.
- Numpy only: an index can be read without torch.

Shapes: B batch, K summary tokens, D hidden size.
"""

from __future__ import annotations

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


_CODECS: Final[dict[str, Codec]] = {codec.name: codec for codec in (Float16Codec(), Int8Codec())}
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
