"""The endpoints. Every one asks the library for what the command of its name asks for, and every error is a sentence:
``{"detail": "...", "error": "..."}``."""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.routing import Match

from fwd2bot_index.decoding import MAX_SIDE, decode_image
from fwd2bot_index.duplicates import SAME_BYTES, copy_threshold
from fwd2bot_index.errors import Fwd2BotError, IndexNotFoundError, InputError, ObjectStoreError
from fwd2bot_index.places import Place
from fwd2bot_index.queries import Term, changes, weighted
from fwd2bot_serve import wire
from fwd2bot_serve.batching import ModelThread, current_scope
from fwd2bot_serve.failures import (
    CancelledError,
    ForbiddenError,
    NotFoundError,
    OverloadedError,
    failure_of,
    sentence_of,
)
from fwd2bot_serve.guards import PAGE_POLICY, Guard, cookie_name, cookie_of, same
from fwd2bot_serve.metrics import Metrics
from fwd2bot_serve.pictures import DEFAULT_SIDE, Side, Thumbnails, decoding, media_type, original
from fwd2bot_serve.served import ServedIndex
from fwd2bot_serve.settings import Settings
from fwd2bot_serve.work import ClientGoneError, Workers

if TYPE_CHECKING:
    from fwd2bot_index.annotating import AnnotateReport
    from fwd2bot_index.config import Manifest
    from fwd2bot_index.corpus import Corpus
    from fwd2bot_index.results import Hits
    from fwd2bot_index.text_encoder import TextEncoder
    from fwd2bot_index.types import Answer, Compressor, Hit

LINES: Final = "application/x-ndjson"
_HEARTBEAT: Final = 5.0
"""Seconds after which a run that goes on says so, whether it got on or not."""
_FOR_EVER: Final = "private, max-age=31536000, immutable"
"""For what is named by its content."""
_PAGE_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, kw_only=True)
class Server:
    """What all endpoints share, as ``app.state.server``."""

    settings: Settings
    index: ServedIndex
    workers: Workers
    metrics: Metrics
    thumbnails: Thumbnails
    page: dict[str, bytes]
    stopping: threading.Event


def create_app(
    place: str | os.PathLike[str] | Place,
    settings: Settings,
    *,
    load: Callable[[Manifest], Compressor],
    text_encoder: Callable[[Manifest], TextEncoder | None],
) -> FastAPI:
    """The server of an index.

    Args:
        load, text_encoder: see :class:`fwd2bot_serve.served.ServedIndex`.
    """
    metrics = Metrics()
    thread = ModelThread(batch_size=settings.batch_size, made=metrics.model_call)
    server = Server(
        settings=settings,
        index=ServedIndex(Place.of(place), load=load, text_encoder=text_encoder, thread=thread),
        workers=Workers(threads=settings.threads, most=settings.max_requests, time_limit=settings.time_limit),
        metrics=metrics,
        thumbnails=Thumbnails(),
        page={file.name: file.read_bytes() for file in (files("fwd2bot_serve") / "page").iterdir() if file.is_file()},
        stopping=threading.Event(),
    )
    metrics.watch("busy_requests", "Requests at work or waiting.", lambda: server.workers.busy)
    metrics.watch("waiting_rows", "Rows that wait for the model.", lambda: thread.waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        threading.Thread(target=server.index.warm_up, name="warm-up", daemon=True).start()
        yield
        server.stopping.set()
        server.workers.close()
        thread.close()

    app = FastAPI(
        title="fwd2bot",
        version="1",
        description="Search and question an indexed corpus of pictures. Errors are sentences; nothing is stored of "
        "what is asked.",
        lifespan=lifespan,
        docs_url=None,  # both would load scripts of another site
        redoc_url=None,
    )
    app.state.server = server
    app.include_router(router)
    app.add_middleware(Guard, settings=settings, done=metrics.request)
    app.add_exception_handler(Fwd2BotError, _failed)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientGoneError, _nobody)
    app.add_exception_handler(CancelledError, _stopped)
    app.add_exception_handler(Exception, _bug)
    return app


