"""Indexing on a Ray cluster: files are decoded by tasks, batches compressed by actors.

Notable choices:

- The driver alone writes to the index. What comes to it of a picture is its payload, as the index's codec wrote it on
  the actor, and its embedding: 24 KB at 16 x 4096, so that a link of 1 GB/s carries 40,000 pictures/s, more than a
  thousand GPUs make of a model of that size. Fragments written by the actors, as lance-ray has it, would need an index
  that all nodes reach, and a second way to commit; they would save that link, which is not what is short. (Until the
  codec is fitted, tokens come as they are: the first 256 pictures.)
- Pixels stay in Ray's object store, from the task that decoded them to the actor that compresses them.
- A task decodes in a process of its own (:mod:`fwd2bot_index.decode_pool`), with all limits as on one machine: a file
  that kills its decoder costs itself only. What kills a whole node is done again elsewhere, by Ray.
- A batch whose actor dies is given to another, ``ATTEMPTS`` times in all. Then its pictures are tried one by one, as
  where a model fails: the guilty are left out, the others are not.
- Few batches are under way at a time, so that memory does not grow with the corpus.
- Ray moves objects between its own processes by pickling them. No file is unpickled.

The only module that imports ray.
"""

from __future__ import annotations

import os
import re
import socket
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from fwd2bot_index.archives import in_runs
from fwd2bot_index.decode_pool import SECONDS_PER_FILE, Decoded, Decoder, Outcome, Undecodable
from fwd2bot_index.engines import Compressed, compressed, encoded
from fwd2bot_index.errors import Fwd2BotError, InputError, ModelError
from fwd2bot_index.timing import timed

if TYPE_CHECKING:
    from fwd2bot_index.codec import Codec
    from fwd2bot_index.types import Compressor, Mode, ModelFacts, ModelIdentity

Found: TypeAlias = tuple[str, tuple[int, int], int, int]
"""Of a picture: its id, its size as decoded, and width and height of the original."""

