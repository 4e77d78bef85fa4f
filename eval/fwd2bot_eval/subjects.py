"""What is evaluated, behind one interface: a Fwd2Bot model (its pictures compressed here, or from an index), and
models that only embed.

A *column* is one way of reading a picture: ``k=16`` (the first 16 summary tokens), ``uncompressed`` (all image tokens
of the base), ``blind`` (no picture), ``other picture`` (the summary tokens of another one: what its answers have over
``blind`` is style, not sight). Every task that asks questions reports all of them side by side.

Shapes: B pictures of a chunk, n questions, T texts, K summary tokens, D hidden size, E embedding size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from fwd2bot_eval.uncompressed import Uncompressed
from fwd2bot_index.checkpoints import BASE_FOLDER
from fwd2bot_index.codec import get_codec
from fwd2bot_index.corpus import Corpus
from fwd2bot_index.errors import InputError
from fwd2bot_index.likelihoods import AnswerScores
from fwd2bot_index.model import Fwd2BotModel

Float32 = npt.NDArray[np.float32]

UNCOMPRESSED: Final = "uncompressed"
BLIND: Final = "blind"
OTHER: Final = "other picture"
SHORT_ANSWER: Final = "\nAnswer the question using a single word or phrase."
_PROMPT_TOKENS: Final = 64
"""Room for the chat template and the prompt around a text."""
BATCH: Final = 64
"""Questions that are read at once."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that was read and decoded."""

    image: Image.Image
    """RGB, upright."""
    content_id: str
    """Of its file: the key in an index."""


class TextTooLongError(InputError):
    """A text of the data set that the model cannot read whole; cutting it would score another text."""

    def __init__(self, text: str, *, tokens: int, limit: int) -> None:
        super().__init__(f"The text {text[:40]!r}... has {tokens} tokens; the model reads {limit}.")
        self.text = text


class Reader(Protocol):
    """One column, for the pictures of one chunk."""

    def generate(self, rows: Sequence[int], prompts: Sequence[str], *, max_new_tokens: int) -> list[str]:
        """Greedy answers to ``prompts`` [n] about the pictures in ``rows`` [n] of the chunk."""
        ...

    def score(self, rows: Sequence[int], prompts: Sequence[str], answers: Sequence[str]) -> tuple[Float32, Float32]:
        """Log-probability [n] of each answer, summed over its tokens, and the number of its tokens [n]."""
        ...


class Seen(Protocol):
    """The pictures of one chunk, after the first pass."""

    @property
    def embedding(self) -> Float32:
        """[B, E], unit length."""
        ...

    def reader(self, column: str) -> Reader: ...


class Subject(Protocol):
    """A model under evaluation."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def columns(self) -> Sequence[str]:
        """The ways in which it reads pictures to answer; none for a model that only embeds."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """What beside the weights decides its scores: a run goes on only under the same. :func:`computing` is part."""
        ...

    @property
    def decode_side(self) -> int | None: ...

    def see(self, pictures: Sequence[Picture]) -> Seen: ...

    def embed_text(self, texts: Sequence[str]) -> Float32:
        """[T, E], unit length."""
        ...

    def matching_question(self, text: str) -> str:
        """Answered yes or no: whether ``text`` fits the picture."""
        ...

    @property
    def caption_prompt(self) -> str:
        """What a caption answers."""
        ...

    def short_answer_suffix(self, column: str) -> str:
        """Follows a question that is to be answered in a word or two, where the column is asked."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What a reader of its scores must know, found out while it was scored; each a sentence."""
        ...


