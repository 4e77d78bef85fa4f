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
from PIL import Image
from torch.nn import functional as F

from fwd2bot_eval.subjects import BATCH, Float32, Picture, Reader, Seen, computing
from fwd2bot_index.checkpoints import resolve
from fwd2bot_index.errors import InputError, ModelError

_SIGLIP: Final = ("siglip", "siglip2")
_TRAINED_LENGTH: Final = {"siglip": 64, "siglip2": 64, "align": 64, "chinese_clip": 52}
"""Tokens to which texts were cut in training, of models whose files allow more."""
_OPEN_CLIP: Final = "open_clip_config.json"


class ClipSubject:
    """A dual encoder; satisfies :class:`fwd2bot_eval.subjects.Subject`. It embeds, and answers nothing."""

    columns: Sequence[str] = ()
    caption_prompt = ""
    decode_side = None
    """As large as for any other model: resizing is the model's own, or published scores would not be met."""

    def __init__(self, model: Any, image_processor: Any, tokenizer: Any, *, name: str, fingerprint: str) -> None:
        """Prefer :meth:`from_pretrained`."""
        self.name = name
        self.fingerprint = fingerprint
        self._model = model
        self._image_processor = image_processor
        self._tokenizer = tokenizer
        positions = getattr(model.config.text_config, "max_position_embeddings", None)
        # XLM-R's positions (AltCLIP) start at 2, so there are more of them than a text may have tokens
        limits = [positions, tokenizer.model_max_length, _TRAINED_LENGTH.get(model.config.model_type)]
        self._length = min(int(n) for n in limits if n)
        self._cut: set[str] = set()
        self.settings: dict[str, Any] = {
            "columns": [],
            "kind": "dual encoder",
            "text_tokens": self._length,
            **computing(model),
        }

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> Self:
        """A folder or a hub model.

        Raises:
            ModelError: not found, not a dual encoder, or broken.
        """
        from transformers import MODEL_MAPPING, AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

        folder = Path(name_or_path).expanduser()
        if (folder / _OPEN_CLIP).is_file() and not (folder / "config.json").is_file():
            raise ModelError(_open_clip_only(str(name_or_path)))
        found = resolve(name_or_path)
        # never asked at the terminal either: no code comes with a model
        strict = {"trust_remote_code": False}
        try:
            config = AutoConfig.from_pretrained(found.folder, **strict)
            # before gigabytes are read
            kind = MODEL_MAPPING.get(type(config), None)
            if not all(hasattr(kind, name) for name in ("get_image_features", "get_text_features")):
                raise ModelError(f"{found.name} is a {config.model_type} model, which is no dual encoder.")
            if not (hasattr(config, "text_config") and hasattr(config, "vision_config")):
                raise ModelError(f"{found.name} is a {config.model_type} model, which is no dual encoder of pictures.")
            model, loading = AutoModel.from_pretrained(
                found.folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **strict,
            )
            tokenizer = AutoTokenizer.from_pretrained(found.folder, **strict)
            image_processor = AutoImageProcessor.from_pretrained(found.folder, backend="pil", **strict)
        except ModelError:
            raise
        except ImportError as e:
            raise ModelError(
                f"{found.name} needs a package that is not installed ({_first_line(e)}); for SigLIP's tokenizer try "
                "`pip install sentencepiece`."
            ) from e
        except Exception as e:  # broken files surface as many kinds
            if (found.folder / _OPEN_CLIP).is_file():
                raise ModelError(_open_clip_only(found.name)) from e
            raise ModelError(f"{found.name} cannot be loaded: {_first_line(e)}") from e
        if missing := sorted(loading["missing_keys"]):  # they would be random numbers
            raise ModelError(
                f"{found.name} cannot be used: {len(missing)} weights are missing, the first {missing[0]}."
            )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        subject = cls(
            model.to(device).eval(),
            image_processor,
            tokenizer,
            name=f"clip:{found.name}",
            fingerprint=found.fingerprint(),
        )
        subject._check()
        return subject

    def _check(self) -> None:
        """That pictures, and texts up to the longest, get vectors of one space: an image processor can belong to
        another model, and BLIP-2 has the methods of a dual encoder without being one."""
        try:
            image = self.see([Picture(image=Image.new("RGB", (64, 64)), content_id="")]).embedding
            text = self._embed(["a", "a " * self._length])
        except ModelError:
            raise
        except Exception as e:
            raise ModelError(f"{self.name} cannot be used: {_first_line(e)}") from e
        self._cut.clear()
        if image.shape[1] != text.shape[1]:
            raise ModelError(
                f"{self.name} is no dual encoder: a picture gets {image.shape[1]} numbers, a text {text.shape[1]}."
            )

    @property
    def notes(self) -> list[str]:
        """Said of every model: a run that goes on does not know what was cut before."""
        if not self._cut:
            return [f"{self.name} reads the first {self._length} tokens of a text."]
        return [
            f"{self.name} reads the first {self._length} tokens of a text: at least {len(self._cut)} texts were longer."
        ]

    @torch.inference_mode()
    def see(self, pictures: Sequence[Picture]) -> Seen:
        pixels = self._image_processor(images=[p.image for p in pictures], return_tensors="pt")
        output = self._model.get_image_features(**pixels.to(self._model.device))
        return _Embedded(self.name, self._unit(output))

    def embed_text(self, texts: Sequence[str]) -> Float32:
        return np.concatenate([self._embed(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)])

    @torch.inference_mode()
    def _embed(self, texts: Sequence[str]) -> Float32:
        part = list(texts)
        whole = self._tokenizer(part, verbose=False)["input_ids"]
        self._cut.update(text for text, ids in zip(part, whole, strict=True) if len(ids) > self._length)
        # SigLIP was trained on texts padded to one length, without a mask, and reads the last position
        siglip = self._model.config.model_type in _SIGLIP
        tokens = self._tokenizer(
            part,
            padding="max_length" if siglip else True,
            padding_side="right",
            truncation=True,
            max_length=self._length,
            return_tensors="pt",
        )
        if siglip:
            tokens.pop("attention_mask", None)
        return self._unit(self._model.get_text_features(**tokens.to(self._model.device)))

    def _unit(self, output: Any) -> Float32:
        """[B, E] of unit length; newer transformers wrap the features in their output object.

        Raises:
            ModelError: these are no vectors.
        """
        features = output if isinstance(output, torch.Tensor) else getattr(output, "pooler_output", None)
        if features is None or features.ndim != 2:
            raise ModelError(f"{self.name} is no dual encoder: it has no single vector of a picture or of a text.")
        unit: Float32 = F.normalize(features.float(), dim=-1).cpu().numpy()
        return unit

    def matching_question(self, text: str) -> str:
        raise InputError(f"{self.name} answers no questions.")

    def short_answer_suffix(self, column: str) -> str:
        raise InputError(f"{self.name} answers no questions.")


class _Embedded:
    def __init__(self, name: str, embedding: Float32) -> None:
        self.embedding = embedding
        self._name = name

    def reader(self, column: str) -> Reader:
        raise InputError(f"{self._name} answers no questions.")


def _open_clip_only(name: str) -> str:
    return (
        f"{name} is in OpenCLIP's own format: use the model's version for transformers, which the hub has of most "
        "(other ones can be converted)."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
