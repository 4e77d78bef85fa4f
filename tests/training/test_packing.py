from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from fwd2bot_training import small_llava
from fwd2bot_training.data import Mixture, Segment
from fwd2bot_training.objectives import PretrainObjective, collate, to_pixels, wrap
from fwd2bot_training.packing import pack, packed_mask, run_packed

from .conftest import CONFIG


def test_packed_answers_score_as_if_asked_alone(make_base: Callable[[], Any], tokenizer: Any, mixture: Mixture) -> None:
    """Against the reference: each question in a row of its own, through the processor and the whole model."""
    base = make_base().eval()
    processor = small_llava.make_processor(tokenizer, CONFIG)
    source, examples = mixture.batch(0)
    batch = collate(0, source, examples, tokenizer, probes=PretrainObjective.probes)
    with torch.no_grad():
        features = torch.stack(list(base.model.get_image_features(to_pixels(batch.images)).pooler_output))
        llm = base.model.language_model
        hidden = run_packed(llm, wrap(llm, tokenizer, features), batch.packed)
        logits = base.lm_head(hidden.flatten(0, 1)[batch.packed.predict])
        got = torch.log_softmax(logits, -1).gather(-1, batch.packed.labels[:, None])[:, 0]

        expected, probed = [], []
        for example in examples:
            for prompt, answer in [(s.prompt, s.answer) for s in example.segments] + [
                (PretrainObjective.probes[0], "")
            ]:
                message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
                inputs = processor(
                    images=[Image.fromarray(example.image)],
                    text=[processor.apply_chat_template([message], tokenize=False)],
                    add_special_tokens=False,
                    return_tensors="pt",
                )
                said = torch.tensor([[*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]])
                ids = torch.cat([inputs["input_ids"], said], dim=1)
                out = base(
                    input_ids=ids,
                    pixel_values=inputs["pixel_values"],
                    attention_mask=torch.ones_like(ids),
                    output_hidden_states=True,
                )
                if answer:
                    scores = torch.log_softmax(out.logits[0, -said.shape[1] - 1 : -1], -1)
                    expected.append(scores.gather(-1, said.T)[:, 0])
                else:
                    probed.append(out.hidden_states[-1][0, -2])
    torch.testing.assert_close(got, torch.cat(expected), atol=1e-4, rtol=1e-4)
    rows = torch.arange(len(examples))
    torch.testing.assert_close(hidden[rows, batch.packed.last[:, 0]], torch.stack(probed), atol=1e-4, rtol=1e-4)


def test_only_answers_are_labelled(tokenizer: Any) -> None:
    packed = pack([[Segment(prompt="what color is the star?", answer="dark red")]], tokenizer)
    assert tokenizer.decode(packed.labels) == "dark red<eos>"
    after = packed.ids.flatten()[packed.predict]
    assert tokenizer.decode(after[:1]) == "\n", "the first answer token is predicted from the prompt's last one"


def test_mask_by_hand() -> None:
    mask = packed_mask(torch.tensor([[1, 1, 2, 0]]), 1, torch.float32)[0, 0] == 0
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0],  # the prefix sees itself
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],  # segment 1, causal
        [1, 0, 0, 1, 0],  # segment 2 sees the prefix and itself, not segment 1
        [1, 0, 0, 0, 1],  # padding is seen by nothing else
    ]


def test_a_batch_without_answers_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="nothing to answer"):
        pack([[]], tokenizer, probes=("x",))
