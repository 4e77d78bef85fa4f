"""What goes over the wire: questions as the command line asks them, answers as its ``--json`` shows them."""

from __future__ import annotations

import base64
import binascii
from dataclasses import asdict
from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from fwd2bot_index.answering import MAX_CHOICES, MAX_QUESTION, MAX_TOGETHER
from fwd2bot_index.errors import ImageError, InputError
from fwd2bot_index.facets import Facet
from fwd2bot_index.queries import MAX_TERMS, MAX_TEXT
from fwd2bot_index.types import Answer, Hit, JointAnswer, Kept

MAX_TOP = 500
MAX_PAGE = 10_000
MAX_WHERE = 10_000
ID = "[0-9a-f]{32}"

_ID_EXAMPLE = "2213f32a6a0e82575bc0573ecdec0f85"

Where = Annotated[
    str | None,
    Field(
        max_length=MAX_WHERE,
        description="Only pictures whose columns fulfil this condition in SQL.",
        examples=["width > 100"],
    ),
]
Top = Annotated[int, Field(ge=1, le=MAX_TOP, description="How many pictures.")]
Page = Annotated[int, Field(ge=1, le=MAX_PAGE, description="Which `top` of them.")]


class Body(BaseModel):
    """What a client sends; what nothing reads is refused."""

    model_config = ConfigDict(extra="forbid")


class TermBody(Body):
    """One part of a query: a text, a picture, or a picture of the index."""

    text: Annotated[str | None, Field(max_length=MAX_TEXT, examples=["a red circle"])] = None
    image: Annotated[str | None, Field(description="The bytes of an image file, in base64.", examples=[None])] = None
    like: Annotated[
        str | None, Field(max_length=4096, description="The id or the path of a picture of the index.", examples=[None])
    ] = None
    weight: Annotated[
        float, Field(allow_inf_nan=False, description="Below 0: away from it.", examples=[1.0], ge=-1e6, le=1e6)
    ] = 1.0


class Filters(Body):
    """What a search gives, beside what it looks for."""

    where: Where = None
    top: Top = 10
    page: Page = 1
    diverse: Annotated[float, Field(ge=0, le=1, description="Prefer pictures unlike those before.")] = 0.0
    collapse: Annotated[
        StrictBool,
        Field(description="Of near copies, only the best; of the same bytes, if the bundled model did not index them."),
    ] = False
    percentile: Annotated[
        float | None, Field(ge=0, le=100, description="Only what scores better than so many per cent of the corpus.")
    ] = None
    min_z: Annotated[
        float | None,
        Field(
            allow_inf_nan=False,
            description="Only what scores so many standard deviations above the corpus's mean for this query.",
        ),
    ] = None
    rerank: Annotated[
        StrictBool, Field(description="Ask about the first 100 whether the text fits, and put them in order by that.")
    ] = False
    budget: Annotated[
        float | None,
        Field(gt=0, le=3600, description="Seconds for `rerank`; those that it does not suffice for stay behind."),
    ] = None


class SearchBody(Filters):
    """Several terms, each with its weight."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"terms": [{"text": "a red circle"}, {"text": "a blue square", "weight": -0.5}], "top": 5}]
        },
    )

    terms: Annotated[list[TermBody], Field(min_length=1, max_length=MAX_TERMS)]


Question = Annotated[str, Field(min_length=1, max_length=MAX_QUESTION, examples=["how many circles are there?"])]
Choices = Annotated[
    list[Annotated[str, Field(max_length=1000)]] | None,
    Field(min_length=2, max_length=MAX_CHOICES, description="The answers to choose from.", examples=[["yes", "no"]]),
]


class AskBody(Body):
    """A question about the pictures with these ids, or about what a search finds."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"question": "how many circles are there?", "query": "a red circle", "top": 3},
                {"question": "is there a circle?", "query": "a red circle", "top": 3, "choices": ["yes", "no"]},
            ]
        },
    )

    question: Question
    ids: Annotated[
        list[Annotated[str, Field(pattern=f"^{ID}$")]] | None,
        Field(min_length=1, max_length=MAX_TOGETHER, description="Ask about these.", examples=[None]),
    ] = None
    query: Annotated[
        str | None,
        Field(max_length=MAX_TEXT, description="Ask about what a search for this finds; default: for the question."),
    ] = None
    where: Where = None
    top: Top = 1
    choices: Choices = None
    together: Annotated[
        StrictBool, Field(description="One answer about all, read in one context, with the pictures that it rests on.")
    ] = False


