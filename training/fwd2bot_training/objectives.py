"""What one training step computes: a micro-batch of pictures in, sums of losses and embeddings out. The trainer adds
them up over micro-batches and processes, and steps.

`DoublePass` is Fwd2Bot (arXiv 2503.21757) and, with another ``compressor``, two of its rivals; `SinglePass` is its
ablation; `Lvlm` and `Words` teach a small LLaVA from scratch. All wrap a `Fwd2BotModel` and differ in what the text
reads: see `Reading`.

Shapes: B pictures, N image tokens, K summary tokens, D hidden size, E embedding size, M hard negatives.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fwd2bot_index.codec import get_codec
from fwd2bot_index.config import MATCHING_PROMPT, CompressorConfig
from fwd2bot_index.errors import InputError
from fwd2bot_index.inputs import FirstPassBatch, InputMaker
from fwd2bot_index.model import Fwd2BotModel
from fwd2bot_index.types import Stage
from fwd2bot_training import losses
from fwd2bot_training.config import MethodConfig
from fwd2bot_training.data import Example, Segment
from fwd2bot_training.packing import MATCHING, Packed, Prefix, States, pack, run_packed
from fwd2bot_training.rivals import Resampler
from fwd2bot_training.small_llava import word_codes

_STOP_WORDS = frozenset(("a an the of in on at to with and is are his her its by for from").split())  # noqa: SIM905
_SUMMARY_OF_IMAGE = CompressorConfig.training_free("base").compress_prompt
_TEMPERATURE = 0.07
_RESAMPLER_LAYERS = 2


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One collated micro-batch; made in the loader's process."""

    step: int
    source: str
    size: int
    first: FirstPassBatch
    packed: Packed
    counts: dict[str, float]
    """Total weight of the items of each loss but the contrastive one."""
    texts: tuple[torch.Tensor, torch.Tensor] | None
    """Ids and mask [C + M, T]: one caption for each picture that has one, then the hard negatives; None: no contrastive
    loss."""
    captioned: tuple[int, ...] = ()
    """[C]: the rows of those pictures."""
    regions: tuple[tuple[int, tuple[float, float, float, float], list[int]], ...] = ()
    """(row, box, token ids of the words) for the word loss."""

    @property
    def captions(self) -> bool:
        """Whether it takes part in the contrastive loss."""
        return self.texts is not None

    def pin_memory(self) -> Batch:
        """What a loader calls so that copies to a GPU need not wait."""
        return self._moved(torch.Tensor.pin_memory)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Batch:
        return self._moved(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def _moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return replace(
            self,
            first=self.first.moved(move),
            packed=self.packed.moved(move),
            texts=None if self.texts is None else (move(self.texts[0]), move(self.texts[1])),
        )


@dataclass(kw_only=True)
class Outputs:
    """What a forward leaves: sums, so that micro-batches and processes add up exactly."""

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    """Weighted sum of each loss in nats, with gradient; its weight is in ``Batch.counts``."""
    images: torch.Tensor | None = None
    """[C, E] unit length, with gradient: of the pictures that have a caption."""
    texts: torch.Tensor | None = None
    """[C, E]."""
    negatives: torch.Tensor | None = None
    """[M, E]."""
    shares: dict[str, tuple[float, float]] = field(default_factory=dict)
    """For the log: how many of how many."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A picture as the text reads it."""

    prefix: Prefix
    stage: Stage | None
    """The adapter under which the text is read."""
    tokens: torch.Tensor | None = None
    """[B, K, D]: the summary tokens (or all image tokens) that the prefix was made of; None: they are states of it."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One answer of a validation batch."""

    kind: str
    right: bool
    """Every token of it, the end included, is the likeliest one: greedy decoding would give it exactly."""


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Examples to a `Batch`: all that needs a processor and no weights."""

    inputs: InputMaker
    end: int
    weights: Mapping[str, float]
    max_text_tokens: int
    probes: tuple[str, ...]

    def __call__(self, step: int, source: str, examples: Sequence[Example]) -> Batch:
        captioned = tuple(i for i, e in enumerate(examples) if e.caption is not None)
        contrastive = "contrastive" in self.weights and bool(captioned)
        rows = [list(e.segments) for e in examples]
        if "matching" in self.weights:
            for row, pairs in zip(rows, _matching_segments(examples), strict=True):
                row += pairs
        packed = pack(
            rows,
            self.inputs,
            end=self.end,
            max_tokens=self.max_text_tokens,
            probes=self.probes if contrastive else (),
        )
        texts = None
        if contrastive:
            captions = [e.caption for e in examples if e.caption is not None]
            texts = self.inputs.texts(captions + [n for i in captioned for n in examples[i].negatives])
        regions: tuple[Any, ...] = ()
        if "words" in self.weights:
            regions = tuple((i, r.box, self._word_ids(r.text)) for i, e in enumerate(examples) for r in e.regions)
        answered = packed.weights[~packed.matching].sum().item()
        counts = {
            "ar": answered,
            "distillation": answered,
            "matching": packed.weights[packed.matching].sum().item(),
            "orthogonality": float(len(examples)),
            "words": float(len(regions)),
        }
        counts = {n: c for n, c in counts.items() if n in self.weights and c}
        if not contrastive and not counts.keys() - {"orthogonality"}:
            raise InputError(
                f"A batch of {source!r} has nothing to learn from: the losses that have a weight are "
                f"{', '.join(sorted(self.weights))}; contrastive and matching need captions."
            )
        return Batch(
            step=step,
            source=source,
            size=len(examples),
            first=self.inputs.images([e.image for e in examples]),
            packed=packed,
            counts=counts,
            texts=texts,
            captioned=captioned if contrastive else (),
            regions=regions,
        )

    def _word_ids(self, text: str) -> list[int]:
        """As they stand inside a sentence: with the space before them."""
        found = [w for w in re.findall(r"\w+", text) if w not in _STOP_WORDS]
        encode = self.inputs.processor.tokenizer.encode
        return [i for w in found for i in encode(" " + w, add_special_tokens=False)]


def _matching_segments(examples: Sequence[Example]) -> list[list[Segment]]:
    """A true and a false caption for each picture, or neither: a hard negative of its own, or another's caption."""
    made = []
    for i, e in enumerate(examples):
        rest = [o.caption for o in (*examples[i + 1 :], *examples[:i]) if o.caption not in (None, e.caption)]
        false = e.negatives[0] if e.negatives else rest[0] if rest else None
        asked = [(e.caption, "yes"), (false, "no")] if e.caption and false else []
        made.append([Segment(prompt=matching_question(c), answer=a, kind=MATCHING) for c, a in asked])
    return made


def matching_question(caption: str) -> str:
    return MATCHING_PROMPT.replace("{text}", caption.rstrip(". "))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an objective needs beside its model and method."""

    seed: int = 0
    """Of the prefix lengths."""
    max_text_tokens: int = 1024
    lr_factor: Callable[[str], float] = lambda _: 1.0
    """Factor on the learning rate of a parameter, by its name in the objective."""


class Objective(nn.Module):
    """The shared part: answers behind a prefix, embeddings of pictures and texts."""

    probes: tuple[str, ...] = ()

    def __init__(self, model: Fwd2BotModel, method: MethodConfig, settings: Settings = Settings()) -> None:
        super().__init__()
        self.model = model
        self.method = method
        self.settings = settings
        self.weights: dict[str, float] = {
            name: weight
            for name in ("ar", "matching", "distillation", "orthogonality", "contrastive")
            if (weight := float(getattr(method, f"{name}_weight")))
        }
        end = model.inputs.end_token
        if end is None:
            raise InputError("The tokenizer of this base has no EOS token, so an answer could not end.")
        self.end: int = end

    @property
    def logit_scale(self) -> nn.Parameter | None:
        return self.model.logit_scale

    def lr_factor(self, name: str) -> float:
        return self.settings.lr_factor(name)

    def collator(self) -> Collator:
        return Collator(
            inputs=self.model.inputs,
            end=self.end,
            weights=self.weights,
            max_text_tokens=self.settings.max_text_tokens,
            probes=self.probes,
        )

    def read(self, batch: Batch, *, num_tokens: int | None = None) -> Reading:
        """The pictures as the text is to read them; ``num_tokens``: k' of the K summary tokens."""
        raise NotImplementedError

    def embed_images(self, reading: Reading, states: States | None, batch: Batch) -> torch.Tensor:
        """[B, E] unit length; ``states`` are those of the packed text, where they were computed."""
        return self.model.embed_tokens(self._tokens_of(reading, states))

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """[B, E] unit length."""
        return self.model.encode_text(texts)

    def forward(self, batch: Batch, *, embeddings_only: bool = False) -> Outputs:
        """``embeddings_only``: no sums; for the first of two forwards where gradients are cached."""
        outputs = Outputs()
        reading = self.read(batch, num_tokens=self._drawn_length(batch.step))
        needed = self._embeds_by_states if embeddings_only else self._reads_text(batch)
        states = self._run(reading, batch.packed) if needed else None
        if not embeddings_only:
            if states is not None:
                self._answer_losses(states.text, batch, outputs)
            self._picture_losses(reading, states, batch, outputs)
        if batch.texts is not None:
            outputs.images = self.embed_images(reading, states, batch)[list(batch.captioned)]
            texts = self.model.encode_text_ids(*batch.texts)
            count = len(batch.captioned)
            outputs.texts, outputs.negatives = texts[:count], texts[count:]
        return outputs

    def contrast(self, images: torch.Tensor, texts: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
        """[] InfoNCE over all embeddings of a step."""
        assert self.logit_scale is not None
        return losses.matryoshka_info_nce(images, texts, self.logit_scale, negatives, self.method.matryoshka)

    @torch.no_grad()
    def answered(self, batch: Batch, *, num_tokens: int | None = None) -> list[Answered]:
        """Which answers of the batch greedy decoding would give exactly."""
        if not len(batch.packed.ids):  # nothing to run, where each text has a row of its own
            return []
        states = self._run(self.read(batch, num_tokens=num_tokens), batch.packed)
        right = self._logits(states.text, batch.packed).argmax(-1) == batch.packed.labels
        wrong = set(batch.packed.answer[~right].tolist())
        return [Answered(kind=kind, right=i not in wrong) for i, kind in enumerate(batch.packed.kinds)]

    @torch.no_grad()
    def answer(self, batch: Batch, prompt: str, *, max_new_tokens: int = 24) -> list[str]:
        """Greedy answers [B] to one prompt. Without a cache, so that every kind of prefix is served: for a few samples,
        not for a corpus."""
        reading = self.read(batch)
        tokenizer = self.model.processor.tokenizer
        said: list[list[int]] = [[] for _ in range(batch.size)]
        asked = list(self.model.inputs.prompt(prompt).after)
        for _ in range(max_new_tokens):
            ids = torch.tensor([asked + s for s in said], device=self.model.device)
            packed = _unanswered(ids, asked=len(asked))
            logits = self._head(self._run(reading, packed).text[:, -1])
            for row, token in zip(said, logits.argmax(-1).tolist(), strict=True):
                row.append(token)
            if all(self.end in row for row in said):
                break
        cut = [row[: row.index(self.end)] if self.end in row else row for row in said]
        return [str(tokenizer.decode(row, skip_special_tokens=True)).strip() for row in cut]

    @torch.no_grad()
    def embed(self, batch: Batch) -> torch.Tensor:
        """[B, E] unit length: the pictures of a validation batch."""
        reading = self.read(batch)
        states = self._run(reading, batch.packed) if self._embeds_by_states else None
        return self.embed_images(reading, states, batch)

    _embeds_by_states = False
    """Whether a picture's embedding is made of states of the packed run."""

    def _reads_text(self, batch: Batch) -> bool:
        return bool(batch.counts.keys() & {"ar", "matching", "distillation"}) or (
            self._embeds_by_states and batch.captions
        )

    def _tokens_of(self, reading: Reading, states: States | None) -> torch.Tensor:
        assert reading.tokens is not None
        return reading.tokens

    def _picture_losses(self, reading: Reading, states: States | None, batch: Batch, outputs: Outputs) -> None:
        if "orthogonality" in batch.counts:
            outputs.sums["orthogonality"] = losses.orthogonality(self._tokens_of(reading, states)).sum()

    def _run(self, reading: Reading, packed: Packed) -> States:
        with self.model.stage(reading.stage):
            return run_packed(self.model.language_model, reading.prefix, packed, self.model.family)

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model.base.get_output_embeddings()(hidden)
        return logits

    def _logits(self, hidden: torch.Tensor, packed: Packed) -> torch.Tensor:
        """[L, V], of the labelled positions alone."""
        return self._head(hidden.flatten(0, 1)[packed.predict])

    def _answer_losses(self, hidden: torch.Tensor, batch: Batch, outputs: Outputs) -> None:
        packed = batch.packed
        if not len(packed.labels):
            return
        logits = self._logits(hidden, packed)
        weighted = losses.autoregressive(logits, packed.labels) * packed.weights
        matching = packed.matching
        if "ar" in batch.counts:
            outputs.sums["ar"] = weighted[~matching].sum()
        if "matching" in batch.counts:
            outputs.sums["matching"] = weighted[matching].sum()
        if "distillation" in batch.counts:
            divergence = losses.distillation(logits, self._teacher_logits(batch)) * packed.weights
            outputs.sums["distillation"] = divergence[~matching].sum()
        right = (logits.detach().argmax(-1) == packed.labels).float()
        known = sorted(set(packed.kinds))
        numbers = torch.tensor([known.index(k) for k in packed.kinds], device=right.device)[packed.answer]
        sums = torch.zeros(len(known), device=right.device).index_add_(0, numbers, right).tolist()
        counts = torch.bincount(numbers, minlength=len(known)).tolist()
        outputs.shares = {f"acc/{k}": (s, float(c)) for k, s, c in zip(known, sums, counts, strict=True)}

    def _teacher_logits(self, batch: Batch) -> torch.Tensor:
        raise InputError(f"method.objective = {self.method.objective!r} has no teacher to learn from.")

    def _drawn_length(self, step: int) -> int | None:
        """k' of this step: the same on all processes and in all micro-batches."""
        prefixes = self.method.prefixes
        if not prefixes:
            return None
        return prefixes[int(np.random.default_rng([self.settings.seed, step]).integers(len(prefixes)))]

    def _picture_rows(self, model: Fwd2BotModel, batch: Batch) -> tuple[torch.Tensor, int, int]:
        """[B, T, D] rows of the first pass's prompt, and where its image tokens begin and end."""
        before = len(model.inputs.prompt(model.config.compress_prompt).before)
        count = int((batch.first.input_ids[0] == model.inputs.image_token).sum())
        return model.embed_image_prompt(batch.first), before, before + count

    def _behind_opening(self, tokens: torch.Tensor) -> Prefix:
        """The chat format's opening, then ``tokens`` [B, K, D]."""
        model = self.model
        ids = torch.tensor(
            model.inputs.prompt(model.config.compress_prompt).before, device=tokens.device, dtype=torch.long
        )
        opening = model.base.get_input_embeddings()(ids).to(tokens.dtype).expand(len(tokens), -1, -1)
        return Prefix(embeds=torch.cat([opening, tokens], dim=1), first_token=len(ids))


class DoublePass(Objective):
    """AR loss after the second pass, symmetric InfoNCE with hard negatives after the first; gradients flow through the
    summary tokens into the first pass.

    Each step draws one prefix length k' for the second pass, so that the first k' of the stored tokens answer alone;
    the embedding pools all K.
    """

    def __init__(self, model: Fwd2BotModel, method: MethodConfig, settings: Settings = Settings()) -> None:
        super().__init__(model, method, settings)
        if model.queries is None:
            raise InputError("A training-free model has nothing to train; build it with a trained config.")
        if method.compressor != "llm" or "distillation" in self.weights:
            _need_plain_positions(model, "This compressor" if method.compressor != "llm" else "Distillation")
        self.resampler: Resampler | None = None
        if method.compressor == "resampler":
            heads = model.base.config.get_text_config().num_attention_heads
            scale = float(model.queries.detach().float().std())
            self.resampler = Resampler(model.token_dim, heads=heads, layers=_RESAMPLER_LAYERS, scale=scale)
        self._teacher: list[Fwd2BotModel] = []  # a list: neither its parameters nor its state are this module's
        if "distillation" in self.weights:
            trains = any(p.requires_grad for n, p in model.base.named_parameters() if "lora_" not in n)
            self._teacher.append(_frozen_copy(model) if trains else model)  # a frozen base is its own teacher

    def read(self, batch: Batch, *, num_tokens: int | None = None) -> Reading:
        tokens = self._tokens(batch, self.model.num_summary_tokens)
        read = tokens
        if num_tokens is not None and num_tokens < tokens.shape[1]:
            pooled = self.method.compressor == "pooling"  # fewer cells are other cells, not a prefix
            read = self._tokens(batch, num_tokens) if pooled else tokens[:, :num_tokens]
        if self.method.storage_noise != "none" and self.training:
            read = _as_stored(read, self.method.storage_noise)
        return Reading(prefix=self._behind_opening(read), stage="generate", tokens=tokens)

    def _tokens(self, batch: Batch, k: int) -> torch.Tensor:
        model = self.model
        if self.method.compressor == "llm":
            return model.first_pass(batch.first, num_tokens=k)
        rows, start, stop = self._picture_rows(model, batch)
        if self.resampler is None:
            return model.normalize_tokens(model.image_regions(rows, batch.first, k))
        queries = model.query_rows(rows, batch.first, num_tokens=k)
        return model.normalize_tokens(self.resampler(queries, rows[:, start:stop]))

    @torch.no_grad()
    def _teacher_logits(self, batch: Batch) -> torch.Tensor:
        """[L, V]: what the base said of all image tokens before training (or says without its adapters)."""
        teacher = self._teacher[0]
        with teacher.stage(None):
            rows, start, stop = self._picture_rows(teacher, batch)
            prefix = Prefix(embeds=rows[:, :stop], first_token=start)
            states = run_packed(teacher.language_model, prefix, batch.packed, teacher.family)
            logits: torch.Tensor = teacher.base.get_output_embeddings()(states.text.flatten(0, 1)[batch.packed.predict])
        return logits


class SinglePass(Objective):
    """One forward of ``[prompt][image tokens][K summary positions][text]`` in which the text sees the opening and the
    summary positions only, through their keys and values in every layer (as VoCo-LLaMA does, arXiv 2406.12275). What
    would have to be stored is K positions of every layer, so there is no checkpoint: it is the paper's ablation.
    """

    def __init__(self, model: Fwd2BotModel, method: MethodConfig, settings: Settings = Settings()) -> None:
        super().__init__(model, method, settings)
        _need_plain_positions(model, "The single pass")

    _embeds_by_states = True

    def read(self, batch: Batch, *, num_tokens: int | None = None) -> Reading:
        rows, start, _ = self._picture_rows(self.model, batch)
        queries = self.model.query_rows(rows, batch.first)
        embeds = torch.cat([rows, queries], dim=1)
        seen = rows.shape[1] + (num_tokens or queries.shape[1])
        hidden = ((start, rows.shape[1]), (seen, embeds.shape[1]))
        return Reading(prefix=Prefix(embeds=embeds, first_token=start, hidden=hidden), stage="compress")

    def _tokens_of(self, reading: Reading, states: States | None) -> torch.Tensor:
        assert states is not None
        return self.model.normalize_tokens(states.prefix[:, -self.model.num_summary_tokens :])


class Lvlm(Objective):
    """An ordinary LVLM: answers from all image tokens, InfoNCE between one-word-summary states of pictures and texts
    (E5-V's prompts), and the word loss on the image tokens, which teaches a vision part from scratch what there is to
    see. Its model is a training-free one."""

    probes: tuple[str, ...] = (_SUMMARY_OF_IMAGE,)

    def __init__(self, model: Fwd2BotModel, method: MethodConfig, settings: Settings = Settings()) -> None:
        super().__init__(model, method, settings)
        _need_plain_positions(model, f"method.objective = {method.objective!r}")
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / _TEMPERATURE), device=model.device))
        self.word_codes: torch.Tensor
        embeddings = model.base.get_input_embeddings().weight
        codes = word_codes(*embeddings.shape) if method.word_weight else torch.zeros(0)
        self.register_buffer("word_codes", codes.to(model.device), persistent=False)
        if method.word_weight:
            self.weights["words"] = method.word_weight

    @property
    def logit_scale(self) -> nn.Parameter | None:
        return self.log_scale

    _embeds_by_states = True

    def read(self, batch: Batch, *, num_tokens: int | None = None) -> Reading:
        rows, start, stop = self._picture_rows(self.model, batch)
        prefix = Prefix(embeds=rows[:, :stop], first_token=start)
        return Reading(prefix=prefix, stage=None, tokens=rows[:, start:stop])

    def embed_images(self, reading: Reading, states: States | None, batch: Batch) -> torch.Tensor:
        assert states is not None
        last = batch.packed.last[:, 0]
        return F.normalize(states.text[torch.arange(len(last), device=last.device), last].float(), dim=-1)

    def _picture_losses(self, reading: Reading, states: States | None, batch: Batch, outputs: Outputs) -> None:
        if batch.regions:
            outputs.sums["words"] = self._word_loss(self._tokens_of(reading, states), batch)

    def _word_loss(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        """[] summed over the regions; ``features``: [B, N, D] with N a square grid."""
        side = math.isqrt(features.shape[1])
        device, half = features.device, 0.5 / side  # a cell belongs to a box that reaches into it
        centres = (torch.arange(side, device=device) + 0.5) / side
        boxes = torch.tensor([box for _, box, _ in batch.regions], device=device)
        left, top, right, bottom = boxes[:, :, None].unbind(1)
        across = (centres > left - half) & (centres < right + half)
        down = (centres > top - half) & (centres < bottom + half)
        cells = (down[:, :, None] & across[:, None]).flatten(1).to(features.dtype)
        rows = torch.tensor([row for row, _, _ in batch.regions], device=device)
        means = torch.einsum("rn,rnd->rd", cells / cells.sum(1, keepdim=True), features[rows])
        said = [(i, id, 1 / len(ids)) for i, (_, _, ids) in enumerate(batch.regions) for id in ids]
        region, word, share = (torch.tensor([s[n] for s in said], device=device) for n in range(3))
        targets = torch.zeros(len(rows), len(self.word_codes), device=device)
        targets.index_put_((region.long(), word.long()), share.float(), accumulate=True)
        return losses.words(means, self.word_codes, targets).sum()


class Words(Lvlm):
    """The vision part alone, by the word loss: a warm-up at several times the speed of the whole LVLM."""

    probes = ()

    def __init__(self, model: Fwd2BotModel, method: MethodConfig, settings: Settings = Settings()) -> None:
        super().__init__(model, method, settings)
        self.weights = {"words": method.word_weight}

    def _reads_text(self, batch: Batch) -> bool:
        return False


def make_objective(model: Fwd2BotModel, method: MethodConfig, settings: Settings = Settings()) -> Objective:
    kinds: dict[str, type[Objective]] = {
        "double-pass": DoublePass,
        "single-pass": SinglePass,
        "lvlm": Lvlm,
        "words": Words,
    }
    return kinds[method.objective](model, method, settings)


def _need_plain_positions(model: Fwd2BotModel, what: str) -> None:
    if model.family.mrope or model.family.token_types == "suffix":
        raise InputError(
            f"{what} needs a base whose image tokens stand in one causal row; {model.family.model_type} is not."
        )


def _frozen_copy(model: Fwd2BotModel) -> Fwd2BotModel:
    """The model as it is now, without its adapters' influence, out of reach of the optimiser."""
    copied = copy.deepcopy(model)
    copied.requires_grad_(False)
    return copied.eval()


def _as_stored(tokens: torch.Tensor, codec_name: str) -> torch.Tensor:
    """[B, K, D] after the storage codec; the gradient passes straight through."""
    codec = get_codec(codec_name)
    _, k, d = tokens.shape
    plain = tokens.detach().float().cpu().numpy()
    decoded = torch.from_numpy(codec.decode(codec.encode(plain), k=k, d=d)).to(tokens)
    return tokens + (decoded - tokens).detach()


def _unanswered(ids: torch.Tensor, *, asked: int) -> Packed:
    """One segment [B, T] in each row, of which nothing is labelled."""
    columns = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    none = torch.zeros(0, dtype=torch.long, device=ids.device)
    return Packed(
        ids=ids,
        segment=torch.ones_like(ids),
        offset=columns,
        asked=columns < asked,
        picture=torch.arange(len(ids), device=ids.device),
        predict=none,
        labels=none,
        weights=none.float(),
        answer=none,
        kinds=(),
        last=torch.zeros(len(ids), 0, dtype=torch.long, device=ids.device),
    )
