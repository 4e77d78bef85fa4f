"""A product quantiser fitted to the tokens of an index: what all its pictures share is kept once, not in every payload.

Notable choices:

- What is the same in every picture (the mean of each token) is subtracted. What the tokens of one picture share is
  gathered into few numbers by an orthogonal mixing of the K tokens (the Karhunen-Loève transform across them); what the
  D coordinates share, by another, or, where that would be large or learned from too little, by a fixed rotation.
- Then coordinates differ widely in variance, and bytes go where they save most (reverse water-filling): sorted by
  variance they are cut into groups of 1 to 32 numbers, and each group is written as one byte, the number of the nearest
  of 256 codewords. The least are not written.
- Codewords are those of a standard normal vector, scaled by the deviation of each coordinate: after the transforms real
  tokens are near enough to normal that fitting codewords gained 1 % (docs/storage.md), and nothing is fitted that a
  handful of pictures could not tell.
- One gain a mixed token follows pictures that differ more from the mean than those of the fit did.
- Numpy only, and all that decoding needs is in one safetensors file of the index.

Shapes: B batch, K summary tokens, D hidden size, U coordinates that share a deviation, M bytes of codewords.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import safetensors
from safetensors.numpy import load, load_file, save

from fwd2bot_index.errors import IndexCorruptedError
from fwd2bot_index.payloads import Bytes, Float32, block_size, check_finite, check_size, parts, rotation

WIDTHS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 32)
"""Numbers that one byte stands for; there is a book of codewords for each."""
CODEWORDS: Final = 256
FIT_PICTURES: Final = 1024
FIT_BYTES: Final = 64 * 2**20

_LARGEST_BASIS: Final = 1024
"""Above it, the D x D matrix would outweigh the tokens of many a corpus, and decoding would take its time."""
_TOKENS_PER_DIMENSION: Final = 3
"""From fewer tokens than that the rotation is better than a fitted basis: its deviations are averages."""
_LARGEST_BLOCK: Final = 64
_PRIOR_PICTURES: Final = 1.5
"""The mean of n pictures is drawn to zero as if by so many more; with one, it would be the picture itself."""
_PRIOR_SHARE: Final = 0.3
_LEAST_DEVIATION: Final = 1e-3
"""Of the root mean square deviation."""
_LARGEST: Final = np.float32(2.0**60)
"""Tokens are clamped to what can be squared and added up, and deviations to that and its inverse: no LLM computes with
more, or less."""
_LARGEST_OF_UNIT: Final = 1.01
"""No entry of an orthogonal matrix is larger than 1, but for rounding."""
_STEPS_PER_OCTAVE: Final = 12
_GAIN_OF_ONE: Final = 128
_LARGEST_NORMAL: Final = np.float32(2.0**14)
"""More deviations than any gain and codeword could say."""
_ROWS_AT_ONCE: Final = 2048
"""Of a table of distances that stays in a processor's cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """What was learned from the first pictures of an index."""

    mean: Float32
    """[K, D]"""
    mixing: Float32
    """[K, K], orthogonal: mixed = mixing.T @ tokens."""
    basis: npt.NDArray[np.float16]
    """[D, D], orthogonal: tokens @ basis; [0, 0]: the rotation of blocks instead."""
    deviation: Float32
    """[K, D / U] of the coordinates after both."""
    counts: npt.NDArray[np.int32]
    """[9]: how many groups there are of each of ``WIDTHS``."""
    books: tuple[npt.NDArray[np.float16], ...]
    """For each width [256, width]."""

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        books = {f"book.{w}": book for w, book in zip(WIDTHS, self.books, strict=True)}
        others = {name: getattr(self, name) for name in ("mean", "mixing", "basis", "deviation", "counts")}
        return bytes(save({**others, **books}))

    @classmethod
    def from_bytes(cls, raw: bytes, *, k: int, d: int, codes: int) -> Self:
        """
        Args:
            codes: M, the bytes of codewords in a payload.
        Raises:
            IndexCorruptedError: it is no such file, or not one for [K, D] tokens and so many codes.
        """
        try:
            tensors = load(raw)
            books = tuple(tensors.pop(f"book.{w}") for w in WIDTHS)
            fit = cls(books=books, **tensors)
            fit._check(k, d, codes)
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as e:
            raise IndexCorruptedError(f"it does not hold a fit for {k} tokens of size {d} ({e})") from e
        return fit

    def _check(self, k: int, d: int, codes: int) -> None:
        units = d if self.basis.size else d // block_size(d, largest=_LARGEST_BLOCK)
        expected: dict[str, tuple[npt.NDArray[Any], tuple[int, ...], type]] = {
            "mean": (self.mean, (k, d), np.float32),
            "mixing": (self.mixing, (k, k), np.float32),
            "basis": (self.basis, (d, d) if self.basis.size else (0, 0), np.float16),
            "deviation": (self.deviation, (k, units), np.float32),
            "counts": (self.counts, (len(WIDTHS),), np.int32),
            **{f"book.{w}": (book, (CODEWORDS, w), np.float16) for w, book in zip(WIDTHS, self.books, strict=True)},
        }
        for name, (array, shape, dtype) in expected.items():
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(f"{name} is {list(array.shape)} of {array.dtype}")
            most = _LARGEST_OF_UNIT if name in ("mixing", "basis") else _LARGEST
            if not (np.abs(array) <= most).all():  # so decoding cannot overflow, whatever the payload
                raise ValueError(f"{name} holds numbers that no fit has")
        if (self.counts < 0).any() or self.counts.sum() > codes or not (self.deviation > 0).all():
            raise ValueError("its numbers contradict each other")


