"""Keys stand for strings, and are found among sorted ones."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from fwd2bot_index.keys import content_keys, is_among, keys_of

NUMBERS = st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 20))


@given(NUMBERS, NUMBERS)
def test_among_sorted_keys(values: list[int], known: list[int]) -> None:
    found = is_among(np.array(values, np.uint64), np.sort(np.array(known, np.uint64)))
    assert found.tolist() == [value in known for value in values]


def test_keys_of_content_are_its_first_digits() -> None:
    ids = ["00000000000000ff" + "a" * 16, "0123456789abcdef" * 2]
    assert content_keys(pa.array(ids)).tolist() == [255, 0x0123456789ABCDEF]
    assert content_keys(pa.array(["a", "b", "a"])).tolist() == keys_of(pa.array(["a", "b", "a"])).tolist()
