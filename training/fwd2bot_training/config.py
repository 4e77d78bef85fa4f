"""What a training run is: a recipe, a TOML file that a user edits, onto frozen dataclasses.

A recipe has the tables of `RunConfig` (``[model] [method] [data] [train] [validation]``) and any number of
``[[phases]]``: each is a run of its own, with a name and tables that override the recipe's, key by key. Sources are
tables by name (``[data.sources.NAME]``), so a phase gives only what it changes of one; weight 0 leaves it out. A phase
whose ``model.base`` is ``previous`` starts from what the phase before it wrote. Unknown keys, values of a wrong type
and settings that contradict each other are refused by name before anything is loaded.

This module imports neither torch nor transformers.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from fwd2bot_index.config import MAX_SUMMARY_TOKENS, Pooling, Queries
from fwd2bot_index.errors import InputError
from fwd2bot_index.scenes import QUESTION_TYPES

T = TypeVar("T")
PREVIOUS = "previous"
SMALL_LLAVA = "small-llava"

Objective = Literal["double-pass", "single-pass", "lvlm", "words"]
Compressor = Literal["llm", "pooling", "resampler"]
SourceKind = Literal["scenes", "grids", "boxes", "parquet", "conversations", "webdataset", "folder", "datasets"]

_ROWS = re.compile(r"\d+:\d+")
DRAWN: tuple[SourceKind, ...] = ("scenes", "grids", "boxes")
"""Sources that draw their pictures."""
_SCENES_ALONE = (
    *("size", "partial_captions", "relation_captions", "hard_negatives", "twins", "favored", "counts", "alike"),
    *("relations", "curriculum_steps"),
)
_KINDS_OF: dict[str, tuple[SourceKind, ...]] = {
    **dict.fromkeys(_SCENES_ALONE, ("scenes",)),
    **dict.fromkeys(("path", "crop"), tuple(k for k in get_args(SourceKind) if k not in DRAWN)),
    "images": ("conversations",),
    "rows": ("parquet",),
    "split": (*DRAWN, "datasets"),
}
"""Which kinds of sources read a key; one that is not here, all."""


def key(default: T, help: str) -> T:
    """A setting with its documentation, which ``fwd2bot train --help-config`` prints."""
    return dataclasses.field(default=default, metadata={"help": help})


def _required(help: str) -> Any:
    return dataclasses.field(metadata={"help": help})


def _at_least(least: float, **values: float) -> None:
    for name, value in values.items():
        if value < least:
            raise InputError(f"{name} must be at least {least:g}, not {value:g}.")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    base: str = key(
        SMALL_LLAVA,
        "hub id or folder of a Hugging Face LVLM; `previous`: what the phase before wrote; `small-llava`: the "
        "architecture of the bundled model from random weights",
    )
    revision: str = key("", "revision of a hub model; empty: its main branch")
    num_tokens: int = key(16, "K, the summary tokens of a picture")
    queries: Queries = key(
        "region",
        "what stands at the summary positions: `constant` learned embeddings (the paper), or `region`: those plus the "
        "average of the image tokens of one region, coarse to fine",
    )
    compress_prompt: str = key("Summarize the image in a few words.", "prompt of the first pass")
    text_prompt: str = key("{text}\nSummarize the text in a few words.", "prompt that embeds a text")
    embedding_dim: int = key(0, "E, size of the embedding head; 0: no head, E is the LLM's hidden size")
    pooling: Pooling = key(
        "mean",
        "what of the summary tokens the embedding is made of: their `mean` (the paper), or `mlp`: that plus the mean "
        "of a perceptron of each, which tells relations apart; a checkpoint with `mean` may be trained on with it",
    )
    token_norm: bool = key(False, "an RMS norm with a learned scale on the summary tokens")
    adapters: Literal["stage", "shared", "none"] = key(
        "stage", "LoRA on the LLM's linear layers: one per stage (the paper), one for both, or none"
    )
    rank: int = key(64, "of each LoRA")
    alpha: float = key(128.0, "of each LoRA: its update is scaled by alpha / rank")
    dropout: float = key(0.0, "of each LoRA's input")
    lr_first_pass: float = key(
        1.0,
        "factor for what the first pass alone has: its LoRA (`stage`), summary positions and embedding heads; where it "
        "and those below are 0, all tokens and embeddings stay what they are and the second pass learns to read them",
    )
    lr_language_model: float = key(0.0, "factor on the learning rate of the LLM's own weights; 0: frozen")
    lr_projector: float = key(0.1, "factor for whatever lies between vision encoder and LLM; 0: frozen")
    lr_vision: float = key(0.0, "factor for the vision encoder; 0: frozen")
    quantize: Literal["none", "8bit", "4bit"] = key(
        "none", "the frozen base in 8 or 4 bits (bitsandbytes, `pip install 'fwd2bot[train]'`)"
    )
    dtype: Literal["float32", "bfloat16"] = key("float32", "of the base's frozen weights; what trains is float32")
    attention: Literal["eager", "sdpa", "flash_attention_2"] = key("sdpa", "attention implementation of the base")

    def __post_init__(self) -> None:
        if not 1 <= self.num_tokens <= MAX_SUMMARY_TOKENS:
            raise InputError(f"model.num_tokens must be between 1 and {MAX_SUMMARY_TOKENS}, not {self.num_tokens}.")
        if "{text}" not in self.text_prompt:
            raise InputError("model.text_prompt must contain {text}.")
        _at_least(0, **{f"model.{n}": getattr(self, n) for n in ("embedding_dim", "lr_first_pass", *_LR_FACTORS)})
        _at_least(1, **{"model.rank": self.rank})
        if not 0 <= self.dropout < 1:
            raise InputError(f"model.dropout must be in [0, 1), not {self.dropout}.")
        if self.quantize != "none" and (trained := [n for n in _LR_FACTORS if getattr(self, n)]):
            raise InputError(f"model.quantize = {self.quantize!r} freezes the base: set model.{trained[0]} to 0.")


_LR_FACTORS = ("lr_language_model", "lr_projector", "lr_vision")


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    objective: Objective = key(
        "double-pass",
        "`double-pass`: Fwd2Bot; `single-pass`: one forward in which the text sees only the summary positions, layer "
        "by layer (VoCo-like; no tokens to store, for ablations); `lvlm`: an ordinary LVLM, from all image tokens; "
        "`words`: the vision part alone, by the word loss",
    )
    compressor: Compressor = key(
        "llm",
        "what makes the summary tokens: the LLM itself, or a rival: average `pooling` of the image tokens, or a "
        "learned query `resampler`",
    )
    ar_weight: float = key(1.0, "of the autoregressive loss after the second pass")
    contrastive_weight: float = key(0.2, "of the symmetric InfoNCE after the first pass")
    word_weight: float = key(0.0, "of the word loss on image tokens (`lvlm` from scratch)")
    matching_weight: float = key(0.0, "of yes/no answers to `does this show {caption}?`, true and false")
    orthogonality_weight: float = key(0.0, "of the mean squared cosine between a picture's summary tokens")
    distillation_weight: float = key(0.0, "of KL from the answers that the untrained base gives to all image tokens")
    prefixes: tuple[int, ...] = key((), "k' of the second pass is drawn from these; empty: always K")
    matryoshka: tuple[int, ...] = key((), "sizes below E at which the first numbers of an embedding serve alone")
    storage_noise: Literal["none", "int8", "int4", "int2"] = key(
        "none", "the second pass reads tokens that went through this storage codec (gradient straight through)"
    )

    def __post_init__(self) -> None:
        weights = {f"method.{f.name}": getattr(self, f.name) for f in dataclasses.fields(self) if "weight" in f.name}
        _at_least(0, **weights)
        _at_least(1, **{f"each of method.{n}": min(v) for n in ("prefixes", "matryoshka") if (v := getattr(self, n))})
        if not any(weights.values()):
            raise InputError("Every loss has weight 0: there is nothing to train.")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    name: str = _required("label in logs and reports: the name of its table")
    kind: SourceKind = key(
        "parquet",
        "`scenes`: drawn pictures, no data needed; `grids`, `boxes`: drawn look-alikes of SHAPES and "
        "of NLVR, likewise; `parquet`: an image column with captions, qa or word; "
        "`conversations`: LLaVA-style JSON; `webdataset`: tars; `folder`: pictures with captions in metadata.jsonl, "
        "metadata.csv or NAME.txt; `datasets`: a Hugging Face dataset (saved folder or hub id)",
    )
    path: str = key("", "file, folder, glob or hub id; relative paths start at --data")
    images: str = key("", "folder of the pictures that a conversations file names; empty: the file's own folder")
    split: str = key("train", "of a Hugging Face dataset; `val` of what is drawn draws from another stream of seeds")
    weight: float = key(1.0, "share of the batches, relative to the other sources; 0: left out")
    batch_factor: int = key(1, "batches of this source are so many times larger: contrast needs company")
    crop: bool = key(False, "crop each picture a little at random, and mirror it where no text speaks of sides")
    rows: str = key(
        "", "of a Parquet source, `FIRST:AFTER_LAST` of its rows, so that the others stay unseen; empty: all"
    )
    size: int = key(96, "side in pixels of drawn scenes")
    partial_captions: float = key(0.0, "share of scene captions that leave objects out")
    relation_captions: float = key(
        0.4, "share of scene captions that relate two objects, where there are two to relate"
    )
    hard_negatives: int = key(1, "false captions that a scene brings; swapped ones come first, as they are the hardest")
    twins: float = key(
        0.0, "share of the pairs in a batch of scenes whose second is the first with two objects changed over"
    )
    favored: tuple[str, ...] = key((), "types of scene questions that are asked twice as often as the others")
    counts: int = key(1, "questions that a scene is asked where it is asked to count")
    relations: int = key(1, "questions of `relation`, and of `side`, that a scene is asked where it is asked one")
    alike: float = key(0.0, "share of the scenes that have few colours and shapes, so more to count")
    curriculum_steps: int = key(0, "scenes grow from one object to six over these steps")

    def __post_init__(self) -> None:
        where = f"The source {self.name!r}"
        if self.weight < 0 or self.batch_factor < 1:
            raise InputError(f"{where} needs a weight of at least 0 and a batch_factor of at least 1.")
        if self.kind not in DRAWN and not self.path:
            raise InputError(f"{where} needs a path.")
        foreign = [f for f in dataclasses.fields(self) if self.kind not in _KINDS_OF.get(f.name, (self.kind,))]
        if ignored := [f.name for f in foreign if getattr(self, f.name) != f.default]:
            raise InputError(f"{where}: {ignored[0]} means nothing to the kind {self.kind!r}.")
        if self.rows and not _ROWS.fullmatch(self.rows):
            raise InputError(f"{where}: rows is FIRST:AFTER_LAST, such as 0:600, not {self.rows!r}.")
        shares = (self.partial_captions, self.relation_captions, self.twins, self.alike)
        if not all(0 <= share <= 1 for share in shares):
            raise InputError(f"{where}: partial_captions, relation_captions, twins and alike are shares.")
        if self.curriculum_steps < 0 or self.hard_negatives < 0 or self.counts < 1 or self.relations < 1:
            raise InputError(
                f"{where}: curriculum_steps and hard_negatives are numbers from 0, counts and relations from 1."
            )
        if unknown := sorted(set(self.favored) - set(QUESTION_TYPES)):
            raise InputError(f"{where}: favored has {unknown[0]!r}; there are {', '.join(QUESTION_TYPES)}.")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    sources: tuple[SourceConfig, ...] = key((), "as [data.sources.NAME]; their keys are below")
    max_caption_tokens: int = key(
        30, "longer captions go to the autoregressive loss only: contrast on long ones collapses (VladVA)"
    )
    negatives: Literal["none", "given", "rules"] = key(
        "given",
        "hard negatives of the contrastive loss: those that the data has, or, where it has none, captions edited by "
        "`rules` (swap, replace, add)",
    )
    max_segments: int = key(8, "questions asked of one picture in one step")
    max_text_tokens: int = key(1024, "a question and its answer are cut there")
    length_grouped: bool = key(True, "batches of texts of like length: less padding")
    bad_rows: Literal["stop", "skip"] = key(
        "stop",
        "a row that cannot be used: `stop` with its file and number, or let another take its place and record it in "
        "skipped.jsonl",
    )
    workers: int = key(1, "processes that draw and collate batches; 0: the training process itself")

    def __post_init__(self) -> None:
        names = [s.name for s in self.sources]
        if doubled := sorted({n for n in names if names.count(n) > 1}):
            raise InputError(f"Two sources are called {doubled[0]!r}.")
        _at_least(1, **{f"data.{n}": getattr(self, n) for n in ("max_caption_tokens", "max_segments")})
        _at_least(16, **{"data.max_text_tokens": self.max_text_tokens})
        _at_least(0, **{"data.workers": self.workers})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    steps: int = key(1000, "optimiser steps")
    batch_size: int = key(32, "pictures of one step, over all processes")
    micro_batch_size: int = key(
        0,
        "pictures of one forward on one process; 0: all of its share. Smaller ones need less memory and give the same "
        "gradient, contrastive loss included (gradient caching)",
    )
    lr: float = key(2e-4, "peak learning rate")
    warmup: float = key(0.03, "share of the steps over which it rises")
    decay: float = key(0.5, "share of the steps, at the end, over which it falls to zero")
    schedule: Literal["linear", "cosine"] = key("linear", "how it falls")
    optimizer: Literal["adamw", "muon"] = key(
        "adamw", "what steps the LLM's and encoder's own matrices (LoRA and the rest are AdamW's always)"
    )
    weight_decay: float = key(0.05, "of matrices")
    clip: float = key(1.0, "largest norm of the gradient")
    precision: Literal["float32", "bfloat16"] = key(
        "float32", "autocast of the forward; on a CPU bfloat16 pays where `lscpu` shows avx512_bf16 or amx_bf16"
    )
    gradient_checkpointing: bool = key(False, "recompute the LLM's layers in the backward pass: less memory, more time")
    compile: bool = key(False, "torch.compile the LLM's layers")
    sharding: Literal["ddp", "fsdp"] = key("ddp", "under torchrun: whole copies, or parameters sharded (FSDP2)")
    save_minutes: float = key(10.0, "between two saved states")
    keep: int = key(2, "saved states that are kept")
    log_every: int = key(20, "steps between two lines of the log")
    tensorboard: bool = key(False, "write TensorBoard events beside the log (`pip install 'fwd2bot[train]'`)")
    seed: int = key(0, "of weights, data order and everything drawn")

    def __post_init__(self) -> None:
        _at_least(1, **{f"train.{n}": getattr(self, n) for n in ("steps", "batch_size", "keep", "log_every")})
        _at_least(0, **{f"train.{n}": getattr(self, n) for n in ("micro_batch_size", "save_minutes", "weight_decay")})
        for name in ("warmup", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"train.{name} must be between 0 and 1, not {getattr(self, name)}.")
        if self.lr <= 0 or self.clip <= 0:
            raise InputError("train.lr and train.clip must be above 0.")
        if self.optimizer == "muon" and self.sharding == "fsdp":
            raise InputError("train.optimizer = 'muon' needs whole matrices: use sharding = 'ddp', or adamw.")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    every: int = key(0, "steps between two validations; 0: only at the end")
    pictures: int = key(256, "pictures of each source")
    sources: tuple[SourceConfig, ...] = key((), "as [validation.sources.NAME]; none: no validation")

    def __post_init__(self) -> None:
        _at_least(0, **{"validation.every": self.every})
        _at_least(2, **{"validation.pictures": self.pictures})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    name: str = "train"
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    validation: ValidationConfig = ValidationConfig()

    def __post_init__(self) -> None:
        model, method = self.model, self.method
        if not self.data.sources:
            raise InputError(f"{self.name}: there is nothing to train on; add [data.sources.NAME].")
        if method.prefixes and max(method.prefixes) > model.num_tokens:
            raise InputError(f"{self.name}: method.prefixes go up to {max(method.prefixes)}, beyond model.num_tokens.")
        if model.embedding_dim and method.matryoshka and max(method.matryoshka) >= model.embedding_dim:
            raise InputError(f"{self.name}: method.matryoshka must stay below model.embedding_dim.")
        if model.dtype == "bfloat16" and self.train.precision != "bfloat16":
            raise InputError(f"{self.name}: weights in model.dtype = 'bfloat16' need train.precision = 'bfloat16'.")
        whole = bool(model.lr_language_model)
        if method.objective in ("lvlm", "words"):
            if model.adapters != "none":
                raise InputError(f"{self.name}: method.objective {method.objective!r} trains without adapters.")
            unused = ["matching_weight", "orthogonality_weight", "distillation_weight", "prefixes", "matryoshka"]
            ignored = [n for n in unused if getattr(method, n)]
            if ignored := ignored + ["storage_noise"] * (method.storage_noise != "none"):
                raise InputError(f"{self.name}: method.{ignored[0]} means nothing to {method.objective!r}.")
        elif model.adapters == "none" and not whole and method.compressor == "llm":
            raise InputError(f"{self.name}: without adapters the LLM must train: set model.lr_language_model.")
        if not model.lr_first_pass and not any(getattr(model, n) for n in _LR_FACTORS):
            if model.adapters == "shared" or method.objective != "double-pass" or method.compressor != "llm":
                raise InputError(
                    f"{self.name}: model.lr_first_pass = 0 is for a double pass with adapters of their own."
                )
            first = [n for n in ("contrastive_weight", "orthogonality_weight") if getattr(method, n)]
            if first:
                raise InputError(f"{self.name}: method.{first[0]} has nothing to train: the first pass stays as it is.")
        if method.objective == "single-pass" and (method.compressor != "llm" or method.storage_noise != "none"):
            raise InputError(f"{self.name}: 'single-pass' has no tokens of its own to pool, resample or store.")

    def tables(self) -> dict[str, Any]:
        """As a recipe has them: `parse_recipe` reads them back."""
        tables = dataclasses.asdict(self)
        for table in (tables["data"], tables["validation"]):
            table["sources"] = {source.pop("name"): source for source in table["sources"]}
        return tables

    def to_json(self) -> str:
        return json.dumps(self.tables(), indent=2)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: str
    phases: tuple[RunConfig, ...]

    @property
    def last_of_both(self) -> RunConfig:
        """The last phase that trains both passes; the last of all, where none does."""
        return next((p for p in reversed(self.phases) if p.model.lr_first_pass), self.phases[-1])


_TABLES = tuple(f.name for f in dataclasses.fields(RunConfig) if f.name != "name")
_SOURCES = tuple[SourceConfig, ...]
SHIPPED = ("mini", "mini-control", "llava-1.5-7b", "qwen3-vl-2b", "one-gpu")


def load_recipe(name_or_path: str, *, overrides: Sequence[str] = ()) -> Recipe:
    """A shipped recipe by name, or a TOML file.

    Args:
        overrides: ``table.key=value`` (every phase) or ``phase.table.key=value``, value in TOML; keys of a source are
            ``data.sources.name.key``.
    Raises:
        InputError: not found, not TOML, or a key or value that is not understood; names the file and the key.
    """
    raw = read_recipe(name_or_path)
    try:
        tables = tomllib.loads(raw)
    except tomllib.TOMLDecodeError as e:
        raise InputError(f"{name_or_path} is not valid TOML: {e}.") from e
    try:
        name = name_or_path if name_or_path in SHIPPED else Path(name_or_path).stem
        return parse_recipe(tables, name=name, overrides=overrides)
    except InputError as e:
        raise InputError(f"{name_or_path}: {e}") from e


def read_recipe(name_or_path: str) -> str:
    """The text of a shipped recipe, or of a file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        if name_or_path in SHIPPED:
            return resources.files("fwd2bot_training").joinpath("recipes", f"{name_or_path}.toml").read_text("utf-8")
        return Path(name_or_path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(
            f"Cannot read the recipe {name_or_path}: {e}. Shipped recipes: {', '.join(SHIPPED)}; or give a TOML file."
        ) from e


def parse_recipe(tables: Mapping[str, Any], *, name: str, overrides: Sequence[str] = ()) -> Recipe:
    """`load_recipe` for tables that are already read."""
    shared = {k: v for k, v in tables.items() if k != "phases"}
    phases = tables.get("phases", [{"name": "train"}])
    if not isinstance(phases, list) or not phases or not all(isinstance(p, dict) and "name" in p for p in phases):
        raise InputError("Each of [[phases]] needs a name.")
    merged = [_merge(shared, p) for p in phases]
    names = [str(p["name"]) for p in merged]
    if len(set(names)) != len(names):
        raise InputError("Two phases have one name.")
    for override in overrides:
        left, equals, value = override.partition("=")
        first, *path = left.strip().split(".")
        chosen = [i for i, n in enumerate(names) if first in (n, *_TABLES)]
        path = [first, *path] if first in _TABLES else path
        if not equals or len(path) < 2 or not chosen:
            raise InputError(f"{override!r} is not [PHASE.]TABLE.KEY=VALUE (phases: {', '.join(names)}).")
        for i in chosen:
            merged[i] = _with(merged[i], path, _toml_value(value.strip()))
    runs = tuple(_build(RunConfig, m, f"phase {m['name']}" if len(merged) > 1 else "") for m in merged)
    if runs[0].model.base == PREVIOUS:
        raise InputError("The first phase has no previous one to start from: give model.base.")
    return Recipe(name=name, phases=runs)


def describe_keys() -> Iterator[tuple[str, str, str, str]]:
    """(key, type, default, help) of every setting, in the order of a recipe."""
    for table in dataclasses.fields(RunConfig):
        if dataclasses.is_dataclass(table.default):
            yield from _describe(type(table.default), table.name)
    yield from _describe(SourceConfig, "data.sources.NAME")


def _describe(cls: type, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if cls is SourceConfig and field.name == "name":
            continue  # not a key: the name of the table
        default = "required" if field.default is dataclasses.MISSING else json.dumps(field.default)
        yield f"{prefix}.{field.name}", _type_name(hints[field.name]), default, str(field.metadata["help"])


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " | ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return "tables by name" if hint == _SOURCES else f"list of {_type_name(get_args(hint)[0])}"
    return str(hint.__name__)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merge, everything else is replaced."""
    both = {k: v for k, v in below.items() if isinstance(v, dict) and isinstance(above.get(k), dict)}
    return {**below, **above, **{k: _merge(v, above[k]) for k, v in both.items()}}


def _with(tables: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """``tables`` with ``value`` at this path, in place of what is there."""
    key, *rest = path
    inner = tables.get(key)
    return {**tables, key: _with(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word


def _build(cls: type[T], table: Any, where: str) -> T:
    """``table`` as ``cls``; every complaint names the key."""
    if not isinstance(table, Mapping):
        raise InputError(f"{where or 'the recipe'} must be a table, not {table!r}.")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(sorted(known))}."
            raise InputError(f"unknown key {_join(where, name)}{meant}")
    required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]  # type: ignore[arg-type]
    if missing := [n for n in required if n not in table]:
        raise InputError(f"{_join(where, missing[0])} is missing.")
    return cls(**{name: _value(hints[name], value, _join(where, name)) for name, value in table.items()})


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    origin = get_origin(hint)
    if origin is Literal:
        if value not in get_args(hint):
            raise InputError(f"{where} must be one of {', '.join(map(repr, get_args(hint)))}, not {value!r}.")
        return value
    if hint == _SOURCES:
        named = isinstance(value, Mapping) and all(isinstance(v, Mapping) and "name" not in v for v in value.values())
        if not named:
            raise InputError(f"{where} must be tables by name, [{where}.NAME], not {value!r}.")
        sources = [_build(SourceConfig, {"name": name, **keys}, f"{where}.{name}") for name, keys in value.items()]
        return tuple(s for s in sources if s.weight)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{where} must be a list, not {value!r}.")
        return tuple(_value(get_args(hint)[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    assert not isinstance(hint, types.UnionType), hint
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise InputError(f"{where} must be {hint.__name__}, not {value!r}.")
    return value
