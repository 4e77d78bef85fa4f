"""``fwd2bot search``: find pictures by words, by other pictures, and by both."""

from __future__ import annotations

import math
import os
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fwd2bot_cli.console import printable, shown
from fwd2bot_cli.opening import open_index
from fwd2bot_cli.options import Debug, IndexFolder, Json, Quiet
from fwd2bot_cli.session import session_of
from fwd2bot_index.archives import picture_exists
from fwd2bot_index.errors import Fwd2BotError, ImageError, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fwd2bot_index.queries import Term
    from fwd2bot_index.types import Hit


def search(
    context: typer.Context,
    query: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORDS[^WEIGHT]]...", help="What to look for, in words.", show_default=False),
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option(metavar="FILE[^WEIGHT]", help="Look for pictures like this one.")
    ] = None,
    like: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH|ID[^WEIGHT]",
            help="Look for others like this picture of the index, whose file is not opened. ID: as --json shows it, or "
            "its first 6 digits.",
        ),
    ] = None,
    but: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS",
            help='How it should differ from --image or --like: "at night", "a red car instead of the bus", "without '
            'people" (what is to go counts as --minus).',
        ),
    ] = None,
    minus: Annotated[list[str] | None, typer.Option(metavar="WORDS[^WEIGHT]", help="Away from these words.")] = None,
    minus_image: Annotated[
        list[str] | None, typer.Option(metavar="FILE[^WEIGHT]", help="Away from this picture.")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="SQL", help="Only pictures whose columns fulfil this: \"year > 2020 AND camera = 'X'\"."),
    ] = None,
    top: Annotated[int, typer.Option("--top", "-n", min=1, help="How many pictures.")] = 10,
    page: Annotated[int, typer.Option(min=1, help="Which --top of them.")] = 1,
    diversity: Annotated[
        float, typer.Option("--diverse", metavar="0..1", min=0, max=1, help="Prefer pictures unlike those before.")
    ] = 0.0,
    collapse: Annotated[
        bool, typer.Option("--collapse", help="Of copies, only the best: what `fwd2bot dedup` finds.")
    ] = False,
    percentile: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="Only what scores better than so many per cent of the corpus."),
    ] = None,
    min_z: Annotated[
        float | None,
        typer.Option(
            help="Only what scores so many standard deviations above the corpus's mean for this query (column z)."
        ),
    ] = None,
    rerank: Annotated[
        bool,
        typer.Option(
            "--rerank",
            help="Ask about the first 100 whether the words fit, and put them in order by that (column match).",
        ),
    ] = False,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--budget", metavar="SECONDS", help="For --rerank: those that it does not suffice for stay behind."
        ),
    ] = None,
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
    """Find pictures by words, by pictures, or by several of both; ^2 behind one makes it count twice.

    Prints rank, cosine similarity, z and path: a table, or tab-separated lines where stdout is no terminal.
    """
    if but is not None and not (image or like):
        raise InputError("--but says how it should differ from --image FILE or --like PATH: give one.")
    if not any((query, image, like, minus, minus_image)):
        raise InputError("Say what to look for: words, --image FILE, or --like PATH.")
    if seconds is not None and not rerank:
        raise InputError("--budget is the time for --rerank.")
    if as_json and (paths_only or null):
        raise InputError("Give either --json or --paths-only.")
    if html is not None and not html.absolute().parent.is_dir():
        raise InputError(f"There is no folder {shown(html.parent)} to write {shown(html.name)} in.")
    from fwd2bot_index.duplicates import SAME_BYTES, copy_threshold
    from fwd2bot_index.queries import changes

    output = session_of(context).output
    opened = open_index(session_of(context), index)
    terms = [
        *_terms(query, kind="text"),
        *_terms(image, kind="image"),
        *_terms(like, kind="like"),
        *(changes(but) if but is not None else []),
        *_terms(minus, kind="text", sign=-1),
        *_terms(minus_image, kind="image", sign=-1),
    ]
    try:
        hits = opened.search(
            *terms,
            where=where,
            top=top,
            skip=(page - 1) * top,
            diversity=diversity,
            collapse=(copy_threshold(opened.manifest) or SAME_BYTES) if collapse else None,
            percentile=percentile,
            min_z=min_z,
            rerank=rerank,
            seconds=seconds,
        )
    except ImageError as e:
        raise Fwd2BotError(f"{printable(e.reason)}.") from e

    if as_json:
        described = [
            {**hit_as_dict(hit), "metadata": {name: _plain(value) for name, value in values.items()}}
            for hit, values in zip(hits, opened.metadata(hits), strict=True)
        ]
        output.json({"terms": [_term_as_dict(term) for term in terms], "where": where, "hits": described})
    elif paths_only or null:
        output.paths((hit.uri for hit in hits), null=null)
    else:
        more = (("match",), lambda h: (match(h),)) if rerank else ((), lambda h: ())
        output.table(
            ("rank", "score", "z", *more[0], "path"),
            [(str(h.rank), score(h), z(h), *more[1](h), _path(h)) for h in hits],
        )
        if not hits:
            output.message("Nothing was found.")
    if html is not None:
        from fwd2bot_cli.gallery import Card, Section, write_gallery

        cards = [Card(uri=h.uri, title=shown(h.uri), notes=(f"{h.rank}. · {score(h)}",)) for h in hits]
        title = printable(" · ".join(_said(term) for term in terms))
        write_gallery(html, title, [Section(title=f"{len(hits)} best", cards=cards)])
        output.message(f"Wrote {shown(html)}.")


def _terms(given: Sequence[str] | None, *, kind: Literal["text", "image", "like"], sign: int = 1) -> list[Term]:
    """One term each. A file that is there by its whole name has no weight in it.

    Raises:
        InputError: a file is not there, or a weight makes no sense.
    """
    from fwd2bot_index.queries import Term, weighted

    terms = []
    for text in given or ():
        what, weight = (text, 1.0) if kind != "text" and os.path.exists(text) else weighted(text)
        if kind == "image" and not picture_exists(what):
            raise InputError(f"There is no picture {shown(what)}.")
        part: dict[str, Any] = {kind: what}
        terms.append(Term(**part, weight=sign * weight))
    return terms


def _said(term: Term) -> str:
    what = term.text or f"like {shown(str(term.image or term.like))}"
    return what if term.weight == 1 else f"{what} ({term.weight:+g})"


def _term_as_dict(term: Term) -> dict[str, object]:
    kinds = {"text": term.text, "image": term.image, "like": term.like}
    return {**{kind: str(what) for kind, what in kinds.items() if what is not None}, "weight": term.weight}


def _plain(value: object) -> object:
    """As JSON has it: dates and times in ISO's form, and no number that is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.isoformat() if isinstance(value, date) else value


def _path(hit: Hit) -> str:
    return shown(hit.uri) + (f" (and {len(hit.copies)} like it)" if hit.copies else "")


def score(hit: Hit) -> str:
    return f"{hit.score:.3f}"


def z(hit: Hit) -> str:
    return "" if hit.z is None else f"{hit.z:+.1f}"


def match(hit: Hit) -> str:
    return "" if hit.match is None else f"{hit.match:.2f}"


def hit_as_dict(hit: Hit) -> dict[str, object]:
    """A hit as ``--json`` shows it: ``uri`` by the name that the command line uses, ``path``."""
    fields = asdict(hit)
    return {"rank": fields.pop("rank"), "path": fields.pop("uri"), **fields}
