"""The same LVLM without compression, and without the picture: what summary tokens are measured against.

Both are the base as its makers meant it: pictures go through its own forward with all of their image tokens, and
decoding is transformers' ``generate``, greedy and without the penalties that some bases come with, as the answers from
summary tokens are. (Of LLaVA-OneVision only the overview, as everywhere in this package: without the further tiles
that it cuts from a large picture.)

Shapes: B batch, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import GenerationConfig

from fwd2bot_index.likelihoods import AnswerScores, answer_scores
from fwd2bot_index.model import Fwd2BotModel
from fwd2bot_index.prompts import pad_left, text_prompt_ids
from fwd2bot_index.types import Stage

Pictures = Sequence[Image.Image] | None
"""One for each prompt; None: no picture at all."""


class Uncompressed:
    """Reads all image tokens (``pictures``) or none (blind).

    Args:
        stage: whose adapter is active. None is the base alone: right for the uncompressed LVLM. ``generate`` is right
            for a blind answer of the compressed model.
    """

    def __init__(self, model: Fwd2BotModel, *, stage: Stage | None = None) -> None:
        self.model = model
        self._stage = stage

    @torch.inference_mode()
    def generate(self, pictures: Pictures, prompts: Sequence[str], *, max_new_tokens: int) -> list[str]:
        """Greedy answers, one for each prompt."""
        model = self.model
        ids, mask, extra = self._inputs(pictures, prompts, [[] for _ in prompts])
        base: Any = model.base
        own = base.generation_config
        # generate takes from the base's own what it is not told, repetition_penalty above all
        base.generation_config = GenerationConfig(eos_token_id=model.stop_tokens(), pad_token_id=model.inputs.padding)
        try:
            with model.stage(self._stage):
                out = base.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, **extra
                )
        finally:
            base.generation_config = own
        decode = model.processor.tokenizer.decode
        return [str(decode(row, skip_special_tokens=True)).strip() for row in out[:, ids.shape[1] :]]

    @torch.inference_mode()
    def score_answers(self, pictures: Pictures, prompts: Sequence[str], answers: Sequence[str]) -> AnswerScores:
        """How likely each answer is after its prompt."""
        model = self.model
        said = [model.inputs.completion(answer) for answer in answers]
        ids, mask, extra = self._inputs(pictures, prompts, said)
        lengths = torch.tensor([len(s) for s in said], device=model.device)
        if not (model.family.mrope and pictures is not None):
            extra["position_ids"] = model.positions(mask)  # not every family's forward leaves the padding out
        with model.stage(self._stage):
            output = model.base(
                input_ids=ids,
                attention_mask=mask,
                use_cache=False,
                logits_to_keep=int(lengths.max()) + 1,
                **(extra | model.token_types(ids, suffix=lengths)),
            )
        return answer_scores(output.logits, ids, lengths)

    def _inputs(
        self, pictures: Pictures, prompts: Sequence[str], said: Sequence[Sequence[int]]
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """``input_ids`` and ``attention_mask`` [B, T], left-padded, and what else the base's forward takes."""
        model, inputs = self.model, self.model.inputs
        extra: dict[str, Any] = {}
        if pictures is None:
            asked = [text_prompt_ids(model.processor, model.family, p) for p in prompts]
        else:
            pixels, grids = inputs.family.process_images(model.processor, list(pictures), inputs.base_config)
            asked = [
                inputs.prompt(p).ids(inputs.image_token, inputs.family.num_image_tokens(grid))
                for p, grid in zip(prompts, grids, strict=True)
            ]
            extra = {name: tensor.to(model.device) for name, tensor in pixels.items()}
        rows = [[*a, *s] for a, s in zip(asked, said, strict=True)]
        ids, mask = (t.to(model.device) for t in pad_left(rows, padding=inputs.padding))
        if pictures is not None and inputs.family.mrope:
            extra["mm_token_type_ids"] = (ids == inputs.image_token).int()
        return ids, mask, extra | model.token_types(ids, suffix=0)