class AnnotateBody(Body):
    """A question about all pictures, whose answers become a column."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"question": "is there a circle?", "column": "has_circle", "choices": ["yes", "no"]}]
        },
    )

    question: Question
    column: Annotated[str, Field(min_length=1, max_length=200, examples=["has_circle"])]
    choices: Choices = None
    where: Where = None
    again: Annotated[StrictBool, Field(description="Forget the answers that the column holds.")] = False


class SessionBody(Body):
    """What the page exchanges for its cookie."""

    token: Annotated[str, Field(max_length=10_000)]


# ---- answers


class PictureOut(BaseModel):
    """An indexed file."""

    id: Annotated[str, Field(examples=[_ID_EXAMPLE], description="Of its content: files with the same bytes share it.")]
    path: Annotated[str, Field(examples=["/photos/boat.jpg"])]
    width: int
    height: int
    metadata: Annotated[dict[str, Any], Field(description="The corpus's own columns.", examples=[{"year": 2024}])]


class HitOut(PictureOut):
    """A picture that was found."""

    rank: int
    score: Annotated[float, Field(description="Cosine similarity.")]
    z: Annotated[float | None, Field(description="Standard deviations above the mean of the corpus for this query.")]
    match: Annotated[float | None, Field(description="How likely the text fits, by `rerank`.")]
    copies: Annotated[list[str], Field(description="Near copies that were left out for it.")]


class SearchOut(BaseModel):
    terms: list[dict[str, Any]]
    where: str | None
    hits: list[HitOut]


class PicturesOut(BaseModel):
    pictures: list[PictureOut]


class DetailOut(PictureOut):
    """A picture with all files that hold it."""

    paths: list[str]


class KeptOut(BaseModel):
    """How well the summary tokens keep a picture."""

    caption: Annotated[str, Field(description="What the model says of the tokens alone.")]
    confidence: float
    rank: Annotated[int | None, Field(description="Where a search for these words finds the picture.")]
    among: int


class AnswerOut(HitOut):
    """What the model says about one picture."""

    answer: str
    confidence: Annotated[float, Field(description="How likely the model finds its answer, from 0 to 1.")]


class AnswersOut(BaseModel):
    question: str
    answers: list[AnswerOut]


class WeighedOut(HitOut):
    weight: Annotated[float, Field(description="By how much less likely the answer is without it, in nats.")]


class TogetherOut(BaseModel):
    """One answer about several pictures."""

    question: str
    answer: str
    confidence: float
    rests_on: Annotated[list[str], Field(description="Ids, the heaviest first.")]
    pictures: list[WeighedOut]


class AnnotatedOut(BaseModel):
    column: str
    answered: int
    already: int
    counts: dict[str, int]
    interrupted: bool
    seconds: float


class FacetOut(BaseModel):
    """A column that can be filtered by."""

    name: str
    kind: Literal["text", "number", "boolean", "time"]
    values: dict[str, int] | None
    least: float | str | None
    most: float | str | None


class ColumnsOut(BaseModel):
    columns: list[FacetOut]


class StatusOut(BaseModel):
    """Of the index and the server."""

    index: str
    model: str
    model_state: Literal["loading", "ready", "failed"]
    version: Annotated[int, Field(description="Grows with every commit.")]
    files: int
    skipped: int
    pictures: int
    bytes: int
    writing: Annotated[bool, Field(description="Another process is writing to the index.")]
    read_only: bool


class HealthOut(BaseModel):
    status: Literal["ready", "loading", "no-index", "store"]
    detail: str


class ErrorOut(BaseModel):
    """Every error: a sentence for people, a word for programs."""

    detail: Annotated[str, Field(examples=["The question is empty."])]
    error: Annotated[str, Field(examples=["input"])]


# ---- between both


def picture_bytes(encoded: str) -> bytes:
    """From base64, with or without the beginning of a data URI.

    Raises:
        ImageError: it is none.
    """
    try:
        return base64.b64decode(encoded.partition(",")[2] if encoded.startswith("data:") else encoded, validate=True)
    except (binascii.Error, ValueError) as e:
        raise ImageError("it is not in base64") from e


def check_term(term: TermBody) -> None:
    """
    Raises:
        InputError: it is not exactly one thing.
    """
    if sum(part is not None for part in (term.text, term.image, term.like)) != 1:
        raise InputError("A term of a query is one text, one picture, or one picture of the index.")


def plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, float) and value - value != 0:  # not finite
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def picture_out(hit: Hit, metadata: dict[str, Any]) -> dict[str, Any]:
    values = {name: plain(value) for name, value in metadata.items()}
    return {"id": hit.id, "path": hit.uri, "width": hit.width, "height": hit.height, "metadata": values}


def hit_out(hit: Hit, metadata: dict[str, Any]) -> dict[str, Any]:
    return {
        **picture_out(hit, metadata),
        "rank": hit.rank,
        "score": hit.score,
        "z": hit.z,
        "match": hit.match,
        "copies": list(hit.copies),
    }


def answer_out(answer: Answer, metadata: dict[str, Any]) -> dict[str, Any]:
    return {**hit_out(answer.hit, metadata), "answer": answer.text, "confidence": answer.confidence}


def together_out(question: str, answer: JointAnswer, metadata: list[dict[str, Any]]) -> dict[str, Any]:
    weighed = zip(answer.hits, answer.weights, metadata, strict=True)
    return {
        "question": question,
        "answer": answer.text,
        "confidence": answer.confidence,
        "rests_on": [hit.id for hit in answer.rests_on],
        "pictures": [{**hit_out(hit, values), "weight": weight} for hit, weight, values in weighed],
    }


def kept_out(kept: Kept) -> dict[str, Any]:
    return asdict(kept)


def facet_out(facet: Facet) -> dict[str, Any]:
    return {**asdict(facet), "least": plain(facet.least), "most": plain(facet.most)}
