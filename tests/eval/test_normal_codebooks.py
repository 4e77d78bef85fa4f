"""Codebooks of normal vectors: Lloyd's algorithm finds what is known to be best."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fwd2bot_eval.normal_codebooks import distortion, main, normal_codebook
from fwd2bot_index.product_codec import WIDTHS


def test_a_book_is_between_the_scalar_quantiser_and_the_bound() -> None:
    """Four numbers a byte: 2 bits each leave 0.1175 one by one (Max, 1960), and 2^-4 at best (Shannon)."""
    book = normal_codebook(4, samples=20_000, rounds=10)
    assert book.shape == (256, 4)
    assert not book[0].any()
    assert 2**-4 < distortion(book, samples=20_000) < 0.1175


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path / "books.safetensors"), "--samples", "600"])
    tensors = load_file(tmp_path / "books.safetensors")
    printed = capsys.readouterr().out
    for width, error in zip(WIDTHS, tensors["distortion"], strict=True):
        book = tensors[f"book.{width}"]
        assert (book.shape, book.dtype) == ((256, width), np.float16)
        assert f"{width:3} numbers a byte: squared error {error:.4f}" in printed
