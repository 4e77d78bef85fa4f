"""Decodes files in other processes, while the model runs in this one.

Notable choices:

- A file can kill its decoder or hold it for ever; it then becomes a reason, and a new process takes the next file.
- The processes are fresh interpreters, not forks (torch has threads) and not ``multiprocessing`` (which would run the
  caller's script again in each, importing torch with it, and pickles).
- They are in a session of their own, so that Ctrl-C in the terminal reaches this process only.
- At most ``ahead`` pictures wait to be taken: memory does not grow with the corpus.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Final, Protocol, Self, TypeAlias

from PIL import Image

from fwd2bot_index.archives import in_runs
from fwd2bot_index.decoding import DecodedImage
from fwd2bot_index.errors import Fwd2BotError
from fwd2bot_index.timing import timed

SECONDS_PER_FILE: Final = 60.0


class Picture(Protocol):
    """A picture that was decoded, here or elsewhere."""

    @property
    def image(self) -> Any:
        """What the engine that decoded it takes."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as decoded, in pixels."""
        ...

    @property
    def width(self) -> int:
        """Of the original, upright, in pixels, as is ``height``."""
        ...

    @property
    def height(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Decoded:
    uri: str
    id: str
    picture: Picture


@dataclass(frozen=True, kw_only=True)
class Undecodable:
    uri: str
    id: str | None
    """None where the file could not even be read."""
    reason: str
    unreachable: bool = False
    """See :attr:`fwd2bot_index.errors.ImageError.unreachable`."""


Outcome: TypeAlias = Decoded | Undecodable


class DecodePool:
    """``workers`` processes that start at once and decode until the pool is closed. Use it as a context manager."""

    def __init__(self, workers: int, *, ahead: int, seconds_per_file: float = SECONDS_PER_FILE) -> None:
        assert workers >= 1
        assert ahead >= 1
        self._seconds_per_file = seconds_per_file
        self._room = threading.Semaphore(ahead)
        self._closed = threading.Event()
        self._workers = [Decoder() for _ in range(workers)]
        self._threads: list[threading.Thread] = []

    def decode(self, uris: Iterable[str], *, max_side: int | None) -> Iterator[Outcome]:
        """What became of each file, in the order in which they are done. May be called once.

        Raises:
            Fwd2BotError: a decoder process cannot be started.
        """
        assert not self._threads, "a pool decodes one list of files"
        outcomes: queue.SimpleQueue[Outcome | BaseException | None] = queue.SimpleQueue()
        waiting = in_runs(uris)
        taking = threading.Lock()

        def run(worker: Decoder) -> None:
            mine: deque[str] = deque()
            try:
                while True:
                    self._room.acquire()
                    if not mine:
                        with taking:
                            mine.extend(next(waiting, ()))
                    if not mine or self._closed.is_set():
                        break
                    outcomes.put(worker.decode(mine.popleft(), max_side=max_side, seconds=self._seconds_per_file))
            except BaseException as e:
                outcomes.put(e)
            finally:
                self._room.release()
                outcomes.put(None)

        self._threads = [threading.Thread(target=run, args=(worker,), daemon=True) for worker in self._workers]
        for thread in self._threads:
            thread.start()
        running = len(self._threads)
        while running:
            with timed("decode"):  # waiting for it, that is
                outcome = outcomes.get()
            if outcome is None:
                running -= 1
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                self._room.release()
                yield outcome

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        self._closed.set()
        for _ in self._threads:
            self._room.release()
        for worker in self._workers:
            worker.kill()
        for thread in self._threads:
            thread.join()
        for worker in self._workers:
            worker.reap()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _WorkerDied(Exception):
    pass


class Decoder:
    """One decoder process, and the next one where it dies. Used by one thread at a time, but for :meth:`kill`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._killed = False
        self._ready = False
        self._process = _start()

    def decode(self, uri: str, *, max_side: int | None, seconds: float) -> Outcome:
        """What became of the file; restarts the process where that killed it. A file whose decoder dies is tried once
        more: the system may have ended it for want of memory that others had taken.

        Raises:
            Fwd2BotError: the process died before it was ready for any file.
        """
        try:
            return self._decode(uri, max_side=max_side, seconds=seconds, last=False)
        except _WorkerDied:
            return self._decode(uri, max_side=max_side, seconds=seconds, last=True)

    def _decode(self, uri: str, *, max_side: int | None, seconds: float, last: bool) -> Outcome:
        """
        Raises:
            _WorkerDied: the process did; only where it is not the ``last`` try.
        """
        content: str | None = None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._process.kill()

        try:
            if not self._ready:
                self._ready = bool(self._receive()["ready"])
            timer = threading.Timer(seconds, give_up)
            timer.daemon = True
            timer.start()
            try:
                self._request({"path": uri, "max_side": max_side})
                answer = self._receive()
                if "id" in answer:
                    content = str(answer["id"])
                    answer = self._receive()
                if content is None or "error" in answer:
                    return Undecodable(
                        uri=uri, id=content, reason=answer["error"], unreachable=answer.get("unreachable", False)
                    )
                size = (answer["columns"], answer["rows"])
                image = Image.frombuffer("RGB", size, self._receive_pixels(size[0] * size[1] * 3), "raw", "RGB", 0, 1)
            finally:
                timer.cancel()
        except _WorkerDied:
            self.reap()
            if not self._ready and not self._killed:
                raise Fwd2BotError(
                    f"The decoder process could not be started (exit status {self._process.returncode})."
                ) from None
            code = self._process.returncode
            self._restart()
            if not (last or late.is_set() or self._killed):
                raise
            reason = (
                f"it took more than {seconds:g} s to decode" if late.is_set() else f"it killed the decoder ({code})"
            )
            return Undecodable(uri=uri, id=content, reason=reason)
        picture = DecodedImage(image=image, width=answer["width"], height=answer["height"])
        return Decoded(uri=uri, id=content, picture=picture)

    def kill(self) -> None:
        with self._lock:
            self._killed = True
            self._process.kill()

    def reap(self) -> None:
        """Wait for the process that has ended or was killed, and close its pipes."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # a request that nobody read
                pipe.close()
        self._process.wait()

    def _restart(self) -> None:
        with self._lock:
            if not self._killed:
                self._process = _start()
                self._ready = False

    def _request(self, message: dict[str, Any]) -> None:
        pipe = _pipe(self._process.stdin)
        try:
            pipe.write(json.dumps(message).encode() + b"\n")
            pipe.flush()
        except OSError as e:
            raise _WorkerDied from e

    def _receive(self) -> dict[str, Any]:
        line = _pipe(self._process.stdout).readline()
        if not line.endswith(b"\n"):
            raise _WorkerDied
        message: dict[str, Any] = json.loads(line)
        return message

    def _receive_pixels(self, size: int) -> bytes:
        pixels = _pipe(self._process.stdout).read(size)
        if len(pixels) < size:
            raise _WorkerDied
        return pixels


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _start() -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "fwd2bot_index.decode_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
