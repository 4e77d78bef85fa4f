"""Compress an image corpus once, then search it and question it for ever without the images.

    >>> from fwd2bot_index import Corpus, Fwd2BotModel, index_images

Names are imported on first use, so that reading an index loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fwd2bot_index.config import CompressorConfig
    from fwd2bot_index.corpus import Corpus
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
        ObjectStoreError,
        UnsupportedFamilyError,
    )
    from fwd2bot_index.indexing import index_images
    from fwd2bot_index.model import Fwd2BotModel
    from fwd2bot_index.queries import Term
    from fwd2bot_index.types import Answer, Hit, IndexReport, JointAnswer, SummaryTokens

__all__ = [
    "Answer",
    "CompressorConfig",
    "Corpus",
    "Fwd2BotError",
    "Fwd2BotModel",
    "Hit",
    "ImageError",
    "IndexBusyError",
    "IndexCorruptedError",
    "IndexEmptyError",
    "IndexError_",
    "IndexMismatchError",
    "IndexNotFoundError",
    "IndexReport",
    "IndexWriteError",
    "InputError",
    "JointAnswer",
    "ModelError",
    "NothingToIndexError",
    "ObjectStoreError",
    "SummaryTokens",
    "Term",
    "UnsupportedFamilyError",
    "index_images",
]

_HOMES = {
    "Answer": "types",
    "CompressorConfig": "config",
    "Corpus": "corpus",
    "Fwd2BotModel": "model",
    "Hit": "types",
    "IndexReport": "types",
    "JointAnswer": "types",
    "SummaryTokens": "types",
    "Term": "queries",
    "index_images": "indexing",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