class Fwd2BotSubject:
    """A Fwd2Bot model, trained or training-free.

    Args:
        ks: how many of the summary tokens to read, each a column; None: all, and powers of two below down to 4 for a
            trained model.
        uncompressed: the plain LVLM to compare with; None: the model's own base with its adapters off. Where training
            changed the base's own weights, that is not the LVLM from before.
        baselines: whether to answer blind, uncompressed and from another picture as well.
        index: where tokens and embeddings come from instead of the first pass.
        codec: that the tokens go through on their way (without an index).
        short_answer_suffix: follows open questions, in every column. None: LLaVA-1.5's (arXiv 2310.03744) for a plain
            LVLM, as ``uncompressed`` is of a model that keeps its base elsewhere; nothing for a trained model, or for a
            base that was trained with it: both answer as their training data does, of which nothing is known here.
    Raises:
        InputError: a k that the model does not have, or an index with a codec of its own beside ``codec``.
    """

    def __init__(
        self,
        model: Fwd2BotModel,
        *,
        ks: Sequence[int] | None = None,
        uncompressed: Fwd2BotModel | None = None,
        baselines: bool = True,
        index: Corpus | None = None,
        codec: str | None = None,
        short_answer_suffix: str | None = None,
    ) -> None:
        self.model = model
        self._index = index
        own = model.num_summary_tokens
        if ks is None:
            ks = [own] + ([k for k in (64, 32, 16, 8, 4) if k < own] if model.mode == "trained" else [])
        self.ks = sorted(set(ks), reverse=True)
        if bad := [k for k in self.ks if not 1 <= k <= own]:
            raise InputError(f"{model.name} has {own} summary tokens; it cannot be read at k = {bad[0]}.")
        if model.mode != "trained" and self.ks != [own]:
            raise InputError("Tokens of a training-free model are pooled: their first few are no shorter summary.")
        if index is not None and codec is not None:
            raise InputError("An index has its own codec; give one or the other.")
        self._codec = get_codec(codec) if codec is not None else None
        self._blind = Uncompressed(model, stage="generate")
        self._uncompressed = Uncompressed(uncompressed or model)
        self._baselines = baselines
        self._uncompressed_name = (uncompressed or model).full_fingerprint
        if short_answer_suffix is not None:
            self._suffix = self._uncompressed_suffix = short_answer_suffix
        else:
            self._suffix = "" if model.mode == "trained" else SHORT_ANSWER
            self._uncompressed_suffix = SHORT_ANSWER if _is_plain(self._uncompressed.model) else ""
        self.notes = (
            ["Training-free: average-pooled image tokens of a plain LVLM, not a trained compressor."]
            if model.mode != "trained"
            else []
        )

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def fingerprint(self) -> str:
        return self.model.full_fingerprint

    @property
    def columns(self) -> list[str]:
        own = [f"k={k}" for k in self.ks]
        return own + ([UNCOMPRESSED, BLIND, OTHER] if self._baselines else [])

    @property
    def settings(self) -> dict[str, Any]:
        codec = self._index.manifest.codec if self._index else self._codec.name if self._codec else "none"
        return {
            "columns": self.columns,
            "codec": codec,
            "index": str(self._index.place) if self._index else None,
            # the model, the codec and its fit: with them, a picture's content decides its tokens
            "index_manifest": _digest(self._index.manifest.to_json()) if self._index else None,
            "uncompressed": self._uncompressed_name if self._baselines else None,
            "matching_prompt": self.model.config.matching_prompt,
            "caption_prompt": self.model.config.caption_prompt,
            "short_answer_suffix": self._suffix,
            "short_answer_suffix_uncompressed": self._uncompressed_suffix if self._baselines else None,
            **computing(self.model.base),
        }

    @property
    def decode_side(self) -> int | None:
        return self.model.decode_side

    def see(self, pictures: Sequence[Picture]) -> Seen:
        if self._index is not None:
            stored, embedding = self._index.stored([p.content_id for p in pictures])
            tokens = torch.from_numpy(stored)
        else:
            summary = self.model.compress([p.image for p in pictures])
            tokens, embedding = summary.tokens.cpu(), summary.embedding.cpu().numpy()
            if self._codec is not None:
                _, k, d = tokens.shape
                tokens = torch.from_numpy(self._codec.decode(self._codec.encode(tokens.numpy()), k=k, d=d))
        return _SeenTokens(self, pictures, tokens, embedding)

    def check_lengths(self, texts: Sequence[str]) -> None:
        """
        Raises:
            TextTooLongError: one has more tokens than the LLM has positions for, beside its prompt and picture.
        """
        config = self.model.base.config.get_text_config()
        positions = getattr(config, "max_position_embeddings", None)
        if positions is None:
            return
        limit = positions - self.model.num_summary_tokens - _PROMPT_TOKENS
        for text in texts:
            if len(text.encode()) > limit:  # a token is a byte at least
                count = len(self.model.processor.tokenizer(text, add_special_tokens=False)["input_ids"])
                if count > limit:
                    raise TextTooLongError(text, tokens=count, limit=limit)

    def embed_text(self, texts: Sequence[str]) -> Float32:
        self.check_lengths(texts)
        parts = [self.model.embed_text(texts[i : i + BATCH]).cpu().numpy() for i in range(0, len(texts), BATCH)]
        return np.concatenate(parts)

    def matching_question(self, text: str) -> str:
        return self.model.config.matching_question(text)

    @property
    def caption_prompt(self) -> str:
        return self.model.config.caption_prompt

    def short_answer_suffix(self, column: str) -> str:
        return self._uncompressed_suffix if column == UNCOMPRESSED else self._suffix


def computing(module: Any) -> dict[str, str]:
    """The kind of device and the numbers that ``module``, a model of transformers, computes with: scores of another are
    no part of a run."""
    return {"device": module.device.type, "dtype": str(module.dtype).removeprefix("torch.")}


