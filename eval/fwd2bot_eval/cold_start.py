"""One command in a fresh process, timed stage by stage; printed as JSON, in seconds. ``bench_index`` starts it.

FWD2BOT_STARTED=$(date +%s.%N) python -m fwd2bot_eval.cold_start search .fwd2bot "a red car"
FWD2BOT_STARTED=$(date +%s.%N) python -m fwd2bot_eval.cold_start reindex .fwd2bot ./photos
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

_STARTED = "FWD2BOT_STARTED"


class _Stages:
    """Seconds since the end of the stage before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = float(os.environ[_STARTED])
        self.end("interpreter")

    def end(self, name: str) -> None:
        now = time.time()
        self.seconds[name] = now - self._last
        self._last = now


def search(index: Path, query: str) -> dict[str, float]:
    """``fwd2bot search``, in this process, from its start.

    ``model`` is the encoder of texts where one does as well, else the whole model with what it imports.
    """
    stages = _Stages()
    import fwd2bot_index.vector_index  # noqa: F401
    from fwd2bot_index.corpus import Corpus
    from fwd2bot_index.store import IndexStore
    from fwd2bot_index.text_encoder import TextEncoder

    stages.end("imports")
    encoder = TextEncoder.for_manifest(IndexStore.open(index).manifest)
    opened = Corpus.open(index, text_encoder=lambda: encoder)
    if encoder is None:
        _ = opened.model
    stages.end("model")
    embedding = opened.embed_text(query)
    stages.end("embed")
    len(opened)
    stages.end("read index")
    opened.search_embedding(embedding)
    stages.end("search")
    return stages.seconds


def reindex(index: Path, images: Path) -> dict[str, float]:
    """``fwd2bot index`` over a folder that has not changed, in this process, from its start."""
    stages = _Stages()
    from fwd2bot_index.checkpoints import model_fingerprint
    from fwd2bot_index.indexing import index_images
    from fwd2bot_index.store import IndexStore
    from fwd2bot_index.types import Compressor, ModelIdentity

    def load() -> Compressor:
        raise RuntimeError("The folder has changed: this is no benchmark of an unchanged one.")

    stages.end("imports")
    manifest = IndexStore.open(index).manifest
    tokens = manifest.num_summary_tokens if manifest.mode == "training-free" else None
    fingerprint = model_fingerprint(manifest.model, revision=manifest.model_revision, num_summary_tokens=tokens)
    identity = ModelIdentity(name=manifest.model, revision=manifest.model_revision, fingerprint=fingerprint)
    stages.end("fingerprint")
    index_images([images], index, load, model_identity=identity, codec=manifest.codec)
    stages.end("compare")
    return stages.seconds


def run(command: str, index: Path, argument: str) -> dict[str, float]:
    """``command`` (search, reindex) in a fresh process: its stages, and ``total`` until it has ended."""
    started = time.time()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fwd2bot_eval.cold_start", command, str(index), argument],
        env={**os.environ, _STARTED: str(started)},
        stdout=subprocess.PIPE,
        check=True,
    )
    stages: dict[str, float] = json.loads(done.stdout)
    return {**stages, "total": time.time() - started}


def main(arguments: list[str]) -> None:
    command, index, argument = arguments
    print(json.dumps(search(Path(index), argument) if command == "search" else reindex(Path(index), Path(argument))))


if __name__ == "__main__":
    main(sys.argv[1:])
