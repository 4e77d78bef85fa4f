"""One picture and what is said of it.

An `Example` has several prompt-answer segments, because compressing or encoding a picture once and asking it several
things is most of the speed of training (see `packing`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from fwd2bot_index.config import CAPTION_PROMPT

Rng = np.random.Generator

DESCRIBE = "describe the image."
CAPTION = CAPTION_PROMPT
NAME = "what is this?"

WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One thing to answer about a picture. ``kind`` labels the loss in the log."""

    prompt: str
    answer: str
    kind: str = "qa"

    def __post_init__(self) -> None:
        if not self.answer.strip():
            raise ValueError(f"an answer to {self.prompt!r} must not be empty: it would have no loss")


@dataclass(frozen=True, kw_only=True)
class Region:
    """Part of a picture and words for what is there, for the word loss of the vision part."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom as shares of the picture's sides."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Example:
    image: Image.Image
    """RGB, upright, at its own size: resizing is the processor's job."""
    segments: tuple[Segment, ...]
    regions: tuple[Region, ...] = ()
    caption: str | None = None
    """The text of the contrastive loss; None: this picture takes no part in it."""
    negatives: tuple[str, ...] = ()
    """Texts for the contrastive loss that nearly fit, and are false."""

    def __post_init__(self) -> None:
        if not self.segments and self.caption is None:
            raise ValueError("an example needs segments or a caption: there would be no loss")


class Source(Protocol):
    """Where examples come from."""

    @property
    def name(self) -> str: ...

    def __len__(self) -> int:
        """Rows; 0: endless."""
        ...

    def length(self, index: int) -> int:
        """Characters of the row's texts, or a cheap likeness of that, to group rows of like length."""
        ...

    def example(self, index: int, rng: Rng, *, step: int) -> Example:
        """
        Args:
            index: of the row; of an endless source, the place in the batch.
        Raises:
            InputError: the row cannot be used; names the file and the row.
        """
        ...

    def texts(self, rng: Rng) -> Iterator[str]:
        """Every text that training can show, to train a tokenizer; a sample where the source is endless."""
        ...


class Endless:
    """What a source that draws its pictures says as a :class:`Source`."""

    def __len__(self) -> int:
        return 0

    def length(self, index: int) -> int:
        return 0


@runtime_checkable
class Paired(Protocol):
    """An endless source that can draw two examples which belong together."""

    @property
    def paired(self) -> bool:
        """Whether the examples 2n and 2n + 1 of a batch are to be drawn with generators in the same state."""
        ...


@runtime_checkable
class Ordered(Protocol):
    """A source with an opinion on the order of its rows, because rows near each other are cheaper to read together."""

    def order(self, rng: Rng) -> npt.NDArray[np.int64]:
        """[len] every row once, shuffled."""
        ...
