"""``fwd2bot ask``: a question about indexed pictures, answered from their summary tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from fwd2bot_cli.console import Output, printable, printable_lines, shown
from fwd2bot_cli.opening import open_index
from fwd2bot_cli.options import Answerer, Choices, Debug, IndexFolder, Json, Quiet, split_choices
from fwd2bot_cli.pictures import named_picture
from fwd2bot_cli.search import hit_as_dict, score
from fwd2bot_cli.session import session_of
from fwd2bot_index.errors import InputError
from fwd2bot_index.object_stores import absolute

if TYPE_CHECKING:
    from fwd2bot_index.corpus import Corpus
    from fwd2bot_index.types import Answer, JointAnswer


def ask(
    context: typer.Context,
    question: Annotated[str, typer.Argument(help="The question.", show_default=False)],
    image: Annotated[str | None, typer.Option(metavar="FILE", help="Ask about this picture.")] = None,
    query: Annotated[
        str | None, typer.Option(metavar="WORDS", help="Ask about the pictures that a search for these words finds.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help="Of them, only those whose columns fulfil this.")
    ] = None,
    top: Annotated[int, typer.Option("--top", "-n", min=1, help="About how many of the pictures found.")] = 1,
    choices: Choices = None,
    together: Annotated[
        bool,
        typer.Option(
            "--together",
            help="One answer about all of them, read one after another in one context, with the pictures that it rests "
            "on. One by one is surer for most models: see docs/querying.md.",
        ),
    ] = False,
    model: Answerer = None,
    index: IndexFolder = None,
    as_json: Json = False,
    as_lines: Annotated[
        bool, typer.Option("--jsonl", help="One JSON object for each answer, on a line, as soon as it is there.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Ask about pictures, from their stored summary tokens: the picture files are not opened.

    Without --image and --query, the question itself is what is searched for.

    One answer is printed alone; several come as rows of rank, score, confidence, path and answer, each as soon as it is
    there. Confidence is the model's own likelihood of the answer or, with --choices, its share among them.
    """
    from fwd2bot_index.answering import check_choices, check_question

    if image is not None and (query is not None or where is not None or together or top > 1):
        raise InputError("Give either --image FILE or what is searched for.")
    if as_json and as_lines:
        raise InputError("Give either --json or --jsonl.")
    if together and choices is not None:
        raise InputError("Give either --choices or --together.")
    among = split_choices(choices)
    check_question(question)
    check_choices(among)
    output = session_of(context).output
    opened = open_index(session_of(context), index, model=model)
    if image is not None:
        found = opened.find(image)
        if found is None:
            row = _ask_outside(opened, question, image, among, output)
            if as_lines:
                output.json_line(row)
            elif as_json:
                output.json(_document(question, query, [row]))
            else:
                output.data(printable_lines(str(row["answer"])))
            return
        hits = [found]
    else:
        hits = opened.search(query if query is not None else question, top=top, where=where)
        if query is None:
            output.message("Neither --image nor --query: asking about what a search for the question finds.")
        if not hits:
            output.message("Nothing was found to ask about.")
            if as_json:
                output.json(_document(question, query, []))
            return
    if together:
        _show_together(output, question, query, opened.ask_together(question, hits), as_json=as_json, as_lines=as_lines)
        return
    answers = opened.ask_each(question, hits, choices=among)
    if as_lines:
        for answer in answers:
            output.json_line(_answer_as_dict(answer))
    elif as_json:
        output.json(_document(question, query, [_answer_as_dict(a) for a in answers]))
    elif len(hits) == 1:
        [answer] = answers
        output.message(f"About {shown(answer.hit.uri)}, with a confidence of {answer.confidence:.2f}:")
        output.data(printable_lines(answer.text))
    else:
        output.stream(("rank", "score", "confidence", "path", "answer"), _rows(answers))


def _ask_outside(
    index: Corpus, question: str, image: str, choices: Sequence[str] | None, output: Output
) -> dict[str, object]:
    """The answer about a picture that is not in the index: it is compressed for this once and not stored.

    Raises:
        InputError: there is no such file.
        Fwd2BotError: it is no picture that could be used.
    """
    from fwd2bot_index.answering import replies
    from fwd2bot_index.decoding import MAX_SIDE, decode_image, read_file

    with named_picture(image):
        side = index.model.decode_side or MAX_SIDE  # as indexing does
        picture = decode_image(read_file(image), max_side=side).image
    output.message(f"{shown(image)} is not in the index: compressing it for this question.")
    [text], [confidence] = replies(index.model, index.model.compress([picture]).tokens, question, choices)
    return {"answer": text, "confidence": confidence, "path": absolute(image), "indexed": False}


def _show_together(
    output: Output, question: str, query: str | None, answer: JointAnswer, *, as_json: bool, as_lines: bool
) -> None:
    rests_on = answer.rests_on
    if as_json or as_lines:
        pictures = [
            {**hit_as_dict(hit), "weight": weight} for hit, weight in zip(answer.hits, answer.weights, strict=True)
        ]
        (output.json_line if as_lines else output.json)(
            {
                "question": question,
                "query": query,
                "answer": answer.text,
                "confidence": answer.confidence,
                "rests_on": [hit.id for hit in rests_on],
                "pictures": pictures,
            }
        )
        return
    output.message(f"About {len(answer.hits)} pictures together, with a confidence of {answer.confidence:.2f}:")
    output.data(printable_lines(answer.text))
    if rests_on:
        output.message("It rests on " + ", ".join(shown(hit.uri) for hit in rests_on) + ".")


def _rows(answers: Iterable[Answer]) -> Iterator[tuple[str, ...]]:
    for answer in answers:
        hit = answer.hit
        text = printable(" ".join(answer.text.split()))
        yield str(hit.rank), score(hit), f"{answer.confidence:.2f}", shown(hit.uri), text


def _answer_as_dict(answer: Answer) -> dict[str, object]:
    return {"answer": answer.text, "confidence": answer.confidence, **hit_as_dict(answer.hit), "indexed": True}


def _document(question: str, query: str | None, answers: list[dict[str, object]]) -> dict[str, object]:
    return {"question": question, "query": query, "answers": answers}
