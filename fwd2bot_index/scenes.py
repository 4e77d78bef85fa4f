"""A small compositional world, drawn by the package: pictures whose every property is known.

Scenes are 1-6 flat shapes, freely placed on a grey ground. A scene comes with captions, questions and hard negatives
that are true (or false) by construction, unlimited and seeded: ``scene(seed)`` is the same scene for ever. It trains
the bundled model, feeds ``fwd2bot demo``, and gives evaluation a ground truth and an exact retrieval ceiling.

Notable choices:
- colours and shapes of one scene come from small random subsets, so that attributes repeat and have to be bound;
- questions of place, relation and extremes keep a margin, so that every answer is visible in the pixels;
- a caption is a list of *claims* (`Caption.mentions`, `Caption.relations`), so its fit to any scene is computed.

Only numpy and Pillow: training, evaluation and the command line all draw from here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
COLORS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (240, 225, 50),
    "green": (40, 160, 60),
    "cyan": (60, 215, 225),
    "blue": (45, 70, 215),
    "purple": (130, 50, 170),
    "pink": (250, 150, 200),
}
SIZES = {"small": (0.085, 0.105), "large": (0.155, 0.185)}
"""Radius as a share of the picture's side."""
MAX_OBJECTS = 6
PLACES = (("top left", "top", "top right"), ("left", "center", "right"), ("bottom left", "bottom", "bottom right"))
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
EXTREMES = {"leftmost": (0, -1), "rightmost": (0, 1), "topmost": (1, -1), "bottommost": (1, 1)}
QUESTION_TYPES = ("exist", "count", "color", "shape", "size", "place", "side", "relation", "extreme", "match")

RELATION_MARGIN = 0.10
PLACE_MARGIN = 0.03
EXTREME_MARGIN = 0.06

Rng = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object; ``x, y, radius`` are shares of the picture's side, y downwards."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    radius: float

    @property
    def place(self) -> str:
        return PLACES[min(int(self.y * 3), 2)][min(int(self.x * 3), 2)]

    def near_place_border(self) -> bool:
        return any(abs(v - edge) < PLACE_MARGIN for v in (self.x, self.y) for edge in (1 / 3, 2 / 3))


@dataclass(frozen=True, kw_only=True)
class Scene:
    things: tuple[Thing, ...]
    ground: int
    """Grey level of the background, 0-255."""


@dataclass(frozen=True, kw_only=True)
class Mention:
    """What a caption says of one object; None: left unsaid."""

    shape: str
    color: str | None = None
    size: str | None = None

    def fits(self, thing: Thing) -> bool:
        return (
            self.shape == thing.shape
            and (self.color is None or self.color == thing.color)
            and (self.size is None or self.size == thing.size)
        )

    def __str__(self) -> str:
        return " ".join(w for w in (self.size, self.color, self.shape) if w)


@dataclass(frozen=True, kw_only=True)
class Caption:
    """Claims about a scene: each mention is a different object; ``relations`` join mentions by place in the list."""

    mentions: tuple[Mention, ...]
    relations: tuple[tuple[int, str, int], ...] = ()

    def __str__(self) -> str:
        if self.relations:
            a, relation, b = self.relations[0]
            said = [f"{a_or_an(str(self.mentions[a]))} {relation} {a_or_an(str(self.mentions[b]))}"]
            said += [a_or_an(str(m)) for i, m in enumerate(self.mentions) if i not in (a, b)]
        else:
            said = [a_or_an(str(m)) for m in self.mentions]
        return said[0] if len(said) == 1 else ", ".join(said[:-1]) + " and " + said[-1]

    def fits(self, scene: Scene) -> bool:
        """Whether some assignment of different objects to the mentions makes every claim true."""
        if len(self.mentions) > len(scene.things) or any(
            not any(m.fits(t) for t in scene.things) for m in self.mentions
        ):
            return False  # the common case, told without trying assignments
        for chosen in itertools.permutations(scene.things, len(self.mentions)):
            if all(m.fits(t) for m, t in zip(self.mentions, chosen, strict=True)) and all(
                related(chosen[a], relation, chosen[b]) for a, relation, b in self.relations
            ):
                return True
        return False


@dataclass(frozen=True, kw_only=True)
class Question:
    type: str
    text: str
    answer: str


def related(a: Thing, relation: str, b: Thing, *, margin: float = 0.0) -> bool:
    """Whether ``a`` is left of / right of / above / below ``b`` by more than ``margin``."""
    d = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}[relation]
    return d > margin


# --- scenes and pictures


def scene(seed: int, *, stream: str = "train") -> Scene:
    """The scene of this seed. ``stream`` separates worlds: what is held out uses another than what is trained on."""
    return sample_scene(np.random.default_rng([*stream.encode(), seed]))


