"""Settings that are written to disk: ``config.json`` of a checkpoint and ``manifest.json`` of an index.

Both check themselves at construction; a file that does not parse, or comes from a newer format, is refused by name.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

from fwd2bot_index.errors import Fwd2BotError, IndexCorruptedError, IndexMismatchError, ModelError
from fwd2bot_index.types import Mode

FORMAT_VERSION = 1
MAX_SUMMARY_TOKENS = 4096
MAX_TOKEN_DIM = 65536

DEFAULT_CODEC = "pq8"
DEFAULT_THRESHOLD = 0.995
"""Cosine of the bundled model's embeddings from which two pictures are copies of one: measured, see
docs/duplicates.md."""

MATCHING_PROMPT = "does this show {text}?"
CAPTION_PROMPT = "write a caption."

Queries = Literal["constant", "region"]
Pooling = Literal["mean", "mlp"]
Adapters = Literal["stage", "shared", "none"]


def _parse(
    cls: type, path: Path | str, raw: str, error: type[Fwd2BotError], newer: type[Fwd2BotError]
) -> dict[str, Any]:
    """The fields of ``cls`` from a JSON object; anything missing, unknown or from a newer format is refused."""
    try:
        data = json.loads(raw)
    except ValueError as e:
        raise error(f"{path} is not valid JSON ({e}).") from e
    if not isinstance(data, dict):
        raise error(f"{path} does not hold a JSON object.")
    version = data.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise newer(
            f"{path} has format version {version}; this fwd2bot reads up to {FORMAT_VERSION}. "
            "Upgrade fwd2bot to read it."
        )
    known = {f.name for f in fields(cls)}
    if unknown := sorted(set(data) - known):
        raise error(f"{path} has unknown fields: {', '.join(unknown)}.")
    return data


@dataclass(frozen=True, kw_only=True)
class CompressorConfig:
    """``config.json`` of a Fwd2Bot checkpoint: how a base LVLM compresses.

    A plain LVLM has no such file; it is used *training-free* with the defaults of :meth:`training_free`.
    """

    format_version: int = FORMAT_VERSION
    base_model: str = "base"
    """Hub id or path of the base LVLM; ``base`` means the folder of that name inside the checkpoint."""
    base_revision: str | None = None
    mode: Mode = "trained"
    num_summary_tokens: int = 16
    queries: Queries = "constant"
    """What stands at the summary positions of the first pass: ``constant`` learned embeddings, as in the paper, or
    ``region``: the same plus the average of the image tokens of one region of the picture, coarse to fine."""
    compress_prompt: str = "Summarize the image in a few words."
    text_prompt: str = "{text}\nSummarize the text in a few words."
    matching_prompt: str = MATCHING_PROMPT
    """Answered yes or no: whether a text fits the picture."""
    caption_prompt: str = CAPTION_PROMPT
    """What a caption answers."""
    embedding_dim: int | None = None
    """Size of the embedding head; None: no head, the embedding has the LLM's hidden size."""
    pooling: Pooling = "mean"
    """What of the summary tokens a picture's embedding is made of: their ``mean`` through the head, as published, or
    ``mlp``: that plus the mean of a perceptron of each (:class:`fwd2bot_index.pooling.TokenMLP`)."""
    token_norm: bool = False
    """Whether summary tokens are RMS-normalised and scaled by a learned vector."""
    adapters: Adapters = "stage"
    """``stage``: ``adapters/compress`` and ``adapters/generate``; ``shared``: ``adapters/shared`` for both passes;
    ``none``: the base's own weights do it all."""

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ModelError(f"mode must be one of {get_args(Mode)}, not {self.mode!r}.")
        if self.queries not in get_args(Queries):
            raise ModelError(f"queries must be one of {get_args(Queries)}, not {self.queries!r}.")
        if self.pooling not in get_args(Pooling):
            raise ModelError(f"pooling must be one of {get_args(Pooling)}, not {self.pooling!r}.")
        if self.pooling != "mean" and self.mode != "trained":
            raise ModelError("Only a trained model pools its tokens by a perceptron.")
        if self.adapters not in get_args(Adapters):
            raise ModelError(f"adapters must be one of {get_args(Adapters)}, not {self.adapters!r}.")
        if not 1 <= self.num_summary_tokens <= MAX_SUMMARY_TOKENS:
            raise ModelError(
                f"num_summary_tokens must be between 1 and {MAX_SUMMARY_TOKENS}, not {self.num_summary_tokens}."
            )
        if self.embedding_dim is not None and not 1 <= self.embedding_dim <= MAX_TOKEN_DIM:
            raise ModelError(f"embedding_dim must be between 1 and {MAX_TOKEN_DIM}, not {self.embedding_dim}.")
        for name in ("text_prompt", "matching_prompt"):
            if "{text}" not in getattr(self, name):
                raise ModelError(f"{name} must contain {{text}}.")

    def matching_question(self, text: str) -> str:
        """The yes-or-no question whether ``text`` fits the picture."""
        return self.matching_prompt.replace("{text}", text.rstrip(". "))

    @classmethod
    def training_free(cls, base_model: str, *, revision: str | None = None, num_summary_tokens: int = 16) -> Self:
        """The settings of a plain LVLM: the one-word-summary prompts of E5-V (arXiv 2407.12580)."""
        return cls(
            base_model=base_model,
            base_revision=revision,
            mode="training-free",
            num_summary_tokens=num_summary_tokens,
            compress_prompt="Summary of the above image in one word: ",
            text_prompt="{text}\nSummary of the above sentence in one word: ",
            matching_prompt="Does this image show {text}? Answer yes or no.",
            caption_prompt="Write a caption of one sentence for this image.",
            adapters="none",
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        try:
            raw = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise ModelError(f"Cannot read the checkpoint's {path}: {e}.") from e
        data = _parse(cls, path, raw, ModelError, ModelError)
        try:
            return cls(**data)
        except TypeError as e:
            raise ModelError(f"{path} cannot be used: {e}.") from e

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """``manifest.json`` of an index. Written last: its existence means that the index is whole."""

    format_version: int = FORMAT_VERSION
    model: str
    model_revision: str | None
    model_fingerprint: str
    mode: Mode
    num_summary_tokens: int
    token_dim: int
    embedding_dim: int
    codec: str
    created: str
    """ISO 8601, UTC."""
    codec_sha256: str | None = None
    """Of the file with what a fitted codec learned, in hexadecimal; None: the codec learns nothing."""

    def __post_init__(self) -> None:
        for name, limit in (
            ("num_summary_tokens", MAX_SUMMARY_TOKENS),
            ("token_dim", MAX_TOKEN_DIM),
            ("embedding_dim", MAX_TOKEN_DIM),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= limit:
                raise IndexCorruptedError(f"The manifest's {name} is {value!r}; it must be between 1 and {limit}.")
        for name in ("model", "model_fingerprint", "codec", "created"):
            if not isinstance(getattr(self, name), str):
                raise IndexCorruptedError(f"The manifest's {name} is {getattr(self, name)!r}; it must be a string.")
        if not isinstance(self.codec_sha256, str | None):
            raise IndexCorruptedError(
                f"The manifest's codec_sha256 is {self.codec_sha256!r}; it must be a string or null."
            )
        if self.mode not in get_args(Mode):
            raise IndexCorruptedError(f"The manifest's mode is {self.mode!r}; it must be one of {get_args(Mode)}.")

    @classmethod
    def from_json(cls, raw: str, path: Path | str) -> Self:
        data = _parse(cls, path, raw, IndexCorruptedError, IndexMismatchError)
        try:
            return cls(**data)
        except TypeError as e:
            raise IndexCorruptedError(f"{path} cannot be used: {e}.") from e

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"
