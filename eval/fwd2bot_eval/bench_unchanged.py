"""How long `fwd2bot index` takes on folders in which nothing has changed, against nothing but listing them.

    python -m fwd2bot_eval.bench_unchanged --files 1000000 --folder /tmp/bench

Makes a tree of empty files named as pictures (1,000 in a folder), writes rows for them through the store, and then runs
both in turn, in this process. The tree is left for the next time; delete the folder when you are done.
"""

from __future__ import annotations

import argparse
import os
import resource
import stat
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from fwd2bot_index.config import Manifest
from fwd2bot_index.indexing import index_images
from fwd2bot_index.listing import list_files
from fwd2bot_index.store import ImageRow, IndexStore
from fwd2bot_index.types import Compressor, ModelIdentity

FILES_PER_FOLDER = 1000
ROWS_PER_COMMIT = 50_000
K, D, E = 1, 2, 256
CODEC = "int8"
IDENTITY = ModelIdentity(name="bench", revision=None, fingerprint="bench")


def make_tree(root: Path, files: int) -> None:
    """Empty files; those that are there stay."""
    for start in range(0, files, FILES_PER_FOLDER):
        folder = root / f"{start // FILES_PER_FOLDER:05}"
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(start, min(files, start + FILES_PER_FOLDER)):
            os.close(os.open(folder / f"IMG_{i:08}.jpg", os.O_CREAT | os.O_WRONLY))


def make_index(index: Path, root: Path) -> None:
    """An index that knows every file of the tree."""
    manifest = Manifest(
        model=IDENTITY.name,
        model_revision=None,
        model_fingerprint=IDENTITY.fingerprint,
        mode="trained",
        num_summary_tokens=K,
        token_dim=D,
        embedding_dim=E,
        codec=CODEC,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    store = IndexStore.create(index, manifest)
    listing = list_files([root])
    embedding = np.full(E, E**-0.5, np.float16)
    rows = [
        ImageRow(uri=uri, id=f"{i:032x}", size=s, mtime_ns=t, width=8, height=8, status="ok", embedding=embedding)
        for i, (uri, s, t) in enumerate(zip(listing.uris, listing.sizes, listing.mtimes_ns, strict=True))
    ]
    for start in range(0, len(rows), ROWS_PER_COMMIT):
        store.commit(rows[start : start + ROWS_PER_COMMIT], {})


def bare_listing(root: Path) -> int:
    """Names, sizes and times of all files, and nothing else."""
    waiting, found = [str(root)], 0
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                status = entry.stat()
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(entry.path)
                else:
                    found += 1
    return found


def unchanged(index: Path, root: Path) -> int:
    """The files that a run of ``index`` recognises."""

    def load() -> Compressor:
        raise AssertionError("nothing has changed, so no model is needed")

    return index_images([root], index, load, model_identity=IDENTITY, codec=CODEC).unchanged


def _timed(run: Callable[[], int]) -> tuple[float, int]:
    started = time.perf_counter()
    count = run()
    return time.perf_counter() - started, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    root, index = arguments.folder / f"tree-{arguments.files}", arguments.folder / f"index-{arguments.files}"
    if not IndexStore.exists(index):
        make_tree(root, arguments.files)
        make_index(index, root)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    listings, runs = [], []
    for _ in range(arguments.rounds):
        seconds, count = _timed(lambda: bare_listing(root))
        assert count == arguments.files
        listings.append(seconds)
        seconds, count = _timed(lambda: unchanged(index, root))
        assert count == arguments.files
        runs.append(seconds)
    listing, run = statistics.median(listings), statistics.median(runs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"files: {arguments.files}")
    print(f"listing: {listing:.2f} s (median of {arguments.rounds})")
    print(f"index, unchanged: {run:.2f} s (median of {arguments.rounds}), {run / listing:.2f} times the listing")
    print(f"peak memory: {peak / 1024:.0f} MiB (before the runs {before / 1024:.0f} MiB)")


if __name__ == "__main__":
    main()
