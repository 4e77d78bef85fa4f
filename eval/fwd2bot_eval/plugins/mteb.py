"""A Fwd2Bot model as an encoder of mteb: SugarCrepe, Winoground, retrieval on Flickr30k, ...

    encoder = Fwd2BotEncoder.from_pretrained()
    mteb.evaluate(encoder, mteb.get_tasks(tasks=["SugarCrepe", "Winoground", "Flickr30kT2IRetrieval"]))

Notable choices:

- mteb gives some tasks' pictures one at a time, so rows are gathered here into batches of ``batch_size``.
- An input that is a picture *and* a text is refused: the model was not trained to embed the two as one, and a sum would
  be mteb's idea, not a score of the model.
- Instructions (``TaskMetadata.prompt``) are not put before the texts: the model knows no instructions, and its
  metadata says so.
- The revision that mteb files the scores under is the fingerprint of weights and settings: scores of two models are
  never mixed up.

Needs mteb 2 (tested: 2.26); ``pip install 'fwd2bot[harness]'``.

Shapes: n rows, E embedding size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm

from fwd2bot_index.errors import InputError
from fwd2bot_index.model import Fwd2BotModel

try:
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ScoringFunction
except ModuleNotFoundError as e:
    raise ImportError(f"This plug-in needs mteb 2 ({e}): pip install 'fwd2bot[harness]'.") from e

Float32 = npt.NDArray[np.float32]
Kind = Literal["text", "image"]
_MODALITIES: Final = ("text", "image", "audio", "video")


class Fwd2BotEncoder(AbsEncoder):
    """Satisfies mteb's ``EncoderProtocol``; ``mteb_model_meta`` describes the model."""

    def __init__(self, model: Fwd2BotModel) -> None:
        """Prefer :meth:`from_pretrained`.

        Raises:
            ModelError: a model in training, which has no fingerprint.
        """
        self.model = model
        self.mteb_model_meta = _describe(model)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        revision: str | None = None,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        num_summary_tokens: int | None = None,
    ) -> Fwd2BotEncoder:
        """Any model that ``fwd2bot --model`` takes; the arguments are those of :meth:`Fwd2BotModel.from_pretrained`."""
        model = Fwd2BotModel.from_pretrained(
            name_or_path, revision=revision, device=device, dtype=dtype, num_summary_tokens=num_summary_tokens
        )
        return cls(model)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Sequence[Any]]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        precision: str = "float32",
    ) -> Float32:
        """[n, E], unit length: embeddings of all rows of ``inputs``, in their order.

        Args:
            inputs: batches of ``{"image": [...]}`` or ``{"text": [...]}``, of any size.
            task_metadata, hf_split, hf_subset, prompt_type: mteb tells every encoder for what it encodes; this one
                embeds a picture or a text in the same way whatever for.
            batch_size: rows of one forward.
        Raises:
            InputError: rows of another kind, of both kinds at once, or another ``precision`` than float32.
        """
        if precision != "float32":
            raise InputError(f"Embeddings are float32; precision={precision!r} is not offered.")
        done: list[Float32] = []
        waiting: list[Any] = []
        kind: Kind | None = None
        for batch in tqdm(inputs, desc="encoding", disable=not show_progress_bar):
            this, rows = _rows(batch, task_metadata.name)
            if this != kind:
                done += self._embed(kind, waiting, batch_size)
                kind, waiting = this, []
            waiting += rows
            whole = len(waiting) // batch_size * batch_size
            done += self._embed(kind, waiting[:whole], batch_size)
            waiting = waiting[whole:]
        done += self._embed(kind, waiting, batch_size)
        return np.concatenate(done) if done else np.zeros((0, self.model.embedding_dim), np.float32)

    def _embed(self, kind: Kind | None, rows: Sequence[Any], batch_size: int) -> list[Float32]:
        embed: Callable[[Sequence[Any]], torch.Tensor] = (
            self.model.embed_text if kind == "text" else lambda images: self.model.compress(images).embedding
        )
        return [embed(rows[i : i + batch_size]).float().cpu().numpy() for i in range(0, len(rows), batch_size)]


def _rows(batch: Mapping[str, Sequence[Any]], task: str) -> tuple[Kind, list[Any]]:
    """What the rows of one batch are, and they."""
    match [name for name in _MODALITIES if name in batch]:
        case ["text" | "image" as kind]:
            rows = list(batch[kind])
        case found:
            raise InputError(
                f"{task} has inputs of {' and '.join(found) or 'no known kind'}; this model embeds a text or a picture."
            )
    if any(row is None for row in rows):
        raise InputError(f"{task} has a row without its {kind}.")
    return kind, rows


def _describe(model: Fwd2BotModel) -> ModelMeta:
    """None stands for what only the makers of this very model know (its data, licence, languages)."""
    return ModelMeta(
        # built here, not by mteb's registry: there is no loader that its command line could call
        loader=None,
        name=f"fwd2bot/{re.sub(r'[^A-Za-z0-9._-]+', '__', model.name.strip('/'))}",
        revision=model.fingerprint,
        release_date=None,
        languages=None,
        n_parameters=sum(p.numel() for p in model.parameters()),
        memory_usage_mb=None,
        max_tokens=None,
        embed_dim=model.embedding_dim,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=False,
        training_datasets=None,
        modalities=["image", "text"],
        model_type=["dense"],
    )