def _of(request: Request) -> Server:
    server: Server = request.app.state.server
    return server


# ---- errors


def _error(status: int, error: str, sentence: str, retry_after: int | None = None) -> Response:
    body = json.dumps({"detail": sentence, "error": error})  # ASCII: half a surrogate pair stops no sentence
    headers: dict[str, str] = {} if retry_after is None else {"retry-after": str(retry_after)}
    return Response(body, status, headers, media_type="application/json")


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, Fwd2BotError)
    told = await run_in_threadpool(_as_it_is, _of(request).index, error)
    failure = failure_of(told)
    return _error(failure.status, failure.error, sentence_of(told), failure.retry_after)


def _as_it_is(index: ServedIndex, error: Fwd2BotError) -> Fwd2BotError:
    """Reading an index that has just been removed fails somewhere in the middle."""
    if isinstance(error, OverloadedError | ObjectStoreError):  # no time to ask for more
        return error
    try:
        index.look()
    except IndexNotFoundError as gone:
        return gone
    except Fwd2BotError:
        pass
    return error


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _error(422, "input", f"The body is no JSON, from its character {first['loc'][-1] + 1} on.")
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    sentence = f"{where}: {first['msg']}." if where else f"{first['msg']}."
    return _error(422, "input", sentence)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentences = {404: "There is nothing at this address.", 405: "This address does not take that method."}
    response = _error(
        error.status_code,
        "not-found" if error.status_code == 404 else "request",
        sentences.get(error.status_code, str(error.detail)),
    )
    if error.status_code == 405:  # Starlette names the methods of one route only
        response.headers["allow"] = ", ".join(_methods(request))
    return response


def _methods(request: Request) -> list[str]:
    """That this address takes."""
    found: set[str] = set()
    for route in router.routes:
        if isinstance(route, APIRoute) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return sorted(found)


async def _nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _stopped(request: Request, error: Exception) -> Response:
    return _error(503, "stopping", "The server is being stopped.", 5)


async def _bug(request: Request, error: Exception) -> Response:
    return _error(500, "bug", "This is a bug in fwd2bot: please report it with what the server printed.")


_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    401: {"description": "The token is missing or wrong."},
    403: {"description": "Not from a page of another site, or not on this server."},
    408: {"description": "The request took too long to arrive."},
    413: {"description": "The request is too large."},
    421: {"description": "The server does not go by that name."},
    422: {"description": "What is asked makes no sense, or a picture cannot be used."},
    503: {"description": "The index is not there, the model is being loaded, or too much is asked for."},
    504: {"description": "It took longer than is allowed."},
}


def _errors(*more: int) -> dict[int | str, dict[str, Any]]:
    said = {404: "There is no such picture.", 409: "The index is empty, or another process is writing to it."}
    errors = dict(_ERRORS)
    errors.update({status: {"description": said[status]} for status in more})
    return {status: dict(fields, model=wire.ErrorOut) for status, fields in errors.items()}


router = APIRouter()


# ---- searching


