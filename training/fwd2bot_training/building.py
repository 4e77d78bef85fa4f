"""From the settings of a run to the model that it trains: exactly what they name has ``requires_grad``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from fwd2bot_index.adapters import STAGES, LoraSettings
from fwd2bot_index.checkpoints import BASE_FOLDER, resolve
from fwd2bot_index.config import CompressorConfig
from fwd2bot_index.errors import ModelError
from fwd2bot_index.model import Fwd2BotModel, load_base
from fwd2bot_training import small_llava
from fwd2bot_training.config import SMALL_LLAVA, ModelConfig, RunConfig

Part = Literal["language_model", "projector", "vision"]
# Names that the supported families give to what is not their LLM.
_PROJECTORS = ("multi_modal_projector", "connector", "merger", "image_newline")
_ENCODERS = ("vision_tower", "vision_model", "visual")
# Parameters of a model beside its base that the second pass does not read.
_FIRST_PASS = ("queries", "text_query", "logit_scale", "token_scale", "image_head", "text_head", "image_mlp")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_model(run: RunConfig, *, texts: Callable[[], Iterable[str]], folder: Path) -> Fwd2BotModel:
    """The model of a run, on the CPU.

    Args:
        texts: what a tokenizer is trained on, for `SMALL_LLAVA`.
        folder: keeps that tokenizer, so that a resumed run has the same one.
    Raises:
        ModelError: the base cannot be loaded, or is a Fwd2Bot checkpoint that the settings do not fit.
    """
    settings = run.model
    torch.manual_seed(run.train.seed)
    if settings.base == SMALL_LLAVA:
        base, processor = _small_llava(texts, folder / "tokenizer")
        model = _around(base, processor, run, base_model=BASE_FOLDER)
    else:
        checkpoint = resolve(settings.base, revision=settings.revision or None)
        if checkpoint.config.mode == "trained":
            model = _go_on(run)
        else:
            base, processor = load_base(
                checkpoint.name,
                checkpoint.base_folder,
                dtype=_DTYPES[settings.dtype],
                attention=settings.attention,
                quantization=_quantization(settings),
            )
            # a base whose weights stay as they are is named, not copied
            frozen = not (settings.lr_language_model or settings.lr_projector or settings.lr_vision)
            named = str(checkpoint.folder.resolve()) if checkpoint.revision is None else checkpoint.name
            base_model = named if frozen else BASE_FOLDER
            model = _around(base, processor, run, base_model=base_model, revision=checkpoint.revision)
    _choose_what_trains(model, settings)
    if run.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(compiled=run.train.compile)
    if run.train.compile:
        layers: Any = model.language_model.layers
        for layer in layers:
            layer.compile()
    return model


def lr_factors(model: Fwd2BotModel, settings: ModelConfig) -> Callable[[str], float]:
    """Factor on the learning rate of a parameter, by its name in an objective around ``model``."""
    own: dict[Part, float] = {
        "language_model": settings.lr_language_model,
        "projector": settings.lr_projector,
        "vision": settings.lr_vision,
    }

    def factor(name: str) -> float:
        _, of_base, rest = name.partition("model.base.")
        if of_base and "lora_" not in rest:
            return own[part_of(rest)]
        return settings.lr_first_pass if _of_first_pass(rest if of_base else name) else 1.0

    return factor


def _of_first_pass(name: str) -> bool:
    """Whether nothing but the first pass uses an adapter's parameter, or one that a model has beside its base."""
    return f".{STAGES[0]}." in name if "lora_" in name else name.removeprefix("model.").startswith(_FIRST_PASS)


def part_of(name: str) -> Part:
    """Which part of a base its parameter ``name`` belongs to; the output layer goes with the LLM."""
    if any(word in name for word in _PROJECTORS):
        return "projector"
    return "vision" if any(word in name for word in _ENCODERS) else "language_model"


