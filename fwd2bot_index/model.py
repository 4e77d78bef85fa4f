"""The double-pass model (Fwd2Bot, arXiv 2503.21757): an LVLM whose own LLM compresses a picture into K summary tokens.

First pass:  [prompt][N image tokens][K summary positions] -> last hidden states at the K positions: the summary tokens.
Second pass: [prompt with the K summary tokens in the picture's place] -> answer.

Notable choices:

- Both passes are one forward of the family's own multimodal model, in which a hook at the door of its LLM replaces rows
  of ``inputs_embeds``. So positions, masks, token types and deepstack stay the family's own, and no family is copied
  here.
- All rows are padded on the left: summary positions and answers come last, aligned over the batch.
- What the first pass keeps are its last hidden states *after* the LLM's final norm, with no projection, as published.
- *Training-free*: a plain LVLM writes the 2-D averages of its projected image tokens instead, and embeds pictures and
  texts by the last hidden state of a prompt for a one-word summary (E5-V, arXiv 2407.12580). One forward gives both.

Shapes: B batch, K summary tokens, N image tokens, T positions, C completions, D hidden size, E embedding size, V
vocabulary.
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import torch
from torch import nn
from torch.nn import functional as F

from fwd2bot_index import prompts
from fwd2bot_index.checkpoints import (
    ADAPTERS_FOLDER,
    BASE_FOLDER,
    SUMMARY_TOKENS_FILE,
    Checkpoint,
    resolve,
)
from fwd2bot_index.config import CompressorConfig
from fwd2bot_index.errors import InputError, ModelError
from fwd2bot_index.families import Family, check_image_tokens, family_of
from fwd2bot_index.inputs import FirstPassBatch, InputMaker, blank_image
from fwd2bot_index.likelihoods import AnswerScores, answer_scores
from fwd2bot_index.pooling import TokenMLP
from fwd2bot_index.processors import load_processor
from fwd2bot_index.regions import grid_weights, region_weights
from fwd2bot_index.timing import timed, turn_to
from fwd2bot_index.types import ImageInput, Mode, Replies, Stage, SummaryTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fwd2bot_index.adapters import LoraSettings, StageAdapters

_SHARED_FROM: Final = 512
"""Hidden size below which threads that share the second pass over some 20 positions wait for each other longer than
they save (measured at 192)."""
_INITIAL_TEMPERATURE = 0.07
_POSITIONS_AT_ONCE = 16_384
"""Of summary tokens in a batch of contexts of several pictures."""


class _RowsReadyError(Exception):
    """Leaves the base's forward at the door of its LLM."""


