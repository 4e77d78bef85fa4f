"""What indexing, searching and asking cost on this machine.

    python -m fwd2bot_eval.bench_index ../shared/data/photos --json bench.json

Indexes the folder afresh into a temporary one, then once more unchanged, searches from a cold process, and asks one hit
from its summary tokens and from its file. Everything is measured on the way that the commands go.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fwd2bot_eval import cold_start
from fwd2bot_index.checkpoints import DEFAULT_MODEL
from fwd2bot_index.corpus import Corpus
from fwd2bot_index.decoding import MAX_SIDE, decode_image, read_file
from fwd2bot_index.indexing import default_workers, index_images
from fwd2bot_index.types import Compressor

QUERY = "a dog in the grass"
QUESTION = "What is in the picture?"
REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class IndexFigures:
    """A fresh index of a folder."""

    files: int
    skipped: int
    seconds: float
    loading_seconds: float
    images_per_second: float
    """Of the whole run, loading the model included."""
    images_per_second_when_ready: float
    model_share: float
    """Share of the wall time that the model takes (its preprocessing included): of the whole run ..."""
    model_share_when_ready: float
    """... and from the moment the model is loaded."""
    peak_bytes: int
    """Largest resident size of this process, plus that of the largest decoder for each of them."""
    tokens_bytes: float
    """On disk, per file; pictures that are stored once for several files bring it down."""
    embedding_bytes: float
    all_bytes: float


@dataclass(frozen=True, kw_only=True)
class AskFigures:
    """One question to one picture, warm: median seconds."""

    from_tokens: float
    """From the stored summary tokens, read from the index."""
    from_file: float
    """From the file: decoded, compressed and answered by the same model."""


def measure_indexing(images: Path, index: Path, model: Callable[[], Compressor]) -> IndexFigures:
    """Index ``images`` into the folder ``index``, which must not exist yet."""
    workers = default_workers()
    report = index_images([images], index, model, workers=workers)
    peak = _peak_bytes(resource.RUSAGE_SELF) + workers * _peak_bytes(resource.RUSAGE_CHILDREN)
    opened = Corpus.open(index)
    stats = opened.stats()
    ready = report.seconds - report.loading_seconds
    return IndexFigures(
        files=report.added,
        skipped=len(report.skipped),
        seconds=report.seconds,
        loading_seconds=report.loading_seconds,
        images_per_second=report.added / report.seconds,
        images_per_second_when_ready=report.added / ready,
        model_share=report.model_seconds / report.seconds,
        model_share_when_ready=report.model_seconds / ready,
        peak_bytes=peak,
        tokens_bytes=stats.tokens_bytes / stats.files,
        embedding_bytes=2 * opened.manifest.embedding_dim,
        all_bytes=stats.total_bytes / stats.files,
    )


def measure_asking(index: Path, model: Compressor, *, repeats: int = REPEATS) -> AskFigures:
    """Ask the first hit, from its tokens and from its file; each once more before, to warm up."""
    opened = Corpus.open(index, model=model)
    [hit] = opened.search(QUERY, top=1)
    side = model.decode_side or MAX_SIDE

    def from_file() -> object:
        picture = decode_image(read_file(hit.uri), max_side=side).image
        return model.answer(model.compress([picture]).tokens, QUESTION)

    return AskFigures(
        from_tokens=_median_seconds(lambda: opened.ask(QUESTION, [hit]), repeats),
        from_file=_median_seconds(from_file, repeats),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m fwd2bot_eval.bench_index", description=__doc__)
    parser.add_argument("images", type=Path, help="a folder of pictures")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="as after `fwd2bot index --model`")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args(arguments)

    from fwd2bot_index.model import Fwd2BotModel

    loaded: list[Fwd2BotModel] = []

    def load() -> Compressor:
        loaded.append(Fwd2BotModel.from_pretrained(given.model))
        return loaded[-1]

    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        indexing = measure_indexing(given.images, index, load)
        asking = measure_asking(index, loaded[-1])
        unchanged = cold_start.run("reindex", index, str(given.images))
        search = cold_start.run("search", index, QUERY)
    print(_table(indexing, asking, unchanged, search))
    if given.json:
        figures = {
            "indexing": asdict(indexing),
            "asking": asdict(asking),
            "unchanged": unchanged,
            "search": search,
        }
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _table(indexing: IndexFigures, asking: AskFigures, unchanged: dict[str, float], search: dict[str, float]) -> str:
    rows = [
        ("files indexed", f"{indexing.files} ({indexing.skipped} skipped)"),
        ("images/s, whole run", f"{indexing.images_per_second:.1f} ({indexing.seconds:.1f} s)"),
        ("images/s, model loaded", f"{indexing.images_per_second_when_ready:.1f}"),
        ("model's share of the time", f"{indexing.model_share:.0%}"),
        ("... once it is loaded", f"{indexing.model_share_when_ready:.0%}"),
        ("peak memory", f"{indexing.peak_bytes / 2**20:.0f} MiB"),
        ("bytes per file: tokens", f"{indexing.tokens_bytes:.0f}"),
        ("bytes per file: embedding", f"{indexing.embedding_bytes:.0f}"),
        ("bytes per file: all", f"{indexing.all_bytes:.0f}"),
        ("index again, unchanged", _stages(unchanged)),
        ("search, cold process", _stages(search)),
        ("ask, from summary tokens", f"{asking.from_tokens * 1000:.0f} ms"),
        ("ask, from the file", f"{asking.from_file * 1000:.0f} ms"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _stages(stages: dict[str, float]) -> str:
    parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in stages.items() if name != "total")
    return f"{stages['total']:.2f} s ({parts})"


def _median_seconds(run: Callable[[], object], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _peak_bytes(who: int) -> int:
    peak = resource.getrusage(who).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
