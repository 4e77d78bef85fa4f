"""Drawn scenes as a source: endless, and needing no data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fwd2bot_index import scenes
from fwd2bot_training.data.example import DESCRIBE, Endless, Example, Region, Rng, Segment

BUDGET = 10
"""Questions plus objects: a description grows with the objects, so this keeps the rows of a batch equally long."""
TEXTS_SAMPLED = 4000
"""Scenes whose texts stand for all, where a tokenizer is trained."""
PARTIAL_MENTIONS = 3
NEGATIVE_WEIGHTS = {"swap_relation": 4.0, "swap_attribute": 2.0}
"""Of the kinds of false captions among which a scene draws, 1 for the others."""


@dataclass(frozen=True, kw_only=True)
class SceneSource(Endless):
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
    twins: float = 0.0
    """Share of the pairs in a batch (2n, 2n + 1) whose second is a twin of the first: two objects have changed places
    or, where none can, colours, and its caption is a false one of the first. Only so does a contrastive batch hold
    pictures that their captions tell apart by a relation alone."""
    favored: tuple[str, ...] = ()
    """Types of questions that are asked twice as often as the others."""
    counts: int = 1
    """Where a scene is asked to count, how many such questions; the budget takes them for one. From two on, all
    objects, every colour and shape that is there and one thing that is not are counted equally often."""
    relations: int = 1
    """Where a scene is asked a question of ``relation`` or ``side``, up to how many of that type; the budget takes them
    for one. They are the last to be learned, and a yes or no tells little."""
    alike: float = 0.0
    """Share of the scenes (with ``twins``, of the pairs) that have few colours and shapes: in the others one
    question of counting in thirty is about more than three objects that are alike."""
    curriculum_steps: int = 0
    """Scenes grow from one object to all over this many steps: a model from scratch learns to look at one object in a
    few hundred steps, and at six not in a thousand. 0: all from the start."""
    held_out: bool = False

    @property
    def paired(self) -> bool:
        return self.twins > 0 and not self.held_out

    def example(self, index: int, rng: Rng, *, step: int) -> Example:
        scene = scenes.scene(index, stream="val") if self.held_out else self._fresh(rng, step)
        caption = self._caption(scene, rng)
        false = scenes.hard_negatives(scene, caption, rng)
        if self.paired:  # until here, both of a pair draw the same
            twins = scenes.twins(scene, caption, false) if rng.random() < self.twins else {}
            kind = ["swap_relation"] if "swap_relation" in twins else sorted(twins)  # which is the harder to learn
            rng = rng.spawn(2)[index % 2]
            if kind:
                other, said = twins[kind[0]], false[kind[0]]
                if index % 2:
                    scene, other, caption = other, scene, said
                    false = scenes.hard_negatives(scene, caption, rng)
                false = {k: c for k, c in false.items() if not c.fits(other)}  # they would be called false of it too
            elif index % 2:
                scene = self._fresh(rng, step)
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
            negatives=tuple(str(false[kind]) for kind in self._draw(sorted(false), self.hard_negatives, rng)),
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
        alike = self.alike > 0 and rng.random() < self.alike
        return scenes.sample_scene(rng, max_objects=most, alike=alike)

    def _caption(self, scene: scenes.Scene, rng: Rng) -> scenes.Caption:
        if rng.random() < self.partial_captions:
            mentions = int(rng.integers(1, PARTIAL_MENTIONS + 1))
            return scenes.caption(scene, rng, max_mentions=mentions, relation=self.relation_captions)
        return scenes.caption(scene, rng, relation=self.relation_captions)

    def _draw(self, kinds: list[str], count: int, rng: Rng) -> list[str]:
        """Up to ``count`` different ones, the hardest first."""
        p = np.array([NEGATIVE_WEIGHTS.get(kind, 1.0) for kind in kinds])
        size = min(count, len(kinds))
        return [str(kind) for kind in rng.choice(kinds, size=size, replace=False, p=p / p.sum())] if size else []

    def _questions(self, scene: scenes.Scene, rng: Rng) -> list[Segment]:
        types = list(scenes.QUESTION_TYPES)
        p = np.array([2.0 if t in self.favored else 1.0 for t in types])
        order = rng.choice(len(types), size=len(types), replace=False, p=p / p.sum())
        asked: list[Segment] = []
        for i in order:
            if len({s.kind for s in asked}) == BUDGET - len(scene.things):
                break
            if types[i] == "count" and self.counts > 1:
                asked += self._counts(scene, rng)
            elif q := scenes.ask(scene, types[i], rng):
                several = self.relations - 1 if types[i] in ("relation", "side") else 0
                more = [found for _ in range(several) if (found := scenes.ask(scene, types[i], rng))]
                different = {said.text: said for said in (q, *more)}
                asked += [Segment(prompt=s.text, answer=s.answer, kind=s.type) for s in different.values()]
        return asked

    def _counts(self, scene: scenes.Scene, rng: Rng) -> list[Segment]:
        every = scenes.counts(scene)
        present = [q for q in every if q.answer != "0"]
        absent = [q for q in every if q.answer == "0"]
        if absent:
            present.append(absent[int(rng.integers(len(absent)))])
        drawn = rng.permutation(len(present))[: self.counts]
        return [Segment(prompt=present[i].text, answer=present[i].answer, kind="count") for i in drawn]
