"""Seconds and peak memory of `fwd2bot verify` and `fwd2bot optimize`, as an index grows.

    python -m fwd2bot_eval.bench_integrity --rows 10000 --rows 100000

Writes indexes of random tokens (16 x 192, int8: 3 KB a picture) through the store, 1,000 rows a commit, and runs each
command on them in a process of its own, twice; the first `verify` is of the scattered index. Memory is that of the
process at its peak, beside what `fwd2bot info` takes, which is mostly libraries.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from fwd2bot_index.config import Manifest
from fwd2bot_index.store import ImageRow, IndexStore

K, D, E = 16, 192, 192
ROWS_PER_COMMIT = 1000
COMMANDS = ("info", "verify", "optimize", "verify", "optimize")


def make_index(folder: Path, rows: int, seed: int = 0) -> None:
    """``rows`` pictures of random tokens."""
    manifest = Manifest(
        model="bench",
        model_revision=None,
        model_fingerprint="bench",
        mode="trained",
        num_summary_tokens=K,
        token_dim=D,
        embedding_dim=E,
        codec="int8",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    store, random = IndexStore.create(folder, manifest), np.random.default_rng(seed)
    for start in range(0, rows, ROWS_PER_COMMIT):
        numbers = range(start, min(rows, start + ROWS_PER_COMMIT))
        vectors = random.normal(size=(len(numbers), E))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        tokens = random.normal(size=(len(numbers), K, D)).astype(np.float32)
        store.commit(
            [
                ImageRow(
                    uri=f"/pictures/{n // 1000:06}/{n:09}.jpg",
                    id=f"{n:032x}",
                    size=n,
                    mtime_ns=n,
                    width=640,
                    height=480,
                    status="ok",
                    embedding=vector.astype(np.float16),
                )
                for n, vector in zip(numbers, vectors, strict=True)
            ],
            {f"{n:032x}": token for n, token in zip(numbers, tokens, strict=True)},
        )


_RUN = """
import sys
from fwd2bot_cli.main import main
code = main(sys.argv[1:])
# what wait4 tells of a child is no less than what its parent took
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")), file=sys.stderr)
sys.exit(code)
"""


def measure(command: str, index: Path) -> tuple[float, float]:
    """Seconds, and peak MiB, of a command in a process of its own (Linux).

    Raises:
        RuntimeError: it failed.
    """
    started = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-P", "-c", _RUN, command, "--index", str(index), "--json"], capture_output=True, text=True
    )
    if process.returncode:
        raise RuntimeError(f"fwd2bot {command} failed with {process.returncode}: {process.stderr}")
    return time.perf_counter() - started, int(process.stderr.split()[-1]) / 1024


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, action="append", help="may be given several times; default 10000")
    options = parser.parse_args(arguments)
    print("| rows | command | seconds | peak MiB | MiB on disk after |")
    print("|---|---|---|---|---|")
    for rows in options.rows or [10_000]:
        with tempfile.TemporaryDirectory() as folder:
            index = Path(folder) / "index"
            make_index(index, rows)
            for command in COMMANDS:
                seconds, peak = measure(command, index)
                disk = sum(path.stat().st_size for path in index.rglob("*") if path.is_file()) / 2**20
                print(f"| {rows:,} | {command} | {seconds:.1f} | {peak:,.0f} | {disk:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