class ProductCodec:
    """1 / ``ratio`` of what bfloat16 takes, by a product quantiser fitted to the first pictures of the index.

    A payload is one gain for each mixed token, then the numbers of the codewords, widths ascending.
    """

    def __init__(self, ratio: int, fit: Fit) -> None:
        self.name = product_name(ratio)
        self.fit = fit
        self._ratio = ratio
        self._k, self._d = fit.mean.shape
        self._unit = self._d // fit.deviation.shape[1]
        self._books = [book.astype(np.float32) for book in fit.books]
        self._basis = fit.basis.astype(np.float32) if fit.basis.size else rotation(self._unit)
        """[D, D], or [U, U] for each block."""
        self._places = _places(fit.deviation)
        self._written = min(self._k * self._d, int(np.dot(fit.counts.astype(np.int64), WIDTHS)))
        """Coordinates that a payload tells of, in order of variance."""

    def payload_bytes(self, k: int, d: int) -> int:
        return product_bytes(self._ratio, k, d)

    def encode(self, tokens: Float32) -> Bytes:
        check_finite(tokens)
        assert tokens.shape[1:] == (self._k, self._d), tokens.shape
        mixed = _transform(tokens, self.fit.mean, self.fit.mixing, self._basis)
        mixed = mixed.reshape(len(tokens), *self.fit.deviation.shape, self._unit)
        with np.errstate(over="ignore"):
            mixed /= self.fit.deviation[..., None]
        np.clip(mixed, -_LARGEST_NORMAL, _LARGEST_NORMAL, out=mixed)
        gains = self._gains(mixed)
        with np.errstate(divide="ignore"):
            inverse = np.where(gains > 0, 1 / _gain(gains), 0).astype(np.float32)
        mixed *= inverse[:, :, None, None]
        ordered = np.take(mixed.reshape(len(tokens), -1, self._unit), self._places, axis=1).reshape(len(tokens), -1)
        payload = np.zeros((len(tokens), self.payload_bytes(self._k, self._d)), np.uint8)
        payload[:, : self._k] = gains
        for book, codes, numbers in self._runs():
            groups = np.zeros((len(tokens), (codes.stop - codes.start) * book.shape[1]), np.float32)
            there = ordered[:, numbers]
            groups[:, : there.shape[1]] = there
            payload[:, codes] = nearest(groups.reshape(-1, book.shape[1]), book).reshape(len(tokens), -1)
        return payload

    def decode(self, payload: Bytes, *, k: int, d: int) -> Float32:
        check_size(self.name, self.payload_bytes(k, d), payload, k=k, d=d)
        assert (k, d) == (self._k, self._d), (k, d)
        tokens = np.empty((len(payload), k, d), np.float32)
        for part in parts(len(payload), 4 * k * d):
            self._decode(payload[part], tokens[part])
        return tokens

    def _decode(self, payload: Bytes, tokens: Float32) -> None:
        """Into ``tokens`` [B, K, D]."""
        count, k, d = tokens.shape
        ordered = np.zeros((count, k * d), np.float32)
        for book, codes, numbers in self._runs():
            values = np.take(book, payload[:, codes], axis=0).reshape(count, -1)
            ordered[:, numbers] = values[:, : numbers.stop - numbers.start]
        mixed = np.take(ordered.reshape(count, -1, self._unit), self._ranks, axis=1)
        mixed *= self.fit.deviation.reshape(-1, 1)
        mixing = self.fit.mixing * _gain(payload[:, :k])[:, None, :]
        turned = np.matmul(mixing, mixed.reshape(count, k, d)).reshape(-1, len(self._basis))
        np.matmul(turned, self._basis.T, out=tokens.reshape(turned.shape))
        tokens += self.fit.mean

    def _runs(self) -> list[tuple[Float32, slice, slice]]:
        """For each width in use: its book, where its codes are in a payload, and its numbers among the ordered."""
        runs = []
        code, number = self._k, 0
        for book, count in zip(self._books, self.fit.counts.tolist(), strict=True):
            if count and number < self._written:
                stop = min(number + count * book.shape[1], self._written)
                runs.append((book, slice(code, code + count), slice(number, stop)))
                number = stop
            code += count
        return runs

    @cached_property
    def _ranks(self) -> npt.NDArray[np.intp]:
        return np.argsort(self._places)

    @cached_property
    def _gain_weights(self) -> Float32:
        """[K, D], zero where a coordinate is not told of, and a sum of one where some of a token are.

        The root of the deviation: by equal weights a crowd of small coordinates, whose deviations are known least,
        would decide whether the few large ones are clipped; by the variance, those alone would decide for all.
        """
        ordered = np.zeros((self._places.size, self._unit), np.float32)
        ordered.reshape(-1)[: self._written] = 1
        weights = ordered[self._ranks].reshape(*self.fit.deviation.shape, self._unit)
        relative = self.fit.deviation / self.fit.deviation.max(axis=1, keepdims=True)
        weights *= np.sqrt(relative)[..., None]
        weights = weights.reshape(self._k, -1)
        total = weights.sum(axis=1, keepdims=True)
        return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)

    def _gains(self, normal: Float32) -> Bytes:
        """[B, K] from coordinates [B, K, D / U, U] in deviations: the root mean square of those that are written."""
        flat = normal.reshape(len(normal), self._k, -1)
        energy = np.einsum("bkd,bkd,kd->bk", flat, flat, self._gain_weights)
        with np.errstate(divide="ignore"):
            octaves = np.log2(energy) / 2
        steps = np.rint(_STEPS_PER_OCTAVE * octaves) + _GAIN_OF_ONE
        return np.clip(steps, 0, 255).astype(np.uint8)


