"""What one training step computes: a picture batch in, named losses out. The trainer adds them up and steps.

`PretrainObjective` teaches an ordinary LVLM (answers from all image tokens) and, on the side, makes its
one-word-summary states comparable between pictures and texts. `CompressObjective` is Fwd2Bot's double pass.

Shapes: B pictures, N image tokens, K summary tokens, D hidden size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fwd2bot_index.config import CompressorConfig
from fwd2bot_index.model import FirstPassBatch, Fwd2BotModel
from fwd2bot_training import losses
from fwd2bot_training.data import Example
from fwd2bot_training.packing import Packed, pack, run_packed
from fwd2bot_training.small_llava import word_codes

_STOP_WORDS = {
    "a",
    "an",
    "the",
    "of",
    "in",
    "on",
    "at",
    "to",
    "with",
    "and",
    "is",
    "are",
    "his",
    "her",
    "its",
    "by",
    "for",
    "from",
}
TRAINING_FREE = CompressorConfig.training_free("base")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One collated batch; made in the loader's process."""

    step: int
    source: str
    images: torch.Tensor
    """[B, 3, H, W] uint8."""
    packed: Packed
    captions: list[str] | None
    """One for each picture, or None: no contrastive loss in this batch."""
    negatives: list[str]
    """Hard negatives of the captions: any number, none without captions."""
    regions: list[tuple[int, tuple[float, float, float, float], list[int]]]
    """(row, box, token ids of the words) for the word loss."""


@dataclass(kw_only=True)
class StepLosses:
    total: torch.Tensor
    parts: dict[str, float] = field(default_factory=dict)
    """For the log: losses in nats and shares, by name."""


def collate(
    step: int, source: str, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, probes: Sequence[str]
) -> Batch:
    captions = [e.caption for e in examples if e.caption is not None]
    contrastive = len(captions) == len(examples)
    return Batch(
        step=step,
        source=source,
        images=torch.from_numpy(np.stack([e.image for e in examples])).permute(0, 3, 1, 2).contiguous(),
        packed=pack([e.segments for e in examples], tokenizer, probes=probes if contrastive else ()),
        captions=captions if contrastive else None,
        negatives=[n for e in examples for n in e.negatives] if contrastive else [],
        regions=[(i, r.box, _word_ids(tokenizer, r.text)) for i, e in enumerate(examples) for r in e.regions],
    )


def _word_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """As they stand inside a sentence: with the space before them."""
    words = [w for w in re.findall(r"\w+", text) if w not in _STOP_WORDS]
    return [i for w in words for i in tokenizer.encode(" " + w, add_special_tokens=False)]


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] uint8 -> float in [-1, 1]: what the small LLaVA's image processor makes of a picture of its size."""
    return images.float().div_(127.5).sub_(1.0)


def _answer_loss(
    lm_head: torch.nn.Module, hidden: torch.Tensor, packed: Packed
) -> tuple[torch.Tensor, dict[str, float]]:
    """The AR loss over the labelled positions, and each kind's token accuracy for the log."""
    logits = lm_head(hidden.flatten(0, 1)[packed.predict])
    loss = losses.autoregressive(logits, packed.labels, packed.weights)
    with torch.no_grad():
        right = (logits.argmax(-1) == packed.labels).float()
        parts = {f"acc/{kind}": float(right[packed.label_kind == i].mean()) for i, kind in enumerate(packed.kinds)}
    return loss, {"ar": float(loss.detach()), **parts}