class Fwd2BotModel(nn.Module):
    """An LVLM with learned summary tokens and an adapter per stage; satisfies
    :class:`fwd2bot_index.types.Compressor`."""

    def __init__(
        self, base: PreTrainedModel, processor: Any, config: CompressorConfig, *, checkpoint: Checkpoint | None = None
    ) -> None:
        """Prefer :meth:`from_pretrained` (inference) or :meth:`from_base` (training)."""
        super().__init__()
        self.config = config
        self.base = base
        self.processor = processor
        self.inputs = InputMaker(processor, base.config, config)
        self.family: Family = self.inputs.family
        self._checkpoint = checkpoint
        self._fingerprint: str | None = None
        self._adapters: StageAdapters | None = None
        self._language_model: list[nn.Module] = [
            base.get_submodule(self.family.language_model)
        ]  # a list: not a submodule
        self._image_token = self.inputs.image_token
        self._padding = self.inputs.padding

        self.queries: nn.Parameter | None = None
        """[K, D]: what stands at the summary positions (plus the regions' averages); None when training-free."""
        self.text_query: nn.Parameter | None = None
        """[1, D]: the position whose state embeds a text."""
        self.logit_scale: nn.Parameter | None = None
        """Log of 1 / temperature of the contrastive loss."""
        self.token_scale: nn.Parameter | None = None
        """[D]: what normalised summary tokens are multiplied by; None: they are the LLM's states as they are."""
        self.image_head: nn.Linear | None = None
        self.text_head: nn.Linear | None = None
        self.image_mlp: TokenMLP | None = None
        if config.mode == "trained":
            device, dim = base.device, self.token_dim
            scale = _typical_row_scale(base)
            self.queries = nn.Parameter(torch.randn(config.num_summary_tokens, dim, device=device) * scale)
            self.text_query = nn.Parameter(torch.randn(1, dim, device=device) * scale)
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / _INITIAL_TEMPERATURE), device=device))
            if config.token_norm:
                self.token_scale = nn.Parameter(torch.full((dim,), scale, device=device))
            if config.embedding_dim is not None:
                self.image_head = nn.Linear(dim, config.embedding_dim, bias=False, device=device)
                self.text_head = nn.Linear(dim, config.embedding_dim, bias=False, device=device)
            if config.pooling == "mlp":
                self.image_mlp = self._fresh_mlp()
        self._check_layout()

    # ---- from and to disk ----

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        num_summary_tokens: int | None = None,
        attention: str | None = None,
        quantization: Any = None,
    ) -> Self:
        """Load for inference: the bundled model (None or ``default``), a checkpoint folder, or any supported LVLM.

        A plain LVLM is used training-free and then writes ``num_summary_tokens`` pooled tokens (default 16). The device
        is CUDA where there is one; the dtype bfloat16 there and float32 on a CPU. ``attention`` and ``quantization`` of
        the base are as in :func:`load_base`.

        Raises:
            ModelError: not found, no network, broken files, or a family that cannot work; one sentence, what to do.
        """
        checkpoint = resolve(name_or_path, revision=revision, num_summary_tokens=num_summary_tokens)
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        base, processor = load_base(
            checkpoint.name, checkpoint.base_folder, dtype=dtype, attention=attention, quantization=quantization
        )
        model = cls(base, processor, checkpoint.config, checkpoint=checkpoint)
        if checkpoint.config.mode == "trained":
            model._load_summary_tokens(checkpoint.folder / SUMMARY_TOKENS_FILE)
        if checkpoint.config.adapters != "none":
            from fwd2bot_index.adapters import StageAdapters

            model._adapters = StageAdapters.load(
                base, checkpoint.folder / ADAPTERS_FOLDER, shared=checkpoint.config.adapters == "shared"
            )
        return model.to(device).eval()

    @classmethod
    def from_base(
        cls, base: PreTrainedModel, processor: Any, config: CompressorConfig, *, lora: LoraSettings | None
    ) -> Self:
        """Fresh queries, heads and (with ``lora``) stage adapters around a loaded base, for training.

        Which parameters of ``base`` train is left as it is.

        Raises:
            ModelError: ``config.adapters`` says one thing and ``lora`` another.
        """
        if (config.adapters != "none") != (lora is not None):
            raise ModelError("config.adapters must name a kind exactly when LoRA settings are given.")
        model = cls(base, processor, config)
        if lora is not None:
            from fwd2bot_index.adapters import StageAdapters

            model._adapters = StageAdapters.add(
                base, model.family.language_model, lora, shared=config.adapters == "shared"
            )
        return model

    def save_pretrained(self, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write a checkpoint folder; ``config.json`` comes last, so that a folder that has one is whole.

        ``dtype``: of the base's weights and the adapters on disk; None: as they are in memory.

        Raises:
            ModelError: a training-free model: there is nothing trained to save.
        """
        if self.config.mode != "trained":
            raise ModelError("A training-free model has nothing to save beyond its base.")
        from safetensors.torch import save_file

        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").unlink(missing_ok=True)
        if self.config.base_model == BASE_FOLDER:
            shutil.rmtree(folder / BASE_FOLDER, ignore_errors=True)
            state = self._adapters.base_state_dict() if self._adapters else self.base.state_dict()
            self.base.save_pretrained(folder / BASE_FOLDER, state_dict=_cast(state, dtype) if dtype else state)
            self.processor.save_pretrained(folder / BASE_FOLDER)
        if self._adapters:
            self._adapters.save(folder / ADAPTERS_FOLDER, dtype=dtype)
        save_file(self._summary_state(), folder / SUMMARY_TOKENS_FILE)
        self.config.write(folder / "config.json")

    def _summary_state(self) -> dict[str, torch.Tensor]:
        """All that is learned outside the base and the adapters."""
        own = {n: p for n, p in self.named_parameters() if not n.startswith("base.")}
        return {n: p.detach().cpu().contiguous() for n, p in own.items()}

    def _load_summary_tokens(self, path: Path) -> None:
        from safetensors.torch import load_file

        try:
            state = load_file(path)
        except Exception as e:  # safetensors raises its own kind, and OSError
            raise ModelError(f"Cannot read {path}: {_first_line(e)}") from e
        own = {n: p for n, p in self.named_parameters() if not n.startswith("base.")}
        if {n: t.shape for n, t in state.items()} != {n: p.shape for n, p in own.items()}:
            raise ModelError(f"{path} does not fit its config.json: it must hold {', '.join(sorted(own))}.")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def _check_layout(self) -> None:
        """Compare the descriptor with what this very processor does, so that a surprise is an error and never a wrong
        row."""
        pixels, grids = self.family.process_images(self.processor, [blank_image()], self.base.config)
        self.inputs.decode_side = self._decode_side = self.family.decode_side(pixels)
        if not self.family.tiles_always:
            prompt = self.inputs.prompt(self.config.compress_prompt)
            check_image_tokens(self.family, prompt.num_image_tokens, grids[0])

    # ---- what it is ----

    @property
    def name(self) -> str:
        """As a person would type it after ``--model``; ``default`` for the bundled one."""
        return self._checkpoint.name if self._checkpoint else "unsaved"

    @property
    def revision(self) -> str | None:
        return self._checkpoint.revision if self._checkpoint else None

    @property
    def fingerprint(self) -> str:
        """Hash of weights and settings of the first pass: two models with one fingerprint write the same index.

        Raises:
            ModelError: a model in training, which was not loaded from disk.
        """
        if self._fingerprint is None:
            self._fingerprint = self._on_disk().fingerprint()
        return self._fingerprint

    @property
    def full_fingerprint(self) -> str:
        """Hash of all weights and settings: two models with one such fingerprint answer alike, too.

        Raises:
            ModelError: as :attr:`fingerprint`.
        """
        return self._on_disk().full_fingerprint()

    def _on_disk(self) -> Checkpoint:
        if self._checkpoint is None:
            raise ModelError("This model was not loaded from disk, so it has no fingerprint: save it, then load it.")
        return self._checkpoint

    @property
    def mode(self) -> Mode:
        return self.config.mode

    @property
    def num_summary_tokens(self) -> int:
        return self.config.num_summary_tokens

    @property
    def token_dim(self) -> int:
        return int(self.base.config.get_text_config().hidden_size)

    @property
    def embedding_dim(self) -> int:
        return self.config.embedding_dim or self.token_dim

    def matching_question(self, text: str) -> str:
        """The question, to be answered yes or no, whether a text fits the picture."""
        return self.config.matching_question(text)

    @property
    def caption_prompt(self) -> str:
        """What a caption answers."""
        return self.config.caption_prompt

    @property
    def lora_settings(self) -> LoraSettings | None:
        """Of the adapters; None without any."""
        return self._adapters.settings if self._adapters else None

    @property
    def decode_side(self) -> int:
        """The longest side, in pixels, that is worth decoding a picture to before preprocessing."""
        return self._decode_side

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def pads(self) -> bool:
        """Whether pictures have as many image tokens as their size gives, so that a batch is as long as its largest."""
        return self.family.cell is None

    # ---- inference ----

    def preprocess(self, images: Sequence[ImageInput]) -> FirstPassBatch:
        """The part of :meth:`compress` that the CPU does, which another thread may do ahead. For a GPU the result is
        in pinned memory.

        Raises:
            ImageError: a file that is no picture.
        """
        batch = self.inputs.images(images)
        return batch.moved(lambda tensor: tensor.pin_memory()) if self.device.type == "cuda" else batch

    @torch.inference_mode()
    def compress(
        self, images: Sequence[ImageInput] | FirstPassBatch, *, num_tokens: int | None = None
    ) -> SummaryTokens:
        """One batch of pictures, or what :meth:`preprocess` made of it, into tokens [B, K, D] and embeddings [B, E]
        (float32, unit length).

        ``num_tokens`` gives fewer (training-free: other) tokens than the model's own number. A trained causal LLM gives
        with k' the first k' tokens of a run with K; pooled tokens are no such prefix.

        Raises:
            ImageError: a file that is no picture.
        """
        batch = images.to(self.device) if isinstance(images, FirstPassBatch) else self.prepare_images(images)
        if self.config.mode == "trained":
            tokens = self.first_pass(batch, num_tokens=num_tokens)
            return SummaryTokens(tokens=tokens.float(), embedding=self.embed_tokens(tokens))
        k = num_tokens or self.num_summary_tokens
        pooled: list[torch.Tensor] = []

        def pool(embeds: torch.Tensor) -> torch.Tensor:
            pooled.append(self._average_image_rows(embeds, batch, k, grid_weights))
            return embeds

        states = self._run(batch.input_ids, batch.attention_mask, edit=pool, pixels=batch.pixels)
        embedding = F.normalize(states[:, -1].float(), dim=-1)
        return SummaryTokens(tokens=pooled[0].float(), embedding=embedding)

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
        """[B, E], float32, unit length: to be compared with the embeddings of pictures by dot product."""
        return self.encode_text(texts)

    @torch.inference_mode()
    def answer(self, tokens: torch.Tensor, prompt: str | Sequence[str], *, max_new_tokens: int = 32) -> Replies:
        """Answer a prompt (one for all, or one each) about each row of ``tokens`` [B, K, D]; greedy decoding."""
        tokens = tokens.to(self.device)
        ids, mask = self.prepare_prompts(prompt, len(tokens), num_tokens=tokens.shape[1])
        with self._threads_for("generate"):
            return self._answer(tokens, ids, mask, max_new_tokens)

    def generate(self, tokens: torch.Tensor, prompt: str | Sequence[str], *, max_new_tokens: int = 32) -> list[str]:
        """The texts of :meth:`answer`."""
        return self.answer(tokens, prompt, max_new_tokens=max_new_tokens).texts

    @torch.inference_mode()
    def answer_together(self, tokens: torch.Tensor, question: str, *, max_new_tokens: int = 32) -> Replies:
        """One answer [1] about all pictures of ``tokens`` [M, K, D], which are read one after another in one context.

        Raises:
            InputError: there are none, or more than the context has room for.
            ModelError: the model takes one picture at a time.
        """
        tokens = tokens.to(self.device)
        ids, mask = self._prepare_together(question, [len(tokens)], tokens.shape[1], room=max_new_tokens)
        return self._answer(tokens.flatten(0, 1)[None], ids, mask, max_new_tokens)

    @torch.inference_mode()
    def weigh_together(self, tokens: torch.Tensor, question: str, answer: str) -> torch.Tensor:
        """[M], float32: by how much the absence of each of the pictures of ``tokens`` [M, K, D] makes the answer to a
        question about all of them less likely, in nats. One forward for each picture, in batches.

        Raises:
            InputError, ModelError: as :meth:`answer_together`.
        """
        tokens = tokens.to(self.device)
        m, k, _ = tokens.shape
        said = [*self.inputs.completion(answer), self._end_token] if answer else []
        if m < 2 or not said:
            return torch.zeros(m)

        def logprob(shown: torch.Tensor) -> torch.Tensor:
            """[B], of pictures [B, M', K, D]"""
            ids, mask = self._prepare_together(question, [shown.shape[1]] * len(shown), k, room=len(said))
            suffix = torch.tensor(said, device=self.device).expand(len(shown), -1)
            ids, mask = torch.cat([ids, suffix], dim=1), F.pad(mask, (0, len(said)), value=1)
            lengths = torch.full((len(shown),), len(said), device=self.device)
            with self.stage("generate"):
                output = self._second(
                    shown.flatten(1, 2), ids, mask, suffix=lengths, use_cache=False, logits_to_keep=len(said) + 1
                )
            return answer_scores(output.logits, ids, lengths).logprob

        others = torch.stack([torch.arange(m) != i for i in range(m)])
        places = others.nonzero()[:, 1].view(m, m - 1)
        batch = max(1, _POSITIONS_AT_ONCE // (m * k))
        without = [logprob(tokens[places[i : i + batch]]) for i in range(0, m, batch)]
        return (logprob(tokens[None]) - torch.cat(without)).cpu()

    def _prepare_together(
        self, question: str, pictures: Sequence[int], k: int, *, room: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``input_ids`` and ``attention_mask`` [B, T] of contexts of so many pictures each."""
        if not all(pictures):
            raise InputError("There are no pictures to ask about.")
        rows = [self.inputs.together(question, [k] * count) for count in pictures]
        longest = max(map(len, rows)) + room
        most = getattr(self.base.config.get_text_config(), "max_position_embeddings", None)
        if most is not None and longest > most:
            raise InputError(
                f"{max(pictures)} pictures of {k} tokens and the question take {longest} positions; the model reads "
                f"{most}: ask about fewer pictures at once."
            )
        ids, mask = prompts.pad_left(rows, padding=self._padding)
        return ids.to(self.device), mask.to(self.device)

    def _answer(self, tokens: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, max_new_tokens: int) -> Replies:
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1, not {max_new_tokens}.")
        stop = torch.tensor(self.stop_tokens(), device=self.device)
        with self.stage("generate"):
            output = self._second(tokens, ids, mask, use_cache=True, logits_to_keep=1)
            token, logprob = self._best(output.logits)
            answer = token[:, None]
            finished = torch.isin(token, stop)
            length = torch.ones_like(token)
            while answer.shape[1] < max_new_tokens and not finished.all():
                mask = F.pad(mask, (0, 1), value=1)
                output = self._continue(answer[:, -1:], mask, output.cache)
                token, each = self._best(output.logits)
                logprob = logprob + each.masked_fill(finished, 0.0)
                length = length + ~finished
                answer = torch.cat([answer, token.masked_fill(finished, self._padding)[:, None]], dim=1)
                finished |= torch.isin(token, stop)
        texts = [self._decode(row, set(stop.tolist())) for row in answer.tolist()]
        return Replies(texts=texts, logprob=logprob.cpu(), num_tokens=length.cpu())

    @torch.inference_mode()
    def loglikelihood(
        self, tokens: torch.Tensor, prompt: str | Sequence[str], completions: Sequence[str], *, ended: bool = False
    ) -> torch.Tensor:
        """[B, C], float32: log-probability of each completion after the prompt, summed over its tokens.

        A completion is tokenized as the chat format opens an answer, without special tokens. The prompt is computed
        once; a completion of a single token costs nothing more. ``ended``: the token that ends an answer
        counts as well, so that one completion may be the beginning of another.
        """
        if not completions:
            raise InputError("There are no completions to score.")
        tokens = tokens.to(self.device)
        ids, mask = self.prepare_prompts(prompt, len(tokens), num_tokens=tokens.shape[1])
        end = [self._end_token] if ended else []
        said = [[*self.inputs.completion(completion), *end] for completion in completions]
        scores = []
        with self._threads_for("generate"), self.stage("generate"):
            several = any(len(one) > 1 for one in said)
            output = self._second(tokens, ids, mask, use_cache=several, logits_to_keep=1)
            first = F.log_softmax(output.logits[:, -1].float(), dim=-1)
            for one in said:
                c = torch.tensor(one, device=self.device)
                score = first[:, c[0]]
                if len(c) > 1:
                    rest = self._continue(
                        c[:-1].expand(len(tokens), -1),
                        F.pad(mask, (0, len(c) - 1), value=1),
                        copy.deepcopy(output.cache),
                    )
                    after = F.log_softmax(rest.logits.float(), dim=-1)
                    score = score + after.gather(-1, c[1:].expand(len(tokens), -1)[..., None]).sum((1, 2))
                scores.append(score)
        return torch.stack(scores, dim=1)

    @torch.inference_mode()
    def score_answers(self, tokens: torch.Tensor, prompt: str | Sequence[str], answers: Sequence[str]) -> AnswerScores:
        """How likely the second pass finds ``answers``, one for each row of ``tokens`` [B, K, D].

        For a few answers to every picture, :meth:`loglikelihood` computes each prompt once.

        Raises:
            InputError: an answer has no tokens, or their number is not B.
        """
        tokens = tokens.to(self.device)
        each = [prompt] * len(answers) if isinstance(prompt, str) else prompt
        if not len(each) == len(answers) == len(tokens):
            raise InputError(f"{len(each)} prompts and {len(answers)} answers were given for {len(tokens)} pictures.")
        said = [self.inputs.completion(answer) for answer in answers]
        asked = [self.inputs.prompt(p).ids(self._image_token, tokens.shape[1]) for p in each]
        ids, mask = (
            t.to(self.device)
            for t in prompts.pad_left([[*a, *s] for a, s in zip(asked, said, strict=True)], padding=self._padding)
        )
        lengths = torch.tensor([len(s) for s in said], device=self.device)
        with self.stage("generate"):
            output = self._second(
                tokens, ids, mask, suffix=lengths, use_cache=False, logits_to_keep=int(lengths.max()) + 1
            )
        return answer_scores(output.logits, ids, lengths)

    # ---- the passes, with gradient ----

    def gradient_checkpointing_enable(self, *, compiled: bool = False) -> None:
        """Checkpoint the LLM's layers; each is recomputed in ``backward`` under the adapter that its forward ran
        with.

        ``compiled``: the layers go through torch.compile, whose trace keeps the adapter by itself, and which cannot
        take the context that eager recomputation needs.
        """

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            stage = self._adapters.active if self._adapters else None
            return nullcontext(), self.stage(stage)

        context: dict[str, Any] = {} if compiled else {"context_fn": contexts}
        self.base.activation_checkpointing_enable({"use_reentrant": False, **context})

    @contextmanager
    def stage(self, stage: Stage | None) -> Iterator[None]:
        """Inside, the adapter of ``stage`` is active (None: the base alone); afterwards the one from before.

        ``requires_grad`` stays as it was, for both adapters. Gradient checkpointing recomputes with whichever adapter
        is active at the time of ``backward``: switch it on by :meth:`gradient_checkpointing_enable`, which knows.
        """
        if self._adapters is None:
            yield
            return
        before = self._adapters.active
        self._adapters.activate(stage)
        try:
            yield
        finally:
            self._adapters.activate(before)

    @contextmanager
    def merged(self, stage: Stage) -> Iterator[None]:
        """For many calls of one stage: inside, its adapter is a part of the weights where that is worth it, see
        :meth:`fwd2bot_index.adapters.StageAdapters.merged`. Not for training."""
        with (
            self._threads_for(stage),
            torch.no_grad(),
            self._adapters.merged(stage) if self._adapters else nullcontext(),
        ):
            yield

    @contextmanager
    def _threads_for(self, stage: Stage) -> Iterator[None]:
        """The second pass of a small model on a CPU has one thread of it (docs/querying.md)."""
        threads = torch.get_num_threads()
        try:
            if stage == "generate" and self.device.type == "cpu" and self.token_dim < _SHARED_FROM:
                torch.set_num_threads(1)
            yield
        finally:
            torch.set_num_threads(threads)

    def compile(self, *, backend: str = "inductor") -> None:
        """Let torch.compile fuse what the layers of the vision part and of the LLM do in the first pass. It takes a
        minute and a C++ compiler, so it is for many pictures.

        Layer by layer ("regional compilation"): all of one kind share what is compiled for the first, for any batch and
        any length.

        Raises:
            ModelError: it cannot be done here.
        """
        layers = list(_repeated_layers(self.base.model))
        for layer in layers:
            layer.compile(dynamic=True, backend=backend)
        blank = [blank_image()] * 2  # one picture would be a case of its own
        try:
            with self.merged("compress"):
                self.compress(blank)
        except Exception as e:
            for layer in layers:
                layer._compiled_call_impl = None
            reason = _first_line(getattr(e, "inner_exception", e)).rstrip(".")  # of a backend
            raise ModelError(f"{self.name} cannot be compiled here ({reason}): do without --compile.") from e

    @property
    def language_model(self) -> nn.Module:
        """The LLM without its head: takes ``inputs_embeds``, ``attention_mask`` and ``position_ids``."""
        return self._language_model[0]

    def prepare_images(self, images: Sequence[ImageInput]) -> FirstPassBatch:
        """Decode (RGB, upright), preprocess and lay out a batch of pictures for the first pass."""
        with timed("preprocess"):
            return self.inputs.images(images).to(self.device)

    def embed_image_prompt(self, batch: FirstPassBatch) -> torch.Tensor:
        """[B, T, D]: the rows of the first pass's prompt as they enter the LLM, image features in place; the LLM itself
        does not run."""
        rows: list[torch.Tensor] = []

        def stop(embeds: torch.Tensor) -> torch.Tensor:
            rows.append(embeds)
            raise _RowsReadyError

        with suppress(_RowsReadyError):
            self._run(batch.input_ids, batch.attention_mask, edit=stop, pixels=batch.pixels)
        return rows[0]

    def image_regions(self, rows: torch.Tensor, batch: FirstPassBatch, k: int) -> torch.Tensor:
        """[B, k, D]: average pooling of each picture's image tokens in ``rows`` [B, T, D] to k cells of a grid."""
        return self._average_image_rows(rows, batch, k, grid_weights)

    def first_pass(self, batch: FirstPassBatch, *, num_tokens: int | None = None) -> torch.Tensor:
        """[B, K, D]: last hidden states at the K summary positions (the first ``num_tokens`` of them), under
        ``compress``."""
        k = num_tokens or self.num_summary_tokens

        def place_queries(embeds: torch.Tensor) -> torch.Tensor:
            rows = embeds[:, :-k]
            return torch.cat([rows, self.query_rows(rows, batch, num_tokens=k)], dim=1)

        ids, mask = self._append_positions(batch.input_ids, batch.attention_mask, k)
        with self.stage("compress"):
            states = self._run(ids, mask, edit=place_queries, pixels=batch.pixels, suffix=k)
        return self.normalize_tokens(states[:, -k:])

    def query_rows(self, rows: torch.Tensor, batch: FirstPassBatch, *, num_tokens: int | None = None) -> torch.Tensor:
        """[B, K, D]: what stands at the summary positions behind ``rows`` [B, T, D], those of `embed_image_prompt`."""
        if self.queries is None:
            raise ModelError("A training-free model has no summary positions; use compress().")
        k = num_tokens or self.num_summary_tokens
        if not 1 <= k <= len(self.queries):
            raise InputError(f"The model has {len(self.queries)} summary tokens; {num_tokens} were asked for.")
        placed = self.queries[:k].to(rows.dtype).expand(len(rows), -1, -1)
        if self.config.queries == "region":
            placed = placed + self._average_image_rows(rows, batch, k, region_weights)
        return placed

    def normalize_tokens(self, states: torch.Tensor) -> torch.Tensor:
        """[..., D]: summary tokens of the LLM's last states; RMS norm with a learned scale where the config says so."""
        if self.token_scale is None:
            return states
        return F.rms_norm(states.float(), self.token_scale.shape, eps=1e-6).to(states.dtype) * self.token_scale

    def embed_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, E], float32, unit length: the mean of the summary tokens [B, K, D] through the image head, if there is
        one; plus what a `TokenMLP` makes of them, if there is one."""
        tokens = tokens.float()
        pooled = _headed(tokens.mean(dim=1), self.image_head)
        if self.image_mlp is not None:
            pooled = pooled + self.image_mlp(tokens)
        return F.normalize(pooled, dim=-1)

    def add_mlp(self) -> None:
        """Go on with ``pooling = "mlp"``; what the model embeds stays the same until that is trained.

        Raises:
            ModelError: a training-free model, whose embedding is no function of its tokens.
        """
        self.config = replace(self.config, pooling="mlp")
        if self.image_mlp is None:
            self.image_mlp = self._fresh_mlp()

    def _fresh_mlp(self) -> TokenMLP:
        return TokenMLP(self.num_summary_tokens, self.token_dim, self.embedding_dim, device=self.device)

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """[B, E], float32, unit length, with gradient: last hidden state of the text prompt, under ``compress``.

        A trained model reads it at one learned position after the prompt, through the text head if there is one.
        """
        return self.encode_text_ids(*(t.to(self.device) for t in self.inputs.texts(texts)))

    def encode_text_ids(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`encode_text` of what `InputMaker.texts` made: ``ids`` and ``mask`` [B, T]."""
        query = self.text_query
        if query is None:
            return _unit(self._run(ids, mask)[:, -1].float(), None)

        def place_query(embeds: torch.Tensor) -> torch.Tensor:
            return torch.cat([embeds[:, :-1], query.to(embeds.dtype).expand(len(embeds), -1, -1)], dim=1)

        ids, mask = self._append_positions(ids, mask, 1)
        with self.stage("compress"):
            states = self._run(ids, mask, edit=place_query, suffix=1)
        return _unit(states[:, -1].float(), self.text_head)

    def prepare_prompts(
        self, prompt: str | Sequence[str], batch_size: int, *, num_tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``input_ids`` and ``attention_mask`` [B, T] of the second pass, left-padded, with ``num_tokens``
        placeholders."""
        each = [prompt] * batch_size if isinstance(prompt, str) else list(prompt)
        if len(each) != batch_size or not each:
            raise InputError(f"{len(each)} prompts were given for {batch_size} pictures.")
        ids, mask = self.inputs.questions(each, num_tokens=num_tokens)
        return ids.to(self.device), mask.to(self.device)

    def second_pass(
        self,
        tokens: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        *,
        suffix: int = 0,
        logits_to_keep: int = 0,
    ) -> torch.Tensor:
        """[B, T, V]: logits of the LLM reading ``tokens`` [B, K, D] in the place of the picture, under ``generate``.

        ``input_ids`` has K image placeholders in each row (see :meth:`prepare_prompts`); the last ``suffix`` positions
        are an answer, which families with a bidirectional prefix must read causally. ``logits_to_keep`` > 0 computes
        the logits of that many last positions only.
        """
        with self.stage("generate"):
            output = self._second(
                tokens, input_ids, attention_mask, suffix=suffix, use_cache=False, logits_to_keep=logits_to_keep
            )
        return output.logits

    def _second(
        self,
        tokens: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        *,
        suffix: int | torch.Tensor = 0,
        use_cache: bool,
        logits_to_keep: int,
    ) -> Any:
        places = input_ids == self._image_token
        if int(places.sum()) != tokens.shape[0] * tokens.shape[1] or tokens.shape[-1] != self.token_dim:
            raise InputError(
                f"Summary tokens of shape {tuple(tokens.shape)} do not fit {int(places.sum())} placeholders of "
                f"{self.token_dim} dimensions."
            )

        def place_tokens(embeds: torch.Tensor) -> torch.Tensor:
            return embeds.masked_scatter(places[..., None], tokens.to(embeds.dtype))

        with self._editing(place_tokens):
            return self.base(
                input_ids=input_ids,
                attention_mask=attention_mask,
                # 1-D for every family: summary tokens are a sequence, not a grid. Given explicitly, because Qwen would
                # otherwise reuse the rope deltas of its last picture.
                position_ids=self.positions(attention_mask),
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                **self.token_types(input_ids, suffix=suffix),
            )

    def _continue(self, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> Any:
        """One more step of the second pass: ``ids`` [B, S] after what is in ``cache``; ``mask`` [B, T] covers both."""
        return self.base(
            input_ids=ids,
            attention_mask=mask,
            position_ids=self.positions(mask)[:, -ids.shape[1] :],
            cache=cache,
            use_cache=True,
        )

    def _run(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        *,
        edit: Callable[[torch.Tensor], torch.Tensor] | None = None,
        pixels: dict[str, torch.Tensor] | None = None,
        suffix: int = 0,
    ) -> torch.Tensor:
        """[B, T, D]: last hidden states of the base, without its LM head; ``edit`` sees the rows that enter the LLM."""
        extra: dict[str, Any] = {**(pixels or {}), **self.token_types(ids, suffix=suffix)}
        if self.family.mrope and pixels:
            extra["mm_token_type_ids"] = (ids == self._image_token).int()
        else:
            extra["position_ids"] = self.positions(mask)
        with self._editing(edit or (lambda embeds: embeds)), timed("vision" if pixels else "llm"):
            output = self.base.model(input_ids=ids, attention_mask=mask, use_cache=False, **extra)
        return output.last_hidden_state

    @contextmanager
    def _editing(self, edit: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            turn_to("llm")
            return args, {**kwargs, "inputs_embeds": edit(kwargs["inputs_embeds"])}

        handle = self._language_model[0].register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def token_types(self, ids: torch.Tensor, *, suffix: int | torch.Tensor) -> dict[str, torch.Tensor]:
        """What a family needs beside ``ids`` [B, T] to tell which positions see each other in both directions.

        ``suffix``: how many last positions are an answer; one number for all rows, or [B].
        """
        match self.family.token_types:
            case "image":
                return {"token_type_ids": (ids == self._image_token).long()}
            case "suffix":
                lengths = torch.as_tensor(suffix, device=ids.device).expand(len(ids))[:, None]
                types = torch.arange(ids.shape[1], device=ids.device) >= ids.shape[1] - lengths
                return {"token_type_ids": types.long()}
            case _:
                return {}

    def positions(self, mask: torch.Tensor) -> torch.Tensor:
        """[B, T]: counted from the first token that is not padding."""
        return (mask.cumsum(-1) - 1).clamp(min=0) + self.family.first_position

    def _append_positions(self, ids: torch.Tensor, mask: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Room for k rows at the end; which id stands there does not matter, as long as it is no image token."""
        return F.pad(ids, (0, k), value=self._padding), F.pad(mask, (0, k), value=1)

    def _average_image_rows(
        self,
        embeds: torch.Tensor,
        batch: FirstPassBatch,
        k: int,
        weights_of: Callable[[int, int, int], torch.Tensor],
    ) -> torch.Tensor:
        """[B, k, D]: weighted averages of each picture's image rows in ``embeds`` [B, T, D]."""
        places = batch.input_ids == self._image_token
        if len(set(batch.grids)) == 1:
            height, width = batch.grids[0]
            image = embeds[places].view(len(embeds), -1, embeds.shape[-1])[:, : height * width]
            return weights_of(k, height, width).to(embeds) @ image
        rows = [
            weights_of(k, height, width).to(embeds) @ row[place][: height * width]
            for row, place, (height, width) in zip(embeds, places, batch.grids, strict=True)
        ]
        return torch.stack(rows)

    # ---- pictures, prompts and answers ----

    def stop_tokens(self) -> list[int]:
        """Chat models end a turn with another token than their tokenizer's EOS: all of them stop."""
        generation = getattr(self.base, "generation_config", None)
        configured = getattr(generation, "eos_token_id", None)
        ids = configured if isinstance(configured, list) else [configured]
        ends = [*ids, self.processor.tokenizer.eos_token_id, self.inputs.end_token]
        return sorted({i for i in ends if i is not None})

    @property
    def _end_token(self) -> int:
        """What ends an answer, as in training, and not whatever else stops one."""
        end = self.inputs.end_token
        return self.stop_tokens()[0] if end is None else int(end)

    def _best(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B] and [B], float32: the likeliest next token after the last position of [B, T, V], and its log-probability;
        an image placeholder is no word."""
        last = logits[:, -1].float().log_softmax(-1)
        last[:, self._image_token : self._image_token + 1] = -torch.inf
        best = last.max(-1)
        return best.indices, best.values

    def _decode(self, ids: list[int], stop: set[int]) -> str:
        end = next((i for i, token in enumerate(ids) if token in stop), len(ids))
        return str(self.processor.tokenizer.decode(ids[:end], skip_special_tokens=True)).strip()


def _headed(states: torch.Tensor, head: nn.Linear | None) -> torch.Tensor:
    return states if head is None else head(states)


def _unit(states: torch.Tensor, head: nn.Linear | None) -> torch.Tensor:
    return F.normalize(_headed(states, head), dim=-1)


def _repeated_layers(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost lists of layers below ``module``."""
    if isinstance(module, nn.ModuleList):
        yield from module
    else:
        for child in module.children():
            yield from _repeated_layers(child)


def _typical_row_scale(base: PreTrainedModel) -> float:
    """Standard deviation of the rows that the LLM is used to, so that fresh queries start out alike (Gemma's embedding
    layer scales its weights, so its outputs are what counts)."""
    embeddings = base.get_input_embeddings()
    with torch.no_grad():
        return float(embeddings(torch.arange(min(1000, embeddings.num_embeddings), device=base.device)).float().std())


def load_base(
    name: str,
    folder: Path,
    *,
    dtype: torch.dtype,
    attention: str | None = None,
    quantization: Any = None,
) -> tuple[PreTrainedModel, Any]:
    """A base LVLM and its processor, from a folder.

    Args:
        name: what errors call it.
        attention: transformers' ``attn_implementation``; None: its choice.
        quantization: transformers' ``quantization_config``; None: plain weights.
    Raises:
        ModelError: a family that cannot work, files that are broken or missing, or a package that is not installed.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)  # nor does it ask at the terminal
    except (OSError, ValueError, KeyError) as e:
        raise ModelError(f"{name} cannot be loaded: its config.json is not understood ({_first_line(e)})") from e
    family_of(config)
    settings: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    if quantization is not None:
        settings["quantization_config"] = quantization
    try:
        base, loading = AutoModelForImageTextToText.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **settings,
        )
        processor = load_processor(folder, config)
    except ImportError as e:
        extra = "train" if quantization is not None else "hub"
        raise ModelError(
            f"{name} needs a package that is not installed ({_first_line(e)}); try `pip install 'fwd2bot[{extra}]'`."
        ) from e
    except Exception as e:  # broken files surface as many kinds, safetensors' own among them
        raise ModelError(f"{name} cannot be loaded: {_first_line(e)}") from e
    if missing := sorted(loading["missing_keys"]):  # they would be random numbers
        raise ModelError(f"{name} cannot be used: {len(missing)} of its weights are missing, the first {missing[0]}.")
    if getattr(processor, "image_processor", None) is None:
        raise ModelError(f"{name} cannot be used: its image processor is missing (preprocessor_config.json).")
    return base, processor


def _cast(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Floating-point tensors in another dtype; tied ones stay one tensor, or they would be written twice."""
    once: dict[int, torch.Tensor] = {}
    for tensor in state.values():
        if tensor.data_ptr() not in once:
            once[tensor.data_ptr()] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return {name: once[tensor.data_ptr()] for name, tensor in state.items()}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
