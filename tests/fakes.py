"""A public fake in place of patches: a model that costs nothing and whose answers a test can predict."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from fwd2bot_index.config import Manifest
from fwd2bot_index.types import ImageInput, SummaryTokens


def manifest(*, k: int, d: int, e: int) -> Manifest:
    """Of an index of a fake model, in float16."""
    return Manifest(
        model="fake",
        model_revision=None,
        model_fingerprint="fake-1",
        mode="trained",
        num_summary_tokens=k,
        token_dim=d,
        embedding_dim=e,
        codec="float16",
        created="2026-01-01T00:00:00+00:00",
    )


class FakeModel:
    """Embeds a picture by its mean colour and a text by the colours that it names; answers with the mean colour.

    Tokens are [B, K, D] with the mean colour in the first three places of every token.
    """

    COLOURS: ClassVar = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}

    def __init__(self, *, name: str = "fake", fingerprint: str = "fake-1", num_summary_tokens: int = 4) -> None:
        self.name = name
        self.revision = None
        self.fingerprint = fingerprint
        self.mode = "trained"
        self.num_summary_tokens = num_summary_tokens
        self.token_dim = 8
        self.embedding_dim = 3
        self.decode_side: int | None = None
        self.compressed = 0
        """Pictures compressed so far: a test can tell what was not recomputed."""

    def compress(self, images: Sequence[ImageInput]) -> SummaryTokens:
        self.compressed += len(images)
        means = torch.tensor(np.stack([self._mean(i) for i in images]), dtype=torch.float32)
        tokens = torch.zeros(len(images), self.num_summary_tokens, self.token_dim)
        tokens[..., :3] = means[:, None]
        return SummaryTokens(tokens=tokens, embedding=torch.nn.functional.normalize(means + 1e-3, dim=-1))

    def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
        rows = []
        for text in texts:
            named = [np.array(rgb) for colour, rgb in self.COLOURS.items() if colour in text]
            digest = hashlib.sha256(text.encode()).digest()[:3]
            rows.append(sum(named) if named else np.frombuffer(digest, np.uint8) + 1.0)
        return torch.nn.functional.normalize(torch.tensor(np.stack(rows), dtype=torch.float32), dim=-1)

    def generate(self, tokens: torch.Tensor, prompt: str | Sequence[str], *, max_new_tokens: int = 32) -> list[str]:
        names = list(self.COLOURS)
        return [names[int(row[0, :3].argmax())] for row in tokens]

    def loglikelihood(
        self, tokens: torch.Tensor, prompt: str | Sequence[str], completions: Sequence[str]
    ) -> torch.Tensor:
        answers = self.generate(tokens, prompt)
        return torch.tensor([[0.0 if c == a else -5.0 for c in completions] for a in answers])

    @staticmethod
    def _mean(image: ImageInput) -> np.ndarray:
        if isinstance(image, bytes):
            image = Image.open(BytesIO(image))
        elif isinstance(image, str | Path):
            image = Image.open(image)
        return np.asarray(image.convert("RGB"), dtype=np.float32).mean(axis=(0, 1)) / 255
