"""``fwd2bot optimize``: make the index smaller and faster."""

from __future__ import annotations

from dataclasses import asdict

import typer

from fwd2bot_cli.console import shown, size
from fwd2bot_cli.location import existing_index
from fwd2bot_cli.options import Debug, IndexFolder, Json, Quiet
from fwd2bot_cli.session import session_of


def optimize(
    context: typer.Context,
    index: IndexFolder = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Merge small pieces, index the keys, and remove what nothing needs: deleted rows, old versions, leftovers.

    `fwd2bot index` does most of this whenever it has to; this does all of it. Searches go on meanwhile; versions that
    are younger than ten minutes stay for them.
    """
    from fwd2bot_index.store import IndexStore, writing

    output = session_of(context).output
    folder = existing_index(index)
    store = IndexStore.open(folder)
    with writing(folder), output.waiting("Optimizing …"):
        report = store.optimize()
    if as_json:
        output.json({"index": str(store.path), **asdict(report)})
        return
    output.message(
        f"{shown(store.path)}: {size(report.bytes_before)} before, {size(report.bytes_after)} now; "
        f"{report.orphans} pictures without a file removed."
    )
