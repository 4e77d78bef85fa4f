from __future__ import annotations

import pytest
import torch

from fwd2bot_index.config import CompressorConfig
from fwd2bot_index.model import Fwd2BotModel
from fwd2bot_training import small_llava
from fwd2bot_training.config import MethodConfig
from fwd2bot_training.objectives import Lvlm

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


@pytest.fixture(scope="module")
def tokenizer() -> small_llava.PreTrainedTokenizerFast:
    return small_llava.train_tokenizer(["a red circle left of a blue star"] * 5, vocab_size=CONFIG.vocab_size)


def test_the_llm_starts_in_the_language_of_the_word_loss(tokenizer: small_llava.PreTrainedTokenizerFast) -> None:
    """What the word loss teaches the image tokens to be are the LLM's own embeddings, up to their size."""
    base = small_llava.make_model(tokenizer, CONFIG)
    processor = small_llava.make_processor(tokenizer, CONFIG)
    model = Fwd2BotModel(base, processor, CompressorConfig.training_free("base"))
    codes = Lvlm(model, MethodConfig(objective="lvlm", word_weight=1.0)).word_codes
    torch.testing.assert_close(base.get_input_embeddings().weight, codes * small_llava.EMBEDDING_STD)
    assert base.lm_head.weight is base.get_input_embeddings().weight


def test_queries_start_equal_to_keys(tokenizer: small_llava.PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    first, second = small_llava.make_model(tokenizer, CONFIG).model.language_model.layers
    for layer in (first, second):
        assert torch.equal(layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight)
    assert not torch.equal(first.self_attn.q_proj.weight, second.self_attn.q_proj.weight)
