from __future__ import annotations

import numpy as np
import pytest

from fwd2bot_training.data import rule_negatives
from fwd2bot_training.data.negatives import CLASSES, COLORS, NUMBERS, OPPOSITES


def every(caption: str, kind: str) -> set[str]:
    """What the kind makes of it over many draws."""
    made = [rule_negatives(caption, np.random.default_rng(i)) for i in range(200)]
    return {m[kind] for m in made if kind in m}


def test_colours_of_two_things_are_swapped() -> None:
    assert every("A red ball and a blue car.", "swap_attribute") == {"A blue ball and a red car."}


@pytest.mark.parametrize(
    "caption",
    [
        "a red and blue ball",  # a blue and red one
        "a red ball and a blue ball",
        "a red ball and another red car",
        "a man in red and a woman in blue",  # no thing behind the colour
        "a black man with a white dog",
    ],
)
def test_a_swap_of_colours_that_would_stay_true_is_not_made(caption: str) -> None:
    assert every(caption, "swap_attribute") == set()


def test_objects_are_swapped_where_order_matters() -> None:
    assert every("a dog chasing two cats", "swap_object") == {"a cat chasing two dogs"}
    assert every("An elephant behind a car", "swap_object") == {"A car behind an elephant"}
    assert every("a dog and a cat", "swap_object") == set()
    assert every("a dog next to a cat", "swap_object") == set()
    assert every("a man wearing a hat", "swap_object") == set()


def test_a_colour_becomes_another_that_is_not_said() -> None:
    made = every("A red dog near a blue wall", "replace_attribute")
    assert {m.replace("blue wall", "X wall") for m in made if "blue wall" in m} == {
        f"{'An' if c[0] in 'aeiou' else 'A'} {c} dog near a X wall" for c in COLORS if c not in ("red", "blue")
    }
    assert not any("gray" in m for m in every("a grey wall", "replace_attribute"))


def test_other_attributes_become_their_opposites() -> None:
    assert every("an old house", "replace_attribute") == {"a young house"}
    assert every("an old house and a young tree", "replace_attribute") == set()


def test_objects_become_others_of_their_class_in_the_same_number() -> None:
    assert every("Three dogs", "replace_object") >= {"Three sheep", "Three cats", "Three horses"}
    assert every("the man", "replace_object") == {"the woman"}
    assert every("two men", "replace_object") == {"two women"}
    assert every("an apple", "replace_object") >= {"a pizza", "an orange"}
    assert every("a boy and a girl", "replace_object") == set()


def test_numbers_and_relations() -> None:
    assert every("Two dogs", "replace_number") == {f"{n.capitalize()} dogs" for n in NUMBERS[1:]}
    assert every("a dog to the left of a cat", "replace_relation") == {"a dog to the right of a cat"}
    assert every("In front of a house", "replace_relation") == {"Behind a house"}
    assert every("he left the room", "replace_relation") == set()


def test_what_is_added_is_not_mentioned() -> None:
    made = every("a dog on a bench.", "add_object")
    assert len(made) > 50
    for m in made:
        assert m.startswith("a dog on a bench ")
        assert m.endswith(".")
        assert "dog" not in m[6:]
    colored = every("a dog on the beach", "add_attribute")
    assert colored == {f"{'an' if c[0] in 'aeiou' else 'a'} {c} dog on the beach" for c in COLORS}
    assert every("a man", "add_attribute") == set()


@pytest.mark.parametrize("caption", ["", "...", "so it goes", "né à l'été 日本", " ".join(NUMBERS), " ".join(COLORS)])
def test_texts_with_little_to_edit(caption: str) -> None:
    for i in range(20):
        made = rule_negatives(caption, np.random.default_rng(i))
        assert all(m.lower() != caption.lower() for m in made.values())


def test_the_same_for_the_same_seed_and_never_the_caption() -> None:
    words = ["a", "the", "and", "on", *COLORS, *OPPOSITES, *NUMBERS, *(w for c in CLASSES for w in c)]
    rng = np.random.default_rng(0)
    kinds = set()
    for i in range(300):
        caption = " ".join(words[int(k)] for k in rng.integers(len(words), size=12))
        made = rule_negatives(caption, np.random.default_rng(i))
        assert made == rule_negatives(caption, np.random.default_rng(i))
        assert caption not in made.values()
        kinds |= made.keys()
    assert len(kinds) == 8 - 1, "relations are phrases that these words do not make"