@router.get("/search", responses=_errors(409), response_model=wire.SearchOut, tags=["search"])
async def search(
    request: Request,
    query: Annotated[
        list[str],
        Query(
            max_length=20,
            description="What to look for, in words; `^2` behind it: it counts twice.",
            examples=["a red circle"],
        ),
    ] = [],  # noqa: B006 - FastAPI copies it
    like: Annotated[
        list[str],
        Query(max_length=20, description="Others like this picture of the index: its id or path, and `^WEIGHT`."),
    ] = [],  # noqa: B006
    but: Annotated[
        str | None, Query(max_length=wire.MAX_TEXT, description="How it should differ from `like`: `without people`.")
    ] = None,
    minus: Annotated[list[str], Query(max_length=20, description="Away from these words.")] = [],  # noqa: B006
    where: Annotated[
        str | None, Query(max_length=wire.MAX_WHERE, description="A condition in SQL.", examples=["width > 100"])
    ] = None,
    top: Annotated[int, Query(ge=1, le=wire.MAX_TOP)] = 10,
    page: Annotated[int, Query(ge=1, le=wire.MAX_PAGE)] = 1,
    diverse: Annotated[float, Query(ge=0, le=1)] = 0.0,
    collapse: bool = False,
    percentile: Annotated[float | None, Query(ge=0, le=100)] = None,
    min_z: Annotated[float | None, Query(allow_inf_nan=False)] = None,
    rerank: bool = False,
    budget: Annotated[float | None, Query(gt=0, le=3600)] = None,
) -> Response:
    """Find pictures by words and by pictures of the index, as `fwd2bot search` does with the same names. Pictures of
    your own are sent by `POST`."""
    if but is not None and not like:
        raise InputError("`but` says how it should differ from `like`: give one.")
    terms = [_weighted_term(text, "text") for text in query]
    terms += [_weighted_term(what, "like") for what in like]
    terms += changes(but) if but is not None else []
    terms += [_weighted_term(text, "text", sign=-1) for text in minus]
    filters = wire.Filters(
        where=where, top=top, page=page, diverse=diverse, collapse=collapse, percentile=percentile, min_z=min_z,
        rerank=rerank, budget=budget,
    )  # fmt: skip
    return await _search(request, lambda corpus: terms, filters)


@router.post("/search", responses=_errors(409), response_model=wire.SearchOut, tags=["search"])
async def search_by_terms(request: Request, body: wire.SearchBody) -> Response:
    """The same with the terms one by one, each with its weight, pictures of your own among them (in base64)."""
    for term in body.terms:
        wire.check_term(term)
    max_pixels = _of(request).settings.max_pixels
    return await _search(request, lambda corpus: [_term(corpus, term, max_pixels) for term in body.terms], body)


async def _search(request: Request, terms: Callable[[Corpus], list[Term]], filters: wire.Filters) -> Response:
    if filters.budget is not None and not filters.rerank:
        raise InputError("`budget` is the time for `rerank`.")
    server = _of(request)

    def work() -> dict[str, Any]:
        corpus = server.index.corpus()
        looked_for = terms(corpus)
        hits = corpus.search(
            *looked_for,
            where=filters.where,
            top=filters.top,
            skip=(filters.page - 1) * filters.top,
            diversity=filters.diverse,
            collapse=(copy_threshold(corpus.manifest) or SAME_BYTES) if filters.collapse else None,
            percentile=filters.percentile,
            min_z=filters.min_z,
            rerank=filters.rerank,
            seconds=filters.budget,
        )
        return {
            "terms": [_term_out(term) for term in looked_for],
            "where": filters.where,
            "hits": _with_metadata(corpus, hits, wire.hit_out),
        }

    return _json(await server.workers.run(request, work))


def _weighted_term(text: str, kind: str, *, sign: int = 1) -> Term:
    what, weight = weighted(text)
    return Term(text=what, weight=sign * weight) if kind == "text" else Term(like=what, weight=sign * weight)


def _term(corpus: Corpus, term: wire.TermBody, max_pixels: int) -> Term:
    if term.image is None:
        return Term(text=term.text, like=term.like, weight=term.weight)
    data = wire.picture_bytes(term.image)
    side = corpus.model.decode_side or MAX_SIDE  # as indexing does, so that a picture finds itself
    with decoding():
        image = decode_image(data, max_side=side, max_pixels=max_pixels).image
    return Term(image=image, weight=term.weight)


def _term_out(term: Term) -> dict[str, Any]:
    what = {"text": term.text} if term.text is not None else {"like": term.like}
    return {**({"image": True} if term.image is not None else what), "weight": term.weight}