def sample_scene(rng: Rng, *, max_objects: int = MAX_OBJECTS, alike: bool = False) -> Scene:
    """A random scene of 1 to ``max_objects`` objects that do not touch. ``alike``: of one or two colours and one or two
    shapes, where others have two to five and two to four."""
    count = int(rng.integers(1, max_objects + 1))
    colors = rng.choice(list(COLORS), size=int(rng.integers(1, 3) if alike else rng.integers(2, 6)), replace=False)
    shapes = rng.choice(SHAPES, size=int(rng.integers(1, 3) if alike else rng.integers(2, 5)), replace=False)
    things: list[Thing] = []
    while len(things) < count:
        size = "small" if rng.random() < 0.55 else "large"
        radius = float(rng.uniform(*SIZES[size]))
        for _ in range(30):
            x, y = (float(v) for v in rng.uniform(radius + 0.01, 0.99 - radius, size=2))
            if all(math.hypot(x - t.x, y - t.y) > radius + t.radius + 0.02 for t in things):
                break
        else:  # crowded: start this scene's layout again
            things.clear()
            continue
        things.append(
            Thing(shape=str(rng.choice(shapes)), color=str(rng.choice(colors)), size=size, x=x, y=y, radius=radius)
        )
    return Scene(things=tuple(things), ground=int(rng.choice((0, 60, 128, 190, 255))))


def render(scene: Scene, *, size: int = 96) -> Image.Image:
    """An RGB picture of ``size`` x ``size`` pixels, drawn at twice the size and averaged down."""
    side = 2 * size
    canvas = Image.new("RGB", (side, side), (scene.ground,) * 3)
    draw = ImageDraw.Draw(canvas)
    for t in scene.things:
        _draw(draw, t.shape, COLORS[t.color], t.x * side, t.y * side, t.radius * side)
    return canvas.reduce(2)


def _draw(draw: ImageDraw.ImageDraw, shape: str, fill: tuple[int, int, int], x: float, y: float, radius: float) -> None:
    def polygon(points: Sequence[tuple[float, float]]) -> None:
        draw.polygon([(x + radius * px, y + radius * py) for px, py in points], fill=fill)

    match shape:
        case "circle":
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        case "square":
            polygon([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)])
        case "diamond":
            polygon([(0, -1), (0.75, 0), (0, 1), (-0.75, 0)])
        case "triangle":
            polygon([(0, -1), (0.95, 0.8), (-0.95, 0.8)])
        case "star":
            polygon(
                [
                    (r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5))
                    for i, r in enumerate((1.05, 0.42) * 5)
                ]
            )
        case "cross":
            polygon([(-0.32, -1), (0.32, -1), (0.32, 1), (-0.32, 1)])
            polygon([(-1, -0.32), (1, -0.32), (1, 0.32), (-1, 0.32)])
        case _:
            raise ValueError(f"unknown shape {shape!r}")


# --- texts


