"""How the cost of an index grows with its corpus: 10^4 pictures and more, simulated, through the real store.

    python -m fwd2bot_eval.bench_scale --folder /tmp/scale --rows 10000 100000 1000000 --plot docs/scaling.png

One index grows from size to size. Its summary tokens and embeddings are random numbers of the bundled model's shape (16
tokens of 192 numbers, through the codec ``pq8``; embeddings of 192): nothing that is measured here looks at what they
mean. (While it grows, the payloads of 4,096 pictures are written again and again.) At each size, in medians:

- *bytes* on disk of tokens and of all else, a picture;
- *commit*: ``COMMIT`` new pictures more, as an indexing run writes them every ten seconds: their tokens, encoded, and
  their rows in the table of pictures;
- *start*: what a run over a folder that has not changed reads first, the names of all files; and the memory it takes;
- *take*: the summary tokens of the ten pictures of a page of results, by their ids, decoded;
- *optimize*: one ``fwd2bot optimize`` after those commits;
- *resident*: the largest size of a fresh process that opens the index and does the above but for growing.

Each size is measured in a process of its own. The index stays in the folder, so that a run that was stopped goes on;
delete it when you are done.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

import fwd2bot_index.store
from fwd2bot_index.codec import fit_codec
from fwd2bot_index.config import DEFAULT_CODEC, Manifest
from fwd2bot_index.store import ImageRow, IndexStore, writing

if TYPE_CHECKING:
    import numpy.typing as npt

    from fwd2bot_index.codec import Codec
    from fwd2bot_index.payloads import Float32

TOKENS, DIM = 16, 192
"""Of the bundled model; its embeddings are of ``DIM`` too."""
ROWS_PER_COMMIT = 50_000
"""While growing."""
COMMIT = 500
"""Pictures: what ten seconds of indexing with the bundled model on two cores come to."""
PAGE = 10
POOL = 4096
REPEATS = 9


@dataclass(frozen=True, kw_only=True)
class Commit:
    """Of one commit: encoding and writing tokens, and writing the table of pictures."""

    tokens_seconds: float
    images_seconds: float


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one size. Seconds are medians."""

    pictures: int
    token_bytes: float
    """On disk, a picture."""
    other_bytes: float
    grow_rows_per_second: float | None
    """Simulating them included; None where they were there already."""
    commit_tokens_seconds: float
    """Encoding included."""
    commit_images_seconds: float
    start_seconds: float
    start_bytes: int
    """Resident memory that the names of all files take."""
    take_seconds: float
    take_cold_seconds: float
    """The first time in a process."""
    optimize_seconds: float
    peak_bytes: int


class _Pool:
    """A codec that encodes ``POOL`` pictures once and then gives their payloads again: it would take hours else, and
    the store never looks into a payload. For growing; what is measured is encoded."""

    def __init__(self, codec: Codec) -> None:
        self._pool = codec.encode(np.random.default_rng(0).standard_normal((POOL, TOKENS, DIM), np.float32))
        self._next = 0
        self.payload_bytes = codec.payload_bytes

    def encode(self, tokens: Float32) -> npt.NDArray[np.uint8]:
        chosen = np.arange(self._next, self._next + len(tokens)) % POOL
        self._next += len(tokens)
        return self._pool[chosen]


