"""A Fwd2Bot model as the one module of a ``SentenceTransformer``.

    model = sentence_transformer()
    model.similarity(model.encode("a red boat"), model.encode(Path("boat.jpg")))

Notable choices:

- It is a true module, no lookalike: batching, progress, truncation, prompts, prompt names and ``encode_query`` are
  sentence-transformers' own, and so are its evaluators.
- What is a picture is what sentence-transformers takes for one: a Pillow image, an array [H, W, C] or [C, H, W], and a
  ``str`` that ends like an image file and names a file that exists. A ``Path`` and ``bytes`` are always a picture; any
  other ``str`` is a text. ``{"text": ...}`` and ``{"image": ...}`` say it outright.
- One call takes texts or pictures, never both; that is sentence-transformers' rule too.
- It is for inference: there is no gradient. ``fwd2bot train`` trains.

Needs sentence-transformers (tested: 6.2); ``pip install 'fwd2bot[harness]'``.

Shapes: B batch, K summary tokens, D hidden size, E embedding size, H x W pixels, C channels.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from PIL import Image

from fwd2bot_index.errors import InputError
from fwd2bot_index.model import Fwd2BotModel
from fwd2bot_index.types import ImageInput

try:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modality import infer_modality
    from sentence_transformers.base.modules import InputModule
except ModuleNotFoundError as e:
    raise ImportError(
        f"This plug-in needs sentence-transformers 6 or newer ({e}): pip install 'fwd2bot[harness]'."
    ) from e

Kind = Literal["text", "image"]
_KINDS: Final[tuple[Kind, Kind]] = ("text", "image")
_CHANNELS: Final = (1, 3, 4)


def sentence_transformer(
    name_or_path: str | Path | None = None,
    *,
    revision: str | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    num_summary_tokens: int | None = None,
) -> SentenceTransformer:
    """Any model that ``fwd2bot --model`` takes, ready to ``encode``; None: the bundled one.

    The arguments are those of :meth:`Fwd2BotModel.from_pretrained`. What it encodes are float32 embeddings [B, E] of
    unit length, compared by cosine.

    Raises:
        ModelError: as ``from_pretrained``.
    """
    model = Fwd2BotModel.from_pretrained(
        name_or_path, revision=revision, device=device, dtype=dtype, num_summary_tokens=num_summary_tokens
    )
    return SentenceTransformer(modules=[Fwd2BotModule(model)], device=str(model.device), similarity_fn_name="cosine")


class Fwd2BotModule(InputModule):
    """The first and only module: pictures or texts to embeddings.

    ``SentenceTransformer.save_pretrained`` writes a folder that is a Fwd2Bot checkpoint and a sentence-transformers
    model at once. ``SentenceTransformer(folder, trust_remote_code=True)`` reads it: sentence-transformers asks that of
    every class that is not its own, installed ones too.
    """

    def __init__(self, model: Fwd2BotModel) -> None:
        super().__init__()
        self.model = model

    @property
    def modalities(self) -> list[Kind]:
        return list(_KINDS)

    @property
    def tokenizer(self) -> Any:
        """Read by others, as mteb's description of a model; texts are tokenized by the model itself."""
        return self.model.processor.tokenizer

    def get_embedding_dimension(self) -> int:
        return self.model.embedding_dim

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        task: str | None = None,
        processing_kwargs: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Sort out one batch; pixels and token ids are made with the forward.

        Args:
            inputs: [B], all texts or all pictures.
            prompt: stands before every text.
            task: ``query`` or ``document``, as ``encode_query`` and ``encode_document`` say; both are embedded alike.
            processing_kwargs: none are taken: what the model was trained with decides.
        Raises:
            InputError: neither text nor picture, a mixture, a prompt for pictures, or ``processing_kwargs``. (No
                TypeError: sentence-transformers would take that for a module that knows no prompts, and try again.)
        """
        if processing_kwargs:
            raise InputError("A Fwd2Bot model prepares its inputs as it was trained; it takes no processing_kwargs.")
        kinds, values = zip(*(_sorted_out(sample) for sample in inputs), strict=True)
        if len(set(kinds)) > 1:
            raise InputError("This batch mixes texts and pictures: encode them in separate calls.")
        if kinds[0] == "text":
            return {"texts": [(prompt or "") + text for text in values]}
        if prompt:
            raise InputError(f"The prompt {prompt!r} was given with pictures; only texts take a prompt.")
        return {"images": list(values)}

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """``sentence_embedding`` [B, E], float32, unit length; of pictures also their summary tokens as
        ``token_embeddings`` [B, K, D], under an ``attention_mask`` [B, K] of ones."""
        if "texts" in features:
            return _TextFeatures(sentence_embedding=self.model.embed_text(features["texts"]))
        summary = self.model.compress(features["images"])
        return {
            "sentence_embedding": summary.embedding,
            "token_embeddings": summary.tokens,
            "attention_mask": torch.ones(summary.tokens.shape[:2], dtype=torch.long, device=summary.tokens.device),
        }

    def save(self, output_path: str, *, safe_serialization: bool = True) -> None:
        """Write the checkpoint into ``output_path``.

        Raises:
            InputError: weights asked for as a pickle.
            ModelError: a training-free model, which has nothing of its own to save.
        """
        if not safe_serialization:
            raise InputError("Fwd2Bot checkpoints are safetensors only: leave safe_serialization as it is.")
        self.model.save_pretrained(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        backend: str = "torch",
    ) -> Fwd2BotModule:
        """Called by ``SentenceTransformer(folder_or_hub_id)``, which moves the model to its device afterwards.

        ``model_kwargs={"dtype": torch.bfloat16}`` is honoured (default float32); ``trust_remote_code`` has done its
        work when this class was found.

        Raises:
            InputError: other keyword arguments for the model, or another backend.
            ModelError: as :meth:`Fwd2BotModel.from_pretrained`.
        """
        given = dict(model_kwargs or {})
        dtype = given.pop("dtype", torch.float32)
        if given or processor_kwargs or config_kwargs or backend != "torch":
            raise InputError(
                "A Fwd2Bot model takes model_kwargs={'dtype': ...} and backend='torch'; no other model_kwargs, no "
                "processor_kwargs and no config_kwargs."
            )
        folder = cls.load_dir_path(
            model_name_or_path,
            subfolder=subfolder,
            token=token,
            cache_folder=cache_folder,
            revision=revision,
            local_files_only=local_files_only,
        )
        if folder is None:
            raise InputError(f"There is no folder {subfolder!r} in {model_name_or_path}.")
        return cls(Fwd2BotModel.from_pretrained(folder, device="cpu", dtype=dtype))


class _TextFeatures(dict[str, Any]):
    """What is missing for a text, sentence-transformers looks up without asking."""

    def __missing__(self, key: str) -> Any:
        raise InputError(f"A text has an embedding but no {key}: only pictures have summary tokens.")


def _sorted_out(sample: Any) -> tuple[Kind, str | ImageInput]:
    if isinstance(sample, bytes | Path):
        return "image", sample
    try:
        kind = infer_modality(sample, supported_modalities=list(_KINDS))
    except ValueError as e:
        raise InputError(f"{type(sample).__name__} is neither a text nor a picture: {e}") from e
    value = sample[kind] if isinstance(sample, Mapping) and kind in _KINDS else sample
    if kind == "image":
        return "image", _picture(value)
    if kind == "text" and isinstance(value, str):
        return "text", value
    raise InputError(f"An input of type {type(sample).__name__} ({kind}) is neither one text nor one picture.")


def _picture(value: Any) -> ImageInput:
    if isinstance(value, Image.Image | bytes | Path):
        return value
    if isinstance(value, np.ndarray | torch.Tensor):
        return _from_pixels(value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value)
    if not isinstance(value, str):
        raise InputError(f"A picture cannot be read from {type(value).__name__}.")
    if value.startswith(("http://", "https://")):
        raise InputError(f"Nothing is downloaded: fetch {value} yourself and give the file.")
    if not value.startswith("data:"):
        return Path(value)
    try:
        return base64.b64decode(value.partition(";base64,")[2], validate=True)
    except binascii.Error as e:
        raise InputError(f"This data: address does not hold base64 ({e}).") from e


def _from_pixels(pixels: np.ndarray[Any, np.dtype[Any]]) -> Image.Image:
    """From [H, W, C], or [C, H, W] where the last axis cannot be channels."""
    if pixels.ndim == 3 and pixels.shape[2] not in _CHANNELS and pixels.shape[0] in _CHANNELS:
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim != 3 or pixels.shape[2] not in _CHANNELS or pixels.dtype != np.uint8:
        raise InputError(
            f"An array of shape {pixels.shape} and type {pixels.dtype} is no picture: give uint8 (0 to 255), height x "
            "width x channels (1, 3 or 4), or channels first."
        )
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
