"""``fwd2bot dedup``: list files that show the same picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from fwd2bot_cli.console import Output, printable, shown, size
from fwd2bot_cli.location import existing_index
from fwd2bot_cli.options import Debug, IndexFolder, Json, Quiet
from fwd2bot_cli.progress import RunProgress
from fwd2bot_cli.session import session_of
from fwd2bot_index.config import DEFAULT_THRESHOLD
from fwd2bot_index.errors import IndexEmptyError, InputError

if TYPE_CHECKING:
    from fwd2bot_index.duplicates import DuplicateGroup, FoundCopy, IndexedFile


def dedup(
    context: typer.Context,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="T",
            help="Cosine similarity, above 0 and up to 1, from which different files are near copies. What is right "
            f"depends on the model. Default: {DEFAULT_THRESHOLD} for the bundled model, measured on photos; for others "
            "only the same bytes.",
        ),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Only files with the same bytes.")] = False,
    index: IndexFolder = None,
    as_json: Json = False,
    paths_only: Annotated[
        bool,
        typer.Option(
            "--paths-only",
            help="Only the names of the superfluous copies. Left out is what has changed or gone since it was indexed, "
            "and all copies of such a file.",
        ),
    ] = False,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="As --paths-only, each name ended by a zero byte (for xargs -0).")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List files that show the same picture, from the index alone; nothing is ever deleted.

    The first of each group is the one to keep: the most pixels, then the most bytes, then the shortest path. The others
    have the same bytes ('exact'), or are as similar to it as --threshold asks. A near copy may be another picture all
    the same: look before you delete.

    Prints group, similarity, pixels, size and path: a table, or tab-separated lines (with bytes as a number) where
    stdout is no terminal.
    """
    from fwd2bot_index.duplicates import copy_threshold, find_duplicates, superfluous
    from fwd2bot_index.store import IndexStore

    if exact and threshold is not None:
        raise InputError("Give either --exact or --threshold.")
    if as_json and (paths_only or null):
        raise InputError("Give either --json or --paths-only.")
    output = session_of(context).output
    store = IndexStore.open(existing_index(index))
    if threshold is None and not exact:
        threshold = copy_threshold(store.manifest)
    rows = store.embeddings()
    if len(rows) == 0:
        raise IndexEmptyError(f"The index in {store.place} holds no pictures: add some with `fwd2bot index FOLDER`.")
    with RunProgress(output, things="pictures") as progress:
        groups = find_duplicates(
            rows,
            threshold=threshold,
            progress=lambda done, total: progress.update(phase="comparing", done=done, total=total),
        )

    if as_json:
        output.json({"index": str(store.place), "threshold": threshold, **_document(groups, files=len(rows))})
    elif paths_only or null:
        certain = [file.uri for group in groups for file in superfluous(group)]
        output.paths(certain, null=null)
        copies = sum(len(group.copies) for group in groups)
        if len(certain) < copies:
            output.warning(
                f"Left out: {copies - len(certain)} of {copies} copies, that have changed or gone since they were "
                "indexed, or are the kept file under another name, or whose kept file has changed or gone. "
                "`fwd2bot index` brings the index up to date."
            )
    else:
        _show(output, groups)
    if threshold is None and not exact:
        output.message(
            f"Only exact copies were looked for: what is near for {printable(store.manifest.model)} was not measured. "
            f"Try --threshold {DEFAULT_THRESHOLD}."
        )
    if not groups:
        output.message(f"No duplicates among {len(rows)} files.")


def _show(output: Output, groups: Sequence[DuplicateGroup]) -> None:
    def row(number: int, similarity: str, file: IndexedFile) -> tuple[str, ...]:
        length = size(file.size) if output.for_eyes else str(file.size)
        return str(number), similarity, f"{file.width}x{file.height}", length, shown(file.uri)

    rows = []
    for number, group in enumerate(groups, start=1):
        rows.append(row(number, "kept", group.kept))
        rows += [row(number, _similarity(group, copy), copy.file) for copy in group.copies]
    if rows:
        output.table(("group", "similarity", "pixels", "size", "path"), rows)
        copies = len(rows) - len(groups)
        spare = size(sum(group.spare_bytes for group in groups))
        output.message(f"Groups: {len(groups)}. Superfluous files: {copies}; outside of archives they take {spare}.")


def _similarity(group: DuplicateGroup, copy: FoundCopy) -> str:
    return "exact" if copy.file.id == group.kept.id else f"{copy.similarity:.4f}"


def _document(groups: Sequence[DuplicateGroup], *, files: int) -> dict[str, object]:
    exact = sum(copy.file.id == group.kept.id for group in groups for copy in group.copies)
    copies = sum(len(group.copies) for group in groups)
    return {
        "counts": {
            "files": files,
            "groups": len(groups),
            "duplicates": copies,
            "exact": exact,
            "near": copies - exact,
            "spare_bytes": sum(group.spare_bytes for group in groups),
        },
        "groups": [
            {
                "kept": _as_dict(group.kept),
                "duplicates": [{**_as_dict(copy.file), "similarity": copy.similarity} for copy in group.copies],
            }
            for group in groups
        ],
    }


def _as_dict(file: IndexedFile) -> dict[str, object]:
    """As ``--json`` shows it, by the names that the command line uses."""
    fields = asdict(file)
    return {
        "path": fields["uri"],
        "id": fields["id"],
        "width": fields["width"],
        "height": fields["height"],
        "bytes": fields["size"],
    }
