"""``fwd2bot verify``: whether the index is what was written."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from fwd2bot_cli.console import printable, shown
from fwd2bot_cli.location import existing_index
from fwd2bot_cli.models import ModelChoice
from fwd2bot_cli.options import Debug, IndexFolder, Json, Quiet
from fwd2bot_cli.progress import RunProgress
from fwd2bot_cli.session import Session, session_of
from fwd2bot_index.checkpoints import DEFAULT_MODEL
from fwd2bot_index.errors import ModelError

if TYPE_CHECKING:
    from fwd2bot_index.config import Manifest

EXIT_DAMAGED = 1


def verify(
    context: typer.Context,
    index: IndexFolder = None,
    sample: Annotated[
        int, typer.Option(min=0, metavar="N", help="Decode about N payloads; of all others the checksum is compared.")
    ] = 1000,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Read the whole index and say whether it is what was written; nothing is changed.

    Compared are every row, embedding and payload with its checksum, rows with payloads, a sample of decodes, and the
    model, where it is the bundled one or a folder, with the fingerprint in the index. Exit code 1: something is wrong.
    """
    from fwd2bot_index import vector_files
    from fwd2bot_index.store import IndexStore
    from fwd2bot_index.verifying import verify as verify_store

    session = session_of(context)
    output = session.output
    store = IndexStore.open(existing_index(index))
    with RunProgress(output, unit="rows", things="rows") as progress:
        found = verify_store(
            store,
            sample=sample,
            progress=lambda done, total: progress.update(phase="verifying", done=done, total=total),
        )
    if problem := _other_model(session, store.manifest):
        found.add(problem)
    vectors = vector_files.problem(store.place)
    if as_json:
        output.json(
            {"index": str(store.place), "whole": found.whole, **asdict(found), "vector_index": vectors or "whole"}
        )
    else:
        output.fields(
            [
                ("index", shown(store.place)),
                ("files", str(found.files)),
                ("pictures", f"{found.pictures}, {found.decoded} of them decoded"),
                ("skipped", str(found.skipped)),
                ("problems", str(found.problem_count)),
            ]
        )
    for sentence in found.problems:
        output.warning(printable(sentence))
    if (rest := found.problem_count - len(found.problems)) > 0:
        output.warning(f"... and {rest} more.")
    if vectors is not None:  # it is made of the rest, so nothing is lost
        output.warning(f"The vector index cannot be used ({printable(vectors)}): `fwd2bot optimize` builds it again.")
    if found.orphans and found.whole:
        output.message(f"{found.orphans} pictures have no file any more: `fwd2bot optimize` removes them.")
    if not found.whole:
        output.error(
            f"{shown(store.place)} is damaged. What is whole can still be searched; to mend it, put back a copy, or "
            "delete the folder and index again."
        )
        raise typer.Exit(EXIT_DAMAGED)


def _other_model(session: Session, manifest: Manifest) -> str | None:
    """What is wrong with the model that made the index; one on the hub is not fetched to find out."""
    if manifest.model != DEFAULT_MODEL and not os.path.isabs(manifest.model):
        return None
    try:
        identity = session.models.identity(ModelChoice.of(manifest), show_download=False)
    except ModelError as e:
        return f"The model that made the index is not there: {e}"
    if identity.fingerprint != manifest.model_fingerprint:
        return f"The model {manifest.model} has other weights or settings than the one that made the index."
    return None
