"""``fwd2bot ask``: a question about indexed pictures, answered from their summary tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fwd2bot_cli.console import Output, printable, printable_lines, shown
from fwd2bot_cli.opening import open_index
from fwd2bot_cli.options import Debug, IndexFolder, Json, Quiet
from fwd2bot_cli.pictures import named_picture
from fwd2bot_cli.search import hit_as_dict, score
from fwd2bot_cli.session import session_of
from fwd2bot_index.errors import InputError

if TYPE_CHECKING:
    from fwd2bot_index.querying import Index
    from fwd2bot_index.types import Answer


def ask(
    context: typer.Context,
    question: Annotated[str, typer.Argument(help="The question.", show_default=False)],
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="Ask about this picture.")] = None,
    query: Annotated[
        str | None, typer.Option(metavar="WORDS", help="Ask about the pictures that a search for these words finds.")
    ] = None,
    top: Annotated[int, typer.Option("--top", "-n", min=1, help="About how many of the pictures found.")] = 1,
    index: IndexFolder = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Ask about pictures, from their stored summary tokens: the picture files are not opened.

    Without --image and --query, the question itself is what is searched for.

    One answer is printed alone; several come as rows of rank, score, path and answer.
    """
    if image is not None and query is not None:
        raise InputError("Give either --image FILE or --query WORDS.")
    if not question.strip():
        raise InputError("The question is empty.")
    output = session_of(context).output
    opened = open_index(session_of(context), index)
    if image is not None:
        found = opened.find(image)
        if found is None:
            text = _ask_outside(opened, question, image, output)
            row = {"answer": text, "path": str(image.absolute()), "indexed": False}
            if as_json:
                output.json(_document(question, query, [row]))
            else:
                output.data(printable_lines(text))
            return
        hits = [found]
    else:
        hits = opened.search(query if query is not None else question, top=top)
        if query is None:
            output.message("Neither --image nor --query: asking about what a search for the question finds.")
    answers = opened.ask(question, hits)

    if as_json:
        output.json(_document(question, query, [_answer_as_dict(a) for a in answers]))
    elif len(answers) == 1:
        output.message(f"About {shown(answers[0].hit.uri)}:")
        output.data(printable_lines(answers[0].text))
    else:
        output.table(("rank", "score", "path", "answer"), [_row(a) for a in answers])


def _ask_outside(index: Index, question: str, image: Path, output: Output) -> str:
    """The answer about a picture that is not in the index: it is compressed for this once and not stored.

    Raises:
        InputError: there is no such file.
        Fwd2BotError: it is no picture that could be used.
    """
    from fwd2bot_index.decoding import MAX_SIDE, decode_image, read_file

    with named_picture(image):
        picture = decode_image(read_file(image), max_side=MAX_SIDE).image
    output.message(f"{shown(image)} is not in the index: compressing it for this question.")
    (text,) = index.model.generate(index.model.compress([picture]).tokens, question)
    return text


def _row(answer: Answer) -> tuple[str, str, str, str]:
    hit = answer.hit
    return str(hit.rank), score(hit), shown(hit.uri), printable(" ".join(answer.text.split()))


def _answer_as_dict(answer: Answer) -> dict[str, object]:
    return {"answer": answer.text, **hit_as_dict(answer.hit), "indexed": True}


def _document(question: str, query: str | None, answers: list[dict[str, object]]) -> dict[str, object]:
    return {"question": question, "query": query, "answers": answers}
