"""One question asked about every picture of an index, from stored summary tokens, and its answers kept as a column.

Notable choices:

- Summary tokens are read file after file, as they lie on disk, and not picture by picture.
- Files with the same bytes share one answer. A file whose picture changes loses its answer when it is indexed again.
- The answers of ``yes`` and ``no`` are a column of booleans, so that ``--where has_dog`` reads well; others are text.
  Beside ``NAME`` stands ``NAME_confidence`` (see :mod:`fwd2bot_index.answering`).
- What is asked in which column is kept in ``annotations.json``: a run goes on where another stopped only if it asks the
  same.

Shapes: n pictures, K summary tokens, D hidden size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from fwd2bot_index.answering import check_choices, check_question, replies
from fwd2bot_index.errors import IndexEmptyError, IndexMismatchError, InputError
from fwd2bot_index.keys import content_keys
from fwd2bot_index.metadata import check_column_name
from fwd2bot_index.snapshots import FOUND, Snapshot
from fwd2bot_index.store import Annotation, IndexStore, confidence_column
from fwd2bot_index.types import Compressor

if TYPE_CHECKING:
    import numpy.typing as npt

    from fwd2bot_index.payloads import Float32

COMMIT_SECONDS: Final = 10.0
BATCH: Final = 64


@dataclass(frozen=True, kw_only=True)
class AnnotateReport:
    """What one run did. Counts are files."""

    column: str
    answered: int
    already: int
    """Had their answer before."""
    counts: dict[str, int]
    """Of each answer of this run; the 20 most frequent, where it is free."""
    interrupted: bool
    seconds: float
    """Loading the model not included."""


def annotate(
    store: IndexStore,
    model: Compressor,
    question: str,
    column: str,
    *,
    choices: Sequence[str] | None = None,
    where: str | None = None,
    again: bool = False,
    batch_size: int = BATCH,
    max_new_tokens: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
    commit_seconds: float = COMMIT_SECONDS,
) -> AnnotateReport:
    """Ask about every picture that has no answer in ``column`` yet; whoever calls it holds ``store.writing``.

    Args:
        where: a condition in SQL on the pictures that are asked about.
        again: forget the answers that are there.
        progress: told how many pictures are done, and of how many.
        commit_seconds: answers are committed after that long; Ctrl-C loses none.

    Raises:
        InputError: the question, the choices, the column's name or the condition makes no sense, or the column holds
            something else, be it answers of another model.
        IndexEmptyError: the index holds no picture.
        IndexMismatchError: a model with another first pass made the index.
        IndexWriteError: answers could not be written; those committed before are there.
    """
    check(store, question, column, choices=choices, again=again)
    if model.fingerprint != store.manifest.model_fingerprint:
        raise IndexMismatchError(
            f"The index in {store.place} was made by {store.manifest.model}, and {model.name} is another model or has "
            "another first pass."
        )
    before = store.annotations().get(column)
    if before is not None and not again and before.model_fingerprint != model.full_fingerprint:
        raise InputError(
            f"The column {column} holds answers of another second pass than {model.name} has now: choose another name, "
            "or forget them with --again."
        )
    started = time.perf_counter()
    snapshot = Snapshot.of(store)
    if len(snapshot) == 0:
        raise IndexEmptyError(f"The index in {store.place} holds no pictures: add some with `fwd2bot index FOLDER`.")
    if where is not None:
        snapshot.checked(where)
    kind = pa.bool_() if _is_yes_no(choices) else pa.string()
    store.begin_annotation(
        column,
        Annotation(
            question=question,
            choices=None if choices is None else tuple(choices),
            model=model.name,
            model_fingerprint=model.full_fingerprint,
        ),
        kind,
        again=again,
    )
    run = _Run(store, column, kind, where)
    already, interrupted = run.already, False
    try:
        with model.merged("generate"):
            for ids, tokens in run.batches(batch_size):
                run.add(ids, *_answered(model, tokens, question, choices, max_new_tokens))
                progress(run.done, run.total)
                run.commit_if_due(commit_seconds)
    except KeyboardInterrupt:
        interrupted = True
    run.commit()
    if run.answered:
        store.tidy()
    return AnnotateReport(
        column=column,
        answered=run.answered,
        already=already,
        counts=run.most_frequent(),
        interrupted=interrupted,
        seconds=time.perf_counter() - started,
    )


def check(
    store: IndexStore, question: str, column: str, *, choices: Sequence[str] | None = None, again: bool = False
) -> None:
    """Everything that can be seen to be wrong before a model is loaded.

    Raises:
        InputError: see :func:`annotate`.
    """
    check_question(question)
    check_choices(choices)
    for name in (column, confidence_column(column)):
        check_column_name(name)
    before = store.annotations().get(column)
    if before is None:
        for name in (column, confidence_column(column)):
            if name.lower() in {known.lower() for known in store.user_columns()}:
                raise InputError(f"The column {name} is there already and holds no answers: choose another name.")
    elif not again and (before.question, before.choices) != (question, None if choices is None else tuple(choices)):
        among = f" (choices {','.join(before.choices)})" if before.choices else ""
        raise InputError(
            f"The column {column} holds the answers to {before.question!r}{among}: choose another name, or forget them "
            "with --again."
        )


def _is_yes_no(choices: Sequence[str] | None) -> bool:
    return choices is not None and set(choices) == {"yes", "no"}


def _answered(
    model: Compressor, tokens: Float32, question: str, choices: Sequence[str] | None, max_new_tokens: int
) -> tuple[list[str], list[float]]:
    import torch

    return replies(model, torch.from_numpy(tokens), question, choices, max_new_tokens=max_new_tokens)


class _Run:
    """The files without an answer, and the answers that wait to be written."""

    def __init__(self, store: IndexStore, column: str, kind: Any, where: str | None) -> None:
        self._store = store
        self._column = column
        self._kind = kind
        snapshot = Snapshot.of(store)
        asked = FOUND if where is None else f"{snapshot.checked(where)} AND {FOUND}"
        todo = snapshot.select(["uri", "id"], where=f"{asked} AND `{column}` IS NULL")
        self.already = snapshot.count(asked) - todo.num_rows
        self._uris = todo.column("uri")
        keys = content_keys(todo.column("id"))
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        self.total = len(np.unique(keys))
        self.done = 0
        """Pictures."""
        self.answered = 0
        """Files whose answers are committed."""
        self._waiting: list[tuple[npt.NDArray[np.int64], list[str], list[float]]] = []
        self._last_commit = time.perf_counter()
        self._counts: dict[str, int] = {}

    def batches(self, size: int) -> Any:
        """Keys [n] and summary tokens [n, K, D] of pictures without an answer."""
        if self.total == 0:
            return
        for fragment in self._store.token_fragments(["id", "payload", "checksum"]):
            for batch in fragment.batches():
                keys = content_keys(batch.column("id"))
                place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
                chosen = np.flatnonzero(self._keys[place] == keys)
                for start in range(0, len(chosen), size):
                    rows = chosen[start : start + size]
                    yield keys[rows], self._store.decoded(batch.take(pa.array(rows)))

    def add(self, keys: npt.NDArray[np.uint64], texts: list[str], confidences: list[float]) -> None:
        self._waiting.append((keys.view(np.int64), texts, confidences))
        self.done += len(keys)

    def commit_if_due(self, seconds: float) -> None:
        if time.perf_counter() - self._last_commit >= seconds:
            self.commit()

    def commit(self) -> None:
        if self._waiting:
            keys = np.concatenate([keys for keys, _, _ in self._waiting]).view(np.uint64)
            texts = [text for _, some, _ in self._waiting for text in some]
            confidences = np.array([c for _, _, some in self._waiting for c in some], np.float32)
            first, last = (np.searchsorted(self._keys, keys, side) for side in ("left", "right"))
            of = np.repeat(np.arange(len(keys)), last - first)
            rows = np.concatenate([self._order[a:b] for a, b in zip(first, last, strict=True)])
            said = [texts[i] for i in of.tolist()]
            values = pa.array([text == "yes" for text in said] if pa.types.is_boolean(self._kind) else said, self._kind)
            columns = pa.table({self._column: values, confidence_column(self._column): confidences[of]})
            self._store.write_columns(self._uris.take(pa.array(rows)), columns)
            self.answered += len(rows)
            for text in said:
                self._counts[text] = self._counts.get(text, 0) + 1
            self._waiting.clear()
        self._last_commit = time.perf_counter()

    def most_frequent(self) -> dict[str, int]:
        return dict(sorted(self._counts.items(), key=lambda item: -item[1])[:20])
