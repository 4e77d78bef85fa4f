"""Codecs: exact sizes, error bounds over random tokens of every magnitude, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fwd2bot_index.codec import CODEC_NAMES, UNFITTED_NAMES, fit_codec, get_codec, payload_bytes
from fwd2bot_index.errors import IndexCorruptedError, IndexMismatchError, InputError, ModelError
from fwd2bot_index.payloads import block_size, rotation

FLOAT16_MAX = 65504.0

tokens_of_any_magnitude = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=3, max_dims=3, max_side=6),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@given(tokens=tokens_of_any_magnitude)
@settings(max_examples=200, deadline=None)
def test_int8_errs_by_half_a_scale_at_most(tokens: np.ndarray) -> None:
    codec = get_codec("int8")
    _, k, d = tokens.shape
    payload = codec.encode(tokens)
    assert payload.dtype == np.uint8
    assert payload.shape == (len(tokens), codec.payload_bytes(k, d))
    scale = np.abs(tokens.astype(np.float64)).max(axis=-1, keepdims=True) / 127
    error = np.abs(codec.decode(payload, k=k, d=d).astype(np.float64) - tokens)
    # a subnormal scale is itself rounded, by up to 2^-150, and is used 127 times
    assert (error <= scale * 0.5001 + 127 * 2.0**-149).all()


@given(tokens=tokens_of_any_magnitude)
@settings(max_examples=200, deadline=None)
def test_float16_is_the_nearest_number_and_clamps(tokens: np.ndarray) -> None:
    codec = get_codec("float16")
    _, k, d = tokens.shape
    payload = codec.encode(tokens)
    assert payload.dtype == np.uint8
    assert payload.shape == (len(tokens), codec.payload_bytes(k, d))
    clamped = np.clip(tokens.astype(np.float64), -FLOAT16_MAX, FLOAT16_MAX)
    error = np.abs(codec.decode(payload, k=k, d=d) - clamped)
    assert (error <= np.maximum(np.abs(clamped) * 2.0**-11, 2.0**-25)).all()


def _relative_error(name: str, tokens: np.ndarray) -> np.ndarray:
    """[B, K] in the Euclidean norm."""
    codec = get_codec(name)
    _, k, d = tokens.shape
    decoded = codec.decode(codec.encode(tokens), k=k, d=d)
    return np.linalg.norm(decoded - tokens.astype(np.float64), axis=-1) / np.linalg.norm(tokens, axis=-1)


@pytest.mark.parametrize(("name", "expected"), [("int4", 0.0975), ("int2", 0.3428)])
@pytest.mark.parametrize("d", [192, 2048])
def test_rotated_codecs_reach_the_error_of_a_normal_variable(name: str, expected: float, d: int) -> None:
    """Max's quantiser leaves this of a standard normal; a scale fitted to each token leaves a little less."""
    tokens = np.random.default_rng(0).normal(size=(4, 16, d)).astype(np.float32) * 1e-4
    assert 0.9 * expected < _relative_error(name, tokens).mean() < 1.01 * expected


@pytest.mark.parametrize(("name", "expected"), [("int4", 0.0975), ("int2", 0.3428)])
def test_outliers_cost_a_rotated_codec_nothing(name: str, expected: float) -> None:
    tokens = np.random.default_rng(0).normal(size=(4, 16, 2048)).astype(np.float32)
    tokens[..., 7] *= 100  # as the massive activations of LLMs
    assert _relative_error(name, tokens).mean() < 1.01 * expected


@pytest.mark.parametrize(("name", "expected"), [("int4", 0.0975), ("int2", 0.3428)])
@pytest.mark.parametrize("d", [2048, 3584])
def test_an_outlier_costs_the_other_blocks_nothing(name: str, expected: float, d: int) -> None:
    """With one scale a token, its size would decide what all numbers are rounded to."""
    tokens = np.random.default_rng(0).normal(size=(4, 16, d)).astype(np.float32)
    tokens[..., 7] *= 100
    codec = get_codec(name)
    decoded = codec.decode(codec.encode(tokens), k=16, d=d)
    size = block_size(d, largest=192)
    assert size == 128
    rest, there = decoded[..., size:], tokens[..., size:]
    assert np.linalg.norm(rest - there) < 1.01 * expected * np.linalg.norm(there)


@pytest.mark.parametrize("size", [1, 2, 3, 12, 15, 64, 128, 192])
def test_a_rotation_is_orthogonal_and_spreads_each_coordinate(size: int) -> None:
    matrix = rotation(size).astype(np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-6)
    assert np.abs(matrix).max() <= np.sqrt(2 / size) + 1e-6


@pytest.mark.parametrize(("name", "most"), [("int4", 0.3), ("int2", 0.7)])
@given(
    tokens=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=9),
        elements=st.floats(-(2.0**90), 2.0**90, width=32),
    )
)
@settings(max_examples=200, deadline=None)
def test_rotated_codecs_hold_tokens_of_any_kind(name: str, most: float, tokens: np.ndarray) -> None:
    codec = get_codec(name)
    _, k, d = tokens.shape
    payload = codec.encode(tokens)
    assert payload.dtype == np.uint8
    assert payload.shape == (len(tokens), codec.payload_bytes(k, d))
    error = np.linalg.norm(codec.decode(payload, k=k, d=d).astype(np.float64) - tokens, axis=-1)
    norms = np.linalg.norm(tokens.astype(np.float64), axis=-1)
    # a token that is 2^-16 of the picture's largest is written as zero; below the smallest normal number the scale
    # itself has few digits
    assert (error <= most * norms + 2.0**-15 * norms.max(axis=-1, keepdims=True) + 2.0**-120).all()


