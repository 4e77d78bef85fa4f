"""Prompts: each model's own format, and what stands around the picture."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from fwd2bot_index import prompts
from fwd2bot_index.errors import InputError, ModelError
from fwd2bot_index.families import family_of

IMAGE = tiny_models.pictures(1)[0]


def decoded(family: str, prompt: str, *, count: int = 2) -> str:
    base, processor = tiny_models.build(family)
    image_token = base.config.image_token_id
    parts = prompts.image_prompt(processor, family_of(base.config), prompt, image=IMAGE, image_token=image_token)
    return processor.tokenizer.decode(parts.ids(image_token, count)).replace(" ", "")


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llava", "<image><image>\nhi\n"),
        ("llava_onevision", "<image><image>\nhi\n"),
        ("qwen2_vl", "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>hi\n"),
        ("qwen2_5_vl", "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>hi\n"),
        ("qwen3_vl", "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>hi\n"),
        ("idefics3", "<fake_token_around_image><global-img><image><image><fake_token_around_image>hi\n"),
        ("smolvlm", "<fake_token_around_image><global-img><image><image><fake_token_around_image>hi\n"),
        ("internvl", "<img><IMG_CONTEXT><IMG_CONTEXT></img>\nhi\n"),
        ("paligemma", "<image><image><bos>hi\n"),
        (
            "gemma3",
            "<bos>\n\n<start_of_image><image_soft_token><image_soft_token><end_of_image>\n\nhi\n",
        ),
    ],
)
def test_the_wrapper_tokens_of_each_family_stay(family: str, expected: str) -> None:
    assert decoded(family, "hi") == expected


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_a_text_without_a_picture(family: str) -> None:
    base, processor = tiny_models.build(family)
    ids = prompts.text_prompt_ids(processor, family_of(base.config), "hi")
    assert base.config.image_token_id not in ids
    expected = ("<bos>" if family in ("paligemma", "gemma3") else "") + "hi\n"
    assert processor.tokenizer.decode(ids).replace(" ", "") == expected


def test_plain_formats_without_a_chat_template() -> None:
    base, processor = tiny_models.build("llava")
    processor.chat_template = None
    family = family_of(base.config)
    assert prompts.render(processor, family, "{x}?", images=1) == "USER: <image>\n{x}? ASSISTANT:"
    assert prompts.render(processor, family, "{x}?", images=0) == "USER: {x}? ASSISTANT:"
    base, processor = tiny_models.build("qwen3_vl")
    processor.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        prompts.render(processor, family_of(base.config), "x", images=1)


def test_the_beginning_token_is_never_doubled() -> None:
    base, processor = tiny_models.build("gemma3")
    processor.tokenizer.add_bos_token = True
    ids = prompts.text_prompt_ids(processor, family_of(base.config), "hi")
    assert ids.count(processor.tokenizer.bos_token_id) == 1


def test_a_template_without_a_place_for_the_picture_is_refused() -> None:
    base, processor = tiny_models.build("llava")
    processor.chat_template = tiny_models.CHAT_TEMPLATE.replace("IMAGE", "")
    with pytest.raises((ModelError, ValueError), match=r"picture|image"):
        prompts.image_prompt(
            processor, family_of(base.config), "x", image=IMAGE, image_token=base.config.image_token_id
        )  # fmt: skip


def test_completions_have_no_special_tokens_and_are_not_empty() -> None:
    _, processor = tiny_models.build("llava")
    assert prompts.completion_ids(processor, "yes") == processor.tokenizer.convert_tokens_to_ids(list("yes"))
    with pytest.raises(InputError, match="no tokens"):
        prompts.completion_ids(processor, "")


def test_padding_is_on_the_left() -> None:
    ids, mask = prompts.pad_left([[5], [6, 7, 8]], padding=0)
    assert torch.equal(ids, torch.tensor([[0, 0, 5], [6, 7, 8]]))
    assert torch.equal(mask, torch.tensor([[0, 0, 1], [1, 1, 1]]))
