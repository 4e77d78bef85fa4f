"""``fwd2bot annotate``: one question about every picture of the index, its answers kept as a column."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from fwd2bot_cli.console import printable
from fwd2bot_cli.location import existing_index
from fwd2bot_cli.models import ModelChoice
from fwd2bot_cli.options import Answerer, Choices, Debug, IndexFolder, Json, Quiet, split_choices
from fwd2bot_cli.progress import RunProgress
from fwd2bot_cli.session import session_of

EXIT_INTERRUPTED = 130


def annotate(
    context: typer.Context,
    question: Annotated[str, typer.Argument(help="The question.", show_default=False)],
    column: Annotated[str, typer.Option(metavar="NAME", help="Where the answers go.", show_default=False)],
    choices: Choices = None,
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help="Only about pictures whose columns fulfil this.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Forget the answers that the column holds.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that are answered about at once.")] = 64,
    model: Answerer = None,
    index: IndexFolder = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Ask one question about all pictures, from their stored summary tokens, and keep the answers as a column.

    `fwd2bot search --where` filters on the column and on NAME_confidence, and `search --json` shows them. With
    --choices yes,no it is true or false, else text. Pictures that have their answer are left out: what was interrupted
    goes on, and what was indexed since is added. A file whose picture changes loses its answer when indexed again.
    """
    from fwd2bot_index import annotating
    from fwd2bot_index.store import IndexStore, writing

    session = session_of(context)
    output = session.output
    among = split_choices(choices)
    store = IndexStore.open(existing_index(index))
    with writing(store.place):
        annotating.check(store, question, column, choices=among, again=again)
        choice = ModelChoice.of(store.manifest, instead=model)
        with output.waiting(f"Loading the model {printable(choice.name)} …"):
            loaded = session.models.load(choice)
        with RunProgress(output, things="pictures") as progress:
            report = annotating.annotate(
                store,
                loaded,
                question,
                column,
                choices=among,
                where=where,
                again=again,
                batch_size=batch_size,
                progress=lambda done, total: progress.update(phase="asking", done=done, total=total),
            )
    speed = f", {report.answered / report.seconds:.0f}/s" if report.answered and report.seconds > 1 else ""
    if as_json:
        output.json({"index": str(store.place), "question": question, "choices": among, **asdict(report)})
    else:
        output.table(("answer", "files"), [(printable(text), str(n)) for text, n in report.counts.items()])
    output.message(f"{report.answered} files answered{speed}; {report.already} had their answer before.")
    if report.interrupted:
        output.message("Interrupted; the same command goes on from here.")
        raise typer.Exit(EXIT_INTERRUPTED)
