"""What goes wrong while serving that the library does not know of; and every error's status."""

from __future__ import annotations

from dataclasses import dataclass

from fwd2bot_index.errors import (
    Fwd2BotError,
    ImageError,
    IndexBusyError,
    IndexEmptyError,
    IndexError_,
    IndexNotFoundError,
    InputError,
    ModelError,
    ObjectStoreError,
)


class LoadingError(Fwd2BotError):
    """The model is not there yet."""


class OverloadedError(Fwd2BotError):
    """More is asked for than can wait."""


class TimeLimitError(Fwd2BotError):
    """A client was promised an answer, or a limit, and this is the limit."""


class NotFoundError(Fwd2BotError):
    """There is no such picture."""


class ForbiddenError(Fwd2BotError):
    """This server does not do that."""


class CancelledError(Exception):
    """The client has gone, or its time is up: what is left of its work is not done."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How an error is told."""

    status: int
    error: str
    """A word for programs; the sentence beside it is for people."""
    retry_after: int | None = None
    """Seconds."""


# The first that fits.
_FAILURES: tuple[tuple[type[Fwd2BotError], Failure], ...] = (
    (LoadingError, Failure(status=503, error="loading", retry_after=2)),
    (OverloadedError, Failure(status=503, error="overloaded", retry_after=1)),
    (TimeLimitError, Failure(status=504, error="time-limit")),
    (NotFoundError, Failure(status=404, error="not-found")),
    (ForbiddenError, Failure(status=403, error="forbidden")),
    (ImageError, Failure(status=422, error="image")),
    (InputError, Failure(status=422, error="input")),
    (IndexEmptyError, Failure(status=409, error="empty")),
    (IndexBusyError, Failure(status=409, error="busy", retry_after=10)),
    (IndexNotFoundError, Failure(status=503, error="no-index", retry_after=5)),
    (IndexError_, Failure(status=503, error="index", retry_after=5)),
    (ObjectStoreError, Failure(status=503, error="store", retry_after=10)),
    (ModelError, Failure(status=503, error="model")),
    (Fwd2BotError, Failure(status=503, error="model")),
)


def failure_of(error: Fwd2BotError) -> Failure:
    return next(failure for kind, failure in _FAILURES if isinstance(error, kind))


def sentence_of(error: Fwd2BotError) -> str:
    """The reason why a picture cannot be used reads on from its name: here from "The picture"."""
    return f"The picture cannot be used: {error.reason}." if isinstance(error, ImageError) else str(error)
