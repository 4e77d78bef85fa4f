"""From which cosine two embeddings are those of one picture, and how long `fwd2bot dedup` takes to look for them.

    python -m fwd2bot_eval.bench_dedup ../shared/data/photos
    python -m fwd2bot_eval.bench_dedup --rows 100000

The first makes near copies of every picture of a folder, indexes all, and counts for each threshold how many copies
reach it with their originals (recall) and how many pairs of different originals do (false pairs). The second plants
copies among random embeddings, times how long they take to be found, and checks that just they are.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, ImageEnhance

from fwd2bot_index.checkpoints import DEFAULT_MODEL
from fwd2bot_index.decoding import decode_image, read_file
from fwd2bot_index.duplicates import find_duplicates
from fwd2bot_index.indexing import index_images
from fwd2bot_index.store import EmbeddedRows, IndexStore
from fwd2bot_index.types import Compressor

Float32: TypeAlias = npt.NDArray[np.float32]

THRESHOLDS = (0.9, 0.95, 0.97, 0.98, 0.985, 0.99, 0.9925, 0.995, 0.9975, 0.999)
QUALITY = 90
"""Of the JPEG files that copies are, but for those of lower quality."""


@dataclass(frozen=True)
class Kind:
    """A way of making a near copy."""

    name: str
    edit: Callable[[Image.Image], Image.Image]
    quality: int = QUALITY


def _half(image: Image.Image) -> Image.Image:
    return image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.LANCZOS)


def _cropped(image: Image.Image) -> Image.Image:
    return image.crop((round(0.03 * image.width), round(0.03 * image.height), image.width, image.height))


def _brighter(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.1)


KINDS = (
    Kind("JPEG 60", lambda image: image, quality=60),
    Kind("half size", _half),
    Kind("3 % cropped", _cropped),
    Kind("10 % brighter", _brighter),
)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a threshold finds."""

    threshold: float
    recall: Mapping[str, float]
    """Kind of copy -> share of them that reach the threshold with their originals."""
    false_pairs: int
    """Pairs of different originals that do."""


def measure_thresholds(
    images: Path, folder: Path, model: Compressor, thresholds: Sequence[float] = THRESHOLDS
) -> tuple[int, list[Counts]]:
    """How many originals there are, and what each threshold finds.

    Args:
        images: what is indexed: a folder of different pictures; the same bytes count once.
        folder: an empty one, for the copies and the index.
    """
    index, copies = folder / "index", folder / "copies"
    index_images([images], index, model)
    rows = IndexStore.open(index).embeddings()
    one_of_each = {rows.row(i)[1]: rows.row(i)[0] for i in range(len(rows))}  # by content
    originals = sorted(one_of_each.values())
    for kind in KINDS:
        (copies / kind.name).mkdir(parents=True)
    for i, uri in enumerate(originals):
        image = decode_image(read_file(uri)).image
        for kind in KINDS:
            kind.edit(image).save(copies / kind.name / f"{i}.jpg", quality=kind.quality)
    index_images([images, copies], index, model)

    rows = IndexStore.open(index).embeddings()
    place = {uri: i for i, uri in enumerate(rows.rows.column("uri").to_pylist())}
    embedding = rows.embedding.astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    of_originals = embedding[[place[uri] for uri in originals]]
    with_originals = {
        kind.name: np.einsum("ne,ne->n", of_originals, embedding[_places(place, copies / kind.name, len(originals))])
        for kind in KINDS
    }
    return len(originals), [
        Counts(
            threshold=threshold,
            recall={name: float((cosines >= threshold).mean()) for name, cosines in with_originals.items()},
            false_pairs=_pairs_from(of_originals, threshold),
        )
        for threshold in thresholds
    ]


def _places(place: Mapping[str, int], folder: Path, count: int) -> list[int]:
    return [place[str(folder / f"{i}.jpg")] for i in range(count)]


