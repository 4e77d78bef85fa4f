"""Texts into embeddings without torch, so that a search from a cold process takes no seconds of imports.

It does what :meth:`fwd2bot_index.model.Fwd2BotModel.embed_text` does, in numpy, for the kind of checkpoint that is
bundled: a trained one around a small LLaVA with a Llama. Notable choices:

- Whatever is not known to be computed alike is left to the real model: an unknown setting, tensor or template variable
  means None, never a slightly different embedding. A setting counts as known only where it stands in a list below.
- The prompt comes from the checkpoint's own chat template, so its format is written down nowhere else.
- The weights of the language model are read with the ``compress`` adapter added in; of the embeddings, only the rows of
  the words asked for.
- Texts go through one by one, without padding: a search has one.

Shapes: B texts, T positions, D hidden size, H heads, G key/value heads, S head size, E embedding size.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from fwd2bot_index.checkpoints import ADAPTERS_FOLDER, SUMMARY_TOKENS_FILE, Checkpoint, resolve
from fwd2bot_index.errors import InputError
from fwd2bot_index.weights import Float32, Weights

if TYPE_CHECKING:
    from jinja2 import Template
    from tokenizers import Tokenizer

    from fwd2bot_index.config import Manifest

_MAX_PARAMETERS: Final = 100_000_000
"""Of the language model. Above, importing torch is the smaller part of the wait, and it may have a GPU."""
_MAX_VOCABULARY: Final = 100_000
"""Above, transformers may replace the tokenizer's pattern."""

_NORMS: Final = ("input_layernorm", "post_attention_layernorm")
_ATTENTION: Final = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_MLP: Final = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

# Settings that are read below, and settings that cannot change the embedding of a text.
_BASE_SETTINGS: Final = frozenset({
    "architectures", "bos_token_id", "dtype", "eos_token_id", "ignore_index", "image_seq_length", "image_token_id",
    "image_token_index", "model_type", "multimodal_projector_bias", "pad_token_id", "projector_hidden_act",
    "text_config", "tie_word_embeddings", "torch_dtype", "transformers_version", "vision_config",
    "vision_feature_layer", "vision_feature_select_strategy",
})  # fmt: skip
_LLAMA_SETTINGS: Final = frozenset({
    "_name_or_path", "architectures", "attention_bias", "attention_dropout", "bos_token_id", "dtype", "eos_token_id",
    "head_dim", "hidden_act", "hidden_size", "initializer_range", "intermediate_size", "max_position_embeddings",
    "mlp_bias", "model_type", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "pad_token_id",
    "pretraining_tp", "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta", "tie_word_embeddings",
    "torch_dtype", "transformers_version", "use_cache", "vocab_size",
})  # fmt: skip
_TOKENIZER_SETTINGS: Final = frozenset({
    "backend", "bos_token", "clean_up_tokenization_spaces", "cls_token", "eos_token", "extra_special_tokens",
    "image_token", "is_local", "local_files_only", "mask_token", "model_max_length", "model_specific_special_tokens",
    "pad_token", "padding_side", "processor_class", "sep_token", "tokenizer_class", "unk_token",
})  # fmt: skip
# Of PEFT's settings for LoRA, those that may have a value; every other one must be off.
_LORA_SETTINGS: Final = frozenset({
    "auto_mapping", "base_model_name_or_path", "bias", "inference_mode", "init_lora_weights", "lora_alpha",
    "lora_dropout", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "revision",
    "target_modules", "task_type",
})  # fmt: skip
_NAMED_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TEMPLATE_VARIABLES: Final = frozenset({"messages", "add_generation_prompt", "tools", "documents", *_NAMED_TOKENS})
# Files beside tokenizer.json that would change what it or the chat template does.
_MORE_FILES: Final = ("added_tokens.json", "special_tokens_map.json", "chat_template.json", "additional_chat_templates")


class _NotCoveredError(Exception):
    """Something that only the real model knows what to do with, or how to complain about."""