def _is_plain(model: Fwd2BotModel) -> bool:
    """Whether its base is an LVLM as its makers left it; one inside of a checkpoint may have been trained."""
    return model.mode != "trained" or model.config.base_model != BASE_FOLDER


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class _SeenTokens:
    def __init__(
        self, subject: Fwd2BotSubject, pictures: Sequence[Picture], tokens: torch.Tensor, embedding: Float32
    ) -> None:
        self.embedding = embedding
        self._subject = subject
        self._pictures = pictures
        self._tokens = tokens
        """[B, K, D]"""

    def reader(self, column: str) -> Reader:
        subject = self._subject
        reader: Reader
        match column:
            case "uncompressed":
                reader = _PictureReader(subject._uncompressed, [p.image for p in self._pictures])
            case "blind":
                reader = _PictureReader(subject._blind, None)
            case "other picture":
                reader = _TokenReader(subject.model, self._others())
            case _:
                reader = _TokenReader(subject.model, self._tokens[:, : int(column.removeprefix("k="))])
        return _CheckedReader(subject, reader)

    def _others(self) -> torch.Tensor:
        """[B, K, D]: the next picture's tokens; those of a grey one where the chunk has a single picture."""
        if len(self._tokens) > 1:
            return self._tokens.roll(-1, dims=0)
        grey = Image.new("RGB", self._pictures[0].image.size, (128, 128, 128))
        return self._subject.model.compress([grey]).tokens.cpu()


class _CheckedReader:
    """Refuses what the model cannot read whole."""

    def __init__(self, subject: Fwd2BotSubject, reader: Reader) -> None:
        self._subject = subject
        self._reader = reader

    def generate(self, rows: Sequence[int], prompts: Sequence[str], *, max_new_tokens: int) -> list[str]:
        self._subject.check_lengths(prompts)
        return self._reader.generate(rows, prompts, max_new_tokens=max_new_tokens)

    def score(self, rows: Sequence[int], prompts: Sequence[str], answers: Sequence[str]) -> tuple[Float32, Float32]:
        self._subject.check_lengths([p + a for p, a in zip(prompts, answers, strict=True)])
        return self._reader.score(rows, prompts, answers)


class _TokenReader:
    def __init__(self, model: Fwd2BotModel, tokens: torch.Tensor) -> None:
        self._model = model
        self._tokens = tokens

    def generate(self, rows: Sequence[int], prompts: Sequence[str], *, max_new_tokens: int) -> list[str]:
        def ask(part: list[int]) -> list[str]:
            tokens = self._tokens[[rows[i] for i in part]]
            return self._model.generate(tokens, [prompts[i] for i in part], max_new_tokens=max_new_tokens)

        return _generate(ask, prompts)

    def score(self, rows: Sequence[int], prompts: Sequence[str], answers: Sequence[str]) -> tuple[Float32, Float32]:
        def ask(part: list[int]) -> AnswerScores:
            tokens = self._tokens[[rows[i] for i in part]]
            return self._model.score_answers(tokens, [prompts[i] for i in part], [answers[i] for i in part])

        return _score(ask, prompts, answers)


class _PictureReader:
    """``pictures`` [B], or None to read without any."""

    def __init__(self, lvlm: Uncompressed, pictures: Sequence[Image.Image] | None) -> None:
        self._lvlm = lvlm
        self._pictures = pictures

    def _shown(self, rows: Sequence[int], part: Sequence[int]) -> list[Image.Image] | None:
        return None if self._pictures is None else [self._pictures[rows[i]] for i in part]

    def generate(self, rows: Sequence[int], prompts: Sequence[str], *, max_new_tokens: int) -> list[str]:
        def ask(part: list[int]) -> list[str]:
            shown = self._shown(rows, part)
            return self._lvlm.generate(shown, [prompts[i] for i in part], max_new_tokens=max_new_tokens)

        return _generate(ask, prompts)

    def score(self, rows: Sequence[int], prompts: Sequence[str], answers: Sequence[str]) -> tuple[Float32, Float32]:
        def ask(part: list[int]) -> AnswerScores:
            shown = self._shown(rows, part)
            return self._lvlm.score_answers(shown, [prompts[i] for i in part], [answers[i] for i in part])

        return _score(ask, prompts, answers)


def _generate(ask: Callable[[list[int]], list[str]], prompts: Sequence[str]) -> list[str]:
    answers = [""] * len(prompts)
    for part in _by_length(prompts):
        for i, answer in zip(part, ask(part), strict=True):
            answers[i] = answer
    return answers


def _score(
    ask: Callable[[list[int]], AnswerScores], prompts: Sequence[str], answers: Sequence[str]
) -> tuple[Float32, Float32]:
    logprob, count = np.zeros(len(prompts), np.float32), np.zeros(len(prompts), np.float32)
    for part in _by_length([p + a for p, a in zip(prompts, answers, strict=True)]):
        scores = ask(part)
        logprob[part] = scores.logprob.float().cpu().numpy()
        count[part] = scores.num_tokens.cpu().numpy()
    return logprob, count


def _by_length(texts: Sequence[str]) -> Iterator[list[int]]:
    """Batches of like length: little padding."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), BATCH):
        yield order[start : start + BATCH]
