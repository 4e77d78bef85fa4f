"""Tiny random LVLMs of the real architectures, with their real processors: milliseconds to build, nothing downloaded.

The tokenizer is made of letters, so that every text has ids of its own. Video processors want torchvision, which tests
do without: :func:`without_video` builds a processor of the same class minus that part (users of hub models have
torchvision).
"""

from __future__ import annotations

import string
from typing import Any

import torch
from PIL import Image
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

HIDDEN = 32
CHAT_TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}\n{% endfor %}"
)


def tokenizer(*special: str, **attributes: Any) -> PreTrainedTokenizerFast:
    """One token per character, and the given special tokens."""
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *special, *string.printable]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    raw = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=list(special),
        **attributes,
    )


def text_settings(vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        **more,
    }


def vision_settings(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        **more,
    }


def llava() -> tuple[Any, Any]:
    """4x4 image tokens of a 32x32 picture, and a chat template, as the bundled model has."""
    from transformers import (
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        SiglipImageProcessorPil,
        SiglipVisionConfig,
    )

    words = tokenizer("<image>")
    processor = LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer=words,
        patch_size=8,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE.replace("IMAGE", "<image>\n"),
    )
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**vision_settings(vision_use_head=False)),
        text_config=LlamaConfig(**text_settings(len(words))),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config), processor


FAMILIES = {"llava": llava}


def build(family: str, *, seed: int = 0) -> tuple[Any, Any]:
    """A base in eval mode and its processor; weights large enough that attention is far from uniform."""
    torch.manual_seed(seed)
    base, processor = FAMILIES[family]()
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.1 if "embed" in name else parameter.shape[-1] ** -0.5)
    return base.eval(), processor


def pictures(count: int, *, sizes: list[tuple[int, int]] | None = None, seed: int = 0) -> list[Image.Image]:
    """Pictures of noise; ``sizes`` (width, height) repeat."""
    generator = torch.Generator().manual_seed(seed)
    sizes = sizes or [(40, 40)]
    out = []
    for i in range(count):
        width, height = sizes[i % len(sizes)]
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        out.append(Image.fromarray(pixels.numpy()))
    return out
