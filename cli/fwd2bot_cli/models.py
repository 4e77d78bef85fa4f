"""Where the commands get their models from: the one seam between them and everything that is heavy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fwd2bot_index.errors import InputError

if TYPE_CHECKING:
    from fwd2bot_index.config import Manifest
    from fwd2bot_index.text_encoder import TextEncoder
    from fwd2bot_index.types import Compressor, ModelIdentity


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which model a person asked for; what is left open is up to the model."""

    name: str
    revision: str | None = None
    num_tokens: int | None = None
    """Pooled tokens of a training-free model; None: its own number."""
    dtype: str | None = None
    """What it computes with; None: as suits the device."""
    device: str | None = None
    """What it runs on; None: CUDA where there is some."""
    compile: bool = False
    """See :meth:`fwd2bot_index.model.Fwd2BotModel.compile`."""

    @classmethod
    def of(cls, manifest: Manifest, *, instead: str | None = None) -> ModelChoice:
        """The model that made an index, or another ``instead`` that is to read it as that one does."""
        return cls(
            name=instead or manifest.model,
            revision=None if instead else manifest.model_revision,
            num_tokens=manifest.num_summary_tokens if manifest.mode == "training-free" else None,
        )


class Models(Protocol):
    """Finds models and loads them; tests bring one that hands out a fake."""

    def identity(self, choice: ModelChoice, *, show_download: bool) -> ModelIdentity:
        """What the loaded model will be, without loading it; one on the hub is downloaded first.

        Raises:
            ModelError: there is no such model.
        """
        ...

    def load(self, choice: ModelChoice) -> Compressor:
        """The model, ready to compress and to answer.

        Raises:
            ModelError: it cannot be found or loaded.
        """
        ...

    def text_encoder(self, manifest: Manifest) -> TextEncoder | None:
        """What embeds texts as the model that made an index does, without loading it; None where nothing can.

        Raises:
            ModelError: the model cannot be found, or a file of it is broken.
        """
        ...


class PretrainedModels:
    """The bundled model, folders, and the hub."""

    def identity(self, choice: ModelChoice, *, show_download: bool) -> ModelIdentity:
        if not show_download:
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when huggingface_hub is first imported
        from fwd2bot_index.checkpoints import resolve
        from fwd2bot_index.types import ModelIdentity

        found = resolve(choice.name, revision=choice.revision, num_summary_tokens=choice.num_tokens)
        return ModelIdentity(name=found.name, revision=found.revision, fingerprint=found.fingerprint())

    def load(self, choice: ModelChoice) -> Compressor:
        import torch
        import transformers

        from fwd2bot_index.model import Fwd2BotModel

        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        model = Fwd2BotModel.from_pretrained(
            choice.name,
            revision=choice.revision,
            num_summary_tokens=choice.num_tokens,
            device=choice.device,
            dtype=getattr(torch, choice.dtype) if choice.dtype else None,
        )
        if choice.compile:
            model.compile()
        return model

    def text_encoder(self, manifest: Manifest) -> TextEncoder | None:
        from fwd2bot_index.text_encoder import TextEncoder

        return TextEncoder.for_manifest(manifest)


def absolute(name: str) -> str:
    """A model folder's absolute path, so that its index can be searched from any folder; hub ids as they are."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def check_devices(names: Sequence[str]) -> None:
    """
    Raises:
        InputError: one of them is none, or not there.
    """
    import torch

    for name in names:
        try:
            device = torch.device(name)
        except RuntimeError:
            raise InputError(f"There is no device {name!r}: devices are cuda:0, cuda:1, ..., mps and cpu.") from None
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise InputError(f"There is no device {name}: this machine has {torch.cuda.device_count()} of CUDA's.")
