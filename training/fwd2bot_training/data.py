"""What is trained on: scenes drawn on the fly and parquet files of real pictures, as one stream of batches.

Notable choices:
- batch ``step`` is a pure function of (seed, step): resuming needs no state of the data at all;
- a batch comes from one source, so that the other rows of a contrastive batch are worth telling apart;
- an `Example` is one picture with several prompt-answer segments, because compressing or encoding a picture once and
  asking it several things is most of the speed of training (see `packing`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from PIL import Image

from fwd2bot_index import scenes
from fwd2bot_index.errors import InputError

Rng = np.random.Generator

DESCRIBE = "describe the image."
CAPTION = "write a caption."
NAME = "what is this?"


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One thing to answer about a picture. ``kind`` labels the loss in the log."""

    prompt: str
    answer: str
    kind: str = "qa"


@dataclass(frozen=True, kw_only=True)
class Region:
    """Part of a picture and words for what is there, for the word loss of the vision part."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom as shares of the picture's sides."""
    text: str


WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Example:
    image: npt.NDArray[np.uint8]
    """[H, W, 3] RGB."""
    segments: tuple[Segment, ...]
    regions: tuple[Region, ...] = ()
    caption: str | None = None
    """The text of the contrastive loss; None: this picture takes no part in it."""
    negatives: tuple[str, ...] = ()
    """Texts for the contrastive loss that nearly fit, and are false."""


class Source(Protocol):
    @property
    def name(self) -> str: ...

    def example(self, rng: Rng, *, step: int) -> Example: ...


