"""Work in threads, for requests: it ends at its time limit, and when nobody waits for it any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request

from fwd2bot_serve.batching import Scope
from fwd2bot_serve.failures import CancelledError, OverloadedError, TimeLimitError

T = TypeVar("T")


class ClientGoneError(Exception):
    """Nobody is there to be answered."""


class Workers:
    """The threads that requests are worked on in."""

    def __init__(self, *, threads: int, most: int, time_limit: float) -> None:
        """
        Args:
            most: requests at work or waiting for a thread.
            time_limit: seconds that one may take.
        """
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="request")
        self._most = most
        self._time_limit = time_limit
        self.busy = 0
        """Requests at work or waiting, those that nobody waits for included until their thread is free."""

    async def run(self, request: Request, work: Callable[[], T]) -> T:
        """What ``work`` returns.

        Raises:
            OverloadedError, TimeLimitError: that was too much.
            ClientGoneError: the client hung up.
        """
        return await self._run(request, work, Scope())

    async def stream(self, request: Request, begin: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        """What the iterator brings, each as soon as it is there; every step has the whole time limit. The first step
        is made at once, so that what is wrong with the request is raised here.

        Raises:
            As :meth:`run`.
        """
        scope = Scope()
        iterator: list[Iterator[T]] = []

        def step() -> list[T]:
            if not iterator:
                iterator.append(begin())
            return [item for item in [next(iterator[0], None)] if item is not None]

        first = await self._run(request, step, scope)

        async def items() -> AsyncIterator[T]:
            found = first
            try:
                while found:
                    yield found[0]
                    found = await self._run(request, step, scope)
            finally:
                scope.cancel()

        return items()

    async def _run(self, request: Request, work: Callable[[], T], scope: Scope) -> T:
        if self.busy >= self._most:
            raise OverloadedError("The server has more to do than can wait: try again in a moment.")
        self.busy += 1

        def in_scope() -> T:
            if scope.is_cancelled:
                raise CancelledError
            with scope():
                return work()

        running = asyncio.get_running_loop().run_in_executor(self._threads, in_scope)
        running.add_done_callback(self._done)
        gone = asyncio.ensure_future(_hung_up(request))
        try:
            either: set[asyncio.Future[Any]] = {running, gone}
            await asyncio.wait(either, timeout=self._time_limit, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
            if gone.done():
                raise ClientGoneError
            raise TimeLimitError(f"That took longer than the {self._time_limit:g} seconds that this server allows.")
        finally:
            gone.cancel()
            if not running.done():
                scope.cancel()

    def _done(self, running: asyncio.Future[T]) -> None:
        self.busy -= 1
        if not running.cancelled():
            running.exception()  # seen, where nobody waits for it any more

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


async def _hung_up(request: Request) -> None:
    with suppress(RuntimeError):  # a test client without a connection
        while (await request.receive())["type"] != "http.disconnect":
            pass
