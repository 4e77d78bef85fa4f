"""The short list of public names, imported on first use."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fwd2bot_index
from fwd2bot_index import errors

NAMES = {
    "Answer", "CompressorConfig", "Corpus", "Fwd2BotModel", "Hit", "IndexReport", "JointAnswer", "SummaryTokens",
    "Term", "index_images",
    "Fwd2BotError", "ImageError", "IndexCorruptedError", "IndexEmptyError", "IndexError_", "IndexMismatchError",
    "IndexNotFoundError", "IndexWriteError", "InputError", "ModelError", "UnsupportedFamilyError", "IndexBusyError",
    "NothingToIndexError", "ObjectStoreError",
}  # fmt: skip


def test_the_list() -> None:
    assert set(fwd2bot_index.__all__) == NAMES
    assert set(dir(fwd2bot_index)) == NAMES
    assert {n for n, e in vars(errors).items() if isinstance(e, type) and issubclass(e, Exception)} <= NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_name_is_there(name: str) -> None:
    assert getattr(fwd2bot_index, name).__name__ == name


def test_any_other_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = fwd2bot_index.nothing


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, fwd2bot_index; fwd2bot_index.ModelError; fwd2bot_index.Hit;" + (
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'peft', 'numpy', 'lance')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