def _pairs_from(unit: Float32, threshold: float) -> int:
    """How many pairs of different rows have at least that cosine."""
    return sum(int((unit[i] @ unit[i + 1 :].T >= threshold).sum()) for i in range(len(unit)))


@dataclass(frozen=True, kw_only=True)
class SearchFigures:
    rows: int
    planted: int
    """Copies among them."""
    seconds: float
    before_bytes: int
    """Peak memory before the search, the embeddings included ..."""
    peak_bytes: int
    """... and after it."""


def measure_search(count: int, *, dim: int = 192, copies: float = 0.02, seed: int = 0) -> SearchFigures:
    """Find copies planted among random embeddings: half of them the same, half of them at a cosine of 0.995 and more.

    Raises:
        AssertionError: something else was found.
    """
    rng = np.random.default_rng(seed)
    planted = int(count * copies)
    embedding = np.empty((count, dim), np.float16)
    for start in range(0, count, 2**16):
        part = rng.normal(size=(min(2**16, count - start), dim))
        embedding[start : start + 2**16] = part / np.linalg.norm(part, axis=1, keepdims=True)
    places = rng.permutation(count)
    of, at = places[:planted], places[planted : 2 * planted]
    noise = rng.normal(size=(planted, dim)) * 0.09 / np.sqrt(dim)
    noise[: planted // 2] = 0
    embedding[at] = embedding[of] + noise
    rows = EmbeddedRows(_table(count), embedding)

    before = _peak_bytes()
    started = time.perf_counter()
    groups = find_duplicates(rows, threshold=0.99)
    seconds = time.perf_counter() - started
    found = {frozenset((group.kept.uri, *(copy.file.uri for copy in group.copies))) for group in groups}
    assert found == {frozenset((_uri(a), _uri(b))) for a, b in zip(of, at, strict=True)}
    return SearchFigures(rows=count, planted=planted, seconds=seconds, before_bytes=before, peak_bytes=_peak_bytes())


def _uri(i: int) -> str:
    return f"/photos/{i:08}.jpg"


def _table(count: int) -> Any:
    """Rows of files that are all as good."""
    same = pa.array(np.full(count, 1000))
    columns: dict[str, Any] = {"uri": [_uri(i) for i in range(count)], "id": [f"{i:032x}" for i in range(count)]}
    return pa.table({**columns, **dict.fromkeys(("size", "mtime_ns", "width", "height"), same)})


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fwd2bot_eval.bench_dedup",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("images", type=Path, nargs="?", help="a folder of pictures, all different")
    what.add_argument("--rows", type=int, metavar="N", help="look for copies among N random embeddings instead")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="as after `fwd2bot index --model`")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args(arguments)
    figures: dict[str, Any]
    if given.rows is not None:
        search = measure_search(given.rows)
        before, peak = search.before_bytes / 2**20, search.peak_bytes / 2**20
        print(f"{search.rows} rows, {search.planted} copies: {search.seconds:.1f} s")
        print(f"peak memory: {peak:.0f} MiB (before the search {before:.0f} MiB)")
        figures = asdict(search)
    else:
        from fwd2bot_index.model import Fwd2BotModel

        with tempfile.TemporaryDirectory() as folder:
            originals, counts = measure_thresholds(
                given.images, Path(folder).resolve(), Fwd2BotModel.from_pretrained(given.model)
            )
        print(_report(originals, counts))
        figures = {"originals": originals, "thresholds": [asdict(c) for c in counts]}
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _report(originals: int, counts: Sequence[Counts]) -> str:
    """A table in Markdown."""
    names = [kind.name for kind in KINDS]
    lines = [
        f"{originals} originals, {originals * (originals - 1) // 2} pairs of them; share of the copies found, by kind",
        "",
        " | ".join(["| threshold", *names, "false pairs |"]),
        "|---" * (len(names) + 2) + "|",
    ]
    lines += [
        " | ".join([f"| {c.threshold:.4f}", *(f"{c.recall[name]:.3f}" for name in names), f"{c.false_pairs} |"])
        for c in counts
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
