"""What the tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fakes import FakeModel
from PIL import Image

from fwd2bot_cli.models import ModelChoice
from fwd2bot_index.config import Manifest
from fwd2bot_index.types import Compressor, ModelIdentity

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}


class FakeModels:
    """Hands out one fake model under any name; ``loads`` counts how often it was really needed."""

    def __init__(self, fingerprint: str = "fake-1") -> None:
        self.model = FakeModel(fingerprint=fingerprint)
        self.loads = 0
        self.choice: ModelChoice | None = None
        """The last that was loaded."""

    def identity(self, choice: ModelChoice, *, show_download: bool) -> ModelIdentity:
        return ModelIdentity(name=choice.name, revision=choice.revision, fingerprint=self.model.fingerprint)

    def load(self, choice: ModelChoice) -> Compressor:
        self.loads += 1
        self.choice = choice
        self.model.name = choice.name
        return self.model

    def text_encoder(self, manifest: Manifest) -> None:
        """Only the model itself embeds."""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The error, which must be one line and no traceback."""
        assert "Traceback" not in self.err, self.err
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, self.err
        return errors[0]


Run = Callable[..., Outcome]


def draw_colours(folder: Path) -> None:
    folder.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (32, 24), colour).save(folder / f"{name}.png")
