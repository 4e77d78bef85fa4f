"""One thread for the model, fed by all clients: what waits while it works goes into its next call together.

Notable choices:

- :class:`BatchedModel` is a :class:`fwd2bot_index.types.Compressor` itself, so the library searches, answers, re-ranks
  and annotates through it from any thread as it always does, and knows nothing of other clients.
- Nobody waits for a batch to fill: a call takes what is there. Alone, a client is as fast as without batching; the more
  there are, the fuller the calls.
- A call that fails is made again for each client alone, so that no one's input spoils another's answer.
- A client that goes away takes its waiting rows with it.

Shapes: B rows of one client, K summary tokens, D hidden size, E embedding size.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError as TakenBackError
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from fwd2bot_index.types import Compressor, ImageInput, Mode, Replies, Stage, SummaryTokens
from fwd2bot_serve.failures import CancelledError, OverloadedError

if TYPE_CHECKING:
    import torch

MAX_WAITING: Final = 4096
"""Rows that may wait for the model."""

_current: ContextVar[Scope | None] = ContextVar("scope", default=None)


class Scope:
    """The work of one request: whatever it waits for ends when it is cancelled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waits_for: Future[Any] | None = None
        self.is_cancelled = False

    def cancel(self) -> None:
        """What waits is taken back; what the model is computing is computed for nobody."""
        with self._lock:
            self.is_cancelled = True
            future = self._waits_for
        if future is not None:
            future.cancel()  # in vain where it is being computed: `wait` looks again when it is there

    def wait(self, future: Future[Any]) -> Any:
        """
        Raises:
            CancelledError: the request was cancelled.
        """
        with self._lock:
            self._waits_for = future
            if self.is_cancelled:
                future.cancel()
        try:
            result = future.result()
        except TakenBackError:
            raise CancelledError from None
        if self.is_cancelled:
            raise CancelledError
        return result

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Inside, in this thread, models wait in this scope."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


def current_scope() -> Scope:
    """Of the request that this thread works for."""
    return _current.get() or Scope()


@dataclass(eq=False)
class _Call:
    kind: Hashable
    """Calls of one kind can be made as one; None: only by itself."""
    rows: int
    arguments: Any
    work: Callable[[list[Any]], Iterable[Any]]
    """From the arguments of several calls of this kind to the result of each."""
    future: Future[Any] = field(default_factory=Future)


class ModelThread:
    """Makes calls one after another, joining those of one kind."""

    def __init__(
        self,
        *,
        batch_size: int,
        max_waiting: int = MAX_WAITING,
        made: Callable[[str, int], None] = lambda kind, rows: None,
    ) -> None:
        """
        Args:
            batch_size: rows that are joined; a call of more is made by itself.
            made: is told of every call that was made, its kind and its rows.
        """
        self._batch_size = batch_size
        self._max_waiting = max_waiting
        self._made = made
        self._waiting: deque[_Call] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Rows."""
        with self._changed:
            return self._rows()

    def close(self) -> None:
        """What waits is taken back; what is being computed is finished."""
        with self._changed:
            self._closed = True
            for call in self._waiting:
                call.future.cancel()
            self._waiting.clear()
            self._changed.notify()
        self._thread.join()

    def call(self, kind: Hashable, rows: int, arguments: Any, work: Callable[[list[Any]], Iterable[Any]]) -> Any:
        """Wait for the result.

        Raises:
            OverloadedError: too much waits already.
            CancelledError: the request that this is a part of was cancelled.
        """
        call = _Call(kind, rows, arguments, work)
        with self._changed:
            if self._closed:
                raise CancelledError
            if self._waiting and self._rows() + rows > self._max_waiting:
                raise OverloadedError("The model has more to do than can wait: try again in a moment.")
            self._waiting.append(call)
            self._changed.notify()
        return current_scope().wait(call.future)

    def _rows(self) -> int:
        return sum(call.rows for call in self._waiting if not call.future.cancelled())

    def _work(self) -> None:
        while (calls := self._next()) is not None:
            if calls:
                self._make(calls)

    def _next(self) -> list[_Call] | None:
        """Those that are made as one; None at the end."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            first = self._waiting.popleft()
            chosen, rows, left = [first], first.rows, deque[_Call]()
            for call in self._waiting if first.kind is not None else ():
                if call.kind == first.kind and rows + call.rows <= self._batch_size:
                    chosen.append(call)
                    rows += call.rows
                else:
                    left.append(call)
            if first.kind is not None:
                self._waiting = left
        return [call for call in chosen if call.future.set_running_or_notify_cancel()]

    def _make(self, calls: Sequence[_Call]) -> None:
        kind = calls[0].kind[0] if isinstance(calls[0].kind, tuple) else "alone"
        try:
            results = list(calls[0].work([call.arguments for call in calls]))
        except BaseException as e:
            if len(calls) == 1:
                calls[0].future.set_exception(e)
            else:
                for call in calls:
                    self._make([call])
            return
        self._made(str(kind), sum(call.rows for call in calls))
        for call, result in zip(calls, results, strict=True):
            call.future.set_result(result)


