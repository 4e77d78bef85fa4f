"""Hard negatives of ordinary English captions by rule: one small edit that makes the caption false.

The kinds are SugarCrepe's: *swap* two attributes or two objects, *replace* an attribute, an object, a number or a
relation by another of its class, *add* an attribute or an object. The word lists are short: a caption outside them gets
few kinds or none. A replaced word is one that the caption does not have, of a class whose members exclude each other;
nobody has looked at the picture, so now and then an edit is true all the same.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fwd2bot_index.scenes import a_or_an
from fwd2bot_training.data.example import Rng

COLORS: Final = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray", "grey", "silver",
    "golden", "beige", "turquoise",
)  # fmt: skip
_SAME_COLOR: Final = {"gray": "grey", "grey": "gray", "golden": "yellow", "silver": "gray"}

OPPOSITES: Final = {
    "big": "small", "large": "small", "huge": "tiny", "small": "large", "tiny": "huge", "little": "big",
    "tall": "short", "short": "long", "long": "short", "young": "old", "old": "young", "elderly": "young",
    "new": "old", "wet": "dry", "dry": "wet", "open": "closed", "closed": "open", "full": "empty", "empty": "full",
    "wooden": "metal", "metal": "wooden", "plastic": "wooden", "striped": "spotted", "spotted": "striped",
    "clean": "dirty", "dirty": "clean", "sunny": "rainy", "rainy": "sunny", "bright": "dark", "dark": "bright",
    "round": "square", "square": "round", "thick": "thin", "thin": "thick", "smiling": "frowning",
    "standing": "lying", "sitting": "standing", "walking": "sitting", "running": "sitting", "sleeping": "running",
    "jumping": "sitting",
}  # fmt: skip

NUMBERS: Final = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS: Final = ("2", "3", "4", "5", "6", "7", "8", "9", "10")

CLASSES: Final = (
    ("man", "woman"),
    ("boy", "girl"),
    ("dog", "cat", "horse", "cow", "sheep", "elephant", "giraffe", "zebra", "bear", "bird", "duck", "goat", "monkey",
     "rabbit", "lion", "tiger", "pig", "deer", "camel", "penguin"),
    ("car", "bus", "truck", "train", "bicycle", "motorcycle", "airplane", "boat", "tractor", "helicopter", "scooter",
     "skateboard", "surfboard", "snowboard"),
    ("pizza", "sandwich", "cake", "apple", "banana", "orange", "carrot", "salad", "soup", "cookie", "donut",
     "strawberry", "tomato", "burger"),
    ("chair", "table", "couch", "bed", "desk", "bench", "shelf", "lamp", "mirror", "sink", "toilet", "refrigerator",
     "oven"),
    ("hat", "shirt", "jacket", "dress", "skirt", "scarf", "sweater", "helmet", "glove", "tie", "belt", "boot"),
    ("ball", "frisbee", "kite", "racket", "bat", "guitar", "piano", "drum", "umbrella", "book", "phone", "laptop",
     "camera", "bottle", "cup", "bowl", "plate", "knife", "fork", "spoon", "vase", "clock", "backpack", "suitcase",
     "basket", "balloon"),
    ("beach", "street", "park", "kitchen", "forest", "field", "river", "lake", "mountain", "desert", "bathroom",
     "bedroom", "garden", "stadium", "office"),
)  # fmt: skip
_PEOPLE: Final = frozenset({"man", "woman", "boy", "girl", "person", "child", "people", "men", "women", "guy", "lady"})
_CLOTHES: Final = frozenset(CLASSES[6])
_PLACES: Final = frozenset(CLASSES[-1])
_ADDED: Final = tuple(w for group in (*CLASSES[2:6], CLASSES[7]) for w in group)
"""Things that may lie or stand in any picture."""
_JOINTS: Final = ("and", "with", "beside", "next to", "near")
_IRREGULAR: Final = {
    "man": "men", "woman": "women", "sheep": "sheep", "deer": "deer", "knife": "knives", "shelf": "shelves",
    "scarf": "scarves", "tomato": "tomatoes",
}  # fmt: skip

RELATIONS: Final = (
    ("in front of", "behind"), ("behind", "in front of"), ("above", "below"), ("below", "above"),
    ("on top of", "under"), ("underneath", "on top of"), ("beneath", "above"), ("under", "on top of"),
    ("inside", "outside"), ("outside", "inside"), ("to the left of", "to the right of"),
    ("to the right of", "to the left of"), ("on the left", "on the right"), ("on the right", "on the left"),
    ("left side", "right side"), ("right side", "left side"), ("left hand", "right hand"),
    ("right hand", "left hand"), ("left of", "right of"), ("right of", "left of"), ("far from", "next to"),
    ("next to", "far from"), ("beside", "far from"), ("at the top", "at the bottom"),
    ("at the bottom", "at the top"), ("upside down", "upright"), ("up the", "down the"), ("down the", "up the"),
    ("into the", "out of the"), ("out of the", "into the"), ("indoors", "outdoors"), ("outdoors", "indoors"),
)  # fmt: skip
"""The longer ones first where one holds another."""

_ONE_WAY: Final = frozenset({
    "on", "under", "above", "below", "behind", "inside", "into", "over", "beneath", "underneath", "atop",
    "wearing", "riding", "holding", "carrying", "chasing", "following", "pulling", "pushing", "watching",
    "feeding", "eating", "throwing", "catching", "kicking", "biting", "leading", "hitting", "facing", "rides",
    "holds", "carries", "chases", "follows", "pulls", "pushes", "watches", "feeds", "eats", "throws", "catches",
    "kicks", "bites", "leads", "hits",
})  # fmt: skip
"""Between two objects these say something else when the objects change places."""
_FUNCTION: Final = frozenset({
    "a", "an", "the", "and", "or", "of", "with", "in", "on", "at", "to", "by", "for", "from", "his", "her",
    "its", "their", "is", "are", "this", "that", "as", "it", "near", "two", "three", "four", "five", "six",
    "seven", "eight", "nine", "ten", "some", "several", "many", "one",
})  # fmt: skip

_TOKEN = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*|\d+|\s+|.")
_WORD = re.compile(r"[A-Za-z0-9]")


def _plural(noun: str) -> str:
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith(("ch", "sh", "s", "x")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


_OBJECTS: Final = {
    form: (noun, form != noun, group)
    for group, nouns in enumerate(CLASSES)
    for noun in nouns
    for form in (_plural(noun), noun)
}
"""Form: the singular, whether it is a plural, its class."""


@dataclass(frozen=True)
class _Caption:
    tokens: tuple[str, ...]

    @property
    def words(self) -> list[int]:
        """Places of the words among the tokens."""
        return [i for i, t in enumerate(self.tokens) if _WORD.match(t)]

    def lower(self, i: int) -> str:
        return self.tokens[i].lower()

    def nouns(self) -> list[int]:
        # "orange" is a colour wherever a word follows that it may colour
        return [i for i in self.words if self.lower(i) in _OBJECTS and not self.colors_something(i)]

    def colors_something(self, i: int) -> bool:
        after = self.tokens[i + 2] if self.tokens[i + 1 : i + 2] == (" ",) and len(self.tokens) > i + 2 else ""
        return self.lower(i) in COLORS and bool(_WORD.match(after)) and after.lower() not in _FUNCTION

    def colors(self) -> list[int]:
        """Of things: the colour of a person is left alone."""
        return [i for i in self.words if self.colors_something(i) and self.head(i) not in _PEOPLE]

    def head(self, i: int) -> str | None:
        """What the attribute at ``i`` stands with: the singular of the first object behind it, or the next word."""
        after = [j for j in self.words if j > i]
        for j in after:
            word = self.lower(j)
            if word in _FUNCTION:
                return None
            if word not in COLORS and word not in OPPOSITES:
                return _OBJECTS[word][0] if word in _OBJECTS else word
        return None

    def edited(self, changes: dict[int, str]) -> str:
        """The text with these tokens changed; the case of the first letter and a or an follow."""
        tokens = list(self.tokens)
        for i, new in changes.items():
            tokens[i] = new[:1].upper() + new[1:] if tokens[i][:1].isupper() else new
            if i >= 2 and tokens[i - 1].isspace() and tokens[i - 2].lower() in ("a", "an"):
                article = a_or_an(new.lower()).split()[0]
                tokens[i - 2] = article.capitalize() if tokens[i - 2][0].isupper() else article
        return "".join(tokens)


def rule_negatives(caption: str, rng: Rng) -> dict[str, str]:
    """False captions one edit away from ``caption``, by kind; only the kinds that apply, never the caption itself.

    Kinds: ``swap_attribute``, ``swap_object``, ``replace_attribute``, ``replace_object``, ``replace_number``,
    ``replace_relation``, ``add_attribute``, ``add_object``. The same for the same caption and state of ``rng``.
    """
    parsed = _Caption(tuple(_TOKEN.findall(caption)))
    made: dict[str, str] = {}
    for kind, edit in _EDITS.items():
        choices = list(edit(parsed, rng))
        if choices:
            made[kind] = choices[int(rng.integers(len(choices)))]
    return {kind: text for kind, text in made.items() if text.lower() != caption.lower()}


def _swap_attribute(c: _Caption, rng: Rng) -> Iterator[str]:
    colors = c.colors()
    for n, i in enumerate(colors):
        for j in colors[n + 1 :]:
            heads = c.head(i), c.head(j)
            # "a red and blue ball" is a blue and red one; of "a red ball and a blue ball" nothing changes
            if c.lower(i) != c.lower(j) and None not in heads and heads[0] != heads[1]:
                yield c.edited({i: c.lower(j), j: c.lower(i)})


def _swap_object(c: _Caption, rng: Rng) -> Iterator[str]:
    nouns = c.nouns()
    for i, j in itertools.pairwise(nouns):
        between = [c.tokens[k].lower() for k in range(i + 1, j) if not c.tokens[k].isspace()]
        (a, a_plural, _), (b, b_plural, _) = _OBJECTS[c.lower(i)], _OBJECTS[c.lower(j)]
        joined = {"and", "or", ",", "."} & {*between}
        if a != b and not joined and _ONE_WAY & {*between} and not {a, b} & (_PLACES | _CLOTHES):
            yield c.edited({i: _plural(b) if a_plural else b, j: _plural(a) if b_plural else a})


def _replace_attribute(c: _Caption, rng: Rng) -> Iterator[str]:
    said = {c.lower(i) for i in c.words}
    colors = c.colors()
    for i in c.words:
        word = c.lower(i)
        if i in colors:
            close = {word, _SAME_COLOR.get(word)} | {w for w, same in _SAME_COLOR.items() if same == word}
            yield from (c.edited({i: new}) for new in _other(COLORS, said | close, rng))
        elif word in OPPOSITES and OPPOSITES[word] not in said:
            yield c.edited({i: OPPOSITES[word]})


def _replace_object(c: _Caption, rng: Rng) -> Iterator[str]:
    said = {_OBJECTS[c.lower(i)][0] for i in c.words if c.lower(i) in _OBJECTS}
    for i in c.nouns():
        _, plural, group = _OBJECTS[c.lower(i)]
        for other in _other(CLASSES[group], said, rng):
            yield c.edited({i: _plural(other) if plural else other})


def _replace_number(c: _Caption, rng: Rng) -> Iterator[str]:
    said = {c.lower(i) for i in c.words}
    for i in c.words:
        for numbers in (NUMBERS, DIGITS):
            if c.lower(i) in numbers:
                yield from (c.edited({i: new}) for new in _other(numbers, said, rng))


def _replace_relation(c: _Caption, rng: Rng) -> Iterator[str]:
    text = "".join(c.tokens)
    taken: list[tuple[int, int]] = []
    for old, new in RELATIONS:
        for found in re.finditer(rf"\b{old}\b", text, re.IGNORECASE):
            first, last = found.span()
            if all(last <= a or first >= b for a, b in taken):
                taken.append((first, last))
                put = new[:1].upper() + new[1:] if text[first].isupper() else new
                yield text[:first] + put + text[last:]


def _add_attribute(c: _Caption, rng: Rng) -> Iterator[str]:
    said = {c.lower(i) for i in c.words}
    for i in c.nouns():
        before = [j for j in c.words if j < i]
        # a colour goes between the article and a noun that has no other attribute
        if before and c.lower(before[-1]) in ("a", "an", "the") and _OBJECTS[c.lower(i)][0] not in _PLACES | _PEOPLE:
            yield from (c.edited({i: f"{color} {c.tokens[i]}"}) for color in _other(COLORS, said, rng))


def _add_object(c: _Caption, rng: Rng) -> Iterator[str]:
    text = "".join(c.tokens).rstrip()
    said = {_OBJECTS[c.lower(i)][0] for i in c.words if c.lower(i) in _OBJECTS}
    body = text.rstrip(".").rstrip()
    if said and body:
        stop = text[len(text.rstrip(".")) :]
        # one way of joining would be learnt as the mark of a false caption
        joint = _JOINTS[int(rng.integers(len(_JOINTS)))]
        yield from (f"{body} {joint} {a_or_an(new)}{stop}" for new in _other(_ADDED, said, rng))


def _other(words: Sequence[str], said: Collection[str | None], rng: Rng) -> list[str]:
    """One of these words that the caption does not say; none where it says all of them."""
    unsaid = [w for w in words if w not in said]
    return [unsaid[int(rng.integers(len(unsaid)))]] if unsaid else []


_EDITS: Final[dict[str, Callable[[_Caption, Rng], Iterator[str]]]] = {
    "swap_attribute": _swap_attribute,
    "swap_object": _swap_object,
    "replace_attribute": _replace_attribute,
    "replace_object": _replace_object,
    "replace_number": _replace_number,
    "replace_relation": _replace_relation,
    "add_attribute": _add_attribute,
    "add_object": _add_object,
}
