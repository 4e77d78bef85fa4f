"""``fwd2bot info``: what is in the index, and how big it is."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from fwd2bot_cli.console import printable, shown, size
from fwd2bot_cli.location import existing_index
from fwd2bot_cli.options import Debug, IndexFolder, Json, Quiet
from fwd2bot_cli.session import session_of

if TYPE_CHECKING:
    from fwd2bot_index.vector_files import VectorFiles


def info(
    context: typer.Context,
    index: IndexFolder = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show where the index is, what made it, what it holds and how big it is."""
    from fwd2bot_index.searching import plan_of
    from fwd2bot_index.store import IndexStore

    output = session_of(context).output
    store = IndexStore.open(existing_index(index))
    manifest, stats = store.manifest, store.stats()
    plan, annotations = plan_of(store), store.annotations()
    per_picture = stats.total_bytes / stats.pictures if stats.pictures else None
    if as_json:
        output.json(
            {
                "index": str(store.place),
                **asdict(manifest),
                "columns": {name: str(kind) for name, kind in store.user_columns().items()},
                "search": asdict(plan),
                "annotations": {name: asdict(annotation) for name, annotation in annotations.items()},
                "files": stats.files,
                "pictures": stats.pictures,
                "skipped": [{"path": s.uri, "reason": s.reason} for s in store.known_files().skipped()],
                "bytes": {
                    "tokens": stats.tokens_bytes,
                    "names_and_embeddings": stats.images_bytes,
                    "total": stats.total_bytes,
                    "per_picture": per_picture,
                },
            }
        )
        return
    revision = f" ({manifest.model_revision[:12]})" if manifest.model_revision else ""
    tokens = f"{manifest.num_summary_tokens} x {manifest.token_dim} per picture, stored as {manifest.codec}"
    output.fields(
        [
            ("index", shown(store.place)),
            ("model", f"{printable(manifest.model)}{revision}, {manifest.mode}"),
            ("summary tokens", tokens),
            ("embedding", str(manifest.embedding_dim)),
            ("created", printable(manifest.created)),
            ("files", f"{stats.files} indexed, {stats.skipped} skipped"),
            ("pictures", f"{stats.pictures} different"),
            *((f"question of {name}", printable(a.question)) for name, a in annotations.items()),
            ("columns", ", ".join(f"{name} ({kind})" for name, kind in store.user_columns().items()) or "none"),
            ("search", f"{described(plan.built)}{_tail(plan.tail)}" if plan.built else f"{plan.method}, {plan.engine}"),
            ("tokens", size(stats.tokens_bytes)),
            ("names and embeddings", size(stats.images_bytes)),
            ("all", size(stats.total_bytes) + (f", {size(per_picture)} per picture" if per_picture else "")),
        ],
    )
    if plan.unusable:
        output.warning(
            f"The vector index cannot be used ({printable(plan.unusable)}): searches compare all embeddings. "
            "`fwd2bot optimize` builds it again."
        )


def described(files: VectorFiles) -> str:
    """A trained vector index, for eyes."""
    from fwd2bot_index.vector_index import DEPTHS

    settings = files.settings
    unit = "ef" if settings.kind == "hnsw" else "lists probed"
    recalls = ", ".join(f"recall@{depth} {recall:.3f}" for depth, recall in zip(DEPTHS, settings.recall, strict=True))
    again = f", {settings.candidates} times the results scored again" if settings.candidates > 1 else ""
    return f"{settings.kind} over {settings.rows} pictures: {settings.effort[0]} {unit}{again}; {recalls} when built"


def _tail(rows: int) -> str:
    return f"; {rows} newer ones compared one by one (`fwd2bot optimize` takes them in)" if rows else ""