def new_index(folder: Path) -> IndexStore:
    """An empty index with a codec that was fitted to random tokens."""
    manifest = Manifest(
        model="simulated",
        model_revision=None,
        model_fingerprint="simulated",
        mode="trained",
        num_summary_tokens=TOKENS,
        token_dim=DIM,
        embedding_dim=DIM,
        codec=DEFAULT_CODEC,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    sample = np.random.default_rng(0).normal(size=(256, TOKENS, DIM)).astype(np.float32)
    return IndexStore.create(folder, manifest, fit_codec(DEFAULT_CODEC, sample))


def add(store: IndexStore, start: int, count: int) -> Commit:
    """Commit the pictures ``start``, ``start + 1``, ..."""
    rng = np.random.default_rng(start)
    tokens = np.broadcast_to(rng.standard_normal((TOKENS, DIM), np.float32), (count, TOKENS, DIM))
    embeddings = rng.standard_normal((count, DIM), np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    rows = [
        ImageRow(
            uri=f"/photos/{i // 1000:07}/IMG_{i:010}.jpg",
            id=picture_id(i),
            size=100_000,
            mtime_ns=10**18 + i,
            width=640,
            height=480,
            status="ok",
            embedding=embedding,
        )
        for i, embedding in enumerate(embeddings.astype(np.float16), start=start)
    ]
    started = time.perf_counter()
    store.commit([], {row.id: each for row, each in zip(rows, tokens, strict=True) if row.id is not None})
    between = time.perf_counter()
    store.commit(rows, {})
    return Commit(tokens_seconds=between - started, images_seconds=time.perf_counter() - between)


def picture_id(i: int) -> str:
    return hashlib.blake2b(str(i).encode(), digest_size=16).hexdigest()


def grow(store: IndexStore, rows: int) -> float | None:
    """Pictures/s; None: there are so many already."""
    there = first = store.stats().files
    store._codec = cast("Codec", _Pool(store._codec))
    started = time.perf_counter()
    while there < rows:
        count = min(ROWS_PER_COMMIT, rows - there)
        with writing(store.place):
            add(store, there, count)
        there += count
        print(f"{there:,} of {rows:,} pictures", end="\r", file=sys.stderr, flush=True)
    if there == first:
        return None
    speed = (there - first) / (time.perf_counter() - started)
    fwd2bot_index.store.KEEP_VERSIONS = timedelta(0)  # type: ignore[misc]  # so that sizes are those of one version
    with writing(store.place):
        IndexStore.open(store.place).optimize()
    return speed


def measure(folder: Path, rows: int) -> Figures:
    """Let the index grow to ``rows`` pictures in a process of its own, and measure it in this one."""
    speed = json.loads(_python("grow", folder, rows))
    store = IndexStore.open(folder)
    stats = store.stats()
    files = stats.files
    rng = np.random.default_rng(1)

    def take() -> object:
        return store.tokens([picture_id(int(i)) for i in rng.choice(rows, PAGE, replace=False)])

    cold = _seconds(take)
    taken = [_seconds(take) for _ in range(20 * REPEATS)]
    before = _resident()
    started = time.perf_counter()
    known = store.known_files()
    start_seconds, start_bytes = time.perf_counter() - started, _resident() - before
    assert len(known) == files
    del known
    with writing(folder):
        commits = [add(store, files + i * COMMIT, COMMIT) for i in range(REPEATS)]
        optimize_seconds = _seconds(store.optimize)
        store.remove([row.uri for row in store.rows(ids=[picture_id(files + i) for i in range(REPEATS * COMMIT)])])
    return Figures(
        pictures=files,
        token_bytes=stats.tokens_bytes / files,
        other_bytes=(stats.total_bytes - stats.tokens_bytes) / files,
        grow_rows_per_second=speed,
        commit_tokens_seconds=statistics.median(c.tokens_seconds for c in commits),
        commit_images_seconds=statistics.median(c.images_seconds for c in commits),
        start_seconds=start_seconds,
        start_bytes=start_bytes,
        take_seconds=statistics.median(taken),
        take_cold_seconds=cold,
        optimize_seconds=optimize_seconds,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _python(step: str, folder: Path, rows: int) -> str:
    command = [sys.executable, "-m", "fwd2bot_eval.bench_scale", "--folder", str(folder), "--step", step]
    return subprocess.run([*command, "--rows", str(rows)], stdout=subprocess.PIPE, check=True, text=True).stdout


def _seconds(what: Callable[[], object]) -> float:
    started = time.perf_counter()
    what()
    return time.perf_counter() - started


def _resident() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def plot(figures: Sequence[Figures], path: Path) -> None:
    """Seconds and bytes against the number of pictures, both on logarithmic axes."""
    from matplotlib.figure import Figure

    n = [f.pictures for f in figures]
    figure = Figure(figsize=(11.2, 4.2), layout="constrained")
    seconds, size = figure.subplots(1, 2)
    for name, values in {
        f"commit of {COMMIT} pictures: tokens": [f.commit_tokens_seconds for f in figures],
        f"commit of {COMMIT} pictures: rows": [f.commit_images_seconds for f in figures],
        "start of a run": [f.start_seconds for f in figures],
        f"tokens of {PAGE} pictures": [f.take_seconds for f in figures],
        "optimize": [f.optimize_seconds for f in figures],
    }.items():
        seconds.plot(n, values, marker="o", markersize=4, label=name)
    for name, values in {
        "index on disk": [f.pictures * (f.token_bytes + f.other_bytes) / 2**20 for f in figures],
        "names of all files, in memory": [max(f.start_bytes, 2**20) / 2**20 for f in figures],
        "peak of a process": [f.peak_bytes / 2**20 for f in figures],
    }.items():
        size.plot(n, values, marker="o", markersize=4, label=name)
    for axes, unit in ((seconds, "seconds"), (size, "MiB")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("pictures")
        axes.set_ylabel(unit)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


_HEADER = (
    "| pictures | tokens, bytes each | all else, bytes each | growing, pictures/s | commit of 500: tokens + rows, s "
    "| start of a run, s | names in memory, MiB | tokens of 10, ms (first) | optimize, s | peak, MiB |\n"
    + 10 * "|---"
    + "|"
)


def _line(f: Figures) -> str:
    speed = "" if f.grow_rows_per_second is None else f"{f.grow_rows_per_second:,.0f}"
    return (
        f"| {f.pictures:,} | {f.token_bytes:,.0f} | {f.other_bytes:,.0f} | {speed} "
        f"| {f.commit_tokens_seconds:.2f} + {f.commit_images_seconds:.2f} | {f.start_seconds:.2f} "
        f"| {f.start_bytes / 2**20:,.0f} | {f.take_seconds * 1e3:.1f} ({f.take_cold_seconds * 1e3:.0f}) "
        f"| {f.optimize_seconds:.1f} | {f.peak_bytes / 2**20:,.0f} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fwd2bot_eval.bench_scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, required=True, help="for the index")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="sizes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="figures, added to those that are there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="of all that --json holds")
    parser.add_argument("--step", choices=["grow", "measure"], help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    index = given.folder / "simulated.fwd2bot" if given.step is None else given.folder
    match given.step:
        case "grow":
            store = IndexStore.open(index) if IndexStore.exists(index) else new_index(index)
            print(json.dumps(grow(store, given.rows[0])))
            return
        case "measure":
            print(json.dumps(asdict(measure(index, given.rows[0]))))
            return
    given.folder.mkdir(parents=True, exist_ok=True)
    known = json.loads(given.json.read_text(encoding="utf-8")) if given.json and given.json.exists() else []
    figures = {f["pictures"]: Figures(**f) for f in known}
    print(_HEADER)
    for rows in sorted(given.rows):
        found = Figures(**json.loads(_python("measure", index, rows)))
        figures[found.pictures] = found
        print(_line(found), flush=True)
        if given.json:
            ordered = [asdict(figures[n]) for n in sorted(figures)]
            given.json.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")
    if given.plot:
        plot([figures[n] for n in sorted(figures)], given.plot)


if __name__ == "__main__":
    main()