def a_or_an(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def describe(scene: Scene) -> str:
    """Everything in the scene, in reading order: the densest supervision there is."""
    rows = sorted(scene.things, key=lambda t: (int(t.y * 3), t.x))
    return ", ".join(f"{t.size} {t.color} {t.shape} {t.place}" for t in rows)


def caption(scene: Scene, rng: Rng, *, max_mentions: int = 4, relation: float = 0.4) -> Caption:
    """A true caption of up to ``max_mentions`` objects; with probability ``relation`` it relates two of them."""
    order = rng.permutation(len(scene.things))[:max_mentions]
    chosen = [scene.things[i] for i in order]
    mentions = tuple(Mention(shape=t.shape, color=t.color, size=t.size) for t in chosen)
    relations: tuple[tuple[int, str, int], ...] = ()
    if len(chosen) > 1 and rng.random() < relation:
        true = [r for r in RELATIONS if related(chosen[0], r, chosen[1], margin=RELATION_MARGIN)]
        if true:
            relations = ((0, str(rng.choice(true)), 1),)
    return Caption(mentions=mentions, relations=relations)


def hard_negatives(scene: Scene, caption: Caption, rng: Rng) -> dict[str, Caption]:
    """False captions one edit away from ``caption``, by kind (as SugarCrepe names them); only kinds that exist here.

    ``swap_attribute``: two mentions exchange their colours; ``swap_relation``: the two sides change places;
    ``replace_attribute``: another colour; ``replace_object``: another shape; ``add``: one object too many.
    """
    mentions = list(caption.mentions)

    def edited(i: int, **changes: str) -> Caption:
        return replace(caption, mentions=tuple(replace(m, **changes) if j == i else m for j, m in enumerate(mentions)))

    made: dict[str, Caption] = {}
    pairs = [
        (i, j)
        for i, j in itertools.combinations(range(len(mentions)), 2)
        if mentions[i].color != mentions[j].color and mentions[i].shape != mentions[j].shape
    ]
    if pairs:
        i, j = pairs[int(rng.integers(len(pairs)))]
        swapped = edited(i, color=str(mentions[j].color))
        made["swap_attribute"] = replace(
            swapped,
            mentions=tuple(
                replace(m, color=mentions[i].color) if k == j else m for k, m in enumerate(swapped.mentions)
            ),
        )
    if caption.relations:
        a, relation, b = caption.relations[0]
        made["swap_relation"] = replace(caption, relations=((b, relation, a),))
    i = int(rng.integers(len(mentions)))
    others = [c for c in COLORS if c != mentions[i].color]
    made["replace_attribute"] = edited(i, color=str(rng.choice(others)))
    made["replace_object"] = edited(i, shape=str(rng.choice([s for s in SHAPES if s != mentions[i].shape])))
    extra = Mention(
        shape=str(rng.choice(SHAPES)), color=str(rng.choice(list(COLORS))), size=str(rng.choice(list(SIZES)))
    )
    made["add"] = replace(caption, mentions=(*mentions, extra))
    return {kind: c for kind, c in made.items() if not c.fits(scene)}


def twins(scene: Scene, caption: Caption, false: Mapping[str, Caption]) -> dict[str, Scene]:
    """The scene with two of its objects changed over, so that the swapped caption is true of it and ``caption`` is not:
    their colours for ``swap_attribute``, their places for ``swap_relation``. None where objects would touch.

    Args:
        caption: true of ``scene``.
        false: its `hard_negatives`.
    """
    made: dict[str, Scene] = {}
    for kind, attributes in (("swap_attribute", ("color",)), ("swap_relation", ("x", "y"))):
        if kind not in false:
            continue
        if kind == "swap_relation":
            i, _, j = caption.relations[0]
        else:
            i, j = (n for n, (m, f) in enumerate(zip(caption.mentions, false[kind].mentions, strict=True)) if m != f)
        for a, b in itertools.permutations(range(len(scene.things)), 2):
            if not (caption.mentions[i].fits(scene.things[a]) and caption.mentions[j].fits(scene.things[b])):
                continue
            things = list(scene.things)
            things[a] = replace(things[a], **{n: getattr(scene.things[b], n) for n in attributes})
            things[b] = replace(things[b], **{n: getattr(scene.things[a], n) for n in attributes})
            twin = replace(scene, things=tuple(things))
            if _is_apart(twin) and false[kind].fits(twin) and not caption.fits(twin):
                made[kind] = twin
                break
    return made


def _is_apart(scene: Scene) -> bool:
    """Whether no object touches another or leaves the picture."""
    inside = all(t.radius <= v <= 1 - t.radius for t in scene.things for v in (t.x, t.y))
    pairs = itertools.combinations(scene.things, 2)
    return inside and all(math.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius for a, b in pairs)


# --- questions


def _reference(scene: Scene, thing: Thing, *, without: str = "") -> str | None:
    """The shortest words that fit ``thing`` alone, not using the attribute ``without``; None where there are none."""
    for attributes in (("color", "shape"), ("shape",), ("color",), ("size", "shape"), ("size", "color", "shape")):
        if without in attributes:
            continue
        if sum(all(getattr(t, a) == getattr(thing, a) for a in attributes) for t in scene.things) == 1:
            words = [str(getattr(thing, a)) for a in attributes]
            return " ".join(words if "shape" in attributes else [*words, "object"])
    return None


def _pick(scene: Scene, rng: Rng, *, without: str = "") -> tuple[Thing, str] | None:
    for i in rng.permutation(len(scene.things)):
        if words := _reference(scene, scene.things[i], without=without):
            return scene.things[i], words
    return None


def _exist(scene: Scene, rng: Rng) -> Question | None:
    present = {(t.color, t.shape) for t in scene.things}
    if rng.random() < 0.5:
        color, shape = sorted(present)[int(rng.integers(len(present)))]
        answer = "yes"
    else:  # colours and shapes of this very scene, wrongly bound, wherever that is possible
        mixed = sorted({(a.color, b.shape) for a in scene.things for b in scene.things} - present)
        if not mixed or rng.random() < 0.3:
            mixed = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in present]
        color, shape = mixed[int(rng.integers(len(mixed)))]
        answer = "no"
    return Question(type="exist", text=f"is there {a_or_an(f'{color} {shape}')}?", answer=answer)


def _count(scene: Scene, rng: Rng) -> Question | None:
    kind = int(rng.integers(3))
    if kind == 0:
        return _how_many(scene)
    some = scene.things[int(rng.integers(len(scene.things)))]
    if kind == 1:
        return _how_many(scene, color=some.color if rng.random() < 0.8 else str(rng.choice(list(COLORS))))
    return _how_many(scene, shape=some.shape if rng.random() < 0.8 else str(rng.choice(SHAPES)))


