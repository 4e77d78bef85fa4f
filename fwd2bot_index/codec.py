"""How summary tokens are written: float32 [B, K, D] to bytes of an exact size and back.

Notable choices:

- The size of a payload follows from the codec, K and D alone, so a reader checks it before allocating anything.
- Scales are kept inside the payload: one payload, one size, one column in the store.
- ``float16``, ``int8``, ``int4`` and ``int2`` need to know nothing of the corpus. ``pq8``, ``pq16`` and ``pq32`` are
  fitted to its first pictures; the fit is a file of the index, and is never changed.
- Numbers are little-endian on every machine. Nothing is pickled.
- Numpy only: an index can be read without torch.

Shapes: B batch, K summary tokens, D hidden size.
"""

from __future__ import annotations

from typing import Final, Protocol

from fwd2bot_index.errors import IndexMismatchError, InputError
from fwd2bot_index.payloads import Bytes, Float32
from fwd2bot_index.product_codec import (
    ProductCodec,
    fit_product_codec,
    load_product_codec,
    product_bytes,
    product_name,
)
from fwd2bot_index.scalar_codecs import Float16Codec, Int8Codec, RotatedCodec


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


_UNFITTED: Final[dict[str, Codec]] = {
    codec.name: codec for codec in (Float16Codec(), Int8Codec(), RotatedCodec(4), RotatedCodec(2))
}
_RATIOS: Final = {product_name(ratio): ratio for ratio in (8, 16, 32)}
UNFITTED_NAMES: Final = tuple(_UNFITTED)
"""Codecs that need to know nothing of the corpus."""
CODEC_NAMES: Final = (*UNFITTED_NAMES, *_RATIOS)


def get_codec(name: str) -> Codec:
    """The codec of that name, one of ``UNFITTED_NAMES``.

    Raises:
        InputError: it has to be fitted to an index.
        IndexMismatchError: there is none; this fwd2bot can neither write nor read such an index.
    """
    _check_name(name)
    if is_fitted(name):
        raise InputError(
            f"The codec {name} is fitted to the pictures of an index: index them with --codec {name}, and read that; "
            f"without an index there are {', '.join(UNFITTED_NAMES)}."
        )
    return _UNFITTED[name]


def is_fitted(name: str) -> bool:
    """Whether an index with this codec has a file with what was learned from its first pictures."""
    return name in _RATIOS


def payload_bytes(name: str, k: int, d: int) -> int:
    """As :meth:`Codec.payload_bytes`, before anything was fitted.

    Raises:
        IndexMismatchError: there is no such codec.
    """
    _check_name(name)
    return product_bytes(_RATIOS[name], k, d) if is_fitted(name) else _UNFITTED[name].payload_bytes(k, d)


def fit_codec(name: str, tokens: Float32) -> Codec:
    """The codec of that name for an index that begins with ``tokens`` [N, K, D] of at least one picture.

    Raises:
        IndexMismatchError: there is no such codec.
        ModelError: a token is NaN or infinite.
    """
    _check_name(name)
    return fit_product_codec(_RATIOS[name], tokens) if is_fitted(name) else _UNFITTED[name]


def fit_to_bytes(codec: Codec) -> bytes | None:
    """What was learned, as a safetensors file; None: the codec learns nothing."""
    return codec.fit.to_bytes() if isinstance(codec, ProductCodec) else None


def codec_from_fit(name: str, raw: bytes, *, k: int, d: int) -> Codec:
    """The fitted codec that :func:`fit_to_bytes` wrote.

    Raises:
        IndexCorruptedError: these are not such bytes, or not for [K, D] tokens.
        KeyError: the codec is not a fitted one.
    """
    return load_product_codec(_RATIOS[name], raw, k=k, d=d)


def _check_name(name: str) -> None:
    if name not in CODEC_NAMES:
        raise IndexMismatchError(f"There is no codec {name!r}; this fwd2bot knows {', '.join(CODEC_NAMES)}.")