# ---- asking


@router.post(
    "/ask",
    responses={
        **_errors(409),
        200: {
            "description": "The answers; with `Accept: application/x-ndjson` one on each line, as soon as it is there.",
            "content": {LINES: {"schema": {"type": "string"}}},
        },
    },
    response_model=wire.AnswersOut | wire.TogetherOut,
    tags=["ask"],
)
async def ask(request: Request, body: wire.AskBody) -> Response:
    """Ask about pictures, from their stored summary tokens, as `fwd2bot ask` does."""
    if body.together and body.choices is not None:
        raise InputError("Give either `choices` or `together`.")
    if body.ids is not None and (body.query is not None or body.where is not None):
        raise InputError("Give either `ids` or what is searched for.")
    server = _of(request)
    if body.together:
        found = await server.workers.run(request, lambda: _ask_together(server.index.corpus(), body))
        return _lines(_one(found)) if _wants_lines(request) else _json(found)
    if _wants_lines(request):
        return _lines(await server.workers.stream(request, lambda: _ask_each(server.index.corpus(), body)))
    answers = await server.workers.run(request, lambda: list(_ask_each(server.index.corpus(), body)))
    return _json({"question": body.question, "answers": answers})


def _asked_about(corpus: Corpus, body: wire.AskBody) -> Hits:
    if body.ids is not None:
        return corpus.pictures(body.ids)
    return corpus.search(body.query if body.query is not None else body.question, top=body.top, where=body.where)


def _ask_each(corpus: Corpus, body: wire.AskBody) -> Iterator[dict[str, Any]]:
    hits = _asked_about(corpus, body)
    known = dict(zip([hit.uri for hit in hits], corpus.metadata(hits), strict=True))
    answers: Iterator[Answer] = corpus.ask_each(body.question, hits, choices=body.choices)
    for answer in answers:
        yield wire.answer_out(answer, known[answer.hit.uri])


def _ask_together(corpus: Corpus, body: wire.AskBody) -> dict[str, Any]:
    hits = _asked_about(corpus, body)
    return wire.together_out(body.question, corpus.ask_together(body.question, hits), corpus.metadata(hits))


# ---- annotating


@router.post(
    "/annotate",
    responses={
        **_errors(409),
        200: {
            "description": "Lines of `{done, total}` while it goes on, and at the end what was done.",
            "content": {LINES: {"schema": {"type": "string"}}},
        },
    },
    response_class=StreamingResponse,
    tags=["ask"],
)
async def annotate(request: Request, body: wire.AnnotateBody) -> Response:
    """Ask one question about all pictures and keep the answers as a column, as `fwd2bot annotate` does. Whoever
    hangs up stops it; the answers that are there are kept, and the same request goes on."""
    server = _of(request)
    if server.settings.read_only:
        raise ForbiddenError("This server only reads: it was started with --read-only.")
    return _lines(await server.workers.stream(request, lambda: _annotate(server, body)))


def _annotate(server: Server, body: wire.AnnotateBody) -> Iterator[dict[str, Any]]:
    corpus = server.index.to_write()
    scope = current_scope()
    said: queue.Queue[dict[str, Any] | BaseException | None] = queue.Queue()

    def progress(done: int, total: int) -> None:
        said.put({"done": done, "total": total})
        if scope.is_cancelled or server.stopping.is_set():
            raise KeyboardInterrupt  # which the library takes as the wish to end here, and keeps what is done

    def run() -> None:
        try:
            report: AnnotateReport = corpus.annotate(
                body.question, body.column, choices=body.choices, where=body.where, again=body.again, progress=progress
            )
            said.put(asdict(report))
        except BaseException as e:
            said.put(e)
        said.put(None)

    threading.Thread(target=run, name="annotating").start()
    last: dict[str, Any] = {"done": 0, "total": None}
    while True:
        try:
            item = said.get(timeout=_HEARTBEAT)
        except queue.Empty:
            item = last
        if item is None:
            return
        if isinstance(item, BaseException):
            raise item
        last = item
        yield item


