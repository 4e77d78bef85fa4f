"""Pictures into an index: only what is new or has changed is computed.

What happens to a file is decided by its name, size and time; only where these differ is it read:

================================================  =====================================================
name, size and time are known                     nothing; it is not even opened
the content is known (touched, renamed, copied)   a row is written; the model is not needed
the content is new                                decoded in another process, compressed, written
it cannot be used                                 a row with the reason; tried again when it changes
it is gone from under the paths given             its row is dropped
================================================  =====================================================

Notable choices:

- The model is loaded when the first file needs it, while the decoders start.
- What is done is committed every ``commit_seconds``, at Ctrl-C, and at the end; the next run continues from there.
  Where a codec has to be fitted, the first commit waits for the pictures that it should be fitted to, and what is
  computed until then is kept beside the index (:mod:`fwd2bot_index.first_pictures`).
- A new index is made on disk with the first picture that could be compressed: a run that fails leaves nothing behind.
- The first pictures of a new index are spread over all that was found, where the codec is fitted to them.
- A file that was never read (no permission, say), or for which there was no memory, is tried in every run, for nothing
  about it need change to cure it.

Shapes: B batch, K summary tokens, D hidden size, E embedding size.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np

from fwd2bot_index.archives import close_archives
from fwd2bot_index.changes import Changes, find_changes
from fwd2bot_index.codec import CODEC_NAMES, fit_codec, is_fitted
from fwd2bot_index.config import DEFAULT_CODEC, Manifest
from fwd2bot_index.decode_pool import Decoded, Outcome, Undecodable
from fwd2bot_index.decoding import MAX_SIDE, content_id, read_file
from fwd2bot_index.engines import Compressed, Engine, EngineMaker, LocalEngine
from fwd2bot_index.errors import (
    ImageError,
    IndexMismatchError,
    IndexWriteError,
    InputError,
    ModelError,
    ObjectStoreError,
)
from fwd2bot_index.first_pictures import Computed, FirstPictures, forget_first_pictures
from fwd2bot_index.listing import FoundFile, list_files
from fwd2bot_index.metadata import Joined, Metadata, join, read_metadata
from fwd2bot_index.object_stores import is_uri, parent
from fwd2bot_index.patterns import Patterns
from fwd2bot_index.payloads import Bytes, Float32
from fwd2bot_index.places import Place
from fwd2bot_index.searching import refresh_vectors
from fwd2bot_index.store import ImageRow, IndexStore, KnownFiles, writing
from fwd2bot_index.timing import timed
from fwd2bot_index.types import Compressor, IndexReport, ModelFacts, ModelIdentity, SkippedFile
from fwd2bot_index.write_buffer import Copy, WriteBuffer

MAX_WORKERS: Final = 16
UNREACHABLE: Final = 5
"""Pictures of a store that is away, each with its own seconds of waiting; after so many in a row a run ends."""
CHECKED_AT_LEAST: Final = 64
"""Files whose content may be known are read one by one at first, and so is the rest while half of them are known."""
FIT_SAMPLE: Final = 256
"""More pictures than these teach a codec little, and fewer too little (docs/storage.md)."""

Phase: TypeAlias = Literal["listing", "checking", "loading", "compressing", "finishing"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is. Counts are files."""

    phase: Phase
    done: int
    total: int
    """0 while it is not known yet."""
    skipped: int


