"""How fast one question is asked about every picture: from stored summary tokens, and by the same model from pixels.

    python -m fwd2bot_eval.bench_annotate ../shared/data/photos --limit 500

Indexes the folder into a temporary one. Then, in turn and ``--repeats`` times, each after a round that is not counted:

- *tokens*: what ``fwd2bot annotate`` does, from reading the payloads to the commit of the column;
- *pixels, uncompressed*: the files are decoded and the base reads all of their image tokens, one forward each;
- *pixels, decoded*: the same with the pictures decoded beforehand;
- *pixels, compressed*: the files are decoded, compressed and asked about, as without an index.

Prints images/s (medians) and how many times as fast the tokens are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fwd2bot_eval.uncompressed import Uncompressed
from fwd2bot_index.annotating import annotate
from fwd2bot_index.checkpoints import DEFAULT_MODEL
from fwd2bot_index.decoding import decode_image, read_file
from fwd2bot_index.indexing import index_images
from fwd2bot_index.store import IndexStore, writing

if TYPE_CHECKING:
    from PIL import Image

    from fwd2bot_index.model import Fwd2BotModel

T = TypeVar("T")

QUESTION = "is there a dog?"
CHOICES = ("yes", "no")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Images/s, medians."""

    pictures: int
    tokens: float
    pixels_uncompressed: float
    pixels_decoded: float
    pixels_compressed: float


def measure(images: Sequence[Path], folder: Path, model: Fwd2BotModel, *, batch_size: int, repeats: int) -> Figures:
    """Index the pictures into ``folder`` and ask in every way."""
    index_images(images, folder, model)
    store = IndexStore.open(folder)
    uris = store.embeddings().rows.column("uri").to_pylist()
    decoded = [_decoded(model, uri) for uri in uris]
    base = Uncompressed(model)

    def from_tokens() -> None:
        with writing(folder):
            report = annotate(store, model, QUESTION, "answer", choices=CHOICES, again=True, batch_size=batch_size)
        assert report.answered == len(uris)

    def uncompressed(pictures: Sequence[Image.Image]) -> None:
        base.score_answers(pictures, [QUESTION] * len(pictures), ["yes"] * len(pictures))

    def from_files() -> None:
        for part in _parts(uris, batch_size):
            uncompressed([_decoded(model, uri) for uri in part])

    def from_pictures() -> None:
        for part in _parts(decoded, batch_size):
            uncompressed(part)

    def by_two_passes() -> None:
        for part in _parts(uris, batch_size):
            tokens = model.compress([_decoded(model, uri) for uri in part]).tokens
            model.loglikelihood(tokens, QUESTION, CHOICES)

    ways: list[Callable[[], None]] = [from_tokens, from_files, from_pictures, by_two_passes]
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats + 1):
        for way, taken in zip(ways, seconds, strict=True):
            started = time.perf_counter()
            way()
            taken.append(time.perf_counter() - started)
    speeds = [len(uris) / statistics.median(taken[1:]) for taken in seconds]
    return Figures(
        pictures=len(uris),
        tokens=speeds[0],
        pixels_uncompressed=speeds[1],
        pixels_decoded=speeds[2],
        pixels_compressed=speeds[3],
    )


def _decoded(model: Fwd2BotModel, uri: str) -> Image.Image:
    return decode_image(read_file(uri), max_side=model.decode_side).image


def _parts(whole: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(whole), size):
        yield whole[start : start + size]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fwd2bot_eval.bench_annotate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", type=Path, help="a folder of pictures")
    parser.add_argument("--limit", type=int, default=500, help="so many of them")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="as after `fwd2bot index --model`")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args(arguments)

    from fwd2bot_index.model import Fwd2BotModel

    model = Fwd2BotModel.from_pretrained(given.model)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(
            sorted(path for path in given.images.iterdir() if path.is_file())[: given.limit],
            Path(folder) / "index",
            model,
            batch_size=given.batch_size,
            repeats=given.repeats,
        )
    print(f"{figures.pictures} pictures, {QUESTION!r}, {' or '.join(CHOICES)}")
    for name, speed in asdict(figures).items():
        if name != "pictures":
            times = figures.tokens / speed
            print(f"{name.replace('_', ' '):<22}{speed:8.1f} images/s   tokens are {times:5.1f} times as fast")
    if given.json:
        given.json.write_text(json.dumps(asdict(figures), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