def _how_many(scene: Scene, *, color: str | None = None, shape: str | None = None) -> Question:
    what = f"{color} objects" if color else "objects"
    if shape:
        what = shape + ("es" if shape.endswith("s") else "s")
    n = sum(color in (None, t.color) and shape in (None, t.shape) for t in scene.things)
    return Question(type="count", text=f"how many {what} are there?", answer=str(n))


def counts(scene: Scene) -> list[Question]:
    """Every question of the type "count": about all objects, those of each colour and those of each shape."""
    return [
        _how_many(scene),
        *(_how_many(scene, color=c) for c in COLORS),
        *(_how_many(scene, shape=s) for s in SHAPES),
    ]


def _attribute(attribute: str, template: str) -> Callable[[Scene, Rng], Question | None]:
    def ask(scene: Scene, rng: Rng) -> Question | None:
        picked = _pick(scene, rng, without=attribute)
        if picked is None:
            return None
        thing, words = picked
        return Question(type=attribute, text=template.format(words), answer=str(getattr(thing, attribute)))

    return ask


def _place(scene: Scene, rng: Rng) -> Question | None:
    picked = _pick(scene, rng)
    if picked is None or picked[0].near_place_border():
        return None
    return Question(type="place", text=f"where is the {picked[1]}?", answer=picked[0].place)


def _true_relation(scene: Scene, rng: Rng) -> tuple[str, str, str] | None:
    """Words for one object, a relation in which it stands to another, and words for that."""
    named = [(t, w) for t in scene.things if (w := _reference(scene, t))]
    if len(named) < 2:
        return None
    i, j = rng.choice(len(named), size=2, replace=False)
    (a, a_words), (b, b_words) = named[i], named[j]
    true = [r for r in RELATIONS if related(a, r, b, margin=RELATION_MARGIN)]
    return (a_words, str(rng.choice(true)), b_words) if true else None


def _relation(scene: Scene, rng: Rng) -> Question | None:
    if (found := _true_relation(scene, rng)) is None:
        return None
    a, relation, b = found
    yes = rng.random() < 0.5
    asked = relation if yes else OPPOSITE[relation]
    return Question(type="relation", text=f"is the {a} {asked} the {b}?", answer="yes" if yes else "no")


def _side(scene: Scene, rng: Rng) -> Question | None:
    """The relation itself, where ``_relation`` asks whether a given one holds: the same comparison without the
    exclusive-or of relation, order and answer."""
    if (found := _true_relation(scene, rng)) is None:
        return None
    a, relation, b = found
    asked = "left or right of" if relation in RELATIONS[:2] else "above or below"
    return Question(type="side", text=f"is the {a} {asked} the {b}?", answer=relation.removesuffix(" of"))


def _extreme(scene: Scene, rng: Rng) -> Question | None:
    if len(scene.things) < 2:
        return None
    word = str(rng.choice(list(EXTREMES)))
    axis, sign = EXTREMES[word]
    rows = sorted(scene.things, key=lambda t: -sign * (t.x, t.y)[axis])
    if abs((rows[0].x, rows[0].y)[axis] - (rows[1].x, rows[1].y)[axis]) < EXTREME_MARGIN:
        return None
    return Question(type="extreme", text=f"what is the {word} object?", answer=f"{rows[0].color} {rows[0].shape}")


def _match(scene: Scene, rng: Rng) -> Question | None:
    true = caption(scene, rng, max_mentions=3)
    if rng.random() < 0.5:
        said, answer = true, "yes"
    else:
        false = hard_negatives(scene, true, rng)
        if not false:
            return None
        said, answer = false[str(rng.choice(sorted(false)))], "no"
    return Question(type="match", text=f"does this show {said}?", answer=answer)


_ASK: dict[str, Callable[[Scene, Rng], Question | None]] = {
    "exist": _exist,
    "count": _count,
    "color": _attribute("color", "what color is the {}?"),
    "shape": _attribute("shape", "what shape is the {}?"),
    "size": _attribute("size", "what size is the {}?"),
    "place": _place,
    "side": _side,
    "relation": _relation,
    "extreme": _extreme,
    "match": _match,
}
assert tuple(_ASK) == QUESTION_TYPES


def ask(scene: Scene, type: str, rng: Rng) -> Question | None:
    """A question of this type with its answer, or None where the scene has none (no two objects to relate, say)."""
    return _ASK[type](scene, rng)


def questions(scene: Scene, rng: Rng, *, types: Sequence[str] = QUESTION_TYPES) -> list[Question]:
    """One question of each type that this scene can answer, in the order of ``types``."""
    return [q for t in types if (q := ask(scene, t, rng)) is not None]