# ---- pictures

PictureId = Annotated[str, Path(pattern=f"^{wire.ID}$", examples=["2213f32a6a0e82575bc0573ecdec0f85"])]


@router.get("/pictures", responses=_errors(), response_model=wire.PicturesOut, tags=["pictures"])
async def pictures(
    request: Request,
    where: Annotated[str | None, Query(max_length=wire.MAX_WHERE, description="A condition in SQL.")] = None,
    top: Annotated[int, Query(ge=1, le=wire.MAX_TOP)] = 50,
    page: Annotated[int, Query(ge=1, le=wire.MAX_PAGE)] = 1,
) -> Response:
    """All pictures, those that were indexed last first."""
    server = _of(request)

    def work() -> dict[str, Any]:
        corpus = server.index.corpus()
        found = corpus.newest(top, skip=(page - 1) * top, where=where)
        return {"pictures": _with_metadata(corpus, found, wire.picture_out)}

    return _json(await server.workers.run(request, work))


@router.get("/pictures/{id}", responses=_errors(404), response_model=wire.DetailOut, tags=["pictures"])
async def picture(request: Request, id: PictureId) -> Response:
    """What is known of one picture."""
    server = _of(request)

    def work() -> dict[str, Any]:
        corpus = server.index.corpus()
        found = _files(corpus, id)
        [shown] = _with_metadata(corpus, found[:1], wire.picture_out)
        return {**shown, "paths": [hit.uri for hit in found]}

    return _json(await server.workers.run(request, work))


@router.get("/pictures/{id}/kept", responses=_errors(404, 409), response_model=wire.KeptOut, tags=["pictures"])
async def kept(request: Request, id: PictureId) -> Response:
    """How well the summary tokens keep a picture: what the model says of them alone, and where a search for these words
    finds the picture."""
    server = _of(request)

    def work() -> dict[str, Any]:
        corpus = server.index.corpus()
        return wire.kept_out(corpus.kept(_files(corpus, id)[0]))

    return _json(await server.workers.run(request, work))


def _files(corpus: Corpus, id_: str) -> list[Hit]:
    if not (found := corpus.files(id_)):
        raise NotFoundError(f"The index holds no picture with the id {id_!r}.")
    return found


@router.get(
    "/images/{id}",
    responses={**_errors(404), 200: {"content": {"image/*": {}, "application/octet-stream": {}}}},
    response_class=Response,
    tags=["pictures"],
)
async def image(request: Request, id: PictureId) -> Response:
    """The file of a picture, as it was indexed."""
    server = _of(request)
    data = await server.workers.run(request, lambda: original(server.index.corpus(), id))
    return Response(data, headers={"cache-control": _FOR_EVER, "etag": f'"{id}"'}, media_type=media_type(data))


@router.get(
    "/thumbnails/{id}",
    responses={**_errors(404), 200: {"content": {"image/jpeg": {}}}},
    response_class=Response,
    tags=["pictures"],
)
async def thumbnail(
    request: Request,
    id: PictureId,
    side: Annotated[Side, Query(description="The longest side, in pixels.")] = DEFAULT_SIDE,
) -> Response:
    """A small JPEG of a picture."""
    server = _of(request)
    jpeg = await server.workers.run(request, lambda: server.thumbnails.of(server.index.corpus(), id, side))
    return Response(jpeg, headers={"cache-control": _FOR_EVER}, media_type="image/jpeg")


# ---- the index and the server


@router.get("/columns", responses=_errors(), response_model=wire.ColumnsOut, tags=["index"])
async def columns(request: Request) -> Response:
    """What can be filtered by."""
    server = _of(request)
    found = await server.workers.run(request, server.index.facets)
    return _json({"columns": [wire.facet_out(facet) for facet in found]})


