"""A source that has rows: from a picture's bytes and what a row says to an `Example`.

Pictures are decoded at each visit. Cropping, where the source asks for it, takes a little at random, and mirrors the
picture where no text speaks of sides.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fwd2bot_index.decoding import decode_image
from fwd2bot_index.errors import ImageError, InputError
from fwd2bot_training.config import SourceConfig
from fwd2bot_training.data.example import WHOLE, Example, Region, Rng
from fwd2bot_training.data.texts import Routing, Texts, Unusable, caption_segment, name_segment

MOST_CAPTIONS_SAID = 2
"""Of several captions of one picture, so many besides that of the contrastive loss are answers."""
_SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)


class RowSource(ABC):
    """Rows of files. What the kinds of files differ in is abstract here."""

    left_out: int = 0
    """Records without a picture: text alone trains nothing here."""

    def __init__(self, config: SourceConfig, routing: Routing) -> None:
        self.name = config.name
        self._crop = config.crop
        self._routing = routing

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def length(self, index: int) -> int: ...

    @abstractmethod
    def where(self, index: int) -> str:
        """The file and the row, as a message names them."""

    @abstractmethod
    def _texts(self, index: int) -> Texts:
        """Raises `Unusable`."""

    @abstractmethod
    def _picture(self, index: int) -> bytes:
        """The file of the picture. Raises `Unusable` and `ImageError`."""

    def row(self, index: int) -> Texts:
        """Everything that the row says.

        Raises:
            InputError: it cannot be used; names the file and the row.
        """
        try:
            return self._texts(index)
        except Unusable as e:
            raise InputError(f"{self.where(index)}: {e}.") from e

    def picture(self, index: int) -> Image.Image:
        """RGB, upright, whole.

        Raises:
            InputError: it is missing or cannot be decoded; names the file and the row.
        """
        try:
            return decode_image(self._picture(index)).image
        except Unusable as e:
            raise InputError(f"{self.where(index)}: {e}.") from e
        except ImageError as e:
            raise InputError(f"{self.where(index)}: its picture cannot be used: {e.reason}.") from e

    def example(self, index: int, rng: Rng, *, step: int) -> Example:
        """Of several captions one short one, drawn, is for the contrastive loss and up to two more are said; a long
        caption is said only."""
        row = self.row(index)
        captions = [row.captions[i] for i in rng.permutation(len(row.captions))]
        short = [self._routing.is_short(c) for c in captions]
        contrasted = short.index(True) if True in short else None
        said = [i for i in range(len(captions)) if i != contrasted][:MOST_CAPTIONS_SAID]
        segments = list(row.segments)
        segments += [caption_segment(captions[i], short=short[i]) for i in said]
        regions = [Region(box=WHOLE, text=", ".join(captions))] if captions else []
        if row.word is not None:
            segments.append(name_segment(row.word))
            regions.append(Region(box=WHOLE, text=row.word))
        image = self.picture(index)
        if self._crop:
            image = _random_crop(image, rng)
            if not any(_SIDES.search(text) for text in row) and rng.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return Example(
            image=image,
            segments=tuple(segments),
            regions=tuple(regions),
            caption=None if contrasted is None else captions[contrasted],
            negatives=row.negatives,
        )

    def texts(self, rng: Rng) -> Iterator[str]:
        for index in range(len(self)):
            try:
                yield from self.row(index)
            except InputError:
                continue  # it will never be shown; whether it stops the training is for the mixture to say


def check_pictures(names: Sequence[str], *, folder: Path, file: Path, stop: bool) -> None:
    """Whether the pictures that ``file`` names lie under ``folder``, by listing each folder once.

    ``stop`` False: only when all of them are missing.

    Raises:
        InputError: some are missing; says how many of how many and which is the first.
    """
    listed: dict[str, set[str]] = {}

    def exists(name: str) -> bool:
        parent, base = os.path.split(os.path.join(folder, name))
        if parent not in listed:
            try:
                listed[parent] = set(os.listdir(parent))
            except OSError:
                listed[parent] = set()
        return base in listed[parent]

    distinct = list(dict.fromkeys(names))
    missing = [n for n in distinct if not exists(n)]
    if missing and (stop or len(missing) == len(distinct)):
        raise InputError(
            f"{len(missing)} of {len(distinct)} pictures of {file} are missing, the first {missing[0]} (looked for in "
            f"{folder}). Put them there, set the source's images or path, or leave such rows out with "
            "data.bad_rows = 'skip'."
        )


def _random_crop(image: Image.Image, rng: Rng) -> Image.Image:
    scale = float(np.sqrt(rng.uniform(0.6, 1.0)))
    w, h = max(1, int(image.width * scale)), max(1, int(image.height * scale))
    x, y = int(rng.integers(image.width - w + 1)), int(rng.integers(image.height - h + 1))
    return image.crop((x, y, x + w, y + h))
