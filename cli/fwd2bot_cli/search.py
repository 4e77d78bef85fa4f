"""``fwd2bot search``: find pictures by words or by another picture."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fwd2bot_cli.console import printable, shown
from fwd2bot_cli.opening import open_index
from fwd2bot_cli.options import Debug, IndexFolder, Json, Quiet
from fwd2bot_cli.pictures import named_picture
from fwd2bot_cli.session import session_of
from fwd2bot_index.errors import InputError

if TYPE_CHECKING:
    from fwd2bot_index.types import Hit


def search(
    context: typer.Context,
    query: Annotated[str | None, typer.Argument(help="What to look for, in words.", show_default=False)] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Look for pictures like this one instead of words.")
    ] = None,
    top: Annotated[int, typer.Option("--top", "-n", min=1, help="How many pictures.")] = 10,
    index: IndexFolder = None,
    as_json: Json = False,
    paths_only: Annotated[bool, typer.Option("--paths-only", help="File names and nothing else.")] = False,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="As --paths-only, each name ended by a zero byte (for xargs -0).")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page with thumbnails, all in one file.")
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find pictures by words, or by a picture with --image.

    Prints rank, cosine similarity and path: a table, or tab-separated lines where stdout is no terminal.
    """
    if (query is None) == (image is None):
        raise InputError("Give either words to look for or --image FILE.")
    if as_json and (paths_only or null):
        raise InputError("Give either --json or --paths-only.")
    if html is not None and not html.absolute().parent.is_dir():
        raise InputError(f"There is no folder {shown(html.parent)} to write {shown(html.name)} in.")
    output = session_of(context).output
    opened = open_index(session_of(context), index)
    with named_picture(image) if image is not None else nullcontext():
        hits = opened.search(query, image=image, top=top)

    if as_json:
        described = [
            {**hit_as_dict(hit), "metadata": {name: _plain(value) for name, value in values.items()}}
            for hit, values in zip(hits, opened.metadata(hits), strict=True)
        ]
        output.json({"query": query, "image": str(image) if image else None, "hits": described})
    elif paths_only or null:
        output.paths((hit.uri for hit in hits), null=null)
    else:
        output.table(("rank", "score", "path"), [(str(h.rank), score(h), shown(h.uri)) for h in hits])
    if html is not None:
        from fwd2bot_cli.gallery import Card, Section, write_gallery

        cards = [Card(uri=h.uri, title=shown(h.uri), notes=(f"{h.rank}. · {score(h)}",)) for h in hits]
        title = printable(query) if query is not None else f"Pictures like {shown(image or '')}"
        write_gallery(html, title, [Section(title=f"{len(hits)} best", cards=cards)])
        output.message(f"Wrote {shown(html)}.")


def _plain(value: object) -> object:
    """As JSON has it: dates and times in ISO's form."""
    return value.isoformat() if isinstance(value, date) else value


def score(hit: Hit) -> str:
    return f"{hit.score:.3f}"


def hit_as_dict(hit: Hit) -> dict[str, object]:
    """A hit as ``--json`` shows it: ``uri`` by the name that the command line uses, ``path``."""
    fields = asdict(hit)
    return {"rank": fields.pop("rank"), "path": fields.pop("uri"), **fields}