ATTEMPTS: Final = 3
FILES_PER_TASK: Final = 8
TASKS_AHEAD: Final = 2
"""For each processor of the cluster."""
BATCHES_AHEAD: Final = 2
"""For each actor."""
LONGEST_START: Final = 600.0
"""Seconds for a model to be loaded somewhere."""
_CONNECT_SECONDS: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class RemotePicture:
    """Pixels in the cluster's object store."""

    image: Any
    """Ray's reference to an array [height, width, 3]."""
    size: tuple[int, int]
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of a model on an actor."""

    name: str
    revision: str | None
    fingerprint: str
    mode: Mode
    num_summary_tokens: int
    token_dim: int
    embedding_dim: int
    decode_side: int | None
    pads: bool
    package: str
    """Version of fwd2bot there."""


class RayEngine:
    """See :class:`fwd2bot_index.engines.Engine`."""

    def __init__(
        self,
        load: Callable[[], Compressor],
        identity: ModelIdentity,
        *,
        address: str | None,
        workers: int,
        batch_size: int,
    ) -> None:
        """
        Args:
            load: loads the model; it is sent to the actors.
            identity: what they must have loaded.
            address: of a running cluster, as ``ray.init`` takes it; None: one is started on this machine, with
                ``workers`` processors for decoding and one for the model.
        """
        self._load = load
        self._identity = identity
        self._address = address
        self._workers = workers
        self._batch_size = batch_size
        self._stack = ExitStack()
        self._actors: list[Any] = []
        self._next = 0
        self._codec: Any = None
        """Ray's reference to the codec of the index."""

    def __enter__(self) -> Self:
        ray = _ray()
        if not ray.is_initialized():
            connect(self._address, processors=self._workers + 1)
            self._stack.callback(ray.shutdown)
        return self

    def __exit__(self, *error: object) -> None:
        ray = _ray()
        for actor in self._actors:
            ray.kill(actor)
        self._stack.close()

    @property
    def ahead(self) -> int:
        return BATCHES_AHEAD * len(self._actors)

    def load(self) -> ModelFacts:
        ray = _ray()
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        # without GPUs one a node, as torch takes what processors there are
        count = gpus or sum(node["Alive"] for node in ray.nodes())
        actor = ray.remote(_Actor).options(num_gpus=1 if gpus else 0, num_cpus=0 if gpus else 1, max_restarts=-1)
        self._actors = [actor.remote(self._load) for _ in range(count)]
        try:
            found = ray.get([each.facts.remote() for each in self._actors], timeout=LONGEST_START)
        except Exception as e:
            raise ModelError(f"The model could not be loaded on the cluster: {_reason(e)}.") from e
        for facts in found:
            if facts.package != version("fwd2bot"):
                raise Fwd2BotError(
                    f"The cluster has fwd2bot {facts.package}, and this is {version('fwd2bot')}: install the same "
                    "version everywhere."
                )
            if facts.fingerprint != self._identity.fingerprint:
                raise ModelError(
                    f"The model {self._identity.name} on the cluster has other weights or settings than here: put the "
                    "same files everywhere, or name a commit with --revision."
                )
        return found[0]

    def decode(self, uris: Sequence[str], *, max_side: int) -> Iterator[Outcome]:
        ray = _ray()
        processors = max(1, int(ray.cluster_resources().get("CPU", 1)) - len(self._actors))
        most = max(TASKS_AHEAD * processors, -(-(self.ahead + 1) * self._batch_size // FILES_PER_TASK))
        waiting: deque[tuple[list[str], list[Any]]] = deque()
        for files in _chunks(uris):
            waiting.append((files, self._begin(files, max_side)))
            if len(waiting) > most:
                yield from self._decoded(*waiting.popleft(), max_side=max_side)
        while waiting:
            yield from self._decoded(*waiting.popleft(), max_side=max_side)

    @staticmethod
    def _begin(files: list[str], max_side: int) -> list[Any]:
        task = _ray().remote(decode).options(num_returns=1 + len(files), num_cpus=1, max_retries=ATTEMPTS - 1)
        references: list[Any] = task.remote(files, max_side)
        return references

    def _decoded(self, files: list[str], references: list[Any], *, max_side: int) -> Iterator[Outcome]:
        try:
            with timed("decode"):  # waiting for it, that is
                outcomes: list[Undecodable | Found] = _ray().get(references[0])
        except Exception as e:
            if len(files) == 1:
                yield Undecodable(uri=files[0], id=None, reason=f"it could not be decoded on the cluster: {_reason(e)}")
                return
            for file in files:  # one by one, to leave out only the guilty
                yield from self._decoded([file], self._begin([file], max_side), max_side=max_side)
            return
        for file, outcome, pixels in zip(files, outcomes, references[1:], strict=True):
            if isinstance(outcome, Undecodable):
                yield outcome
            else:
                id_, size, width, height = outcome
                picture = RemotePicture(image=pixels, size=size, width=width, height=height)
                yield Decoded(uri=file, id=id_, picture=picture)

    def submit(self, batch: Sequence[Decoded], codec: Codec | None) -> Callable[[], Compressed]:
        ray = _ray()
        pixels = [decoded.picture.image for decoded in batch]
        index = self._next
        self._next = (index + 1) % len(self._actors)
        if codec is not None and self._codec is None:
            self._codec = ray.put(codec)
        by = self._codec if codec is not None else None
        reference = self._actors[index].compress.remote(by, *pixels)

        def result() -> Compressed:
            nonlocal reference
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    found: Compressed = ray.get(reference)
                    return found
                except ray.exceptions.RayTaskError as e:
                    raise _cause(e) from e
                except ray.exceptions.RayError as e:
                    if attempt == ATTEMPTS:
                        raise ModelError(f"the process that compressed it died ({_reason(e)})") from e
                    actor = self._actors[(index + attempt) % len(self._actors)]
                    _wait_for(
                        actor
                    )  # one that is being started again takes no calls, and that would count as a failure
                    reference = actor.compress.remote(by, *pixels)
            raise AssertionError("it returns or raises")

        return result


class _Actor:
    """A model on some node."""

    def __init__(self, load: Callable[[], Compressor]) -> None:
        self._model = load()
        self._stack = ExitStack()
        self._stack.enter_context(self._model.merged("compress"))

    def facts(self) -> Facts:
        names = [name for name in Facts.__dataclass_fields__ if name != "package"]
        return Facts(**{name: getattr(self._model, name) for name in names}, package=version("fwd2bot"))

    def compress(self, codec: Codec | None, *pixels: Any) -> Compressed:
        inputs = self._model.preprocess([Image.fromarray(each) for each in pixels])
        return encoded(codec, compressed(self._model, inputs, len(pixels)))


def _wait_for(actor: Any) -> None:
    """Until it answers, which it does as soon as Ray has started it again, or has had time enough for it."""
    ray, end = _ray(), time.monotonic() + LONGEST_START
    while time.monotonic() < end:
        try:
            ray.get(actor.facts.remote(), timeout=LONGEST_START)
            return
        except ray.exceptions.RayTaskError:
            return
        except ray.exceptions.RayError:
            time.sleep(0.2)


_decoders: list[Decoder] = []
"""The one of this process, once there is one."""


def decode(files: list[str], max_side: int) -> list[Any]:
    """What became of each file, and then the pixels of each (None where there are none)."""
    if not _decoders:
        _decoders.append(Decoder())
    outcomes: list[Undecodable | Found] = []
    pixels: list[Any] = []
    for file in files:
        outcome = _decoders[0].decode(file, max_side=max_side, seconds=SECONDS_PER_FILE)
        if isinstance(outcome, Decoded):
            picture = outcome.picture
            outcomes.append((outcome.id, picture.size, picture.width, picture.height))
            pixels.append(np.asarray(picture.image))
        else:
            outcomes.append(outcome)
            pixels.append(None)
    return [outcomes, *pixels]


def connect(address: str | None, *, processors: int) -> None:
    """To a cluster that runs, or to one that is started on this machine.

    Raises:
        InputError: Ray is not installed, or no cluster answers there.
    """
    ray = _ray()
    quiet: dict[str, Any] = {"include_dashboard": False} if address is None else {}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked for telemetry
        quiet["num_cpus"] = processors
    elif (place := urlsplit(address if "://" in address else f"//{address}")).port is not None:
        try:
            socket.create_connection((place.hostname or "", place.port), timeout=_CONNECT_SECONDS).close()
        except OSError as e:
            raise InputError(f"No Ray cluster answers at {address}: {e.strerror or e}.") from e
    try:
        with warnings.catch_warnings():  # Lance warns of every fork, also of those that only start a program
            warnings.simplefilter("ignore")
            ray.init(address=address or "local", log_to_driver=False, logging_level="error", **quiet)
    except Exception as e:
        raise InputError(f"Ray could not be reached{f' at {address}' if address else ''}: {_reason(e)}.") from e


def _ray() -> Any:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of what it will do one day
    try:
        import ray
    except ImportError as e:
        raise InputError(f"--ray needs a package that is not installed ({e.name}): pip install 'fwd2bot[ray]'.") from e
    return ray


def _chunks(uris: Sequence[str]) -> Iterator[list[str]]:
    """A few files each; neighbours in a Parquet file, which are read as a stream, together."""
    chunk: list[str] = []
    for run in in_runs(uris):
        chunk += run
        if len(chunk) >= FILES_PER_TASK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _cause(error: Any) -> Exception:
    """What a model raised, without the traceback that Ray adds to the words."""
    cause = getattr(error, "cause", None)
    return ModelError(str(cause)) if cause is not None else ModelError(_reason(error))


def _reason(error: BaseException) -> str:
    """The line that says something: the last of a traceback that Ray passes on, else the first."""
    said = re.sub(r"\x1b\[[0-9;]*m", "", str(getattr(error, "cause", None) or error))
    lines = [line.strip() for line in said.splitlines() if line.strip()] or [type(error).__name__]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    return (raised[-1] if raised else lines[0]).rstrip(".:")
