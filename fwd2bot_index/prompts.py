"""From a question to token ids, in each model's own chat format.

A prompt with a picture becomes :class:`ImagePrompt`: the ids before and after the run of image placeholders. Both
passes are built from it: N placeholders for the picture itself, K for its summary tokens, and the family's own tokens
around them (``<|vision_start|>``, ``<start_of_image>``, ...) stay where the processor puts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fwd2bot_index.errors import InputError, ModelError
from fwd2bot_index.families import Family


@dataclass(frozen=True)
class ImagePrompt:
    """Token ids of a prompt around its picture."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    num_image_tokens: int
    """Placeholders that the processor put for the picture it was given."""

    def ids(self, image_token: int, count: int) -> list[int]:
        """The whole prompt with ``count`` placeholders."""
        return [*self.before, *[image_token] * count, *self.after]


def image_prompt(processor: Any, family: Family, prompt: str, *, image: Any, image_token: int) -> ImagePrompt:
    """Tokenize one user turn of a picture and ``prompt``, ready for the answer.

    The processor runs on a real picture (any will do), because only it knows what it puts around the placeholders.

    Raises:
        InputError: the prompt itself has a placeholder in it.
        ModelError: no chat template, or a layout other than one run of placeholders.
    """
    _refuse_placeholders(processor, prompt, image_token)
    text = render(processor, family, prompt, images=1)
    settings = family.settings_for(processor.image_processor)
    encoded = processor(text=[text], images=[image], **_special_tokens(processor, text), **settings)
    ids = [int(i) for i in encoded["input_ids"][0]]
    if image_token not in ids:
        raise ModelError("The chat template of this model leaves no place for a picture.")
    start, count = ids.index(image_token), ids.count(image_token)
    if ids[start : start + count] != [image_token] * count:
        raise ModelError("This model interleaves its image tokens with others; that layout is not supported.")
    return ImagePrompt(tuple(ids[:start]), tuple(ids[start + count :]), count)


@dataclass(frozen=True)
class ImagesPrompt:
    """Token ids of a prompt around several pictures."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]

    def ids(self, image_token: int, counts: Sequence[int]) -> list[int]:
        """The whole prompt with so many placeholders for each picture."""
        ids = list(self.before)
        for i, count in enumerate(counts):
            ids += [*(self.between if i else ()), *[image_token] * count]
        return [*ids, *self.after]


def images_prompt(processor: Any, family: Family, prompt: str, *, image: Any, image_token: int) -> ImagesPrompt:
    """Tokenize one user turn of several pictures and ``prompt``; what stands between two of them is what stands between
    the two of a trial.

    Raises:
        ModelError: the model takes one picture at a time, or lays them out in another way.
    """
    one = image_prompt(processor, family, prompt, image=image, image_token=image_token)
    text = render(processor, family, prompt, images=2)
    settings = family.settings_for(processor.image_processor)
    try:
        encoded = processor(text=[text], images=[[image, image]], **_special_tokens(processor, text), **settings)
        ids = [int(i) for i in encoded["input_ids"][0]]
    except Exception as e:  # processors say it in many ways
        raise ModelError(f"This {family.model_type} model takes one picture at a time.") from e
    shown = ids[len(one.before) : len(ids) - len(one.after)]
    count = shown.count(image_token) // 2  # LLaVA-OneVision gives each of several pictures fewer than one alone
    found = ImagesPrompt(one.before, tuple(shown[count : len(shown) - count]), one.after)
    if count == 0 or image_token in found.between or ids != found.ids(image_token, [count, count]):
        raise ModelError(f"This {family.model_type} model takes one picture at a time.")
    return found


def text_prompt_ids(processor: Any, family: Family, prompt: str) -> list[int]:
    """Token ids of one user turn without a picture, ready for the answer."""
    text = render(processor, family, prompt, images=0)
    return list(processor.tokenizer(text, **_special_tokens(processor, text))["input_ids"])


@dataclass(frozen=True)
class AnswerFormat:
    """How a chat format writes an answer behind its prompt."""

    lead: str = ""
    """What the prompt has behind the user's words."""
    opening: str = ""
    """White space between that and the answer: ``" "`` in ``Assistant: yes``."""
    end: int | None = None
    """The special token that closes the answer's turn, where it has one."""