@dataclass(frozen=True, kw_only=True)
class SceneSource:
    """Fresh scenes, from another stream of seeds than the held-out ones; what compares two objects is asked twice as
    often."""

    image_size: int
    budget: int = 10
    """Questions plus objects: a description grows with the objects, so this keeps the rows of a batch equally long."""
    curriculum_steps: int = 0
    """Scenes grow from one object to all over this many steps: a model from scratch learns to look at one object in a
    few hundred steps, and at six not in a thousand. 0: all from the start."""
    name: str = "scenes"

    def example(self, rng: Rng, *, step: int) -> Example:
        most = scenes.MAX_OBJECTS
        if step < self.curriculum_steps:
            most = 1 + (scenes.MAX_OBJECTS - 1) * step // self.curriculum_steps
        scene = scenes.sample_scene(rng, max_objects=most)
        types = list(scenes.QUESTION_TYPES)
        p = np.array([2.0 if t in ("side", "relation") else 1.0 for t in types])
        order = rng.choice(len(types), size=len(types), replace=False, p=p / p.sum())
        segments: list[Segment] = []
        for i in order:
            if len(segments) == self.budget - len(scene.things):
                break
            if q := scenes.ask(scene, types[i], rng):
                segments.append(Segment(prompt=q.text, answer=q.answer, kind=q.type))
        segments.append(Segment(prompt=DESCRIBE, answer=scenes.describe(scene), kind="describe"))
        caption = scenes.caption(scene, rng)
        false = scenes.hard_negatives(scene, caption, rng)
        return Example(
            image=np.asarray(scenes.render(scene, size=self.image_size)),
            segments=tuple(segments),
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


@dataclass(frozen=True)
class ParquetSource:
    """Rows of a parquet file with an ``image`` column (struct of bytes and path) and ``captions``, ``qa`` or ``word``.

    Pictures are decoded at each visit and cropped a little at random; mirrored only where no text speaks of sides.
    """

    name: str
    rows: list[dict[str, Any]]
    image_size: int
    augment: bool = True
    num_segments: int = 4

    @classmethod
    def read(cls, name: str, path: Path, *, image_size: int, augment: bool = True) -> ParquetSource:
        if not path.is_file():
            raise InputError(f"No training data at {path}.")
        table = pq.read_table(path)
        columns = {"image", "captions", "qa", "word"} & set(table.schema.names)
        if "image" not in columns or len(columns) < 2:
            raise InputError(f"{path} needs an image column and one of captions, qa, word.")
        return cls(name, table.select(sorted(columns)).to_pylist(), image_size, augment)

    def example(self, rng: Rng, *, step: int) -> Example:
        row = self.rows[int(rng.integers(len(self.rows)))]
        caption: str | None = None
        regions: tuple[Region, ...] = ()
        if "captions" in row:
            order = rng.permutation(len(row["captions"]))
            texts = [clean(row["captions"][i]) for i in order]
            segments = [Segment(prompt=CAPTION, answer=t, kind="caption") for t in texts[1:3]]
            caption = texts[0]
            regions = (Region(box=WHOLE, text=", ".join(texts)),)
        elif "qa" in row:
            order = rng.permutation(len(row["qa"]))[: self.num_segments]
            segments = [_qa(row["qa"][i], self.name) for i in order]
        else:
            segments = [Segment(prompt=NAME, answer=clean(row["word"]), kind="name")]
            regions = (Region(box=WHOLE, text=clean(row["word"])),)
        image = Image.open(BytesIO(row["image"]["bytes"])).convert("RGB")
        if self.augment:
            image = _random_crop(image, rng)
            said = " ".join([s.prompt + " " + s.answer for s in segments] + [caption or ""])
            if "left" not in said and "right" not in said and rng.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        size = (self.image_size, self.image_size)
        return Example(
            image=np.asarray(image.resize(size, Image.Resampling.BICUBIC)),
            segments=tuple(segments),
            regions=regions,
            caption=caption,
        )


def clean(text: str) -> str:
    """Lower case without the space before punctuation and the full stop at the end."""
    return " ".join(text.lower().replace("_", " ").split()).replace(" .", "").replace(" ,", ",").rstrip(". ")


def _qa(item: Mapping[str, Any], kind: str) -> Segment:
    answer = item["options"][item["answer_index"]] if "options" in item else item["answer"]
    question = clean(item["question"])
    return Segment(prompt=question if question.endswith("?") else question + "?", answer=clean(answer), kind=kind)


def _random_crop(image: Image.Image, rng: Rng) -> Image.Image:
    scale = float(np.sqrt(rng.uniform(0.6, 1.0)))
    w, h = int(image.width * scale), int(image.height * scale)
    x, y = int(rng.integers(image.width - w + 1)), int(rng.integers(image.height - h + 1))
    return image.crop((x, y, x + w, y + h))


DATASETS = {
    # name in the mixture: file under the data folder; train splits only
    "flickr8k": "flickr8k/train.parquet",
    "visual7w": "visual7w/train.parquet",
    "daquar": "daquar/train.parquet",
    "easy_vqa": "easy_vqa/train.parquet",
    "shapes": "shapes/train.parquet",
    "cifar100": "cifar100/train.parquet",
}
NO_CROP = {"shapes", "easy_vqa"}
"""Cropping could cut away what the question asks for."""


LARGER = {"flickr8k": 2, "cifar100": 2}
"""Batches of these are so many times larger: their texts are short, and contrast needs company."""


class Mixture:
    """Batches drawn from sources by weight. ``batch(step)`` depends on nothing but (seed, step).

    ``larger``: factor on the batch size of a source, by name; 1 where it says nothing.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Source, float]],
        *,
        seed: int,
        batch_size: int,
        larger: Mapping[str, int] | None = None,
    ) -> None:
        if not sources or any(w <= 0 for _, w in sources):
            raise InputError("A mixture needs sources, each with a weight above 0.")
        self.sources = [s for s, _ in sources]
        total = sum(w for _, w in sources)
        self.weights = [w / total for _, w in sources]
        self.seed = seed
        self.batch_size = batch_size
        self.larger = larger or {}

    @classmethod
    def from_weights(
        cls,
        weights: Mapping[str, float],
        *,
        data: Path | None,
        image_size: int,
        seed: int,
        batch_size: int,
        curriculum_steps: int = 0,
    ) -> Mixture:
        """``weights`` names ``scenes`` and `DATASETS`; ``data`` is the folder that holds the latter."""
        sources: list[tuple[Source, float]] = []
        for name, weight in weights.items():
            if name == "scenes":
                sources.append((SceneSource(image_size=image_size, curriculum_steps=curriculum_steps), weight))
            elif name not in DATASETS:
                raise InputError(f"Unknown source {name!r}; known: scenes, {', '.join(DATASETS)}.")
            elif data is None:
                raise InputError(f"The source {name!r} needs --data, the folder with {DATASETS[name]}.")
            else:
                read = ParquetSource.read(
                    name, data / DATASETS[name], image_size=image_size, augment=name not in NO_CROP
                )
                sources.append((read, weight))
        return cls(sources, seed=seed, batch_size=batch_size, larger=LARGER)

    def batch(self, step: int) -> tuple[str, list[Example]]:
        rng = np.random.default_rng([self.seed, step])
        source = self.sources[int(rng.choice(len(self.sources), p=self.weights))]
        size = self.batch_size * self.larger.get(source.name, 1)
        return source.name, [source.example(rng, step=step) for _ in range(size)]

    def texts(self, rng: Rng, *, scenes_count: int = 4000) -> Iterator[str]:
        """Every text that training can show, for a tokenizer: all of the parquet files, a sample of the scenes."""
        for source in self.sources:
            if isinstance(source, ParquetSource):
                for row in source.rows:
                    yield from (clean(c) for c in row.get("captions", ()))
                    yield from (f"{s.prompt}\n{s.answer}" for s in (_qa(q, source.name) for q in row.get("qa", ())))
                    if "word" in row:
                        yield clean(row["word"])
            else:
                for _ in range(scenes_count):
                    scene = scenes.sample_scene(rng)
                    yield scenes.describe(scene)
                    yield str(scenes.caption(scene, rng))
                    yield from (f"{q.text}\n{q.answer}" for q in scenes.questions(scene, rng))
