"""Tiny random LVLMs of the real architectures, with their real processors: milliseconds to build, nothing downloaded.

The tokenizer is made of characters, so that every text has ids of its own and their number is plain to see.
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

from fwd2bot_index.processors import without_video

HIDDEN = 32
CHAT_TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}{{ '\\n' }}{% endfor %}"
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


def llava_onevision() -> tuple[Any, Any]:
    """4x4 image tokens and the newline; the processor always adds a tile, which must not be used."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessorPil,
        LlavaOnevisionProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )

    words = tokenizer("<image>", "<video>")
    pinpoints = [[32, 32], [32, 64], [64, 32], [64, 64]]
    processor = without_video(LlavaOnevisionProcessor)(
        image_processor=LlavaOnevisionImageProcessorPil(
            size={"height": 32, "width": 32}, image_grid_pinpoints=pinpoints
        ),
        tokenizer=words,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE.replace("IMAGE", "<image>\n"),
    )
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**vision_settings(vision_use_head=False)),
        text_config=Qwen2Config(**text_settings(len(words))),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


_QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_QWEN_TEMPLATE = CHAT_TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")


def _qwen_ids(words: PreTrainedTokenizerFast) -> dict[str, int]:
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return dict(zip(names, words.convert_tokens_to_ids(list(_QWEN_TOKENS)), strict=True))


def qwen2_vl() -> tuple[Any, Any]:
    """As Qwen2.5-VL, with full attention in the vision encoder."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessorPil,
        Qwen2VLProcessor,
    )

    words = tokenizer(*_QWEN_TOKENS)
    processor = without_video(Qwen2VLProcessor)(
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=8, merge_size=2, size={"shortest_edge": 32 * 32, "longest_edge": 96 * 96}
        ),
        tokenizer=words,
        chat_template=_QWEN_TEMPLATE,
    )
    config = Qwen2VLConfig(
        text_config=text_settings(
            len(words), rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
        ),
        vision_config={
            "depth": 2,
            "embed_dim": 24,
            "hidden_size": HIDDEN,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 8,
        },
        **_qwen_ids(words),
    )
    return Qwen2VLForConditionalGeneration(config), processor


def qwen2_5_vl() -> tuple[Any, Any]:
    """Native resolution, M-RoPE, window attention: an 8-pixel patch, 2x2 of them in a token."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessorPil,
    )

    words = tokenizer(*_QWEN_TOKENS)
    processor = without_video(Qwen2_5_VLProcessor)(
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=8, merge_size=2, size={"shortest_edge": 32 * 32, "longest_edge": 96 * 96}
        ),
        tokenizer=words,
        chat_template=_QWEN_TEMPLATE,
    )
    config = Qwen2_5_VLConfig(
        text_config=text_settings(
            len(words), rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
        ),
        vision_config={
            "depth": 2,
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 8,
            "window_size": 32,
            "out_hidden_size": HIDDEN,
            "fullatt_block_indexes": [1],
        },
        **_qwen_ids(words),
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl() -> tuple[Any, Any]:
    """As Qwen2.5-VL, with deepstack: features of the first vision layer enter the LLM's first layer."""
    from transformers import (
        Qwen2VLImageProcessorPil,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
    )

    words = tokenizer(*_QWEN_TOKENS)
    processor = without_video(Qwen3VLProcessor)(
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=8, merge_size=2, size={"shortest_edge": 32 * 32, "longest_edge": 96 * 96}
        ),
        tokenizer=words,
        chat_template=_QWEN_TEMPLATE,
    )
    config = Qwen3VLConfig(
        text_config=text_settings(
            len(words),
            head_dim=8,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        ),
        vision_config={
            "depth": 2,
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 8,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        **_qwen_ids(words),
    )
    return Qwen3VLForConditionalGeneration(config), processor


_IDEFICS_TOKENS = ("<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", "<video>")


def idefics3() -> tuple[Any, Any]:
    """64 pixels, a pixel shuffle of 2: 4x4 tokens between the family's wrapper tokens."""
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
    )

    words = tokenizer(*_IDEFICS_TOKENS)
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(size={"longest_edge": 128}, max_image_size={"longest_edge": 64}),
        tokenizer=words,
        image_seq_len=16,
        chat_template=CHAT_TEMPLATE.replace("IMAGE", "<image>"),
    )
    config = Idefics3Config(
        vision_config=vision_settings(image_size=64),
        text_config=text_settings(len(words), model_type="llama"),
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )
    return Idefics3ForConditionalGeneration(config), processor


