"""The fitted quantiser: what it leaves of tokens with structure, of tokens of any kind, and of damage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fwd2bot_index.codec import codec_from_fit, fit_codec, fit_to_bytes
from fwd2bot_index.errors import IndexCorruptedError
from fwd2bot_index.product_codec import (
    WIDTHS,
    Fit,
    ProductCodec,
    _normal_books,
    allocate,
    fit_product_codec,
    largest_file,
    nearest,
)

K, D = 6, 32


def structured(count: int, *, seed: int, d: int = D) -> np.ndarray:
    """[count, K, d]: a mean a token, six directions that all tokens of a picture share, and a little of everything."""
    shared = np.random.default_rng(1)
    mean, directions = 3 * shared.normal(size=(K, d)), shared.normal(size=(6, d))
    rng = np.random.default_rng(seed)
    picture = rng.normal(size=(count, 1, 6)) @ directions
    return (mean + picture + 0.1 * rng.normal(size=(count, K, d))).astype(np.float32)


def error(codec: ProductCodec, tokens: np.ndarray) -> float:
    _, k, d = tokens.shape
    return float(np.linalg.norm(codec.decode(codec.encode(tokens), k=k, d=d) - tokens) / np.linalg.norm(tokens))


@pytest.mark.parametrize("d", [D, 1088])  # below and above the largest basis
def test_what_all_pictures_share_is_not_paid_for(d: int) -> None:
    """Bytes go to the six directions first; 2 bits a number leave 0.31 of what has no structure."""
    held_out = structured(50, seed=3, d=d)
    errors = [error(fit_product_codec(ratio, structured(100, seed=2, d=d)), held_out) for ratio in (8, 16, 32)]
    assert errors == sorted(errors)
    assert errors[0] < (0.02 if d == D else 0.06)
    assert errors[2] < 0.15


def test_without_structure_it_is_as_good_as_its_book() -> None:
    rng = np.random.default_rng(0)
    fit, tokens = (rng.normal(size=(200, 4, 2048)).astype(np.float32) for _ in range(2))
    for ratio, width in ((8, 4), (16, 8), (32, 16)):
        expected = float(np.sqrt(_normal_books()[1][WIDTHS.index(width)]))
        assert error(fit_product_codec(ratio, fit), tokens) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_few_pictures_teach_what_they_can(count: int) -> None:
    """Never worse than without structure, and never fitted to noise."""
    assert error(fit_product_codec(8, structured(count, seed=2)), structured(50, seed=3)) < 0.3


def test_pictures_unlike_those_of_the_fit_are_followed_by_the_gains() -> None:
    codec = fit_product_codec(8, structured(100, seed=2))
    rng = np.random.default_rng(0)
    for size in (0.0, 1.0, 30.0):
        other = (size * rng.normal(size=(20, K, D))).astype(np.float32)
        lost = codec.decode(codec.encode(other), k=K, d=D) - other
        assert np.linalg.norm(lost) < np.linalg.norm(other - codec.fit.mean)


@given(
    data=st.data(),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 40)),
    ratio=st.sampled_from([8, 16, 32]),
)
@settings(max_examples=150, deadline=None)
def test_tokens_of_any_kind_and_shape(data: st.DataObject, shape: tuple[int, int, int], ratio: int) -> None:
    elements = st.floats(-(2.0**50), 2.0**50, width=32)
    fit, tokens = (data.draw(hnp.arrays(np.float32, shape, elements=elements)) for _ in range(2))
    _, k, d = shape
    codec = fit_product_codec(ratio, fit)
    payload = codec.encode(tokens)
    assert payload.dtype == np.uint8
    assert payload.shape == (shape[0], codec.payload_bytes(k, d)) == (shape[0], max(k + 1, 2 * k * d // ratio))
    decoded = codec.decode(payload, k=k, d=d).astype(np.float64)
    assert np.isfinite(decoded).all()
    # nothing is worse than to write the mean alone, but for the roundings of float32
    centred = np.linalg.norm(tokens.astype(np.float64) - codec.fit.mean)
    largest = max(np.abs(tokens).max(), np.abs(fit).max())
    assert np.linalg.norm(decoded - tokens) <= 1.5 * centred + 1e-3 * largest


@given(tokens=hnp.arrays(np.float32, (2, 2, 5), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
@settings(max_examples=100, deadline=None)
def test_any_finite_token_is_taken(tokens: np.ndarray) -> None:
    for fit in (tokens, np.zeros_like(tokens), np.ones_like(tokens), np.full_like(tokens, 1e-45)):
        codec = fit_product_codec(8, fit)
        assert np.isfinite(codec.decode(codec.encode(tokens), k=2, d=5)).all()


def test_a_fit_to_the_largest_tokens_can_be_read_again() -> None:
    """Where all numbers of a picture agree, one coordinate has all of their energy, more than a token is clamped to."""
    tokens = np.tile(np.linspace(-3e38, 3e38, 40, dtype=np.float32)[:, None, None], (1, 3, 40))
    codec = fit_product_codec(8, tokens)
    again = codec_from_fit("pq8", codec.fit.to_bytes(), k=3, d=40)
    assert np.isfinite(again.decode(again.encode(tokens), k=3, d=40)).all()


def test_no_payload_overflows() -> None:
    """With the largest numbers that a fit is allowed to have, too."""
    k, d = 4, 64
    whole = fit_product_codec(8, np.random.default_rng(0).normal(size=(500, k, d)).astype(np.float32)).fit
    assert whole.basis.size
    raw = Fit(
        mean=np.full((k, d), 2.0**60, np.float32),
        mixing=np.ones((k, k), np.float32),
        basis=np.ones((d, d), np.float16),
        deviation=np.full((k, d), 2.0**60, np.float32),
        counts=whole.counts,
        books=tuple(np.full_like(book, np.finfo(np.float16).max) for book in whole.books),
    ).to_bytes()
    codec = codec_from_fit("pq8", raw, k=k, d=d)
    payload = np.full((1, codec.payload_bytes(k, d)), 255, np.uint8)
    assert np.isfinite(codec.decode(payload, k=k, d=d)).all()


@given(variance=hnp.arrays(np.float64, st.integers(1, 200), elements=st.floats(1e-6, 1e3)), codes=st.integers(1, 80))
@settings(max_examples=200, deadline=None)
def test_bytes_are_allocated_to_the_last(variance: np.ndarray, codes: int) -> None:
    counts = allocate(np.sort(variance)[::-1], _normal_books()[1], codes)
    assert (counts >= 0).all()
    assert counts.sum() <= codes
    covered = int(np.dot(counts, WIDTHS))
    assert counts.sum() == codes or covered >= len(variance)


def test_a_larger_variance_never_gets_fewer_bits() -> None:
    variance = np.repeat([100.0, 1.0, 0.01], 64)
    counts = allocate(variance, _normal_books()[1], 48)
    widths = np.repeat(WIDTHS, counts)
    per_number = np.repeat(8 / widths, widths)
    assert per_number[0] > 4 > per_number[100] > 0
    assert len(per_number) < 160  # what is not worth a byte is not written


def test_the_same_codec_comes_back_from_its_file() -> None:
    tokens = structured(100, seed=2)
    codec = fit_codec("pq8", tokens)
    raw = fit_to_bytes(codec)
    assert raw is not None
    assert len(raw) <= largest_file(K, D)
    again = codec_from_fit("pq8", raw, k=K, d=D)
    payload = codec.encode(tokens)
    np.testing.assert_array_equal(again.encode(tokens), payload)
    np.testing.assert_array_equal(again.decode(payload, k=K, d=D), codec.decode(payload, k=K, d=D))
    assert fit_to_bytes(fit_codec("int8", tokens)) is None


def test_a_file_of_another_shape_or_with_other_numbers_is_refused() -> None:
    codec = fit_product_codec(32, structured(100, seed=2))
    fit = codec.fit
    raw = fit.to_bytes()
    with pytest.raises(IndexCorruptedError, match=f"{K + 1} tokens"):
        codec_from_fit("pq32", raw, k=K + 1, d=D)
    with pytest.raises(IndexCorruptedError, match="does not hold a fit"):
        codec_from_fit("pq32", raw[:-1], k=K, d=D)
    with pytest.raises(IndexCorruptedError, match="does not hold a fit"):
        codec_from_fit("pq32", b"", k=K, d=D)
    more_codes = fit_product_codec(8, structured(100, seed=2)).fit.to_bytes()
    with pytest.raises(IndexCorruptedError, match="contradict"):
        codec_from_fit("pq32", more_codes, k=K, d=D)
    parts = {name: getattr(fit, name) for name in ("mean", "mixing", "basis", "deviation", "counts", "books")}
    for name, wrong in (
        ("mean", np.full_like(fit.mean, np.nan)),
        ("mixing", fit.mixing.astype(np.float64)),
        ("mixing", fit.mixing * 1.1 / np.abs(fit.mixing).max()),
        ("basis", fit.basis * np.float16(2)),
        ("basis", fit.basis[:, :-1]),
        ("deviation", np.zeros_like(fit.deviation)),
        ("counts", -fit.counts),
        ("books", (np.full_like(fit.books[0], np.inf), *fit.books[1:])),
    ):
        with pytest.raises(IndexCorruptedError):
            codec_from_fit("pq32", Fit(**{**parts, name: wrong}).to_bytes(), k=K, d=D)


def test_the_books_are_those_of_normal_vectors() -> None:
    """Their error falls short of the rate-distortion bound 2^-2R by what 256 codewords cost, and zero is free."""
    books, distortion = _normal_books()
    rng = np.random.default_rng(5)
    for width, book, expected in zip(WIDTHS, books, distortion, strict=True):
        points = rng.normal(size=(50_000, width)).astype(np.float32)
        wide = book.astype(np.float32)
        measured = np.mean(np.square(points - wide[nearest(points, wide)]))
        assert measured == pytest.approx(expected, rel=0.1)
        assert 2 ** (-16 / width) < expected < 20 * 2 ** (-16 / width)
        assert not book[0].any()


def test_the_nearest_codeword_is_found() -> None:
    rng = np.random.default_rng(0)
    vectors, book = rng.normal(size=(5000, 3)).astype(np.float32), rng.normal(size=(256, 3)).astype(np.float32)
    distances = np.square(vectors[:, None] - book).sum(-1)
    numbers = nearest(vectors, book)
    np.testing.assert_allclose(distances[np.arange(5000), numbers], distances.min(axis=1), atol=1e-5)