def product_name(ratio: int) -> str:
    return f"pq{ratio}"


def product_bytes(ratio: int, k: int, d: int) -> int:
    """At most 1 / ``ratio`` of bfloat16, but for the tiniest: there is a gain a token and one codeword at least."""
    return max(k + 1, 2 * k * d // ratio)


def fit_product_codec(ratio: int, tokens: Float32) -> ProductCodec:
    """Fit to ``tokens`` [N, K, D] of at least one picture; of many, to ``FIT_PICTURES`` at most, evenly spread.

    Raises:
        ModelError: one is not finite.
    """
    check_finite(tokens)
    assert tokens.size, tokens.shape
    _, k, d = tokens.shape
    most = max(1, min(FIT_PICTURES, FIT_BYTES // (4 * k * d)))
    tokens = np.clip(tokens[np.linspace(0, len(tokens) - 1, min(most, len(tokens))).astype(int)], -_LARGEST, _LARGEST)
    n = len(tokens)
    mean = tokens.mean(axis=0, dtype=np.float64).astype(np.float32) * np.float32(n / (n + _PRIOR_PICTURES))
    scale = max(float(np.abs(tokens - mean).max()), 1e-30)
    centred = (tokens - mean) / np.float32(scale)  # squares that can be added up
    mixing = _principal(np.matmul(centred, centred.transpose(0, 2, 1)).sum(axis=0))
    flat = centred.reshape(-1, d)
    if d <= _LARGEST_BASIS and len(flat) >= _TOKENS_PER_DIMENSION * d:
        unit, basis = 1, _principal(flat.T @ flat).astype(np.float16)
        turned = flat @ basis.astype(np.float32)
    else:
        unit, basis = block_size(d, largest=_LARGEST_BLOCK), np.zeros((0, 0), np.float16)
        turned = (flat.reshape(-1, unit) @ rotation(unit)).reshape(flat.shape)
    mixed = np.matmul(mixing.T, turned.reshape(n, k, d))
    variance = np.square(mixed).mean(axis=0, dtype=np.float64).reshape(k, -1, unit).mean(axis=-1)
    share = min(_PRIOR_SHARE, 1 / n)
    variance = (1 - share) * variance + share * variance.mean()
    variance = np.maximum(variance, _LEAST_DEVIATION**2 * variance.mean()) if variance.any() else variance + 1
    deviation = np.clip(np.sqrt(variance) * scale, 1 / _LARGEST, _LARGEST).astype(np.float32)
    by_variance = np.repeat(np.sort(variance.ravel())[::-1], unit)
    books, distortion = _normal_books()
    counts = allocate(by_variance, distortion, product_bytes(ratio, k, d) - k)
    return ProductCodec(
        ratio,
        Fit(mean=mean, mixing=mixing, basis=basis, deviation=deviation, counts=counts, books=books),
    )


def load_product_codec(ratio: int, raw: bytes, *, k: int, d: int) -> ProductCodec:
    """
    Raises:
        IndexCorruptedError: these are not the bytes of a :class:`Fit` for [K, D] tokens at this ratio.
    """
    return ProductCodec(ratio, Fit.from_bytes(raw, k=k, d=d, codes=product_bytes(ratio, k, d) - k))


def largest_file(k: int, d: int) -> int:
    """Bytes that the file of a :class:`Fit` has at most."""
    basis = 2 * d * d if d <= _LARGEST_BASIS else 0
    return 4 * (2 * k * d + k * k) + basis + 2 * CODEWORDS * sum(WIDTHS) + 2**16


def nearest(vectors: Float32, book: Float32) -> npt.NDArray[np.uint8]:
    """[N, width] and [256, width] -> [N]: the number of the codeword at the least distance."""
    lengths = np.square(book).sum(axis=1) / 2
    numbers = np.empty(len(vectors), np.uint8)
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        near = vectors[part] @ book.T
        near -= lengths
        numbers[part] = near.argmax(axis=1)
    return numbers


def allocate(
    variance: npt.NDArray[np.float64], distortion: npt.NDArray[np.float32], codes: int
) -> npt.NDArray[np.int32]:
    """How many groups of each width, in ``codes`` bytes, leave the least squared error.

    Args:
        variance: [K D] of the coordinates, descending.
        distortion: [9]: what each width leaves of a variance of 1.
    """
    left = np.append(distortion, 1.0)
    cost = np.append(1 / np.array(WIDTHS), 0.0)

    def choose(price: float) -> npt.NDArray[np.intp]:
        return np.argmin(variance[:, None] * left + price * cost, axis=1)

    low, high = 0.0, float(variance[0]) * max(WIDTHS)
    for _ in range(64):
        price = (low + high) / 2
        low, high = (price, high) if cost[choose(price)].sum() > codes else (low, price)
    # At the price itself whole runs of equal variance would change their width: the first of them do.
    dear, cheap = choose(low), choose(high)
    spent = np.append(0, np.cumsum(cost[dear])) + np.append(np.cumsum(cost[cheap][::-1])[::-1], 0)
    first = int(np.nonzero(spent <= codes + 1e-6)[0].max())
    chosen = np.concatenate([dear[:first], cheap[first:]])
    numbers = np.bincount(chosen, minlength=len(cost))[:-1]
    counts = np.rint(numbers / np.array(WIDTHS)).astype(np.int32)
    # Rounding may have spent a few bytes too many, or left some: the widest groups in use make up for it.
    widest = int(np.nonzero(numbers)[0].max(initial=0))
    while (excess := int(counts.sum()) - codes) > 0:
        last = int(np.nonzero(counts)[0].max())
        counts[last] -= min(excess, counts[last])
    written = int(np.dot(counts, WIDTHS))
    counts[widest] += min(codes - int(counts.sum()), max(0, -(-(len(variance) - written) // WIDTHS[widest])))
    return counts


@cache
def _normal_books() -> tuple[tuple[npt.NDArray[np.float16], ...], Float32]:
    """The books for normal vectors [256, width], and what each leaves of a variance of 1."""
    tensors = load_file(Path(__file__).with_name("codebooks.safetensors"))
    return tuple(tensors[f"book.{w}"] for w in WIDTHS), tensors["distortion"]


def _principal(products: npt.NDArray[Any]) -> Float32:
    """Eigenvectors as columns, the largest eigenvalue first."""
    return np.ascontiguousarray(np.linalg.eigh(products.astype(np.float64))[1][:, ::-1], np.float32)


def _places(deviation: Float32) -> npt.NDArray[np.intp]:
    """The units in order of variance; equal ones in their own order."""
    return np.argsort(-deviation.ravel(), kind="stable")


def _transform(tokens: Float32, mean: Float32, mixing: Float32, basis: Float32) -> Float32:
    """[B, K, D] -> [B, K, D]: mixed tokens in the basis."""
    centred = np.clip(tokens, -_LARGEST, _LARGEST).astype(np.float32, copy=False) - mean
    turned = (centred.reshape(-1, len(basis)) @ basis).reshape(tokens.shape)
    return np.matmul(mixing.T, turned)


def _gain(steps: Bytes) -> Float32:
    gains = np.exp2((np.arange(256, dtype=np.float32) - _GAIN_OF_ONE) / _STEPS_PER_OCTAVE)
    gains[0] = 0
    return gains[steps]
