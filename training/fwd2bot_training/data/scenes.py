"""Drawn scenes as a source: endless, and needing no data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fwd2bot_index import scenes
from fwd2bot_training.data.example import DESCRIBE, Example, Region, Rng, Segment

BUDGET = 10
"""Questions plus objects: a description grows with the objects, so this keeps the rows of a batch equally long."""
TEXTS_SAMPLED = 4000
"""Scenes whose texts stand for all, where a tokenizer is trained."""
PARTIAL_MENTIONS = 3
NEGATIVE_WEIGHTS = {"swap_relation": 4.0, "swap_attribute": 2.0}
"""Of the kinds of false captions among which a scene draws, 1 for the others."""


@dataclass(frozen=True, kw_only=True)
class SceneSource:
    """Fresh scenes, whatever ``index`` is. With ``held_out`` the scene of ``index``, the same for ever."""

    name: str = "scenes"
    size: int = 96
    """Side in pixels."""
    partial_captions: float = 0.0
    """Share of the scenes whose caption names one to three objects (where it names fewer than there are, it leaves some
    out), instead of up to four."""
    relation_captions: float = 0.4
    """Share of the captions that relate two objects, where there are two to relate."""
    hard_negatives: int = 1
    """False captions of a scene, each of another kind."""
    favored: tuple[str, ...] = ()
    """Types of questions that are asked twice as often as the others."""
    curriculum_steps: int = 0
    """Scenes grow from one object to all over this many steps: a model from scratch learns to look at one object in a
    few hundred steps, and at six not in a thousand. 0: all from the start."""
    held_out: bool = False

    def __len__(self) -> int:
        return 0

    def length(self, index: int) -> int:
        return 0

    def example(self, index: int, rng: Rng, *, step: int) -> Example:
        scene = scenes.scene(index, stream="val") if self.held_out else self._fresh(rng, step)
        caption = self._caption(scene, rng)
        return Example(
            image=scenes.render(scene, size=self.size),
            segments=(
                *self._questions(scene, rng),
                Segment(prompt=DESCRIBE, answer=scenes.describe(scene), kind="describe"),
            ),
            regions=tuple(
                Region(
                    box=(t.x - t.radius, t.y - t.radius, t.x + t.radius, t.y + t.radius),
                    text=f"{t.size} {t.color} {t.shape} {t.place}",
                )
                for t in scene.things
            ),
            caption=str(caption),
            negatives=self._negatives(scene, caption, rng),
        )

    def texts(self, rng: Rng) -> Iterator[str]:
        for _ in range(TEXTS_SAMPLED):
            scene = scenes.sample_scene(rng)
            yield scenes.describe(scene)
            yield str(scenes.caption(scene, rng))
            yield from (f"{q.text}\n{q.answer}" for q in scenes.questions(scene, rng))

    def _fresh(self, rng: Rng, step: int) -> scenes.Scene:
        most = scenes.MAX_OBJECTS
        if step < self.curriculum_steps:
            most = 1 + (scenes.MAX_OBJECTS - 1) * step // self.curriculum_steps
        return scenes.sample_scene(rng, max_objects=most)

    def _caption(self, scene: scenes.Scene, rng: Rng) -> scenes.Caption:
        if rng.random() < self.partial_captions:
            mentions = int(rng.integers(1, PARTIAL_MENTIONS + 1))
            return scenes.caption(scene, rng, max_mentions=mentions, relation=self.relation_captions)
        return scenes.caption(scene, rng, relation=self.relation_captions)

    def _negatives(self, scene: scenes.Scene, caption: scenes.Caption, rng: Rng) -> tuple[str, ...]:
        false = scenes.hard_negatives(scene, caption, rng)
        kinds = sorted(false)
        if not kinds:
            return ()
        p = np.array([NEGATIVE_WEIGHTS.get(kind, 1.0) for kind in kinds])
        drawn = rng.choice(len(kinds), size=min(self.hard_negatives, len(kinds)), replace=False, p=p / p.sum())
        return tuple(str(false[kinds[i]]) for i in drawn)

    def _questions(self, scene: scenes.Scene, rng: Rng) -> list[Segment]:
        types = list(scenes.QUESTION_TYPES)
        p = np.array([2.0 if t in self.favored else 1.0 for t in types])
        order = rng.choice(len(types), size=len(types), replace=False, p=p / p.sum())
        asked: list[Segment] = []
        for i in order:
            if len(asked) == BUDGET - len(scene.things):
                break
            if q := scenes.ask(scene, types[i], rng):
                asked.append(Segment(prompt=q.text, answer=q.answer, kind=q.type))
        return asked