class TextEncoder:
    """Embeds texts as the model of one checkpoint does."""

    def __init__(self, prompts: _Prompts, llama: _Llama, query: Float32, head: Float32 | None) -> None:
        self._prompts = prompts
        self._llama = llama
        self._query = query
        self._head = head

    @classmethod
    def for_manifest(cls, manifest: Manifest) -> Self | None:
        """For the model that made an index; None where only the model itself will do, or where it is another by now.

        Raises:
            ModelError: the model cannot be found, or a file of its weights is broken.
        """
        if manifest.mode != "trained":
            return None
        checkpoint = resolve(manifest.model, revision=manifest.model_revision)
        return cls.for_checkpoint(checkpoint) if checkpoint.fingerprint() == manifest.model_fingerprint else None

    @classmethod
    def for_checkpoint(cls, checkpoint: Checkpoint) -> Self | None:
        """None where only the model itself will do.

        Raises:
            ModelError: a file of its weights is broken.
        """
        if checkpoint.config.mode != "trained":
            return None
        try:
            shape = _LlamaShape.of(checkpoint.base_folder / "config.json")
            prompts = _Prompts.of(checkpoint.base_folder, checkpoint.config.text_prompt)
            adapter = None
            if (kind := checkpoint.config.adapters) != "none":
                adapter = _Adapter(checkpoint.folder / ADAPTERS_FOLDER / ("shared" if kind == "shared" else "compress"))
            llama = _Llama(shape, Weights.of_folder(checkpoint.base_folder), adapter)
            learned = Weights.of_file(checkpoint.folder / SUMMARY_TOKENS_FILE)
            query = _take(learned, "text_query", (1, shape.hidden))
            head = None
            if checkpoint.config.embedding_dim is not None:
                head = _take(learned, "text_head.weight", (checkpoint.config.embedding_dim, shape.hidden))
        except _NotCoveredError:
            return None
        return cls(prompts, llama, query, head)

    def embed_text(self, texts: Sequence[str]) -> Float32:
        """[B, E], unit length: to be compared with the embeddings of pictures by dot product.

        Raises:
            InputError: there are no texts.
        """
        if not texts:
            raise InputError("There are no texts to embed.")
        return np.stack([self._embed(text) for text in texts])

    def _embed(self, text: str) -> Float32:
        rows = np.concatenate([self._llama.embeddings(self._prompts.ids(text)), self._query])
        state = self._llama(rows)[-1]
        embedding: Float32 = state if self._head is None else self._head @ state
        return embedding / np.maximum(np.linalg.norm(embedding), np.float32(1e-12))


