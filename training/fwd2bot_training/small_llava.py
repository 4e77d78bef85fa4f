"""A small LLaVA from scratch: the base of the bundled model, in the very classes that the big ones use.

``<bos><image>...<image>\\n{prompt}\\n{answer}<eos>`` is its whole chat format.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from fwd2bot_index import scenes

BOS, EOS, PAD, IMAGE = "<bos>", "<eos>", "<pad>", "<image>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '\\n' }}{% else %}{{ eos_token }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True, kw_only=True)
class SmallLlavaConfig:
    image_size: int = 96
    patch_size: int = 12
    hidden_size: int = 192
    num_heads: int = 4
    vision_layers: int = 4
    vision_mlp: int = 512
    text_layers: int = 5
    text_mlp: int = 512
    vocab_size: int = 5000

    @property
    def num_image_tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """A lower-casing byte-level BPE: any Unicode text has an encoding, the words of the training texts a short one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE},
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def make_processor(tokenizer: PreTrainedTokenizerFast, config: SmallLlavaConfig) -> LlavaProcessor:
    # The Pillow backend by name: the default one needs torchvision, and resamples differently.
    images = CLIPImageProcessorPil(
        size={"height": config.image_size, "width": config.image_size},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=config.patch_size,
        vision_feature_select_strategy="full",
        image_token=IMAGE,
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, config: SmallLlavaConfig) -> LlavaForConditionalGeneration:
    """Random weights; embeddings tied."""
    vision = SiglipVisionConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.vision_mlp,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.num_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        vision_use_head=False,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.text_mlp,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    llava = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=config.num_image_tokens,
        tie_word_embeddings=True,
    )
    # Plain matrix products beat SDPA at these sizes on a CPU (findings.md).
    model = LlavaForConditionalGeneration._from_config(llava, attn_implementation="eager")
    _start_seeing(model.model.vision_tower)
    _start_reading(model.model.language_model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    return model.to(torch.float32)


EMBEDDING_STD = 0.05
"""Between the LLM's usual 0.02 and what training makes of it; a copied word then has a logit near 10."""


def word_codes(vocab_size: int, hidden_size: int) -> torch.Tensor:
    """[V, D] one fixed direction for each token, standard normal: the same in every run.

    The LLM's embeddings start as these directions, and the word loss (`losses.words`) teaches the image tokens to be
    sums of them: what the vision part sees reaches the LLM, and its tied output layer, in a language that it speaks.
    """
    return torch.randn(vocab_size, hidden_size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _start_reading(language_model: PreTrainedModel) -> None:
    """Embeddings start as the word codes; queries and keys start equal, so that a word begins by looking at image
    tokens that speak of it (after mimetic initialisation, arXiv 2305.09828)."""
    embeddings = language_model.get_input_embeddings().weight
    embeddings.copy_(word_codes(*embeddings.shape) * EMBEDDING_STD)
    for layer in language_model.layers:
        layer.self_attn.q_proj.weight.normal_(std=0.05)
        layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)


@torch.no_grad()
def _start_seeing(vision: PreTrainedModel) -> None:
    """An initialisation that spares a small ViT its first hundred thousand pictures.

    Patches start as their lowest DCT coefficients, each scaled to the same variance over rendered scenes: with random
    filters the mean colour drowns the edges that shapes are told by. Positions start as the 2-D sine and cosine code of
    "Better plain ViT baselines" (arXiv 2205.01580), as loud as the patches. Both are trained on from there.
    """
    embeddings = vision.embeddings
    convolution = embeddings.patch_embedding
    dim, channels, patch, _ = convolution.weight.shape
    basis = torch.stack(
        [
            torch.cos(math.pi * (torch.arange(patch) + 0.5) * k / patch) * (1 if k else 0.5**0.5) * (2 / patch) ** 0.5
            for k in range(patch)
        ]
    )
    # colour as brightness and two differences, lowest frequencies first
    colors = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-0.5, 1.0, -0.5]])[:channels]
    order = sorted(((i, j, c) for i in range(patch) for j in range(patch) for c in range(channels)), key=_frequency)
    filters = torch.stack([colors[c][:, None, None] * (basis[i][:, None] * basis[j])[None] for i, j, c in order[:dim]])
    rng = np.random.default_rng(0)
    pictures = [np.asarray(scenes.render(scenes.sample_scene(rng), size=embeddings.image_size)) for _ in range(200)]
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    responses = F.conv2d(pixels, filters, stride=patch).transpose(0, 1).flatten(1)
    scale = 0.5 / responses.std(dim=1).clamp(min=1e-2)
    convolution.weight[: len(filters)] = filters * scale[:, None, None, None]
    convolution.bias[: len(filters)] = -responses.mean(dim=1) * scale

    side = embeddings.image_size // patch
    frequencies = torch.linspace(0.5, side / 2, dim // 4) * math.pi
    at = (torch.arange(side) + 0.5) / side
    waves = torch.cat([torch.sin(at[:, None] * frequencies), torch.cos(at[:, None] * frequencies)], dim=1)
    code = torch.cat([waves[:, None].expand(side, side, -1), waves[None].expand(side, side, -1)], dim=-1).reshape(
        side * side, -1
    )
    embeddings.position_embedding.weight.copy_(F.pad(code, (0, dim - code.shape[1])) * 0.5)


def _frequency(index: tuple[int, int, int]) -> tuple[int, int, int, int]:
    i, j, c = index
    return (i * i + j * j, i, j, c)