def smolvlm() -> tuple[Any, Any]:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil, SmolVLMProcessor

    words = tokenizer(*_IDEFICS_TOKENS)
    processor = without_video(SmolVLMProcessor)(
        image_processor=SmolVLMImageProcessorPil(size={"longest_edge": 128}, max_image_size={"longest_edge": 64}),
        tokenizer=words,
        video_processor=None,
        image_seq_len=16,
        chat_template=CHAT_TEMPLATE.replace("IMAGE", "<image>"),
    )
    config = SmolVLMConfig(
        vision_config=vision_settings(image_size=64),
        text_config=text_settings(len(words), model_type="llama"),
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )
    return SmolVLMForConditionalGeneration(config), processor


def internvl() -> tuple[Any, Any]:
    """64 pixels, pixel shuffle of one half: 4x4 tokens; by itself the processor would cut the picture into tiles."""
    from transformers import (
        GotOcr2ImageProcessorPil,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
    )

    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    words = tokenizer(*names.values(), extra_special_tokens=names)
    processor = without_video(InternVLProcessor)(
        image_processor=GotOcr2ImageProcessorPil(size={"height": 64, "width": 64}, max_patches=4),
        tokenizer=words,
        image_seq_length=16,
        chat_template=CHAT_TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )
    config = InternVLConfig(
        vision_config=vision_settings(image_size=[64, 64], patch_size=[8, 8]),
        text_config=text_settings(len(words), model_type="qwen2"),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    return InternVLForConditionalGeneration(config), processor


def paligemma() -> tuple[Any, Any]:
    """A bidirectional prefix of picture and prompt; its processor writes the prompt format itself (no chat
    template)."""
    from transformers import (
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessorPil,
    )

    words = tokenizer("<image>")
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    processor = PaliGemmaProcessor(image_processor=images, tokenizer=words)
    config = PaliGemmaConfig(
        vision_config=vision_settings(model_type="siglip_vision_model", vision_use_head=False, projection_dim=HIDDEN),
        text_config=text_settings(len(words), model_type="gemma", head_dim=8),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        projection_dim=HIDDEN,
        hidden_size=HIDDEN,
        tie_word_embeddings=False,
    )
    return PaliGemmaForConditionalGeneration(config), processor


def gemma3() -> tuple[Any, Any]:
    """8x8 patches pooled to 4x4 tokens, which attend to each other in both directions; one layer with a sliding
    window."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessorPil, Gemma3Processor

    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    words = tokenizer(*names.values(), extra_special_tokens=names)
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": 64, "width": 64}),
        tokenizer=words,
        image_seq_length=16,
        chat_template="<bos>" + CHAT_TEMPLATE.replace("IMAGE", "<start_of_image>"),
    )
    config = Gemma3Config(
        vision_config=vision_settings(image_size=64, vision_use_head=False),
        text_config=text_settings(
            len(words), head_dim=8, sliding_window=64, layer_types=["sliding_attention", "full_attention"]
        ),
        mm_tokens_per_image=16,
        image_token_index=words.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_index=words.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=words.convert_tokens_to_ids("<end_of_image>"),
        tie_word_embeddings=False,
    )
    return Gemma3ForConditionalGeneration(config), processor


FAMILIES = {
    builder.__name__: builder
    for builder in (
        llava, llava_onevision, qwen2_vl, qwen2_5_vl, qwen3_vl, idefics3, smolvlm, internvl, paligemma, gemma3,
    )
}  # fmt: skip


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
