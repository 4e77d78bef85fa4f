"""A public fake in place of patches: a model that costs nothing and whose answers a test can predict."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from fwd2bot_index.config import Manifest
from fwd2bot_index.types import ImageInput, Replies, Stage, SummaryTokens


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
        self.full_fingerprint = f"{fingerprint}, all"
        self.mode = "trained"
        self.num_summary_tokens = num_summary_tokens
        self.token_dim = 8
        self.embedding_dim = 3
        self.decode_side: int | None = None
        self.pads = False
        self.compressed = 0
        """Pictures compressed so far: a test can tell what was not recomputed."""

    def matching_question(self, text: str) -> str:
        return f"does this show {text}?"

    @property
    def caption_prompt(self) -> str:
        return "write a caption."

    def merged(self, stage: Stage) -> AbstractContextManager[None]:
        return nullcontext()

    def preprocess(self, images: Sequence[ImageInput]) -> Sequence[ImageInput]:
        return images

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

    def answer(self, tokens: torch.Tensor, prompt: str | Sequence[str], *, max_new_tokens: int = 32) -> Replies:
        names = list(self.COLOURS)
        texts = [names[int(row[0, :3].argmax())] for row in tokens]
        certain = torch.stack([row[0, :3].max() / (row[0, :3].sum() + 1e-6) for row in tokens])
        return Replies(texts=texts, logprob=certain.log(), num_tokens=torch.full((len(tokens),), 2))

    def loglikelihood(
        self, tokens: torch.Tensor, prompt: str | Sequence[str], completions: Sequence[str], *, ended: bool = False
    ) -> torch.Tensor:
        """Of a colour, how much of it there is; "yes" where the colour that the prompt names is the answer."""
        rows = []
        asked = [prompt] * len(tokens) if isinstance(prompt, str) else prompt
        for row, said, question in zip(tokens, self.answer(tokens, prompt).texts, asked, strict=True):
            amounts = dict(zip(self.COLOURS, row[0, :3].tolist(), strict=True))
            right = "yes" if said in question else "no"
            rows.append([amounts.get(c, 0.0) if c in amounts else -5.0 * (c != right) for c in completions])
        return torch.tensor(rows)

    def answer_together(self, tokens: torch.Tensor, question: str, *, max_new_tokens: int = 32) -> Replies:
        """All colours, in order."""
        text = " ".join(self.answer(tokens, question).texts)
        return Replies(texts=[text], logprob=torch.tensor([-0.5]), num_tokens=torch.tensor([len(tokens) + 1]))

    def weigh_together(self, tokens: torch.Tensor, question: str, answer: str) -> torch.Tensor:
        """1 for a picture of the colour that the question names."""
        return torch.tensor([float(said in question) for said in self.answer(tokens, question).texts])

    @staticmethod
    def _mean(image: ImageInput) -> np.ndarray:
        if isinstance(image, bytes):
            image = Image.open(BytesIO(image))
        elif isinstance(image, str | Path):
            image = Image.open(image)
        return np.asarray(image.convert("RGB"), dtype=np.float32).mean(axis=(0, 1)) / 255