class BatchedModel:
    """A model that any number of threads may use at once: its calls are made by a :class:`ModelThread`."""

    def __init__(self, model: Compressor, thread: ModelThread) -> None:
        self._model = model
        self._thread = thread

    @property
    def name(self) -> str:
        return self._model.name

    @property
    def revision(self) -> str | None:
        return self._model.revision

    @property
    def fingerprint(self) -> str:
        return self._model.fingerprint

    @property
    def full_fingerprint(self) -> str:
        return self._model.full_fingerprint

    @property
    def mode(self) -> Mode:
        return self._model.mode

    @property
    def num_summary_tokens(self) -> int:
        return self._model.num_summary_tokens

    @property
    def token_dim(self) -> int:
        return self._model.token_dim

    @property
    def embedding_dim(self) -> int:
        return self._model.embedding_dim

    @property
    def decode_side(self) -> int | None:
        return self._model.decode_side

    @property
    def pads(self) -> bool:
        return self._model.pads

    def preprocess(self, images: Sequence[ImageInput]) -> Sequence[ImageInput]:
        """Nothing yet: pictures of several clients are preprocessed together."""
        return images

    @property
    def caption_prompt(self) -> str:
        return self._model.caption_prompt

    def matching_question(self, text: str) -> str:
        return self._model.matching_question(text)

    def merged(self, stage: Stage) -> AbstractContextManager[None]:
        """Nothing: other clients call other stages meanwhile."""
        return nullcontext()

    def compress(self, images: Sequence[ImageInput]) -> SummaryTokens:
        def work(calls: list[Sequence[ImageInput]]) -> list[SummaryTokens]:
            made = self._model.compress([image for images in calls for image in images])
            sizes = [len(images) for images in calls]
            parts = zip(made.tokens.split(sizes), made.embedding.split(sizes), strict=True)
            return [SummaryTokens(tokens=tokens, embedding=embedding) for tokens, embedding in parts]

        made: SummaryTokens = self._thread.call(("compress",), len(images), images, work)
        return made

    def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
        def work(calls: list[Sequence[str]]) -> Sequence[torch.Tensor]:
            embeddings = self._model.embed_text([text for texts in calls for text in texts])
            return embeddings.split([len(texts) for texts in calls])

        embedding: torch.Tensor = self._thread.call(("embed_text",), len(texts), texts, work)
        return embedding

    def answer(self, tokens: torch.Tensor, prompt: str | Sequence[str], *, max_new_tokens: int = 32) -> Replies:
        def work(calls: list[tuple[torch.Tensor, list[str]]]) -> Iterator[Replies]:
            rows, prompts = _joined(calls)
            said = self._model.answer(rows, prompts, max_new_tokens=max_new_tokens)
            start = 0
            for tokens, _ in calls:
                of = slice(start, start + len(tokens))
                yield Replies(texts=said.texts[of], logprob=said.logprob[of], num_tokens=said.num_tokens[of])
                start += len(tokens)

        kind = ("answer", max_new_tokens, tokens.shape[1:])
        said: Replies = self._thread.call(kind, len(tokens), (tokens, _each(prompt, len(tokens))), work)
        return said

    def loglikelihood(
        self, tokens: torch.Tensor, prompt: str | Sequence[str], completions: Sequence[str], *, ended: bool = False
    ) -> torch.Tensor:
        def work(calls: list[tuple[torch.Tensor, list[str]]]) -> Sequence[torch.Tensor]:
            rows, prompts = _joined(calls)
            found = self._model.loglikelihood(rows, prompts, completions, ended=ended)
            return found.split([len(tokens) for tokens, _ in calls])

        kind = ("loglikelihood", tuple(completions), ended, tokens.shape[1:])
        found: torch.Tensor = self._thread.call(kind, len(tokens), (tokens, _each(prompt, len(tokens))), work)
        return found

    def answer_together(self, tokens: torch.Tensor, question: str, *, max_new_tokens: int = 32) -> Replies:
        said: Replies = self._alone(
            len(tokens), lambda: self._model.answer_together(tokens, question, max_new_tokens=max_new_tokens)
        )
        return said

    def weigh_together(self, tokens: torch.Tensor, question: str, answer: str) -> torch.Tensor:
        weights: torch.Tensor = self._alone(len(tokens), lambda: self._model.weigh_together(tokens, question, answer))
        return weights

    def _alone(self, rows: int, work: Callable[[], Any]) -> Any:
        return self._thread.call(None, rows, None, lambda calls: [work()])


def _each(prompt: str | Sequence[str], rows: int) -> list[str]:
    return [prompt] * rows if isinstance(prompt, str) else list(prompt)


def _joined(calls: list[tuple[torch.Tensor, list[str]]]) -> tuple[torch.Tensor, list[str]]:
    import torch

    return torch.cat([tokens for tokens, _ in calls]), [prompt for _, prompts in calls for prompt in prompts]
