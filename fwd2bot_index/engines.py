"""Where the work of indexing is done: in this process, on several devices of this machine, or on a cluster.

An *engine* decodes files and compresses batches; what is to be done, and what becomes of it, is decided by
:mod:`fwd2bot_index.indexing` alone and the same for all. Results are asked for in the order in which batches were
handed out, so that rows do not depend on who was faster.

Indexing is no collective operation: devices share nothing and never wait for each other, so there is nothing for
``torchrun`` to do.

Shapes: B batch, K summary tokens, D hidden size, E embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

import numpy as np

from fwd2bot_index.decode_pool import Decoded, DecodePool, Outcome
from fwd2bot_index.errors import ModelError
from fwd2bot_index.payloads import Bytes, Float32
from fwd2bot_index.timing import timed

if TYPE_CHECKING:
    from fwd2bot_index.codec import Codec
    from fwd2bot_index.types import Compressor, ModelFacts

Compressed: TypeAlias = tuple[Float32 | Bytes, Float32]
"""Summary tokens [B, K, D], or what a codec made of them [B, payload bytes]; and embeddings [B, E]."""


class Engine(Protocol):
    """A context manager: what it holds goes with it."""

    @property
    def ahead(self) -> int:
        """Batches that had better be handed out before the first of them is asked for."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def load(self) -> ModelFacts:
        """Load the model wherever it is to run.

        Raises:
            ModelError: it cannot be loaded, or is not the same everywhere.
        """
        ...

    def decode(self, uris: Sequence[str], *, max_side: int) -> Iterator[Outcome]:
        """What became of each file. May be called once."""
        ...

    def submit(self, batch: Sequence[Decoded], codec: Codec | None) -> Callable[[], Compressed]:
        """Hand out a batch that :meth:`decode` gave; what is returned waits for it.

        Args:
            codec: the index's, if there is one yet: an engine may encode with it where it compresses.

        The result raises what the model raised, and ModelError where tokens or embeddings are not finite.
        """
        ...


class EngineMaker(Protocol):
    def __call__(self, *, workers: int, batch_size: int) -> Engine: ...


class _Decoding:
    """Processes on this machine that decode; they start when it is entered."""

    def __init__(self, workers: int, batch_size: int) -> None:
        self._workers = workers
        self._batch_size = batch_size
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        waiting = (self.ahead + 1) * self._batch_size
        self._pool = self._stack.enter_context(DecodePool(self._workers, ahead=waiting))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def ahead(self) -> int:
        return 1

    def decode(self, uris: Sequence[str], *, max_side: int) -> Iterator[Outcome]:
        return self._pool.decode(uris, max_side=max_side)


class LocalEngine(_Decoding):
    """The model in this process and on the calling thread; the next batch is preprocessed beside it."""

    def __init__(self, load: Callable[[], Compressor], *, workers: int, batch_size: int) -> None:
        super().__init__(workers, batch_size)
        self._load = load

    def load(self) -> ModelFacts:
        self._model = self._load()
        self._preprocessing = ThreadPoolExecutor(1, thread_name_prefix="preprocess")
        self._stack.callback(self._preprocessing.shutdown, cancel_futures=True)
        self._stack.enter_context(self._model.merged("compress"))
        return self._model

    def submit(self, batch: Sequence[Decoded], codec: Codec | None) -> Callable[[], Compressed]:
        prepared = self._preprocessing.submit(self._model.preprocess, _images(batch))

        def result() -> Compressed:
            with timed("preprocess"):  # waiting for it, that is
                inputs = prepared.result()
            return compressed(self._model, inputs, len(batch))

        return result


class DevicesEngine(_Decoding):
    """The model once on each of several devices, each with a thread of its own."""

    def __init__(self, loads: Sequence[Callable[[], Compressor]], *, workers: int, batch_size: int) -> None:
        """``loads``: what loads the model for each device."""
        super().__init__(workers, batch_size)
        self._loads = loads
        self._next = 0

    @property
    def ahead(self) -> int:
        return 2 * len(self._loads)

    def load(self) -> ModelFacts:
        self._models = [load() for load in self._loads]
        self._threads = []
        for model in self._models:
            self._stack.enter_context(model.merged("compress"))
            thread = ThreadPoolExecutor(1, thread_name_prefix="device")
            self._stack.callback(thread.shutdown, cancel_futures=True)
            self._threads.append(thread)
        return self._models[0]

    def submit(self, batch: Sequence[Decoded], codec: Codec | None) -> Callable[[], Compressed]:
        model, thread = self._models[self._next], self._threads[self._next]
        self._next = (self._next + 1) % len(self._models)

        def work() -> Compressed:
            return encoded(codec, compressed(model, model.preprocess(_images(batch)), len(batch)))

        return thread.submit(work).result


def compressed(model: Compressor, inputs: Any, count: int) -> tuple[Float32, Float32]:
    """tokens [B, K, D] and embedding [B, E] of ``count`` pictures.

    Args:
        inputs: what ``model.preprocess`` made of them.

    Raises:
        ModelError: some are not finite.
    """
    summary = model.compress(inputs)
    tokens, embedding = (tensor.float().cpu().numpy() for tensor in (summary.tokens, summary.embedding))
    assert tokens.shape == (count, model.num_summary_tokens, model.token_dim), tokens.shape
    assert embedding.shape == (count, model.embedding_dim), embedding.shape
    if not (np.isfinite(tokens).all() and np.isfinite(embedding).all()):
        raise ModelError("its summary tokens are not finite")
    return tokens, embedding


def encoded(codec: Codec | None, found: tuple[Float32, Float32]) -> Compressed:
    """With the tokens as ``codec`` writes them; None: as they are."""
    tokens, embedding = found
    return (tokens if codec is None else codec.encode(tokens)), embedding


def _images(batch: Sequence[Decoded]) -> list[Any]:
    return [decoded.picture.image for decoded in batch]
