"""Prompts: each model's own format, and what stands around the picture."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

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
    alone = prompts.AnswerFormat()
    assert prompts.completion_ids(processor, "yes", alone) == processor.tokenizer.convert_tokens_to_ids(list("yes"))
    for answers in (alone, prompts.AnswerFormat(lead="Assistant:", opening=" ")):
        with pytest.raises(InputError, match="no tokens"):
            prompts.completion_ids(processor, "", answers)


TURNS = (
    "{% for m in messages %}START{{ m['role'] }}LEAD{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}END\n{% endfor %}{% if add_generation_prompt %}ASK{% endif %}"
)


@pytest.mark.parametrize(
    ("start", "lead", "end", "ask", "expected"),
    [
        ("", ": ", "<eos>", "assistant:", (" ", "<eos>")),  # as SmolVLM
        ("", "\n", "<unk>", "assistant\n", ("", "<unk>")),  # as Gemma 3, which does not end a turn with EOS
        ("", ": ", "", "assistant:", (" ", None)),  # as LLaVA 1.5
        ("", "\n", "<eos>", "assistant\n<think>\n", ("", "<eos>")),  # a turn on trial does not think
    ],
)
def test_how_the_template_opens_and_closes_an_answer(
    start: str, lead: str, end: str, ask: str, expected: tuple[str, str | None]
) -> None:
    base, processor = tiny_models.build("llava")
    template = TURNS.replace("START", start).replace("LEAD", lead).replace("END", end).replace("ASK", ask)
    processor.chat_template = template
    found = prompts.answer_format(processor, family_of(base.config))
    named = None if found.end is None else processor.tokenizer.convert_ids_to_tokens(found.end)
    assert (found.opening, named) == expected
    text = processor.tokenizer.decode(prompts.completion_ids(processor, "yes", found)).replace(" ", "")
    assert text == "yes"
    ids = prompts.completion_ids(processor, "yes", found)
    assert (processor.tokenizer.convert_ids_to_tokens(ids)[0] == " ") == (expected[0] == " ")


def test_a_completion_is_what_the_whole_turn_has_of_it() -> None:
    """Of a tokenizer by bytes, where a word behind a space is another token than the word alone."""
    words = Tokenizer(BPE({w: i for i, w in enumerate(["y", "\u0120", "\u0120y", ":"])}, [("\u0120", "y")]))
    words.pre_tokenizer = ByteLevel(add_prefix_space=False)
    processor = SimpleNamespace(tokenizer=PreTrainedTokenizerFast(tokenizer_object=words))
    assert prompts.completion_ids(processor, "y", prompts.AnswerFormat(lead=":", opening=" ")) == [2]
    assert prompts.completion_ids(processor, "y", prompts.AnswerFormat()) == [0]


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_a_question_with_a_placeholder_in_it_is_refused(family: str) -> None:
    base, processor = tiny_models.build(family)
    token = processor.tokenizer.convert_ids_to_tokens(base.config.image_token_id)
    with pytest.raises(InputError, match=f"'what is {re.escape(token)}\\?' has {re.escape(token)} in it"):
        prompts.image_prompt(
            processor, family_of(base.config), f"what is {token}?", image=IMAGE, image_token=base.config.image_token_id
        )


def test_padding_is_on_the_left() -> None:
    ids, mask = prompts.pad_left([[5], [6, 7, 8]], padding=0)
    assert torch.equal(ids, torch.tensor([[0, 0, 5], [6, 7, 8]]))
    assert torch.equal(mask, torch.tensor([[0, 0, 1], [1, 1, 1]]))