def _choose_what_trains(model: Fwd2BotModel, settings: ModelConfig) -> None:
    factor = lr_factors(model, settings)
    for name, p in model.named_parameters():
        trains = factor(f"model.{name}") > 0
        if trains and not p.is_floating_point():
            raise ModelError(f"{name} is quantised, so it cannot train: set its lr_ factor to 0.")
        p.requires_grad_(trains)
        if trains:
            p.data = p.data.float()  # an update of one in ten thousand is lost in bfloat16


def _around(base: Any, processor: Any, run: RunConfig, *, base_model: str, revision: str | None = None) -> Fwd2BotModel:
    """``revision``: the commit that was loaded, which is what the adapters fit."""
    settings = run.model
    if run.method.objective in ("lvlm", "words"):
        config = CompressorConfig.training_free(base_model)
        return Fwd2BotModel(base, processor, config)
    config = CompressorConfig(
        base_model=base_model,
        base_revision=revision,
        num_summary_tokens=settings.num_tokens,
        queries=settings.queries,
        compress_prompt=settings.compress_prompt,
        text_prompt=settings.text_prompt,
        embedding_dim=settings.embedding_dim or None,
        pooling=settings.pooling,
        token_norm=settings.token_norm,
        adapters=settings.adapters,
    )
    lora = _lora(settings) if settings.adapters != "none" else None
    return Fwd2BotModel.from_base(base, processor, config, lora=lora)


def _go_on(run: RunConfig) -> Fwd2BotModel:
    """Train a Fwd2Bot checkpoint further, if it is what the settings describe."""
    settings = run.model
    if run.method.objective in ("lvlm", "words"):
        raise ModelError(f"{settings.base} is a Fwd2Bot checkpoint; {run.method.objective!r} needs a plain LVLM.")
    dtype = _DTYPES[settings.dtype]
    model = Fwd2BotModel.from_pretrained(
        settings.base,
        revision=settings.revision or None,
        device="cpu",
        dtype=dtype,
        attention=settings.attention,
        quantization=_quantization(settings),
    )
    if settings.pooling == "mlp":
        model.add_mlp()
    wanted = replace(
        model.config,
        num_summary_tokens=settings.num_tokens,
        queries=settings.queries,
        compress_prompt=settings.compress_prompt,
        text_prompt=settings.text_prompt,
        embedding_dim=settings.embedding_dim or None,
        pooling=settings.pooling,
        token_norm=settings.token_norm,
        adapters=settings.adapters,
    )
    if wanted != model.config:
        different = [n for n, v in vars(wanted).items() if v != getattr(model.config, n)]
        raise ModelError(
            f"{settings.base} was trained with other settings than this recipe's: "
            + "; ".join(f"{n} is {getattr(model.config, n)!r}, not {getattr(wanted, n)!r}" for n in different)
            + ". Change the recipe, or start from its base."
        )
    if settings.adapters != "none" and (found := model.lora_settings) != (lora := _lora(settings)):
        raise ModelError(f"The adapters of {settings.base} have {found}, not {lora}.")
    return model


def _lora(settings: ModelConfig) -> LoraSettings:
    return LoraSettings(rank=settings.rank, alpha=settings.alpha, dropout=settings.dropout)


def _small_llava(texts: Callable[[], Iterable[str]], folder: Path) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    config = small_llava.SmallLlavaConfig()
    if (folder / "tokenizer.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(folder)
    else:
        tokenizer = small_llava.train_tokenizer(texts(), vocab_size=config.vocab_size)
        tokenizer.save_pretrained(folder)
    return small_llava.make_model(tokenizer, config), small_llava.make_processor(tokenizer, config)


def _quantization(settings: ModelConfig) -> Any:
    if settings.quantize == "none":
        return None
    from transformers import BitsAndBytesConfig

    # the vision part and the output layer are a small share of the bytes, and suffer most
    plain = ["lm_head", *(f".*{name}" for name in (*_ENCODERS, *_PROJECTORS))]
    if settings.quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=plain)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=plain,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_DTYPES[settings.dtype],
    )
