"""``fwd2bot optimize``: make the index smaller and faster."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from fwd2bot_cli.console import shown, size
from fwd2bot_cli.info import described
from fwd2bot_cli.location import existing_index
from fwd2bot_cli.options import Debug, IndexFolder, Json, Quiet
from fwd2bot_cli.session import session_of


class Vectors(StrEnum):
    """As :data:`fwd2bot_index.searching.Choice`, which is not imported for the sake of ``--help``."""

    AUTO = "auto"
    EXACT = "exact"
    IVF = "ivf"
    IVF_RABITQ = "ivf-rabitq"
    HNSW = "hnsw"
    LANCE = "lance"


def optimize(
    context: typer.Context,
    index: IndexFolder = None,
    vectors: Annotated[
        Vectors,
        typer.Option(
            help="How embeddings are searched. auto: exact for a small corpus, ivf or (where memory is short) "
            "ivf-rabitq for a large one; lance: LanceDB's own index, for other programs too."
        ),
    ] = Vectors.AUTO,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Merge small pieces, index the keys and the embeddings, and remove what nothing needs: deleted rows, old versions,
    leftovers.

    `fwd2bot index` does most of this whenever it has to; this does all of it. Searches go on meanwhile; versions that
    are younger than ten minutes stay for them.
    """
    from fwd2bot_index.searching import build_vectors
    from fwd2bot_index.store import IndexStore, writing

    output = session_of(context).output
    folder = existing_index(index)
    store = IndexStore.open(folder)
    with writing(folder), output.waiting("Optimizing …"):
        report = store.optimize()
        built = build_vectors(store, vectors.value)
    if as_json:
        output.json({"index": str(store.place), **asdict(report), "vectors": asdict(built) if built else None})
        return
    output.message(
        f"{shown(store.place)}: {size(report.bytes_before)} before, {size(report.bytes_after)} now; "
        f"{report.orphans} pictures without a file removed."
    )
    if built is not None:
        output.message(f"Searches use {described(built)}.")
