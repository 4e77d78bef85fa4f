"""The codebooks that a product quantiser starts from: 256 codewords for a standard normal vector, one book a width.

    python -m fwd2bot_eval.normal_codebooks fwd2bot_index/codebooks.safetensors

They were made once, and every index keeps a copy of its own: making them anew changes new indexes only. Lloyd's
algorithm ("Least squares quantization in PCM", 1982) on 2^18 normal vectors, two minutes on one core. The first
codeword of each book is held at zero: what is not there costs nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from fwd2bot_index.product_codec import CODEWORDS, WIDTHS, nearest

Float32 = npt.NDArray[np.float32]

SAMPLES = 2**18
ROUNDS = 40


def normal_codebook(width: int, *, samples: int = SAMPLES, rounds: int = ROUNDS, seed: int = 0) -> Float32:
    """[256, width], the first of them zero."""
    points = np.random.default_rng([seed, width]).normal(size=(samples, width)).astype(np.float32)
    book = points[:CODEWORDS].copy()
    book[0] = 0
    for _ in range(rounds):
        numbers = nearest(points, book)
        counts = np.bincount(numbers, minlength=CODEWORDS)
        for axis in range(width):
            sums = np.bincount(numbers, weights=points[:, axis], minlength=CODEWORDS)
            book[1:, axis] = np.where(counts > 0, sums / np.maximum(counts, 1), book[:, axis])[1:]
    return book


def distortion(book: Float32, *, samples: int = SAMPLES, seed: int = 1) -> float:
    """Mean squared error a number, of normal vectors that the book was not made from."""
    points = np.random.default_rng([seed, book.shape[1]]).normal(size=(samples, book.shape[1])).astype(np.float32)
    return float(np.mean(np.square(points - book[nearest(points, book)])))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m fwd2bot_eval.normal_codebooks", description=__doc__)
    parser.add_argument("file", type=Path, help="a safetensors file to write")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    given = parser.parse_args(arguments)
    books = {w: normal_codebook(w, samples=given.samples).astype(np.float16) for w in WIDTHS}
    errors = [distortion(books[w].astype(np.float32)) for w in WIDTHS]
    save_file(
        {**{f"book.{w}": book for w, book in books.items()}, "distortion": np.array(errors, np.float32)}, given.file
    )
    for w, error in zip(WIDTHS, errors, strict=True):
        print(f"{w:3} numbers a byte: squared error {error:.4f}, {8 / w:.2f} bits")


if __name__ == "__main__":
    main()
