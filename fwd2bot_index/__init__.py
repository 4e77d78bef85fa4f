"""Compress an image corpus once, then search it and question it for ever without the images.

    >>> from fwd2bot_index import Fwd2BotModel, Index, index_images

Names are imported on first use, so that reading an index loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fwd2bot_index.config import CompressorConfig
    from fwd2bot_index.errors import (
        Fwd2BotError,
        ImageError,
        IndexBusyError,
        IndexCorruptedError,
        IndexEmptyError,
        IndexError_,
        IndexMismatchError,
        IndexNotFoundError,
        IndexWriteError,
        InputError,
        ModelError,
        NothingToIndexError,
        UnsupportedFamilyError,
    )
    from fwd2bot_index.indexing import index_images
    from fwd2bot_index.model import Fwd2BotModel
    from fwd2bot_index.querying import Index
    from fwd2bot_index.types import Answer, Hit, IndexReport, SummaryTokens

__all__ = [
    "Answer",
    "CompressorConfig",
    "Fwd2BotError",
    "Fwd2BotModel",
    "Hit",
    "ImageError",
    "Index",
    "IndexBusyError",
    "IndexCorruptedError",
    "IndexEmptyError",
    "IndexError_",
    "IndexMismatchError",
    "IndexNotFoundError",
    "IndexReport",
    "IndexWriteError",
    "InputError",
    "ModelError",
    "NothingToIndexError",
    "SummaryTokens",
    "UnsupportedFamilyError",
    "index_images",
]

_HOMES = {
    "Answer": "types",
    "CompressorConfig": "config",
    "Fwd2BotModel": "model",
    "Hit": "types",
    "Index": "querying",
    "IndexReport": "types",
    "SummaryTokens": "types",
    "index_images": "indexing",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