def encode_texts(
    language_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> torch.Tensor:
    """[B, D] unit length: last hidden state of each text behind the tokenizer's BOS. Right padding: causal attention
    never sees it."""
    rows = [[tokenizer.bos_token_id, *tokenizer.encode(t, add_special_tokens=False)] for t in texts]
    lengths = torch.tensor([len(r) for r in rows])
    width = int(lengths.max())
    ids = torch.tensor([r + [tokenizer.pad_token_id] * (width - len(r)) for r in rows])
    hidden = language_model(input_ids=ids, use_cache=False).last_hidden_state
    return F.normalize(hidden[torch.arange(len(rows)), lengths - 1], dim=-1)


class PretrainObjective(torch.nn.Module):
    """An ordinary LVLM: AR loss from all image tokens, plus InfoNCE between the one-word-summary states, plus the word
    loss on the image tokens themselves, which teaches a vision part from scratch what words there are to see.

    ``contrastive_weight`` and ``word_weight`` 0 turn these parts off. ``vision_only`` leaves the LLM out: the word loss
    alone, for a warm-up at several times the speed.
    """

    probes = (TRAINING_FREE.compress_prompt,)

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        contrastive_weight: float,
        word_weight: float = 0.0,
        vision_only: bool = False,
    ) -> None:
        super().__init__()
        self.word_weight = word_weight
        self.word_codes: torch.Tensor
        embeddings = base.get_input_embeddings().weight
        self.register_buffer("word_codes", word_codes(*embeddings.shape), persistent=False)
        self.vision_only = vision_only
        self.base = base
        self.tokenizer = tokenizer
        self.contrastive_weight = contrastive_weight
        self.logit_scale = torch.nn.Parameter(torch.tensor(float(np.log(1 / 0.07))))

    def forward(self, batch: Batch) -> StepLosses:
        model = self.base.model
        features = torch.stack(list(model.get_image_features(to_pixels(batch.images)).pooler_output))
        if self.vision_only:
            word_loss = self._word_loss(features, batch)
            return StepLosses(total=word_loss, parts={"words": float(word_loss.detach())})
        hidden = run_packed(model.language_model, wrap(model.language_model, self.tokenizer, features), batch.packed)
        total, parts = _answer_loss(self.base.lm_head, hidden, batch.packed)
        if self.word_weight and batch.regions:
            word_loss = self._word_loss(features, batch)
            total = total + self.word_weight * word_loss
            parts["words"] = float(word_loss.detach())
        if batch.captions is not None and self.contrastive_weight:
            images = F.normalize(hidden[torch.arange(len(hidden)), batch.packed.last[:, 0]], dim=-1)
            prompts = [TRAINING_FREE.text_prompt.format(text=c) + "\n" for c in batch.captions]
            texts = encode_texts(model.language_model, self.tokenizer, prompts)
            contrast = losses.info_nce(images, texts, self.logit_scale)
            total = total + self.contrastive_weight * contrast
            parts["nce"] = float(contrast.detach())
        return StepLosses(total=total, parts=parts)

    def _word_loss(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        """``features``: [B, N, D] with N a square grid."""
        side = math.isqrt(features.shape[1])
        centres = (torch.arange(side) + 0.5) / side
        rows, targets = [], torch.zeros(len(batch.regions), len(self.word_codes))
        for i, (row, (left, top, right, bottom), ids) in enumerate(batch.regions):
            half = 0.5 / side  # a cell belongs to a box that reaches into it
            across = (centres > left - half) & (centres < right + half)
            down = (centres > top - half) & (centres < bottom + half)
            rows.append(features[row][(down[:, None] & across).flatten()].mean(0))
            targets[i].index_add_(0, torch.tensor(ids), torch.full((len(ids),), 1 / len(ids)))
        return losses.words(torch.stack(rows), self.word_codes, targets)


def wrap(language_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: torch.Tensor) -> torch.Tensor:
    """[B, 1+K+1, D]: ``<bos>{tokens}\\n``, the beginning of the small LLaVA's chat format."""
    ids = torch.tensor([tokenizer.bos_token_id, *tokenizer.encode("\n", add_special_tokens=False)])
    around = language_model.get_input_embeddings()(ids)[:, None, None].expand(-1, len(tokens), 1, -1)
    return torch.cat([around[0], tokens, around[1]], dim=1)


class CompressObjective(torch.nn.Module):
    """The double pass: AR loss after the second pass, symmetric InfoNCE with hard negatives after the first (arXiv
    2503.21757).

    Each step draws one prefix length k' from ``prefixes`` for the second pass, so that the first k' of the stored
    tokens answer alone; the embedding pools all K. Gradients flow through the summary tokens into the first pass.
    """

    probes = ()

    def __init__(self, model: Fwd2BotModel, *, contrastive_weight: float, prefixes: Sequence[int], seed: int) -> None:
        super().__init__()
        if not prefixes or not all(1 <= k <= model.num_summary_tokens for k in prefixes):
            raise ValueError(f"prefixes must be between 1 and {model.num_summary_tokens}: {prefixes}")
        self.model = model
        self.tokenizer = model.processor.tokenizer
        self.contrastive_weight = contrastive_weight
        if model.logit_scale is None:
            raise ValueError("a training-free model has nothing to train; build it with a trained config")
        self.logit_scale = model.logit_scale
        self.prefixes = tuple(prefixes)
        self.seed = seed
        self._layout = model.prepare_images([Image.new("RGB", (64, 64))])

    def forward(self, batch: Batch) -> StepLosses:
        model = self.model
        tokens = model.first_pass(self._first_pass_batch(batch.images))
        k = self.prefixes[int(np.random.default_rng([self.seed, batch.step]).integers(len(self.prefixes)))]
        language_model = model.base.model.language_model
        with model.stage("generate"):
            prefix = wrap(language_model, self.tokenizer, tokens[:, :k])
            hidden = run_packed(language_model, prefix, batch.packed)
        total, parts = _answer_loss(model.base.lm_head, hidden, batch.packed)
        if batch.captions is not None and self.contrastive_weight:
            texts = model.encode_text(batch.captions + batch.negatives)
            texts, negatives = texts[: len(tokens)], texts[len(tokens) :]
            contrast = losses.info_nce(model.embed_tokens(tokens), texts, self.logit_scale, negatives)
            total = total + self.contrastive_weight * contrast
            parts["nce"] = float(contrast.detach())
        return StepLosses(total=total, parts=parts)

    def _first_pass_batch(self, images: torch.Tensor) -> FirstPassBatch:
        """What ``prepare_images`` makes of pictures that have the model's size, without its per-picture work."""
        one = self._layout
        return FirstPassBatch(
            pixels={"pixel_values": to_pixels(images)},
            input_ids=one.input_ids.expand(len(images), -1),
            attention_mask=one.attention_mask.expand(len(images), -1),
            grids=one.grids * len(images),
        )