@router.get("/status", responses=_errors(), response_model=wire.StatusOut, tags=["index"])
async def status(request: Request) -> Response:
    """What is in the index, and whether somebody is writing to it: for whoever watches an indexing run."""
    server = _of(request)

    def work() -> dict[str, Any]:
        now = server.index.status()
        corpus = server.index.corpus()
        return {
            "index": str(corpus.place),
            "model": corpus.manifest.model,
            "model_state": server.index.model_state,
            "version": now.version,
            "files": now.stats.files,
            "skipped": now.stats.skipped,
            "pictures": now.stats.pictures,
            "bytes": now.stats.total_bytes,
            "writing": now.is_being_written,
            "read_only": server.settings.read_only,
        }

    return _json(await server.workers.run(request, work))


@router.get(
    "/health",
    response_model=wire.HealthOut,
    responses={503: {"model": wire.HealthOut, "description": "Not yet, or not now."}, 421: {"model": wire.ErrorOut}},
    tags=["server"],
)
async def health(request: Request) -> Response:
    """Whether a search is answered at once."""
    index = _of(request).index
    try:
        await run_in_threadpool(index.look)  # an object store may take its time
    except IndexNotFoundError:
        return _json({"status": "no-index", "detail": "The index is not there."}, 503)
    except ObjectStoreError as e:
        return _json({"status": "store", "detail": str(e)}, 503)
    if not index.is_warm:
        return _json({"status": "loading", "detail": index.hindrance or "The first search is being made."}, 503)
    return _json({"status": "ready", "detail": f"Searches are answered; the model is {index.model_state}."})


@router.get("/metrics", response_class=Response, responses=_errors(), tags=["server"])
async def metrics(request: Request) -> Response:
    """In Prometheus's text format."""
    return Response(_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.post("/session", status_code=204, responses=_errors(), response_class=Response, include_in_schema=False)
async def session(request: Request, body: wire.SessionBody) -> Response:
    """Trade the token for the cookie of the page."""
    token = _of(request).settings.token
    response = Response(status_code=204)
    if token is None:  # nothing is wanted: an address with a token in it opens the page as any other does
        return response
    if not same(body.token, token):
        return _error(401, "token", "That is not the token of this server.")
    response.set_cookie(cookie_name(token), cookie_of(token), httponly=True, samesite="strict", path="/")
    return response


@router.get("/", include_in_schema=False)
async def page(request: Request) -> Response:
    return _page_file(_of(request), "index.html")


@router.get("/page/{name}", include_in_schema=False)
async def page_file(request: Request, name: str) -> Response:
    return _page_file(_of(request), name)


def _page_file(server: Server, name: str) -> Response:
    if name not in server.page:
        raise HTTPException(404)
    media = _PAGE_TYPES["." + name.rsplit(".", 1)[-1]]
    headers = {"content-security-policy": PAGE_POLICY, "cache-control": "no-cache"}
    return Response(server.page[name], headers=headers, media_type=media)


# ---- helpers


def _with_metadata(
    corpus: Corpus, hits: Sequence[Hit], shown: Callable[[Hit, dict[str, Any]], dict[str, Any]]
) -> list[dict[str, Any]]:
    return [shown(hit, values) for hit, values in zip(hits, corpus.metadata(hits), strict=True)]


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(content, allow_nan=False), status, media_type="application/json")


def _wants_lines(request: Request) -> bool:
    return LINES in request.headers.get("accept", "")


def _lines(items: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        try:
            async for item in items:
                yield json.dumps(item, allow_nan=False) + "\n"
        except Fwd2BotError as e:  # the status has been sent: the last line tells
            yield json.dumps({"detail": sentence_of(e), "error": failure_of(e).error}) + "\n"
        except CancelledError:
            yield json.dumps({"detail": "The server is being stopped.", "error": "stopping"}) + "\n"

    return StreamingResponse(lines(), media_type=LINES)


async def _one(item: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    yield item
