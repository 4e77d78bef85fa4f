"""How fast and how well a corpus of any size is searched, by each kind of vector index, in one run.

    python -m fwd2bot_eval.bench_search --data DATA --rows 1000000 --folder /tmp/bench

Real embeddings grow to the size asked for: those of the photos in DATA/flickr8k/test.parquet, each plus a part of the
difference of two others, so that they spread as the photos do. They are written through the real store. Queries are the
embeddings of captions of those photos, as the model makes them (half), and grown pictures that are not in the corpus.

For each kind: seconds to build, bytes on disk, resident memory that opening adds; recall@10 of either kind of query
against comparing with all; milliseconds of one search by `Corpus` with names and columns resolved, and of the same
search by the vector index alone; recall@10 and milliseconds under conditions that leave 10, 1 and 0.1 % of the rows.
The index is left in the folder for the next time; delete it when you are done.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import numpy as np
import pyarrow as pa

from fwd2bot_index.checkpoints import DEFAULT_MODEL
from fwd2bot_index.config import Manifest
from fwd2bot_index.corpus import Corpus
from fwd2bot_index.searching import Choice, Searcher, build_vectors
from fwd2bot_index.store import ImageRow, IndexStore
from fwd2bot_index.vector_index import ExactIndex

if TYPE_CHECKING:
    from fwd2bot_index.model import Fwd2BotModel
    from fwd2bot_index.payloads import Float32

ROWS_PER_COMMIT = 50_000
SPREAD = 0.5
"""Of the difference of two others, that is added to each embedding."""
SHARES = (0.1, 0.01, 0.001)
_WIDTHS = 1000
TOP = 10


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one kind of index. Milliseconds are of one search on its own."""

    kind: str
    build_seconds: float
    index_bytes: int
    """On disk, besides the table."""
    opening_seconds: float
    resident_bytes: int
    """That opening added."""
    recall_texts: float
    recall_pictures: float
    p50_ms: float
    p99_ms: float
    raw_p50_ms: float
    """Of the vector index alone."""
    filtered_recall: dict[str, float]
    """By the share of rows that a condition leaves."""
    filtered_p50_ms: dict[str, float]


def grown(real: Float32, count: int, rng: np.random.Generator) -> Float32:
    """[count, E] of unit length, like ``real`` [n, E]."""
    one, two, three = (real[rng.integers(len(real), size=count)] for _ in range(3))
    made = one + SPREAD * (two - three)
    return cast("Float32", made / np.linalg.norm(made, axis=1, keepdims=True))


def make_index(folder: Path, real: Float32, rows: int, *, model: Manifest) -> IndexStore:
    """An index of grown embeddings without tokens; one that is there is taken."""
    if IndexStore.exists(folder):
        store = IndexStore.open(folder)
        if store.stats().files == rows:
            return store
        raise SystemExit(f"{folder} holds another number of rows: delete it, or give another folder.")
    store = IndexStore.create(folder, model)
    rng = np.random.default_rng(0)
    for start in range(0, rows, ROWS_PER_COMMIT):
        embeddings = grown(real, min(ROWS_PER_COMMIT, rows - start), rng).astype(np.float16)
        store.commit(
            [
                ImageRow(
                    uri=f"/photos/{i // 1000:06}/IMG_{i:09}.jpg",
                    id=hashlib.blake2b(str(i).encode(), digest_size=16).hexdigest(),
                    size=100_000,
                    mtime_ns=10**18,
                    width=1 + i % _WIDTHS,
                    height=480,
                    status="ok",
                    embedding=embedding,
                )
                for i, embedding in enumerate(embeddings, start=start)
            ],
            {},
        )
    store.optimize()
    return store


