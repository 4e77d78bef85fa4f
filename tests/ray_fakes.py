"""What Ray's processes import in tests: models and decoders that die."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fakes import FakeModel
from PIL import Image

from fwd2bot_index import ray_engine
from fwd2bot_index.types import ImageInput, SummaryTokens


class Mortal(FakeModel):
    """Its process is killed by pictures of this width; by the first of them only where ``once`` names a file."""

    def __init__(self, width: int, *, once: Path | None = None) -> None:
        super().__init__()
        self.width = width
        self.once = once

    def compress(self, images: Sequence[ImageInput]) -> SummaryTokens:
        found = any(isinstance(image, Image.Image) and image.width == self.width for image in images)
        if found and (self.once is None or not self.once.exists()):
            if self.once is not None:
                self.once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().compress(images)


def decode_or_die(files: list[str], max_side: int) -> list[Any]:
    if any(file.endswith("killer.png") for file in files):
        os.kill(os.getpid(), signal.SIGKILL)
    return ray_engine.decode(files, max_side)
