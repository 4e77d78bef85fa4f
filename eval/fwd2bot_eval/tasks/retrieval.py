"""Text to image and image to text among all pictures of a set: the published R@k.

Exact, over every pair. A tie counts against the model, and of several captions of a picture the best one counts. Where
pictures have categories (nocaps' domains), each is searched for among all pictures, not among its category's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from fwd2bot_eval.metrics import RESAMPLES, estimate, ranks_of
from fwd2bot_eval.results import Estimate, Summary, Table
from fwd2bot_eval.runs import Chunk, Record, Records
from fwd2bot_eval.scorers import COSINE
from fwd2bot_eval.subjects import Float32, Seen, Subject
from fwd2bot_eval.tasks.captioned import Captioned, captioned
from fwd2bot_eval.tasks.files import chunked, placed
from fwd2bot_eval.tasks.notes import coverage_notes
from fwd2bot_eval.tasks.options import TaskOptions
from fwd2bot_eval.tasks.vqa_base import ALL
from fwd2bot_index.errors import ModelError

CUTOFFS: Final = (1, 5, 10)
MEDIAN: Final = "median rank"
_IMAGE: Final = "image"
_TEXT: Final = "text"
_IS_TEXT: Final = "is text"
_BLOCK: Final = 2**22
"""Numbers of resampled ranks that are in memory at once."""


class Retrieval:
    """R@1, R@5 and R@10 both ways, as for Flickr30k and COCO (Karpathy and Fei-Fei 2015, arXiv 1412.2306).

    ``DIR``: as :func:`fwd2bot_eval.tasks.captioned.captioned` reads it. Embeddings only: numbers of summary tokens
    make no difference.

    Raises:
        InputError: a file is missing, a row is malformed, or pictures are missing without ``allow_missing``.
    """

    name = "retrieval"

    def __init__(self, options: TaskOptions) -> None:
        source = captioned(options)
        self.data = str(options.data)
        self.signature = source.signature(options)
        self.settings = options.settings
        self._source = source
        self._limit = options.limit
        self.total = sum(1 for _ in source.read(False))

    def chunks(self) -> Iterator[Chunk[Captioned]]:
        return chunked((([picture]), partial(placed, items)) for picture, items in self._source.read(True))

    def measure(self, subject: Subject, seen: Seen | None, items: Sequence[Captioned]) -> list[Record]:
        """A record with each picture's embedding, followed by one with each of its captions'.

        Raises:
            ModelError: an embedding is not a number. Nothing compares as better than NaN, so its rank would be 1.
        """
        assert seen is not None
        embedded = subject.embed_text([text for item in items for text in item.references])
        records: list[Record] = []
        start = 0
        for item in items:
            own = embedded[start : start + len(item.references)]
            start += len(own)
            records.append(_record(item, f"picture:{item.id}", _IMAGE, seen.embedding[item.rows[0]]))
            records += [
                _record(item, f"text:{item.id}:{n}", _TEXT, vector, caption=item.references[n])
                for n, vector in enumerate(own)
            ]
        return records

    def summarise(self, records: Records) -> Summary:
        images, texts = records.vectors(_IMAGE), records.vectors(_TEXT)
        is_text = records.numbers(_IS_TEXT) > 0
        # by row, not by key: a picture that is in the set twice has captions of its own each time
        picture_of_text: list[int] = []
        captions_of: dict[int, list[int]] = defaultdict(list)
        categories: list[str] = []
        clusters: list[str] = []
        for said, cluster, category in zip(is_text, records.clusters, records.categories, strict=True):
            if said:
                captions_of[len(categories) - 1].append(len(picture_of_text))
                picture_of_text.append(len(categories) - 1)
            else:
                categories.append(category)
                clusters.append(cluster)
        to_image = ranks_of(texts, images, [[i] for i in picture_of_text])
        to_text = ranks_of(images, texts, [captions_of[i] for i in range(len(images))])
        counts = [len(captions_of[i]) for i in range(len(images))]
        text_categories = [categories[i] for i in picture_of_text]
        text_clusters = [clusters[i] for i in picture_of_text]
        tables = [
            _table(
                "text -> image",
                to_image,
                text_categories,
                text_clusters,
                {k: np.full(len(texts), min(1.0, k / len(images))) for k in CUTOFFS},
                f"{len(texts)} captions among {len(images)} pictures.",
            ),
            _table(
                "image -> text",
                to_text,
                categories,
                clusters,
                {k: np.array([_chance(len(texts), c, k) for c in counts]) for k in CUTOFFS},
                f"{len(images)} pictures among {len(texts)} captions.",
            ),
        ]
        return Summary(tables=tables, notes=coverage_notes(len(images), self.total, self._limit))


def _chance(texts: int, right: int, k: int) -> float:
    """That one of ``right`` captions is among the first ``k`` of ``texts`` in random order."""
    if k > texts - right:
        return 1.0
    return 1.0 - math.comb(texts - right, k) / math.comb(texts, k)


def _record(item: Captioned, name: str, kind: str, vector: Float32, *, caption: str | None = None) -> Record:
    if not np.isfinite(vector).all():
        raise ModelError(f"The model's embedding of {name} ({item.where}) is not a number.")
    return Record(
        item=name,
        cluster=item.cluster,
        category=item.category,
        numbers={_IS_TEXT: float(kind == _TEXT)},
        texts={} if caption is None else {"caption": caption},
        vectors={kind: vector},
    )


def _table(
    title: str,
    ranks: npt.NDArray[np.int64],
    categories: Sequence[str],
    clusters: Sequence[str],
    chance: dict[int, npt.NDArray[np.float64]],
    explanation: str,
) -> Table:
    """Of queries: their ranks, categories, clusters and, by cutoff, chances [Q]."""
    rows: dict[str, dict[str, Estimate]] = {}
    expected: dict[str, float] = {}
    names = sorted(set(categories))
    for name in [ALL, *(names if len(names) > 1 else [])]:
        inside = np.array([name in (ALL, c) for c in categories])
        own = [c for c, i in zip(clusters, inside, strict=True) if i]
        suffix = "" if name == ALL else f", {name}"
        for k in CUTOFFS:
            rows[f"R@{k}{suffix}"] = {COSINE: estimate((ranks[inside] <= k).astype(np.float64), own)}
            expected[f"R@{k}{suffix}"] = float(chance[k][inside].mean())
        rows[MEDIAN + suffix] = {COSINE: median_estimate(ranks[inside], own)}
    return Table(title=title, row_header="score", columns=[COSINE], rows=rows, chance=expected, explanation=explanation)


def median_estimate(values: npt.NDArray[np.int64], clusters: Sequence[str], *, seed: int = 0) -> Estimate:
    """The median of ``values`` [items] with its 95 % interval, by the same bootstrap over ``clusters`` [items] as
    :func:`fwd2bot_eval.metrics.estimate`, which a median is no case of: sums do not give it. One cluster has none."""
    order = np.argsort(values, kind="stable")
    ranked = np.asarray(values, np.float64)[order]
    names, places = np.unique(np.asarray(clusters), return_inverse=True)
    places = places[order]
    rng = np.random.default_rng(seed)
    drawn: list[npt.NDArray[np.float64]] = []
    step = max(1, _BLOCK // len(ranked))
    for start in range(0, RESAMPLES, step):
        count = min(step, RESAMPLES - start)
        weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=count)
        upto = weights[:, places].cumsum(axis=1)
        half = upto[:, -1:] / 2
        # of an even number of items, halfway between the two in the middle
        drawn.append((ranked[(upto >= half).argmax(axis=1)] + ranked[(upto > half).argmax(axis=1)]) / 2)
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975]) if len(names) > 1 else (np.nan, np.nan)
    return Estimate(
        value=float(np.median(ranked)), low=float(low), high=float(high), items=len(ranked), clusters=len(names)
    )