@pytest.mark.parametrize("name", ["int4", "int2"])
def test_rotated_codecs_clamp_what_no_llm_computes_with(name: str) -> None:
    codec = get_codec(name)
    tokens = np.full((1, 2, 4096), np.finfo(np.float32).max)
    decoded = codec.decode(codec.encode(tokens), k=2, d=4096)
    assert np.isfinite(decoded).all()
    assert np.linalg.norm(decoded.astype(np.float64)) > 2.0**100


def test_the_rotation_is_the_same_for_ever() -> None:
    """An index is read with the rotation that it was written with: these bytes must never change."""
    tokens = np.linspace(-1, 1, 24, dtype=np.float32).reshape(1, 2, 12)
    assert get_codec("int4").encode(tokens)[0].tobytes().hex() == "193f0200b81caacc5bcb98e3b5645c39"
    assert get_codec("int2").encode(tokens)[0].tobytes().hex() == "033f02003efaf7ca4d27"


@pytest.mark.parametrize("name", ["float16", "int8"])
def test_encoding_what_was_decoded_changes_nothing(name: str) -> None:
    codec = get_codec(name)
    tokens = np.random.default_rng(0).normal(size=(5, 4, 8)).astype(np.float32)
    once = codec.decode(codec.encode(tokens), k=4, d=8)
    np.testing.assert_allclose(codec.decode(codec.encode(once), k=4, d=8), once, rtol=1e-6)


def test_each_int8_token_has_its_own_scale() -> None:
    codec = get_codec("int8")
    tokens = np.stack([np.full(8, 1e-3), np.full(8, 1e3), np.zeros(8)])[None].astype(np.float32)
    np.testing.assert_allclose(codec.decode(codec.encode(tokens), k=3, d=8), tokens, rtol=1e-6)


def test_sizes() -> None:
    assert get_codec("int8").payload_bytes(16, 256) == 16 * (256 + 4)
    assert get_codec("float16").payload_bytes(16, 256) == 16 * 256 * 2
    assert get_codec("int4").payload_bytes(16, 256) == 2 + 16 * (2 + 128)
    assert get_codec("int2").payload_bytes(16, 258) == 2 + 16 * (2 + 65)
    assert get_codec("int2").payload_bytes(16, 192) == 2 + 16 * (1 + 48)
    assert [payload_bytes(f"pq{n}", 16, 192) for n in (8, 16, 32)] == [6144 // n for n in (8, 16, 32)]
    assert payload_bytes("pq32", 3, 4) == 3 + 1  # never less than a gain a token and one codeword
    assert [payload_bytes(name, 16, 256) for name in UNFITTED_NAMES] == [
        get_codec(name).payload_bytes(16, 256) for name in UNFITTED_NAMES
    ]


@pytest.mark.parametrize("name", CODEC_NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_tokens_that_are_not_finite_are_refused(name: str, value: float) -> None:
    tokens = np.zeros((2, 3, 4), np.float32)
    tokens[1, 2, 3] = value
    with pytest.raises(ModelError, match="not finite"):
        fit_codec(name, np.ones_like(tokens)).encode(tokens)


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_a_payload_of_the_wrong_size_is_refused(name: str) -> None:
    codec = fit_codec(name, np.ones((1, 3, 4), np.float32))
    payload = codec.encode(np.ones((2, 3, 4), np.float32))
    for wrong in (payload[:, :-1], payload[0], payload.astype(np.int16)):
        with pytest.raises(IndexCorruptedError, match="3 tokens of size 4"):
            codec.decode(wrong, k=3, d=4)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("float16", np.float16(np.inf)),
        ("int8", np.float32(-1)),
        ("float16", np.float16(np.nan)),
        ("int4", np.uint16(0x7FC0)),  # a bfloat16 NaN
        ("int2", np.uint16(0xBF80)),  # -1
    ],
)
def test_numbers_that_no_encoder_writes_are_refused(name: str, number: np.generic) -> None:
    codec = get_codec(name)
    payload = codec.encode(np.ones((1, 3, 4), np.float32))
    raw = np.frombuffer(number.tobytes(), np.uint8)
    payload[0, : len(raw)] = raw
    with pytest.raises(IndexCorruptedError, match="index again"):
        codec.decode(payload, k=3, d=4)


def test_an_unknown_codec_is_refused_by_name() -> None:
    for attempt in (lambda: get_codec("int3"), lambda: payload_bytes("int3", 1, 1)):
        with pytest.raises(IndexMismatchError, match="'int3'"):
            attempt()
    with pytest.raises(IndexMismatchError, match="'int3'"):
        fit_codec("int3", np.ones((1, 1, 1), np.float32))


def test_a_fitted_codec_does_not_exist_without_an_index() -> None:
    with pytest.raises(InputError, match="--codec pq8"):
        get_codec("pq8")


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_many_pictures_decode_as_each_does(name: str) -> None:
    """Decoding goes by parts; at 16 x 2048 one holds 8 pictures."""
    tokens = np.random.default_rng(0).normal(size=(19, 16, 2048)).astype(np.float32)
    codec = fit_codec(name, tokens)
    payload = codec.encode(tokens)
    whole = codec.decode(payload, k=16, d=2048)
    singly = np.concatenate([codec.decode(row[None], k=16, d=2048) for row in payload])
    np.testing.assert_allclose(whole, singly, atol=1e-4)
    assert codec.decode(payload[:0], k=16, d=2048).shape == (0, 16, 2048)
