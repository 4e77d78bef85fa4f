"""CLIP-type dual encoders as a baseline: ``--model clip:NAME``, on the same tables.

Any model of transformers that embeds pictures and texts into one space by ``get_image_features`` and
``get_text_features`` (CLIP, MetaCLIP, SigLIP, SigLIP 2, ALIGN, Chinese-CLIP, AltCLIP, ...). OpenCLIP's models are read
in the transformers format that the hub has of most of them.

Shapes: B pictures, T texts, E embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from torch.nn import functional as F

from fwd2bot_eval.subjects import BATCH, Float32, Picture, Reader, Seen
from fwd2bot_index.checkpoints import resolve
from fwd2bot_index.errors import InputError, ModelError

_SIGLIP: Final = ("siglip", "siglip2")
_SIGLIP_LENGTH: Final = 64
"""Tokens that SigLIP's texts were padded to in training; its tokenizer does not say."""
_DECODE_FACTOR: Final = 2
"""Pictures are decoded to twice the size that the model sees: its own resizing is what it was trained with."""


class ClipSubject:
    """A dual encoder; satisfies :class:`fwd2bot_eval.subjects.Subject`. It embeds, and answers nothing."""

    columns: Sequence[str] = ()
    caption_prompt = ""
    short_answer_suffix = ""

    def __init__(self, model: Any, image_processor: Any, tokenizer: Any, *, name: str, fingerprint: str) -> None:
        """Prefer :meth:`from_pretrained`."""
        self.name = name
        self.fingerprint = fingerprint
        self.settings: dict[str, Any] = {"columns": [], "kind": "dual encoder"}
        self._model = model
        self._image_processor = image_processor
        self._tokenizer = tokenizer
        config = model.config
        self._length = int(getattr(config.text_config, "max_position_embeddings", None) or tokenizer.model_max_length)
        if config.model_type in _SIGLIP:
            self._length = min(self._length, _SIGLIP_LENGTH)
        self._cut = 0

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> Self:
        """A folder or a hub model.

        Raises:
            ModelError: not found, not a dual encoder, or broken.
        """
        from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

        if (Path(name_or_path) / "open_clip_config.json").is_file():
            raise ModelError(
                f"{name_or_path} is in OpenCLIP's own format: use the model's version for transformers, which the hub "
                "has of most."
            )
        found = resolve(name_or_path)
        try:
            config = AutoConfig.from_pretrained(found.folder)
            if not hasattr(config, "text_config") or not hasattr(config, "vision_config"):
                raise ModelError(f"{found.name} is a {config.model_type} model, which is no dual encoder.")
            model, loading = AutoModel.from_pretrained(
                found.folder, config=config, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(found.folder)
            image_processor = AutoImageProcessor.from_pretrained(found.folder, backend="pil")
        except ModelError:
            raise
        except Exception as e:  # broken files surface as many kinds
            raise ModelError(
                f"{found.name} cannot be loaded: {(str(e).strip() or type(e).__name__).splitlines()[0]}"
            ) from e
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise ModelError(f"{found.name} is a {config.model_type} model, which is no dual encoder.")
        if missing := sorted(loading["missing_keys"]):  # they would be random numbers
            raise ModelError(
                f"{found.name} cannot be used: {len(missing)} weights are missing, the first {missing[0]}."
            )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(
            model.to(device).eval(),
            image_processor,
            tokenizer,
            name=f"clip:{found.name}",
            fingerprint=found.fingerprint(),
        )

    @property
    def decode_side(self) -> int | None:
        """None where the model's own size is not fixed."""
        size = getattr(self._model.config.vision_config, "image_size", None)
        return _DECODE_FACTOR * size if isinstance(size, int) else None

    @property
    def notes(self) -> list[str]:
        if not self._cut:
            return []
        return [
            f"{self._cut} texts were longer than the {self._length} tokens of {self.name}, which reads their start."
        ]

    @torch.inference_mode()
    def see(self, pictures: Sequence[Picture]) -> Seen:
        pixels = self._image_processor(images=[p.image for p in pictures], return_tensors="pt")
        output = self._model.get_image_features(**pixels.to(self._model.device))
        return _Embedded(self.name, _unit(output))

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str]) -> Float32:
        parts = []
        # SigLIP was trained on texts padded to one length, without a mask
        siglip = self._model.config.model_type in _SIGLIP
        padding = "max_length" if siglip else True
        for start in range(0, len(texts), BATCH):
            part = list(texts[start : start + BATCH])
            whole = self._tokenizer(part)["input_ids"]
            self._cut += sum(len(ids) > self._length for ids in whole)
            tokens = self._tokenizer(
                part, padding=padding, truncation=True, max_length=self._length, return_tensors="pt"
            )
            if siglip:
                tokens.pop("attention_mask", None)
            output = self._model.get_text_features(**tokens.to(self._model.device))
            parts.append(_unit(output))
        return np.concatenate(parts)

    def matching_question(self, text: str) -> str:
        raise InputError(f"{self.name} answers no questions.")


class _Embedded:
    def __init__(self, name: str, embedding: Float32) -> None:
        self.embedding = embedding
        self._name = name

    def reader(self, column: str) -> Reader:
        raise InputError(f"{self._name} answers no questions.")


def _unit(output: Any) -> Float32:
    """[B, E] of unit length; newer transformers wrap the features in their output object."""
    features = output if isinstance(output, torch.Tensor) else output.pooler_output
    unit: Float32 = F.normalize(features.float(), dim=-1).cpu().numpy()
    return unit
