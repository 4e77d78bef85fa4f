"""What Ray's processes import in tests: a model without torch, so that they start soon, and what dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from fwd2bot_index import ray_engine
from fwd2bot_index.types import SummaryTokens


class Numbers:
    """As much of a tensor as is asked for."""

    def __init__(self, values: Any) -> None:
        self._values = np.asarray(values, np.float32)

    def float(self) -> Numbers:
        return self

    def cpu(self) -> Numbers:
        return self

    def numpy(self) -> Any:
        return self._values


class Light:
    """Compresses a picture to its mean colour. Its process is killed by pictures of the width ``deadly``; by the first
    of them only where ``once`` names a file."""

    name = "fake"
    revision = None
    mode = "trained"
    num_summary_tokens = 4
    token_dim = 8
    embedding_dim = 3
    decode_side = None
    pads = False

    def __init__(self, *, fingerprint: str = "fake-1", deadly: int | None = None, once: Path | None = None) -> None:
        self.fingerprint = fingerprint
        self._deadly = deadly
        self._once = once

    def merged(self, stage: str) -> AbstractContextManager[None]:
        return nullcontext()

    def preprocess(self, images: Sequence[Any]) -> Sequence[Any]:
        return images

    def compress(self, images: Sequence[Any]) -> SummaryTokens:
        if any(image.width == self._deadly for image in images) and (self._once is None or not self._once.exists()):
            if self._once is not None:
                self._once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        means = np.stack([np.asarray(image, np.float32).mean(axis=(0, 1)) / 255 for image in images])
        tokens = np.zeros((len(images), self.num_summary_tokens, self.token_dim), np.float32)
        tokens[..., :3] = means[:, None]
        embedding = means / np.linalg.norm(means, axis=1, keepdims=True)
        return SummaryTokens(tokens=Numbers(tokens), embedding=Numbers(embedding))  # type: ignore[arg-type]


def decode_or_die(files: list[str], max_side: int) -> list[Any]:
    if any(file.endswith("killer.png") for file in files):
        os.kill(os.getpid(), signal.SIGKILL)
    return ray_engine.decode(files, max_side)