def index_images(
    paths: Sequence[str | Path],
    index: str | Path | Place,
    model: Compressor | Callable[[], Compressor],
    *,
    model_identity: ModelIdentity | None = None,
    codec: str = DEFAULT_CODEC,
    batch_size: int = 32,
    workers: int | None = None,
    commit_seconds: float = 10.0,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    settle_seconds: float = 0.0,
    metadata: str | Path | None = None,
    engine: EngineMaker | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> IndexReport:
    """Bring the index up to date with the files under ``paths``; what it knows of other places stays.

    Args:
        paths: folders, searched in depth, files, and zip, tar and Parquet files with pictures; and objects of a store
            (``s3://BUCKET/PREFIX``).
        index: the folder of the index, or its prefix in a store; made if there is none.
        model: the model, or what loads it if it comes to be needed.
        model_identity: which model ``model`` loads, so that an index of another is refused, and one that is up to date
            is left alone, without loading it. None: ask the model.
        codec: how summary tokens are stored; a fitted one learns from the pictures of the first commit, which waits
            for 256 of them, though not longer than 5 minutes.
        batch_size: pictures in one call of ``model.compress``.
        workers: processes that decode. None: half the processors.
        commit_seconds: at most this much work is lost in a crash.
        include, exclude: which files below the folders are wanted (see :mod:`fwd2bot_index.patterns`); the others are
            dropped from the index.
        settle_seconds: new and changed files with a time within this of now may still be being written: they are left
            for a later run.
        metadata: a table whose columns are joined to the files that it names (see :mod:`fwd2bot_index.metadata`). Files
            that it does not name keep what they have.
        engine: what decodes and compresses (see :mod:`fwd2bot_index.engines`); it loads the model by itself, so that
            ``model`` only says which that is. None: this process.
        progress: called after every batch and at the start of every phase.

    Raises:
        InputError: a path does not exist, there is no picture that could be used (NothingToIndexError where none was
            even found), a pattern makes no sense, or the table of metadata cannot be used: nothing was changed. Or
            it names no file of the index: then only that is missing.
        ObjectStoreError: a store with the index or the pictures cannot be reached; what was done before is kept.
        IndexMismatchError: the index was made by another model or codec.
        IndexCorruptedError, IndexWriteError: the index cannot be read or written (IndexBusyError: for another process
            is writing).
        ModelError: the model fails on every picture; what was done before is kept.
    """
    if batch_size < 1:
        raise InputError(f"The batch size must be at least 1, not {batch_size}.")
    if workers is not None and workers < 1:
        raise InputError(f"There must be at least one worker, not {workers}.")
    if codec not in CODEC_NAMES:
        raise InputError(f"There is no codec {codec!r}; there are {', '.join(CODEC_NAMES)}.")
    patterns = Patterns(tuple(include), tuple(exclude))
    place = Place.of(index)
    lazy = _LazyModel(model, model_identity)
    begin = partial(
        _Run,
        place=place,
        engine=engine or partial(LocalEngine, lazy.load),
        model=lazy,
        codec=codec,
        batch_size=batch_size,
        workers=workers or default_workers(remote=any(map(is_uri, paths))),
        commit_seconds=commit_seconds,
        patterns=patterns,
        settle_seconds=settle_seconds,
        metadata=None if metadata is None else read_metadata(metadata),
        progress=progress or (lambda _: None),
    )
    try:
        with writing(place):  # whether there is an index may be another's doing until then
            return begin().run(paths)
    finally:
        close_archives()


def default_workers(*, remote: bool = False) -> int:
    """Half the processors: the other half is for the model. Four times as many where they wait for a store."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return max(1, min(MAX_WORKERS, (4 if remote else 1) * (processors // 2)))


def sample_first(uris: Sequence[str], count: int = FIT_SAMPLE) -> list[str]:
    """All of them, first ``count`` that are evenly spread: what a codec is fitted to should be like what follows, and
    files of one folder are like each other."""
    first = [uris[i * len(uris) // count] for i in range(count)] if len(uris) > count else uris
    chosen = set(first)
    return [*first, *(uri for uri in uris if uri not in chosen)]


class _LazyModel:
    """The model, loaded at first need; and what is known of it before."""

    def __init__(self, model: Compressor | Callable[[], Compressor], identity: ModelIdentity | None) -> None:
        self._source = model
        self._model: Compressor | None = model if isinstance(model, Compressor) else None
        self._identity = identity
        self.loading_seconds = 0.0

    @property
    def identity(self) -> ModelIdentity:
        if self._identity is None:
            model = self.load()
            self._identity = ModelIdentity(name=model.name, revision=model.revision, fingerprint=model.fingerprint)
        return self._identity

    def load(self) -> Compressor:
        if self._model is None:
            assert not isinstance(self._source, Compressor)
            with timed("loading"):
                self._model = self._source()
        return self._model

    def loaded_by(self, engine: Engine) -> ModelFacts:
        started = time.perf_counter()
        facts = engine.load()
        self.loading_seconds = time.perf_counter() - started
        return facts


class _Batches:
    """Pictures into batches: as they come or, for a model that pads, of like size."""

    def __init__(self, size: int, *, alike: bool) -> None:
        self._size = size
        self._window = 2 * size if alike else size
        self._waiting: list[Decoded] = []

    def add(self, decoded: Decoded) -> None:
        self._waiting.append(decoded)

    def take(self, *, all_of_them: bool = False) -> list[Decoded]:
        """A full batch, once there are enough pictures to choose from; ``all_of_them``: the rest, batch by batch.

        The one that waits longest is in it, with those beside which the least is padded.
        """
        if not self._waiting or (len(self._waiting) < self._window and not all_of_them):
            return []
        if self._window == self._size:
            batch, self._waiting = self._waiting, []
            return batch
        by_size = sorted(range(len(self._waiting)), key=lambda i: _pixels(self._waiting[i]))
        sizes = [_pixels(self._waiting[i]) for i in by_size]
        oldest, last = by_size.index(0), max(0, len(by_size) - self._size)
        start = min(
            range(max(0, oldest - self._size + 1), min(oldest, last) + 1),
            key=lambda first: self._padding(sizes[first : first + self._size]),
        )
        chosen = sorted(by_size[start : start + self._size])
        batch = [self._waiting[i] for i in chosen]
        self._waiting = [d for i, d in enumerate(self._waiting) if i not in set(chosen)]
        return batch

    @staticmethod
    def _padding(sizes: Sequence[int]) -> int:
        return len(sizes) * max(sizes) - sum(sizes)


def _pixels(decoded: Decoded) -> int:
    width, height = decoded.picture.size
    return width * height


class _Run:
    """One run of :func:`index_images`."""

    def __init__(
        self,
        *,
        place: Place,
        engine: EngineMaker,
        model: _LazyModel,
        codec: str,
        batch_size: int,
        workers: int,
        commit_seconds: float,
        patterns: Patterns,
        settle_seconds: float,
        metadata: Metadata | None,
        progress: Callable[[Progress], None],
    ) -> None:
        self.place = place
        self._engine = engine
        self._model = model
        self._facts: ModelFacts | None = None
        """Of the model, once it is loaded."""
        self._handed_out: deque[tuple[Sequence[Decoded], Callable[[], Compressed]]] = deque()
        """Batches, with what waits for their results."""
        self._codec = codec
        self._batch_size = batch_size
        self._workers = workers
        self._patterns = patterns
        self._settle_seconds = settle_seconds
        self._metadata = metadata
        self._joined: Joined | None = None
        self._described = 0
        self._progress = progress
        self._started = time.perf_counter()
        self._model_seconds = 0.0
        store = IndexStore.open(place) if IndexStore.exists(place) else None
        if store is not None:
            self._check_same(store.manifest)
            if metadata is not None:
                store.fitting(metadata.columns)
        self._buffer = WriteBuffer(
            store,
            self._create_store,
            commit_seconds=commit_seconds,
            first=FIT_SAMPLE if is_fitted(codec) else 1,
            keep_first=self._keep_first,
        )
        self._computed: Computed = {}
        """By a run that was killed before its first commit, and not used by this one yet."""
        self._files: dict[str, FoundFile] = {}
        self._unreachable = 0
        """Pictures in a row that are in a store that could not be reached."""
        self._begun: set[str] = set()
        """Ids of the pictures that were given to the model in this run."""
        self._done = 0
        self._total = 0

    def run(self, paths: Sequence[str | Path]) -> IndexReport:
        self._tell("listing")
        changes: Changes | None = None
        interrupted = False
        try:
            changes = self._find_changes(paths)
            self._files = changes.found
            self._total = len(changes.to_check) + len(changes.to_decode)
            self._work(changes)
        except KeyboardInterrupt:
            interrupted = True
        except IndexWriteError:
            raise
        except Exception:
            self._buffer.commit()
            raise
        self._tell("finishing")
        self._buffer.commit()
        if changes is None:
            return IndexReport(interrupted=True, seconds=time.perf_counter() - self._started)
        if not interrupted:
            forget_first_pictures(self.place)
            self._settle(changes)
            self._describe(paths)
        return self._report(changes, interrupted=interrupted)

    # ---- the phases

    def _find_changes(self, paths: Sequence[str | Path]) -> Changes:
        settled_ns = time.time_ns() - int(self._settle_seconds * 1e9) if self._settle_seconds else None
        store = self._buffer.store
        known = store.known_files() if store is not None else KnownFiles.none()
        listing = list_files(
            paths,
            patterns=self._patterns,
            leave_out=str(self.place),
            known_archives=known.archives(),
            settled_ns=settled_ns,
        )
        return find_changes(listing, known, settled_ns=settled_ns)

    def _work(self, changes: Changes) -> None:
        self._decode_and_compress(changes.to_decode + self._check(changes), changes.known_ids)
        if stranded := self._buffer.commit_and_take_stranded():
            self._done -= len(stranded)
            self._decode_and_compress([copy.uri for copy in stranded], frozenset())

    def _decode_and_compress(self, to_decode: list[str], known_ids: frozenset[str]) -> None:
        if not to_decode:
            return
        if self._buffer.store is None and is_fitted(self._codec):
            to_decode = sample_first(to_decode)
        with self._engine(workers=self._workers, batch_size=self._batch_size) as engine:
            self._tell("loading")
            facts = self._facts = self._model.loaded_by(engine)
            self._computed = self._first_pictures().load()
            self._tell("compressing")
            batches = _Batches(self._batch_size, alike=facts.pads)
            for outcome in engine.decode(to_decode, max_side=facts.decode_side or MAX_SIDE):
                self._check_reachable(outcome)
                if not isinstance(outcome, Decoded):
                    self._skip(outcome.uri, outcome.id, outcome.reason)
                elif outcome.id in known_ids or outcome.id in self._begun:
                    self._copy(outcome.uri, outcome.id)
                elif outcome.id in self._computed:
                    self._begun.add(outcome.id)
                    tokens, embedding = self._computed.pop(outcome.id)
                    self._keep([outcome], tokens[None], embedding[None])
                else:
                    self._begun.add(outcome.id)
                    batches.add(outcome)
                while batch := batches.take():
                    self._hand_out(engine, batch)
            while batch := batches.take(all_of_them=True):
                self._hand_out(engine, batch)
            while self._handed_out:
                self._take_back(engine)

    def _check(self, changes: Changes) -> list[str]:
        """Settle the files whose content is known; the others are returned.

        Reading them here saves decoding them where most are known, as after a move. Where they are not, as new ones
        that happen to have the size of an old one, decoders find out as well, and there are more of them.
        """
        self._tell("checking")
        others: list[str] = []
        for i, uri in enumerate(changes.to_check):
            if i >= CHECKED_AT_LEAST and len(others) > i // 2:
                return others + changes.to_check[i:]
            try:
                id_ = content_id(read_file(uri))
            except ImageError as e:
                self._check_reachable(Undecodable(uri=uri, id=None, reason=e.reason, unreachable=e.unreachable))
                self._skip(uri, None, e.reason)
                continue
            if id_ in changes.known_ids:
                self._copy(uri, id_)
                self._buffer.commit_if_due()
                self._tell("checking")
            else:
                others.append(uri)
        return others

    def _check_reachable(self, outcome: Outcome) -> None:
        """
        Raises:
            ObjectStoreError: so many in a row could not be reached that the others need not be tried.
        """
        if isinstance(outcome, Decoded) or not outcome.unreachable:
            self._unreachable = 0
            return
        self._unreachable += 1
        if self._unreachable == UNREACHABLE:
            raise ObjectStoreError(
                f"{UNREACHABLE} pictures in a row could not be read, the last being {outcome.uri}: {outcome.reason}. "
                "What was done before is kept; the same command continues."
            )

    def _hand_out(self, engine: Engine, batch: Sequence[Decoded]) -> None:
        self._handed_out.append((batch, self._submit(engine, batch)))
        while len(self._handed_out) > engine.ahead:
            self._take_back(engine)

    def _take_back(self, engine: Engine) -> None:
        self._compress(engine, *self._handed_out.popleft())
        self._buffer.commit_if_due()
        self._tell("compressing")

    def _submit(self, engine: Engine, batch: Sequence[Decoded]) -> Callable[[], Compressed]:
        return engine.submit(batch, self._buffer.store.codec if self._buffer.store is not None else None)

    def _compress(self, engine: Engine, batch: Sequence[Decoded], result: Callable[[], Compressed]) -> None:
        """Keep what became of a batch; where it failed, of its pictures one by one, to leave out only the guilty.

        Raises:
            ModelError: all of them fail, or the device does, so that it is not the pictures.
        """
        try:
            self._keep(batch, *self._wait(result))
            return
        except Exception as e:
            if _device_is_broken(e):
                raise ModelError(
                    f"The device failed: {_first_line(e)}. What was done before is kept; the same command continues."
                ) from e
            # its frames hold the memory that the pictures are to be tried again in
            error = e.with_traceback(None) if _is_out_of_memory(e) else e
        failures = [(batch[0], error)] if len(batch) == 1 else self._compress_singly(engine, batch)
        alone = len(batch) == 1 and any(outcome.error is None for outcome in self._buffer.outcomes)
        if len(failures) == len(batch) and not alone:
            raise ModelError(
                f"The model {self._model.identity.name} fails on every picture, {batch[0].uri} being the first: "
                f"{_first_line(error)}."
            ) from error
        for decoded, failure in failures:
            # memory may be free again in another run, which tries what has no id
            id_ = None if _is_out_of_memory(failure) else decoded.id
            self._skip(decoded.uri, id_, f"the model could not compress it: {_first_line(failure)}")

    def _compress_singly(self, engine: Engine, batch: Sequence[Decoded]) -> list[tuple[Decoded, Exception]]:
        failures: list[tuple[Decoded, Exception]] = []
        for decoded in batch:
            try:
                self._keep([decoded], *self._wait(self._submit(engine, [decoded])))
            except Exception as e:
                failures.append((decoded, e.with_traceback(None) if _is_out_of_memory(e) else e))
        return failures

    def _wait(self, result: Callable[[], Compressed]) -> Compressed:
        started = time.perf_counter()
        try:
            return result()
        finally:
            self._model_seconds += time.perf_counter() - started

    def _settle(self, changes: Changes) -> None:
        """Drop what is gone, and take note of the archives that are done."""
        store = self._buffer.store
        if store is None:
            if changes.waiting and not self._buffer.outcomes:
                return
            raise InputError(self._nothing_usable())
        gone = [*changes.gone, *changes.forgotten]
        store.hand_on(changes.gone)
        store.remove(gone)
        if changes.archives:
            rows = [
                ImageRow(uri=uri, id=None, size=file.size, mtime_ns=file.mtime_ns, status="archive")
                for uri, file in changes.archives.items()
            ]
            store.commit(rows, {})
        if gone or changes.archives or self._buffer.outcomes:
            store.tidy()
            refresh_vectors(store)

    def _describe(self, paths: Sequence[str | Path]) -> None:
        """Join the metadata."""
        store = self._buffer.store
        if self._metadata is None or store is None:
            return
        folders = [path if is_uri(path) or os.path.isdir(path) else parent(path) for path in paths]
        self._joined = join(self._metadata, store.known_files().uri, folders)
        self._described = store.set_columns(self._joined.uris, self._joined.columns)

    def _report(self, changes: Changes, *, interrupted: bool) -> IndexReport:
        before = changes.before
        gone = Counter(before[uri] for uri in changes.gone if before[uri] is not None)
        counts: Counter[str] = Counter()
        skipped = list(changes.skipped)
        for outcome in self._buffer.outcomes:
            if outcome.error is not None:
                skipped.append(SkippedFile(uri=outcome.uri, reason=outcome.error))
            elif outcome.uri in before:
                counts["unchanged" if before[outcome.uri] == outcome.id else "updated"] += 1
            elif gone[outcome.id] > 0:
                gone[outcome.id] -= 1
                counts["renamed"] += 1
            else:
                counts["added"] += 1
        return IndexReport(
            added=counts["added"],
            updated=counts["updated"],
            renamed=counts["renamed"],
            removed=0 if interrupted else len(changes.gone) - counts["renamed"],
            unchanged=changes.unchanged + counts["unchanged"],
            skipped=tuple(sorted(skipped, key=lambda file: file.uri)),
            waiting=changes.waiting,
            described=self._described,
            unmatched=tuple(self._joined.unmatched) if self._joined is not None else (),
            interrupted=interrupted,
            seconds=time.perf_counter() - self._started,
            loading_seconds=self._model.loading_seconds,
            model_seconds=self._model_seconds,
        )

    # ---- the outcomes of a file

    def _keep(self, batch: Sequence[Decoded], tokens: Float32 | Bytes, embedding: Float32) -> None:
        for i, decoded in enumerate(batch):
            found = self._files[decoded.uri]
            row = ImageRow(
                uri=decoded.uri,
                id=decoded.id,
                size=found.size,
                mtime_ns=found.mtime_ns,
                width=decoded.picture.width,
                height=decoded.picture.height,
                status="ok",
                embedding=embedding[i].astype(np.float16),
            )
            self._buffer.add(row, tokens[i])
        self._done += len(batch)

    def _copy(self, uri: str, id_: str) -> None:
        found = self._files[uri]
        self._buffer.add_copy(Copy(uri=uri, id=id_, size=found.size, mtime_ns=found.mtime_ns))
        self._done += 1

    def _skip(self, uri: str, id_: str | None, reason: str) -> None:
        found = self._files[uri]
        self._buffer.add(
            ImageRow(uri=uri, id=id_, size=found.size, mtime_ns=found.mtime_ns, status="skipped", error=reason)
        )
        self._done += 1

    # ---- helpers

    def _tell(self, phase: Phase) -> None:
        self._progress(Progress(phase=phase, done=self._done, total=self._total, skipped=self._buffer.skipped))

    def _check_same(self, manifest: Manifest) -> None:
        identity = self._model.identity
        otherwise = "give another folder to --index, or delete this one and index again"
        if manifest.model_fingerprint != identity.fingerprint:
            if manifest.model == identity.name:
                raise IndexMismatchError(
                    f"The index in {self.place} was made by {manifest.model} with other weights "
                    f"or settings: {otherwise}."
                )
            raise IndexMismatchError(
                f"The index in {self.place} was made by {manifest.model}, not by {identity.name}: "
                f"index with --model {manifest.model}, {otherwise}."
            )
        if manifest.codec != self._codec:
            raise IndexMismatchError(
                f"The index in {self.place} was made with the codec {manifest.codec}, not {self._codec}: "
                f"index with --codec {manifest.codec}, {otherwise}."
            )

    def _create_store(self, first: Float32) -> IndexStore:
        identity, model = self._model.identity, self._facts
        assert model is not None
        manifest = Manifest(
            model=identity.name,
            model_revision=identity.revision,
            model_fingerprint=identity.fingerprint,
            mode=model.mode,
            num_summary_tokens=model.num_summary_tokens,
            token_dim=model.token_dim,
            embedding_dim=model.embedding_dim,
            codec=self._codec,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return IndexStore.create(self.place, manifest, fit_codec(self._codec, first))

    def _first_pictures(self) -> FirstPictures:
        return FirstPictures(self.place, self._model.identity.fingerprint)

    def _keep_first(self, rows: Sequence[ImageRow], tokens: dict[str, Float32]) -> None:
        computed = dict(self._computed)
        for row in rows:
            if row.id in tokens and row.embedding is not None:
                computed[row.id] = tokens[row.id], row.embedding.astype(np.float32)
        try:
            self._first_pictures().save(computed)
        except (OSError, ObjectStoreError) as e:
            reason = (isinstance(e, OSError) and e.strerror) or str(e).rstrip(".")
            raise IndexWriteError(
                f"The index in {self.place} could not be written: {reason}. Nothing is in it yet."
            ) from e

    def _nothing_usable(self) -> str:
        outcomes = self._buffer.outcomes
        first = outcomes[0]
        found = f"None of the {len(outcomes)} files found could be used as a picture."
        return f"{found} The first is {first.uri}: {first.error}."


def _is_out_of_memory(error: Exception) -> bool:
    """By name, as this module imports no torch; errors that Ray hands on derive from the original's class."""
    names = {c.__name__ for c in type(error).__mro__}
    return bool(names & {"OutOfMemoryError", "MemoryError"}) or "can't allocate memory" in str(error)


def _device_is_broken(error: Exception) -> bool:
    """After such an error every call fails, whatever the picture."""
    named = any(c.__name__ == "AcceleratorError" for c in type(error).__mro__) or "CUDA error" in str(error)
    return named and not _is_out_of_memory(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
