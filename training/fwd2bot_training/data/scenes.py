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
TWICE_ASKED = ("side", "relation")
"""What compares two objects is the slowest to learn."""


@dataclass(frozen=True, kw_only=True)
class SceneSource:
    """Fresh scenes, whatever ``index`` is. With ``held_out`` the scene of ``index``, the same for ever."""

    name: str = "scenes"
    size: int = 96
    """Side in pixels."""
    partial_captions: float = 0.0
    """Share of the scenes whose caption names one to three objects (where it names fewer than there are, it leaves some
    out), instead of up to four."""
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
        false = scenes.hard_negatives(scene, caption, rng)
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
            negatives=(str(false[str(rng.choice(sorted(false)))]),) if false else (),
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
            return scenes.caption(scene, rng, max_mentions=int(rng.integers(1, PARTIAL_MENTIONS + 1)))
        return scenes.caption(scene, rng)

    def _questions(self, scene: scenes.Scene, rng: Rng) -> list[Segment]:
        types = list(scenes.QUESTION_TYPES)
        p = np.array([2.0 if t in TWICE_ASKED else 1.0 for t in types])
        order = rng.choice(len(types), size=len(types), replace=False, p=p / p.sum())
        asked: list[Segment] = []
        for i in order:
            if len(asked) == BUDGET - len(scene.things):
                break
            if q := scenes.ask(scene, types[i], rng):
                asked.append(Segment(prompt=q.text, answer=q.answer, kind=q.type))
        return asked
