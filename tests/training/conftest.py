"""Tiny models with random weights large enough that every difference shows, and examples for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import tiny_models
import torch

from fwd2bot_index.adapters import LoraSettings
from fwd2bot_index.config import CompressorConfig
from fwd2bot_index.model import Fwd2BotModel
from fwd2bot_training.data import Example, Segment

K = 4


@pytest.fixture
def examples() -> list[Example]:
    """Three pictures of two sizes; two questions each, a caption, and one hard negative in all."""
    said = [("a dog", "is it big?", "no"), ("two red cats", "where?", "left of it"), ("x", "what is it", "letter")]
    return [
        Example(
            image=image,
            segments=(Segment(prompt=question, answer=answer), Segment(prompt="say", answer=caption, kind="caption")),
            caption=caption,
            negatives=("two blue cats",) if i == 1 else (),
        )
        for i, (image, (caption, question, answer)) in enumerate(
            zip(tiny_models.pictures(3, sizes=[(40, 40), (70, 40)]), said, strict=True)
        )
    ]


@pytest.fixture
def make_model() -> Callable[..., Fwd2BotModel]:
    def make(family: str = "llava", *, train_base: bool = False, **settings: Any) -> Fwd2BotModel:
        """As after some training: adapters that do something."""
        base, processor = tiny_models.build(family)
        base.requires_grad_(train_base)
        settings = {"num_summary_tokens": K, "queries": "region", "embedding_dim": 16, **settings}
        config = CompressorConfig(**settings)
        lora = LoraSettings(rank=2, alpha=4) if config.adapters != "none" else None
        model = Fwd2BotModel.from_base(base, processor, config, lora=lora)
        with torch.no_grad():
            for name, p in model.base.named_parameters():
                if "lora_B" in name:
                    p.normal_(std=0.1)
        return model

    return make


def plain_lvlm(family: str = "llava") -> Fwd2BotModel:
    base, processor = tiny_models.build(family)
    return Fwd2BotModel(base, processor, CompressorConfig.training_free("base"))


def alone(examples: Sequence[Example]) -> list[Example]:
    """Each with its first question only."""
    return [Example(image=e.image, segments=e.segments[:1]) for e in examples]
