"""What was computed before there is an index to put it into.

A fitted codec is chosen once, from some hundred pictures, and with a slow model those take minutes. Until then their
tokens and embeddings lie in one file beside the index, written anew now and then, so that a run that is
killed costs no more work than later, when there are commits. It is no part of an index: whoever finds it damaged, or of
another model, does without.

Numpy only. Shapes: n pictures, K summary tokens, D hidden size, E embedding size.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import safetensors
from safetensors.numpy import load, save

from fwd2bot_index.errors import ObjectStoreError
from fwd2bot_index.payloads import Float32
from fwd2bot_index.places import Place
from fwd2bot_index.store import FIRST

LARGEST: Final = 2**30
"""Bytes. More than was ever written is not read."""

Computed: TypeAlias = dict[str, tuple[Float32, Float32]]
"""id -> tokens [K, D] and embedding [E]."""


class FirstPictures:
    """The file of one index, for one model."""

    def __init__(self, place: Place, fingerprint: str) -> None:
        self._place = place
        self._fingerprint = np.frombuffer(fingerprint.encode(), np.uint8)

    def save(self, computed: Computed) -> None:
        """All of them, at least one, in place of what was there.

        Raises:
            OSError, ObjectStoreError: it could not be written; what was there still is.
        """
        tokens, embeddings = zip(*computed.values(), strict=True)
        content: dict[str, npt.NDArray[Any]] = {
            "fingerprint": self._fingerprint,
            "id": np.frombuffer(bytes.fromhex("".join(computed)), np.uint8).reshape(len(computed), -1),
            "tokens": np.stack(tokens),
            "embedding": np.stack(embeddings).astype(np.float32),
        }
        self._place.write(FIRST, save(content))

    def load(self) -> Computed:
        """What an earlier run of the same model computed; nothing where the file is of no use."""
        try:
            content = load(self._place.read(FIRST, max_bytes=LARGEST))
            ids, tokens, embedding = (content[name] for name in ("id", "tokens", "embedding"))
            same = np.array_equal(content["fingerprint"], self._fingerprint)
        except (OSError, ObjectStoreError, safetensors.SafetensorError, KeyError, TypeError, ValueError):
            return {}
        if not same or not len(ids) == len(tokens) == len(embedding) or (tokens.ndim, embedding.ndim) != (3, 2):
            return {}
        if not (np.isfinite(tokens).all() and np.isfinite(embedding).all()):
            return {}
        return {bytes(id_).hex(): (tokens[i], embedding[i]) for i, id_ in enumerate(ids)}


def forget_first_pictures(place: Place) -> None:
    """They are in the index now."""
    with suppress(OSError, ObjectStoreError):
        place.delete(FIRST)
