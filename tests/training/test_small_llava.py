from __future__ import annotations

from typing import Any

import torch

from fwd2bot_training import small_llava
from fwd2bot_training.objectives import PretrainObjective

from .conftest import CONFIG


def test_the_llm_starts_in_the_language_of_the_word_loss(tokenizer: Any) -> None:
    """What the word loss teaches the image tokens to be are the LLM's own embeddings, up to their size."""
    base = small_llava.make_model(tokenizer, CONFIG)
    codes = PretrainObjective(base, tokenizer, contrastive_weight=0.0).word_codes
    torch.testing.assert_close(base.get_input_embeddings().weight, codes * small_llava.EMBEDDING_STD)
    assert base.lm_head.weight is base.get_input_embeddings().weight


def test_queries_start_equal_to_keys(tokenizer: Any) -> None:
    torch.manual_seed(0)
    first, second = small_llava.make_model(tokenizer, CONFIG).model.language_model.layers
    for layer in (first, second):
        assert torch.equal(layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight)
    assert not torch.equal(first.self_attn.q_proj.weight, second.self_attn.q_proj.weight)