def answer_format(processor: Any, family: Family) -> AnswerFormat:
    """Read off the chat template, by an answer on trial; empty where the template takes none."""
    question, answer = "QUESTION", "ANSWER"
    try:
        asked = render(processor, family, question, images=0)
        answered = render(processor, family, question, images=0, answer=answer)
    except Exception:  # templates refuse in many ways what they do not know
        return AnswerFormat()
    before, _, closing = answered.rpartition(answer)
    opening = before.removeprefix(asked) if before.startswith(asked) else ""
    ids = processor.tokenizer(closing, add_special_tokens=False)["input_ids"] if before else []
    special = bool(ids) and getattr(processor.tokenizer.added_tokens_decoder.get(ids[0]), "special", False)
    return AnswerFormat(
        lead=asked.rpartition(question)[2],
        opening=opening if opening.isspace() else "",
        end=ids[0] if special else None,
    )


def completion_ids(processor: Any, completion: str, answers: AnswerFormat) -> list[int]:
    """Token ids of an answer, to be appended to those of its prompt, without special tokens: as they are behind the
    prompt's end and the answer's opening, where there is one, else tokenized alone.

    Raises:
        InputError: it has none.
    """

    def ids_of(text: str) -> list[int]:
        return list(processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    alone = ids_of(completion)
    if not alone:
        raise InputError(f"The completion {completion!r} has no tokens, so it has no likelihood.")
    if not answers.opening:
        return alone
    lead, whole = ids_of(answers.lead), ids_of(answers.lead + answers.opening + completion)
    return whole[len(lead) :] if whole[: len(lead)] == lead else ids_of(answers.opening + completion)


def render(processor: Any, family: Family, prompt: str, *, images: int, answer: str | None = None) -> str:
    """The text of one user turn, ready for the answer, or with an ``answer``'s turn behind it: by the chat template,
    else by the family's plain format, which has room for one picture and for no answer."""
    template = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template["default"]
    if template:
        turns = [{"role": "user", "content": [*[{"type": "image"}] * images, {"type": "text", "text": prompt}]}]
        if answer is not None:
            turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        # by the tokenizer: processors of video models insist on their video part here
        return str(
            processor.tokenizer.apply_chat_template(
                turns,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=answer is None,
            )
        )
    if answer is not None:
        raise ModelError(f"This {family.model_type} model has no chat template.")
    if images > 1:
        raise ModelError(f"This {family.model_type} model takes one picture at a time.")
    plain = family.plain_prompt if images else family.plain_text
    if plain is None:
        raise ModelError(
            f"This {family.model_type} model has no chat template, so there is no telling how to ask it; "
            "use its instruction-tuned version."
        )
    return plain.replace("{prompt}", prompt)


def pad_left(rows: Sequence[Sequence[int]], *, padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``input_ids`` and ``attention_mask``, both [B, T]: last tokens aligned, so that what follows them is too."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[padding] * (longest - len(row)) + list(row) for row in rows], dtype=torch.long)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], dtype=torch.long)
    return ids, mask


def _refuse_placeholders(processor: Any, prompt: str, image_token: int) -> None:
    own = {v for n, v in vars(processor).items() if n.endswith("_token") and isinstance(v, str) and v}
    own.add(processor.tokenizer.convert_ids_to_tokens(image_token))
    for token in sorted(own):
        if token in prompt:
            raise InputError(f"{prompt[:60]!r} has {token} in it, which for this model stands for a picture.")


def _special_tokens(processor: Any, text: str) -> dict[str, bool]:
    """Many templates write <bos> themselves; the tokenizer must not add another."""
    bos = getattr(processor.tokenizer, "bos_token", None)
    return {"add_special_tokens": False} if bos and text.startswith(bos) else {}
