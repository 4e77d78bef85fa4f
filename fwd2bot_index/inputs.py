"""What both passes read, made from pictures and texts by the processor alone: no weights, so that a loader's process
can do it beside a training model.

Shapes: B batch, T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image, ImageOps

from fwd2bot_index.config import CompressorConfig
from fwd2bot_index.decoding import as_decoded, decode_image, read_file
from fwd2bot_index.errors import InputError
from fwd2bot_index.families import Family, Grid, family_of
from fwd2bot_index.prompts import (
    AnswerFormat,
    ImagePrompt,
    ImagesPrompt,
    answer_format,
    completion_ids,
    image_prompt,
    images_prompt,
    pad_left,
    text_prompt_ids,
)
from fwd2bot_index.types import ImageInput

_MOST_PROMPTS = 4096


@dataclass(frozen=True, kw_only=True)
class FirstPassBatch:
    """Pictures, ready for the first pass."""

    pixels: dict[str, torch.Tensor]
    """Inputs of the vision part, as the family's image processor names them."""
    input_ids: torch.Tensor
    """[B, T], left-padded: the prompt with each picture's placeholders."""
    attention_mask: torch.Tensor
    """[B, T]."""
    grids: list[Grid]
    """Rows and columns of each picture's image tokens."""

    def to(self, device: torch.device) -> FirstPassBatch:
        return self.moved(lambda tensor: tensor.to(device, non_blocking=tensor.is_pinned()))

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> FirstPassBatch:
        """The same with every tensor moved."""
        return replace(
            self,
            pixels={n: move(t) for n, t in self.pixels.items()},
            input_ids=move(self.input_ids),
            attention_mask=move(self.attention_mask),
        )


class InputMaker:
    """Pictures, prompts and texts into tensors on the CPU, for one model. Can be pickled."""

    def __init__(self, processor: Any, base_config: Any, config: CompressorConfig) -> None:
        self.processor = processor
        self.base_config = base_config
        self.config = config
        self.family: Family = family_of(base_config)
        self.image_token: int = base_config.image_token_id
        tokenizer = processor.tokenizer
        self.padding: int = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        self.decode_side: int | None = None
        """The longest side worth decoding to; the model measures it."""
        self._image_prompts: dict[str, ImagePrompt] = {}
        self._images_prompts: dict[str, ImagesPrompt] = {}
        self._answers: AnswerFormat | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "family": None,
            "_image_prompts": {},
            "_images_prompts": {},
        }  # a family holds functions without a name

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.family = family_of(self.base_config)

    def picture(self, image: ImageInput) -> Image.Image:
        """RGB, upright, as indexing decodes it."""
        if isinstance(image, Image.Image):
            return as_decoded(ImageOps.exif_transpose(image), max_side=self.decode_side)
        data = image if isinstance(image, bytes) else read_file(image)
        return decode_image(data, max_side=self.decode_side).image

    def images(self, images: Sequence[ImageInput]) -> FirstPassBatch:
        """Decode, preprocess and lay out a batch of pictures for the first pass.

        Raises:
            InputError: there are none.
            ImageError: a file that is no picture.
        """
        if not images:
            raise InputError("There are no pictures to compress.")
        pixels, grids = self.family.process_images(self.processor, [self.picture(i) for i in images], self.base_config)
        prompt = self.prompt(self.config.compress_prompt)
        rows = [prompt.ids(self.image_token, self.family.num_image_tokens(grid)) for grid in grids]
        ids, mask = pad_left(rows, padding=self.padding)
        return FirstPassBatch(pixels=pixels, input_ids=ids, attention_mask=mask, grids=grids)

    def questions(self, questions: Sequence[str], *, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """``input_ids`` and ``attention_mask`` [B, T] of the second pass, left-padded, with ``num_tokens``
        placeholders."""
        rows = [self.prompt(q).ids(self.image_token, num_tokens) for q in questions]
        return pad_left(rows, padding=self.padding)

    def together(self, question: str, counts: Sequence[int]) -> list[int]:
        """``input_ids`` [T] of a question about several pictures, with so many placeholders for each.

        Raises:
            ModelError: the model takes one picture at a time.
        """
        if question not in self._images_prompts:
            self._images_prompts.clear()  # one question is asked about many pictures, not the other way round
            self._images_prompts[question] = images_prompt(
                self.processor, self.family, question, image=blank_image(), image_token=self.image_token
            )
        return self._images_prompts[question].ids(self.image_token, counts)

    def texts(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """``input_ids`` and ``attention_mask`` [B, T], left-padded, of the prompts that embed ``texts``.

        Raises:
            InputError: there are none.
        """
        if not texts:
            raise InputError("There are no texts to embed.")
        rows = [
            text_prompt_ids(self.processor, self.family, self.config.text_prompt.replace("{text}", text))
            for text in texts
        ]
        return pad_left(rows, padding=self.padding)

    def completion(self, completion: str) -> list[int]:
        """Token ids of an answer, to be appended to those of its prompt.

        Raises:
            InputError: it has none.
        """
        return completion_ids(self.processor, completion, self._answer_format)

    @property
    def end_token(self) -> int | None:
        """What ends an answer, in training and where the end is scored: the special token by which the chat template
        closes a turn (Gemma 3's is not its tokenizer's EOS), else EOS."""
        end = self._answer_format.end
        return self.processor.tokenizer.eos_token_id if end is None else end

    @property
    def _answer_format(self) -> AnswerFormat:
        if self._answers is None:
            self._answers = answer_format(self.processor, self.family)
        return self._answers

    def prompt(self, prompt: str) -> ImagePrompt:
        """The prompt's ids around its picture; questions repeat, so the last thousands are kept."""
        known = self._image_prompts.get(prompt)
        if known is None:
            if len(self._image_prompts) >= _MOST_PROMPTS:
                self._image_prompts.clear()
            known = self._image_prompts[prompt] = image_prompt(
                self.processor, self.family, prompt, image=blank_image(), image_token=self.image_token
            )
        return known


def blank_image() -> Image.Image:
    return Image.new("RGB", (64, 64), (128, 128, 128))