class _Prompts:
    """From a text to the token ids of its prompt, as :mod:`fwd2bot_index.prompts` makes them."""

    def __init__(self, tokenizer: Tokenizer, template: Template, special: Mapping[str, str], text_prompt: str) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._special = special
        self._text_prompt = text_prompt

    @classmethod
    def of(cls, folder: Path, text_prompt: str) -> Self:
        settings = _settings(folder / "tokenizer_config.json", _TOKENIZER_SETTINGS)
        _require("chat_template" not in _settings(folder / "processor_config.json"))
        _require(not any((folder / name).exists() for name in _MORE_FILES))
        _require(settings.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast"))
        special = {name: settings[name] for name in _NAMED_TOKENS if settings.get(name) is not None}
        extra = settings.get("extra_special_tokens") or []
        named = settings.get("model_specific_special_tokens") or {}
        _require(isinstance(extra, list) and isinstance(named, dict))
        tokenizer = _tokenizer(folder / "tokenizer.json", special=[*special.values(), *extra, *named.values()])
        return cls(tokenizer, _template(folder / "chat_template.jinja"), special, text_prompt)

    def ids(self, text: str) -> list[int]:
        content = [{"type": "text", "text": self._text_prompt.replace("{text}", text)}]
        prompt = self._template.render(
            messages=[{"role": "user", "content": content}],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **self._special,
        )
        bos = self._special.get("bos_token")  # many templates write it themselves
        has_bos = bool(bos) and prompt.startswith(str(bos))
        return list(self._tokenizer.encode(prompt, add_special_tokens=not has_bos).ids)


def _tokenizer(path: Path, *, special: Collection[Any]) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as e:  # the package raises no narrower kind
        raise _NotCoveredError from e
    tokenizer.no_truncation()
    tokenizer.no_padding()
    _require(tokenizer.get_vocab_size() <= _MAX_VOCABULARY)
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    _require(all(isinstance(token, str) and token in known for token in special))  # others transformers would add
    return tokenizer


def _template(path: Path) -> Template:
    """The chat template, in an environment like that of transformers; it may use what both have, and nothing else."""
    from jinja2 import TemplateError, meta, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    try:
        source = path.read_text(encoding="utf-8")
        parsed = environment.parse(source)
        _require(meta.find_undeclared_variables(parsed) <= _TEMPLATE_VARIABLES)
        _require(all(used.name != "tojson" for used in parsed.find_all(nodes.Filter)))  # transformers has its own
        return environment.from_string(source)
    except (OSError, ValueError, TemplateError) as e:
        raise _NotCoveredError from e


@dataclass(frozen=True, kw_only=True)
class _LlamaShape:
    """What ``config.json`` says of the language model."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    groups: int
    head_size: int
    eps: float
    rope_theta: float
    attention_bias: bool
    mlp_bias: bool

    @classmethod
    def of(cls, path: Path) -> Self:
        base = _settings(path, _BASE_SETTINGS)
        _require(base.get("model_type") == "llava" and isinstance(base.get("text_config"), dict))
        text: dict[str, Any] = base["text_config"]
        _require(text.keys() <= _LLAMA_SETTINGS and text.get("model_type") == "llama")
        _require(text.get("hidden_act") == "silu" and text.get("rope_scaling") is None)
        rope = text.get("rope_parameters") or {"rope_theta": text.get("rope_theta")}
        _require(isinstance(rope, dict) and rope.keys() <= {"rope_type", "rope_theta"})
        _require(rope.get("rope_type", "default") == "default")
        try:
            heads = int(text["num_attention_heads"])
            shape = cls(
                hidden=int(text["hidden_size"]),
                mlp=int(text["intermediate_size"]),
                layers=int(text["num_hidden_layers"]),
                heads=heads,
                groups=int(text.get("num_key_value_heads") or heads),
                head_size=int(text.get("head_dim") or text["hidden_size"] // heads),
                eps=float(text["rms_norm_eps"]),
                rope_theta=float(rope["rope_theta"]),
                attention_bias=bool(text.get("attention_bias", False)),
                mlp_bias=bool(text.get("mlp_bias", False)),
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as e:
            raise _NotCoveredError from e
        sizes = (shape.hidden, shape.mlp, shape.layers, shape.heads, shape.groups, shape.head_size)
        _require(min(sizes) > 0 and shape.heads % shape.groups == 0 and shape.head_size % 2 == 0)
        linear = sum(rows * columns for rows, columns in shape.linear.values())
        _require(shape.layers * linear <= _MAX_PARAMETERS)
        return shape

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of each linear map of a layer."""
        queries, keys = self.heads * self.head_size, self.groups * self.head_size
        outputs = (queries, keys, keys, self.hidden, self.mlp, self.mlp, self.hidden)
        inputs = (self.hidden, self.hidden, self.hidden, queries, self.hidden, self.hidden, self.mlp)
        return dict(zip((*_ATTENTION, *_MLP), zip(outputs, inputs, strict=True), strict=True))

    def has_bias(self, linear: str) -> bool:
        return self.attention_bias if linear in _ATTENTION else self.mlp_bias


class _Adapter:
    """A plain LoRA (arXiv 2106.09685) in a PEFT folder: ``W + alpha / r * B A``."""

    _PREFIX: Final = "base_model.model.model.language_model."

    def __init__(self, folder: Path) -> None:
        settings = _settings(folder / "adapter_config.json")
        _require(not any(value for name, value in settings.items() if name not in _LORA_SETTINGS and value != "none"))
        _require(settings.get("peft_type") == "LORA" and settings.get("bias", "none") == "none")
        _require(isinstance(settings.get("init_lora_weights", True), bool))  # others change the base when loaded
        rank, alpha = settings.get("r"), settings.get("lora_alpha")
        if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
            raise _NotCoveredError
        self._rank = rank
        self._scale = np.float32(alpha / rank)
        self._weights = Weights.of_file(folder / "adapter_model.safetensors")
        self._unread = self._weights.names()

    def factors(self, linear: str, shape: tuple[int, int]) -> tuple[Float32, Float32]:
        """A [rank, inputs] and alpha / r * B [outputs, rank] of one linear map, whose weight is of ``shape``.

        They stay factors: multiplying them out for every map takes longer than the one short text of a search.
        """
        names = [f"{self._PREFIX}{linear}.lora_{which}.weight" for which in "AB"]
        down = _take(self._weights, names[0], (self._rank, shape[1]))
        up = _take(self._weights, names[1], (shape[0], self._rank))
        self._unread -= {*names}
        return down, self._scale * up

    def require_all_read(self) -> None:
        _require(not self._unread)


class _Llama:
    """The language model (arXiv 2302.13971) without its head: pre-norm layers of grouped-query attention with rotary
    positions and of a SwiGLU."""

    def __init__(self, shape: _LlamaShape, weights: Weights, adapter: _Adapter | None) -> None:
        self._shape = shape
        self._weights = weights
        # two generations of transformers' names
        prefixes = ("language_model.model.", "model.language_model.")
        found = [prefix for prefix in prefixes if weights.shape(f"{prefix}embed_tokens.weight") is not None]
        _require(len(found) == 1)
        self._embeddings = f"{found[0]}embed_tokens.weight"
        table = weights.shape(self._embeddings)
        _require(table is not None and len(table) == 2 and table[1] == shape.hidden)
        self._layers = [
            self._read_layer(f"{found[0]}layers.{i}.", f"layers.{i}.", adapter) for i in range(shape.layers)
        ]
        self._norm = _take(weights, f"{found[0]}norm.weight", (shape.hidden,))
        if adapter is not None:
            adapter.require_all_read()

    def _read_layer(self, prefix: str, path: str, adapter: _Adapter | None) -> dict[str, Float32]:
        """Weights, biases and LoRA factors of one layer by their names in it."""
        layer = {f"{n}.weight": _take(self._weights, f"{prefix}{n}.weight", (self._shape.hidden,)) for n in _NORMS}
        for name, shape in self._shape.linear.items():
            layer[f"{name}.weight"] = _take(self._weights, f"{prefix}{name}.weight", shape)
            if adapter is not None:
                layer[f"{name}.down"], layer[f"{name}.up"] = adapter.factors(path + name, shape)
            if self._shape.has_bias(name):
                layer[f"{name}.bias"] = _take(self._weights, f"{prefix}{name}.bias", shape[:1])
        return layer

    def embeddings(self, ids: Sequence[int]) -> Float32:
        """[T, D]: the rows of these token ids."""
        return self._weights.read(self._embeddings, rows=np.asarray(ids, np.int64))

    def __call__(self, states: Float32) -> Float32:
        """[T, D] -> [T, D]: the last hidden states."""
        cos, sin = self._rotations(len(states))
        for layer in self._layers:
            normed = self._normalise(states, layer["input_layernorm.weight"])
            states = states + self._attend(layer, normed, cos, sin)
            normed = self._normalise(states, layer["post_attention_layernorm.weight"])
            gated = _silu(_linear(layer, "mlp.gate_proj", normed)) * _linear(layer, "mlp.up_proj", normed)
            states = states + _linear(layer, "mlp.down_proj", gated)
        return self._normalise(states, self._norm)

    def _attend(self, layer: Mapping[str, Float32], states: Float32, cos: Float32, sin: Float32) -> Float32:
        shape, length = self._shape, len(states)
        queries, keys, values = (
            _linear(layer, f"self_attn.{name}_proj", states).reshape(length, -1, shape.head_size).swapaxes(0, 1)
            for name in "qkv"
        )  # [H, T, S], and twice [G, T, S]
        queries, keys = (x * cos + _rotate_half(x) * sin for x in (queries, keys))
        keys, values = (np.repeat(x, shape.heads // shape.groups, axis=0) for x in (keys, values))
        scores = queries @ keys.swapaxes(1, 2) * np.float32(shape.head_size**-0.5)
        scores[:, np.triu(np.ones((length, length), np.bool_), 1)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return _linear(layer, "self_attn.o_proj", (weights @ values).swapaxes(0, 1).reshape(length, -1))

    def _rotations(self, length: int) -> tuple[Float32, Float32]:
        """Cosines and sines [T, S] of the rotary positions (arXiv 2104.09864)."""
        size = self._shape.head_size
        frequencies = 1 / np.float32(self._shape.rope_theta) ** (np.arange(0, size, 2, dtype=np.float32) / size)
        angles = np.arange(length, dtype=np.float32)[:, None] * np.tile(frequencies, 2)
        return np.cos(angles), np.sin(angles)

    def _normalise(self, states: Float32, weight: Float32) -> Float32:
        """RMSNorm (arXiv 1910.07467)."""
        variance = np.square(states).mean(-1, keepdims=True)
        return weight * (states / np.sqrt(variance + np.float32(self._shape.eps)))


def _linear(layer: Mapping[str, Float32], name: str, states: Float32) -> Float32:
    out: Float32 = states @ layer[f"{name}.weight"].T
    if (down := layer.get(f"{name}.down")) is not None:
        out += states @ down.T @ layer[f"{name}.up"].T
    bias = layer.get(f"{name}.bias")
    return out if bias is None else out + bias


def _rotate_half(states: Float32) -> Float32:
    first, second = np.split(states, 2, axis=-1)
    return np.concatenate([-second, first], axis=-1)


def _silu(x: Float32) -> Float32:
    with np.errstate(over="ignore"):  # exp(-x) is infinite far below zero, and the quotient zero, as it should be
        return x / (1 + np.exp(-x))


def _take(weights: Weights, name: str, shape: tuple[int, ...]) -> Float32:
    _require(weights.shape(name) == shape)
    return weights.read(name)


def _settings(path: Path, known: Collection[str] | None = None) -> dict[str, Any]:
    """A JSON object from a file, none of whose fields is unknown."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise _NotCoveredError from e
    _require(isinstance(settings, dict) and (known is None or settings.keys() <= set(known)))
    return dict(settings)


def _require(covered: bool) -> None:
    if not covered:
        raise _NotCoveredError
