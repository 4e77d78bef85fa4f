from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch

from fwd2bot_index.errors import InputError
from fwd2bot_index.families import FAMILIES
from fwd2bot_index.inputs import InputMaker
from fwd2bot_training.data import Segment
from fwd2bot_training.packing import Packed, Prefix, pack, packed_mask

from .conftest import plain_lvlm

END = 2


def _pack(rows: list[list[Segment]], family: str = "llava", **settings: Any) -> tuple[Packed, InputMaker]:
    inputs = plain_lvlm(family).inputs
    return pack(rows, inputs, end=END, **{"max_tokens": 99, **settings}), inputs


def test_only_answers_are_labelled() -> None:
    packed, inputs = _pack([[Segment(prompt="what color?", answer="dark red")]])
    tokenizer = inputs.processor.tokenizer
    assert tokenizer.decode(packed.labels).replace(" ", "") == "darkred<eos>"
    before = packed.ids.flatten()[packed.predict]
    assert tokenizer.decode(before[:1]) == "\n", "the first answer token is predicted from the prompt's last one"


def test_a_long_answer_is_cut_and_then_does_not_end() -> None:
    long = Segment(prompt="a?", answer="x" * 50)
    packed, inputs = _pack([[long]], max_tokens=20)
    asked = len(inputs.prompt("a?").after)
    assert len(packed.labels) == 20 - asked
    assert END not in packed.labels.tolist()


def test_what_cannot_be_answered_is_refused() -> None:
    with pytest.raises(InputError, match="leaves no room"):
        _pack([[Segment(prompt="x" * 50, answer="y")]], max_tokens=20)


def _mask(packed: Packed, prefix: Prefix, family: str) -> list[list[int]]:
    return (packed_mask(packed, prefix, FAMILIES[family], torch.float32)[0, 0] == 0).int().tolist()


def _hand_made(segment: list[int], asked: list[bool]) -> Packed:
    packed, _ = _pack([[Segment(prompt="a", answer="b")]])
    fields = {"segment": torch.tensor([segment]), "asked": torch.tensor([asked])}
    return Packed(**{**vars(packed), **fields})


def test_mask_by_hand() -> None:
    packed = _hand_made([1, 1, 2, 0], [True, False, True, False])
    assert _mask(packed, Prefix(embeds=torch.zeros(1, 1, 8), first_token=0), "llava") == [
        [1, 0, 0, 0, 0],  # the prefix sees itself
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],  # segment 1, causal
        [1, 0, 0, 1, 0],  # segment 2 sees the prefix and itself, not segment 1
        [1, 0, 0, 0, 1],  # padding is seen by nothing else
    ]


def test_hidden_columns_are_hidden_from_the_text_alone() -> None:
    packed = _hand_made([1, 1], [True, False])
    prefix = Prefix(embeds=torch.zeros(1, 3, 8), first_token=1, hidden=((1, 2),))
    assert _mask(packed, prefix, "llava") == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],  # a summary position sees the image
        [1, 0, 1, 1, 0],  # the text sees the summary position, not the image
        [1, 0, 1, 1, 1],
    ]


def test_families_that_read_in_both_directions() -> None:
    prefix = Prefix(embeds=torch.zeros(1, 3, 8), first_token=1)
    assert _mask(_hand_made([1, 1], [True, False]), prefix, "gemma3")[:3] == [
        [1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0],  # picture tokens see each other
        [1, 1, 1, 0, 0],
    ]
    assert _mask(_hand_made([1, 1], [True, False]), prefix, "paligemma") == [
        *[[1, 1, 1, 1, 0]] * 4,  # picture and prompt see each other
        [1, 1, 1, 1, 1],  # the answer is causal
    ]


def test_one_row_a_segment_where_a_prefix_cannot_be_shared() -> None:
    two = [Segment(prompt="a", answer="b"), Segment(prompt="c", answer="d")]
    shared, _ = _pack([two, two[:1]])
    assert shared.picture.tolist() == [0, 1]
    split, _ = _pack([two, two[:1]], "paligemma")
    assert split.picture.tolist() == [0, 0, 1]
    assert split.kinds == shared.kinds


def test_questions_of_one_picture_are_known_by_the_answer_of_each_label() -> None:
    packed, _ = _pack([[Segment(prompt="a", answer="bb"), Segment(prompt="c", answer="d", kind="matching")]])
    assert packed.answer.tolist() == [0, 0, 0, 1, 1]
    assert packed.matching.tolist() == [False, False, False, True, True]
    assert packed.weights[0].item() == pytest.approx(3**-0.5)


def test_inputs_travel_to_a_loader_process() -> None:
    import pickle

    inputs = plain_lvlm("qwen3_vl").inputs
    there = pickle.loads(pickle.dumps(inputs))  # noqa: S301 - our own bytes, as multiprocessing sends them
    pictures = tiny_models.pictures(2, sizes=[(40, 40), (70, 40)])
    here, received = inputs.images(pictures), there.images(pictures)
    assert torch.equal(here.input_ids, received.input_ids)
    assert all(torch.equal(t, received.pixels[n]) for n, t in here.pixels.items())
    assert there.decode_side == inputs.decode_side