def measure(store: IndexStore, kind: Choice, texts: Float32, pictures: Float32) -> Figures:
    """Build one kind of index and search by it."""
    started = time.perf_counter()
    files = build_vectors(store, kind)
    build_seconds = time.perf_counter() - started
    before, started = _resident(), time.perf_counter()
    index = Corpus.open(store.place, model=_no_model)
    index.search_embedding(texts[0])
    opening_seconds, resident = time.perf_counter() - started, _resident() - before
    searcher = Searcher.of(store)
    every = np.concatenate([texts, pictures])

    def whole(query: Float32) -> object:
        hits = index.search_embedding(query, top=TOP)
        return hits, index.metadata(hits)

    layers, alone = _in_turn([whole, _alone(searcher)], every)
    truth = _truth(store, every)
    recall = _recall(searcher, every, truth)
    filtered_recall, filtered_ms = {}, {}
    for share in SHARES:
        where = f"width <= {round(share * _WIDTHS)}"
        allowed = _truth(store, every[:: max(1, len(every) // 20)], widths=round(share * _WIDTHS))
        some = every[:: max(1, len(every) // 20)]
        filtered_recall[str(share)] = float(_recall(searcher, some, allowed, where).mean())
        (times,) = _in_turn([lambda query, where=where: searcher.nearest(query, TOP, where=where)], some)  # type: ignore[misc]
        filtered_ms[str(share)] = float(np.median(times))
    return Figures(
        kind=kind,
        build_seconds=build_seconds,
        index_bytes=files.index_bytes if files is not None else 0,
        opening_seconds=opening_seconds,
        resident_bytes=resident,
        recall_texts=float(recall[: len(texts)].mean()),
        recall_pictures=float(recall[len(texts) :].mean()),
        p50_ms=float(np.median(layers)),
        p99_ms=float(np.quantile(layers, 0.99)),
        raw_p50_ms=float(np.median(alone)),
        filtered_recall=filtered_recall,
        filtered_p50_ms=filtered_ms,
    )


def _alone(searcher: Searcher) -> Callable[[Float32], object]:
    """The same search without names: what the layer above costs is the difference."""
    return lambda query: searcher.alone(query, TOP)


def _in_turn(searches: Sequence[Callable[[Float32], object]], queries: Float32) -> list[list[float]]:
    """Milliseconds of each search of each query, one after another, after a round that is not counted."""
    times: list[list[float]] = [[] for _ in searches]
    for query in [queries[0], *queries]:
        for search, taken in zip(searches, times, strict=True):
            started = time.perf_counter()
            search(query)
            taken.append((time.perf_counter() - started) * 1e3)
    return [taken[1:] for taken in times]


def _truth(store: IndexStore, queries: Float32, *, widths: int = _WIDTHS) -> Float32:
    """[Q, TOP]: the best scores of rows up to that width. Read piece by piece: ten million do not fit twice."""
    best = np.full((len(queries), TOP), -np.inf, np.float32)
    for fragment in store.image_fragments(["width", "embedding"]):
        for batch in fragment.batches():
            chosen = np.flatnonzero(batch.column("width").to_numpy() <= widths)
            column = batch.column("embedding").take(pa.array(chosen))
            embeddings = column.flatten().to_numpy(zero_copy_only=False).reshape(len(chosen), -1)
            _, scores = ExactIndex(embeddings).search(queries, TOP)
            best = -np.sort(-np.concatenate([best, scores], axis=1), axis=1)[:, :TOP]
    return best


def _recall(searcher: Searcher, queries: Float32, truth: Float32, where: str | None = None) -> Float32:
    """[Q]"""
    found = []
    for query, best in zip(queries, truth, strict=True):
        scores, best = searcher.nearest(query, TOP, where=where)[1], best[np.isfinite(best)]
        found.append((scores >= best[-1] - 1e-4).sum() / len(best) if len(best) else 1.0)
    return np.array(found, np.float32)


def _resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _no_model() -> Fwd2BotModel:
    raise AssertionError("embeddings are given")


def real_embeddings(data: Path, model: Fwd2BotModel, captions: int) -> tuple[Float32, Float32]:
    """Of the photos of Flickr8k's test part, and of one caption each of the first so many."""
    import pyarrow.parquet as pq

    table = pq.read_table(data / "flickr8k" / "test.parquet")
    images = [cell["bytes"] if isinstance(cell, dict) else cell for cell in table.column("image").to_pylist()]
    texts = [found[0] for found in table.column("captions").to_pylist()[:captions]]

    def batches() -> Iterator[Float32]:
        for start in range(0, len(images), 64):
            yield model.compress(images[start : start + 64]).embedding.numpy()

    return np.concatenate(list(batches())), model.embed_text(texts).numpy()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fwd2bot_eval.bench_search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds flickr8k/test.parquet")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200, help="captions, and as many pictures")
    parser.add_argument("--folder", type=Path, required=True, help="for the index")
    parser.add_argument("--kinds", nargs="+", choices=get_args(Choice), default=["exact", "ivf", "ivf-rabitq"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args(arguments)

    from fwd2bot_index.model import Fwd2BotModel

    model = Fwd2BotModel.from_pretrained(DEFAULT_MODEL, device="cpu")
    real, texts = real_embeddings(given.data, model, given.queries)
    manifest = Manifest(
        model="bench",
        model_revision=None,
        model_fingerprint="bench",
        mode="trained",
        num_summary_tokens=1,
        token_dim=2,
        embedding_dim=real.shape[1],
        codec="int8",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    store = make_index(given.folder / f"{given.rows}.fwd2bot", real, given.rows, model=manifest)
    pictures = grown(real, len(texts), np.random.default_rng(1))
    print(
        f"{given.rows} rows of {real.shape[1]} numbers, {len(texts)} captions and {len(pictures)} pictures as queries"
    )
    print(_HEADER)
    figures = []
    for kind in given.kinds:
        figures.append(measure(store, kind, texts, pictures))
        print(_line(figures[-1]), flush=True)
    if given.json:
        given.json.write_text(json.dumps([asdict(f) for f in figures], indent=2) + "\n", encoding="utf-8")


_HEADER = (
    "| kind | build s | on disk MiB | open s | memory MiB | recall@10 captions / pictures | p50 ms | p99 ms "
    "| index alone p50 ms | under conditions: share: recall@10, p50 ms |\n|---|---|---|---|---|---|---|---|---|---|"
)


def _line(f: Figures) -> str:
    under = "; ".join(f"{s}: {r:.3f}, {f.filtered_p50_ms[s]:.1f}" for s, r in f.filtered_recall.items())
    return (
        f"| {f.kind} | {f.build_seconds:.1f} | {f.index_bytes / 2**20:.0f} | {f.opening_seconds:.2f} "
        f"| {f.resident_bytes / 2**20:.0f} | {f.recall_texts:.3f} / {f.recall_pictures:.3f} | {f.p50_ms:.2f} "
        f"| {f.p99_ms:.2f} | {f.raw_p50_ms:.2f} | {under} |"
    )


if __name__ == "__main__":
    main()
