"""A small LLaVA of the bundled model's kind, with random weights large enough that every difference shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fwd2bot_training import small_llava
from fwd2bot_training.data import Mixture, SceneSource

CONFIG = small_llava.SmallLlavaConfig(
    image_size=48,
    patch_size=12,
    hidden_size=32,
    num_heads=2,
    vision_layers=1,
    vision_mlp=32,
    text_layers=2,
    text_mlp=32,
    vocab_size=600,
)


@pytest.fixture
def mixture() -> Mixture:
    return Mixture([(SceneSource(image_size=48), 1.0)], seed=3, batch_size=4)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    mixture = Mixture([(SceneSource(image_size=48), 1.0)], seed=3, batch_size=4)
    texts = mixture.texts(np.random.default_rng(0), scenes_count=200)
    return small_llava.train_tokenizer(texts, vocab_size=CONFIG.vocab_size)


@pytest.fixture
def make_base(tokenizer: Any) -> Callable[[], Any]:
    def make() -> Any:
        torch.manual_seed(0)
        base = small_llava.make_model(tokenizer, CONFIG)
        with torch.no_grad():
            for p in base.parameters():
                if p.ndim > 1:
                    p.mul_(5)
        return base

    return make


@pytest.fixture
def base_folder(tmp_path: Path, tokenizer: Any, make_base: Callable[[], Any]) -> Path:
    folder = tmp_path / "base"
    make_base().save_pretrained(folder)
    small_llava.make_processor(tokenizer, CONFIG).save_pretrained(folder)
    return folder
