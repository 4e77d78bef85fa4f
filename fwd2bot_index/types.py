"""The values that travel between the floors. Nothing here imports torch; tensors are named for the type checker only.

Shapes: B batch, K summary tokens, D hidden size of the LLM, E embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import torch
    from PIL import Image

ImageInput: TypeAlias = "str | Path | bytes | Image.Image"
"""A picture: a path, the bytes of an image file, or a Pillow image."""

LIGHTEST_WEIGHT = 0.105
"""Nats: a factor of 0.9."""

Mode: TypeAlias = Literal["trained", "training-free"]
Stage: TypeAlias = Literal["compress", "generate"]


@dataclass(frozen=True, kw_only=True)
class SummaryTokens:
    """What the first pass leaves of a batch of pictures."""

    tokens: torch.Tensor
    """[B, K, D], float: last-layer states at the summary positions; stands in the image's place in the second pass."""
    embedding: torch.Tensor
    """[B, E], float, unit length: compared by dot product with the embeddings of texts and of other pictures."""


@dataclass(frozen=True, kw_only=True)
class Replies:
    """Greedy answers of the second pass, and how likely it found them."""

    texts: list[str]
    """[B]"""
    logprob: torch.Tensor
    """[B], float32: of each answer, summed over its tokens, that of its end included."""
    num_tokens: torch.Tensor
    """[B], int64: tokens of each answer, its end included."""


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """What tells a model from others, known without loading it: an index is written and read by one model only."""

    name: str
    """As :attr:`Compressor.name`."""
    revision: str | None
    fingerprint: str
    """As :attr:`Compressor.fingerprint`."""


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One search result."""

    rank: int
    """From 1."""
    score: float
    """Cosine similarity, in [-1, 1]."""
    id: str
    """Content hash of the picture: the key of its summary tokens."""
    uri: str
    """Where the picture was when it was indexed (an absolute path)."""
    width: int
    height: int
    z: float | None = None
    """Standard deviations of the score above the mean of the corpus for this query: comparable over queries, as cosines
    are not. None: nothing was searched for, or all pictures score alike."""
    match: float | None = None
    """How likely the text that was searched for fits the picture, in [0, 1], as the second pass finds by re-ranking.
    None: it was not asked."""
    copies: tuple[str, ...] = ()
    """Where near copies of this picture were, that are left out for it."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the second pass said about one indexed picture."""

    hit: Hit
    text: str
    confidence: float
    """How likely the model finds its answer, in [0, 1], see :mod:`fwd2bot_index.answering`."""


@dataclass(frozen=True, kw_only=True)
class JointAnswer:
    """What the second pass said about several indexed pictures that it read together."""

    text: str
    confidence: float
    """As that of :class:`Answer`."""
    hits: tuple[Hit, ...]
    """What it read, in that order."""
    weights: tuple[float, ...]
    """For each of them, by how much its absence makes the answer less likely, in nats; below 0: more likely."""

    @property
    def rests_on(self) -> tuple[Hit, ...]:
        """The pictures without which the answer would be less likely by a tenth or more, the heaviest first."""
        heavy = [(w, -i) for i, w in enumerate(self.weights) if w > LIGHTEST_WEIGHT]
        return tuple(self.hits[-i] for _, i in sorted(heavy, reverse=True))


@dataclass(frozen=True, kw_only=True)
class Kept:
    """How well the stored summary tokens of a picture keep it."""

    caption: str
    """What the model says of the tokens alone."""
    confidence: float
    """As that of :class:`Answer`."""
    rank: int | None
    """Where a search for these words finds the picture; None: it is not among the first."""
    among: int
    """Files in the index."""


@dataclass(frozen=True, kw_only=True)
class SkippedFile:
    uri: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class IndexReport:
    """What one run of ``index`` did. Counts are files."""

    added: int = 0
    updated: int = 0
    renamed: int = 0
    removed: int = 0
    unchanged: int = 0
    skipped: Sequence[SkippedFile] = ()
    """All files under the paths given that could not be used, also those that an earlier run tried."""
    waiting: int = 0
    """Files that may still be being written, left for a later run."""
    described: int = 0
    """Files whose metadata was set or changed."""
    unmatched: Sequence[str] = ()
    """Names in the table of metadata that are of no file in the index."""
    interrupted: bool = False
    seconds: float = 0.0
    """Wall time of the whole run, from listing the folder to the last commit, loading the model included."""
    loading_seconds: float = 0.0
    """Waiting for the model to load."""
    model_seconds: float = 0.0
    """Wall time inside ``compress``: preprocessing of decoded pictures and the first pass."""


class ModelFacts(Protocol):
    """What indexing has to know of a model, wherever that runs."""

    @property
    def name(self) -> str:
        """Hub id or path, as a person would type it after ``--model``; ``default`` for the bundled one."""
        ...

    @property
    def revision(self) -> str | None: ...

    @property
    def fingerprint(self) -> str:
        """Hash of weights and settings of the first pass: two models with one fingerprint write the same index."""
        ...

    @property
    def mode(self) -> Mode: ...

    @property
    def num_summary_tokens(self) -> int: ...

    @property
    def token_dim(self) -> int: ...

    @property
    def embedding_dim(self) -> int: ...

    @property
    def decode_side(self) -> int | None:
        """The longest side, in pixels, that is worth decoding a picture to before preprocessing; None: no opinion."""
        ...

    @property
    def pads(self) -> bool:
        """Whether a small picture in a batch with a large one costs as much as the large one does."""
        ...


@runtime_checkable
class Compressor(ModelFacts, Protocol):
    """What indexing and querying ask of a model. :class:`fwd2bot_index.model.Fwd2BotModel` is the real one; tests bring
    small fakes."""

    @property
    def full_fingerprint(self) -> str:
        """Hash of all weights and settings: two models with one such fingerprint answer alike, too."""
        ...

    def matching_question(self, text: str) -> str:
        """The question, to be answered yes or no, whether a text fits the picture."""
        ...

    @property
    def caption_prompt(self) -> str:
        """What a caption answers."""
        ...

    def merged(self, stage: Stage) -> AbstractContextManager[None]:
        """Around many calls of one stage, which may be faster inside; no call of the other stage is."""
        ...

    def preprocess(self, images: Sequence[ImageInput]) -> Any:
        """What :meth:`compress` takes in the place of a batch of pictures. May run in another thread while the model is
        at work."""
        ...

    def compress(self, images: Any) -> SummaryTokens:
        """``images``: a sequence of :data:`ImageInput`, or what :meth:`preprocess` made of it."""
        ...

    def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
        """[B, E], unit length."""
        ...

    def answer(self, tokens: torch.Tensor, prompt: str | Sequence[str], *, max_new_tokens: int = 32) -> Replies:
        """About each row of ``tokens`` [B, K, D]."""
        ...

    def loglikelihood(
        self, tokens: torch.Tensor, prompt: str | Sequence[str], completions: Sequence[str], *, ended: bool = False
    ) -> torch.Tensor:
        """[B, C]: log-probability of each completion after the prompt, summed over its tokens, in float32; ``ended``:
        that of the end after it included."""
        ...

    def answer_together(self, tokens: torch.Tensor, question: str, *, max_new_tokens: int = 32) -> Replies:
        """One answer [1] about all pictures of ``tokens`` [M, K, D], read one after another in one context."""
        ...

    def weigh_together(self, tokens: torch.Tensor, question: str, answer: str) -> torch.Tensor:
        """[M], float32: by how much the absence of each picture makes the answer less likely, in nats."""
        ...
