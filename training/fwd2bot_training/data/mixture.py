"""Batches drawn from sources by weight.

Notable choices:
- batch ``step`` is a pure function of (seed, step): resuming needs no state of the data at all;
- a batch comes from one source, so that the other rows of a contrastive batch are worth telling apart;
- within a source with rows each row comes once per epoch. Which rows the batch of a step has follows from how many
  earlier steps drew this source, which is counted in blocks of steps. A batch may end one epoch and begin the next;
- each example has a random generator of its own, so a process draws its part of a batch without drawing the others'.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fwd2bot_index.errors import InputError
from fwd2bot_training.config import DataConfig
from fwd2bot_training.data.example import Example, Ordered, Paired, Rng, Source
from fwd2bot_training.data.negatives import rule_negatives
from fwd2bot_training.data.sources import open_source
from fwd2bot_training.data.texts import Routing

_BLOCK = 4096
"""Steps whose sources are drawn at once."""
_MEGA_BATCH = 50
"""Batches whose rows are sorted by length together: long enough to sort well, short enough to shuffle well."""
_EPOCHS_KEPT = 2
"""Orders of rows, for each source: a batch may straddle two epochs."""
# The last words of a seed: [seed, step, i] is an example's.
_ORDER, _CHOICE = 1, 2


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A row that could not be used, and was replaced by another."""

    source: str
    row: int
    reason: str


class Mixture:
    """
    Args:
        sources: each with its weight.
        batch_size: pictures of a step, over all processes.
        factors: on the batch size of a source, by name; 1 where it says nothing.
        data: max_segments, negatives, length_grouped and bad_rows are read; its sources are not.
        skipped_to: JSON Lines file to which each process appends a row that it skips, once.
    Raises:
        InputError: no sources, or a weight or a batch size that is not positive.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Source, float]],
        *,
        seed: int,
        batch_size: int,
        factors: Mapping[str, int] | None = None,
        data: DataConfig = DataConfig(),  # noqa: B008 - frozen
        skipped_to: Path | None = None,
    ) -> None:
        if not sources or any(not w > 0 for _, w in sources):
            raise InputError("A mixture needs sources, each with a weight above 0.")
        if batch_size < 1:
            raise InputError(f"A batch needs at least one picture, not {batch_size}.")
        self.sources = [s for s, _ in sources]
        weights = np.array([w for _, w in sources], np.float64)
        self.weights = weights / weights.sum()
        self.seed = seed
        self.batch_size = batch_size
        self.skipped: list[Skipped] = []
        """What this process has skipped so far."""
        self._sizes = [batch_size * (factors or {}).get(s.name, 1) for s in self.sources]
        self._data = data
        self._skipped_to = skipped_to
        self._bad: set[tuple[int, int]] = set()
        self._choices: OrderedDict[int, npt.NDArray[np.int64]] = OrderedDict()
        self._drawn_before = [np.zeros(len(sources), np.int64)]
        """For each block of steps, how often each source was drawn before it."""
        self._orders: dict[int, OrderedDict[int, npt.NDArray[np.int64]]] = {}
        self._lengths: dict[int, npt.NDArray[np.int64]] = {}

    @classmethod
    def from_config(
        cls,
        data: DataConfig,
        *,
        root: Path | None,
        seed: int,
        batch_size: int,
        count_tokens: Callable[[str], int] | None = None,
        skipped_to: Path | None = None,
    ) -> Mixture:
        """
        Args:
            root: where relative paths of sources start.
            count_tokens: length of a caption, for ``data.max_caption_tokens``; None: words are counted. It must be
                picklable where loader processes are spawned.
        Raises:
            InputError: no sources, or one that cannot be opened; names the file.
        """
        routing = Routing(max_caption_tokens=data.max_caption_tokens, count_tokens=count_tokens)
        return cls(
            [(open_source(s, root=root, routing=routing, bad_rows=data.bad_rows), s.weight) for s in data.sources],
            seed=seed,
            batch_size=batch_size,
            factors={s.name: s.batch_factor for s in data.sources},
            data=data,
            skipped_to=skipped_to,
        )

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> tuple[str, list[Example]]:
        """The name of the source, and the ``rank``-th of ``world`` parts of the batch, which differ by one example at
        most.

        Raises:
            InputError: a row cannot be used (names the file and the row), or there are more processes than examples.
        """
        number, earlier = self._draw(step)
        size = self._sizes[number]
        if size < world:
            raise InputError(f"A batch of {size} cannot be divided among {world} processes: raise train.batch_size.")
        part = range(size * rank // world, size * (rank + 1) // world)
        return self.sources[number].name, [self._example(number, earlier * size + i, step, i) for i in part]

    def samples(self, name: str, count: int, *, step: int) -> list[Example]:
        """The first ``count`` examples of a source, as they would be at ``step``.

        Raises:
            InputError: a row cannot be used.
        """
        number = next(i for i, s in enumerate(self.sources) if s.name == name)
        return [self._example(number, i, step, i) for i in range(count)]

    def _draw(self, step: int) -> tuple[int, int]:
        """The source of a step, and how many earlier steps drew it."""
        block, i = divmod(step, _BLOCK)
        while len(self._drawn_before) <= block:
            last = len(self._drawn_before) - 1
            counts = np.bincount(self._block(last), minlength=len(self.sources))
            self._drawn_before.append(self._drawn_before[last] + counts)
        choices = self._block(block)
        number = int(choices[i])
        return number, int(self._drawn_before[block][number] + np.count_nonzero(choices[:i] == number))

    def _block(self, block: int) -> npt.NDArray[np.int64]:
        if block not in self._choices:
            rng = np.random.default_rng([self.seed, block, 0, _CHOICE])
            self._choices[block] = rng.choice(len(self.sources), size=_BLOCK, p=self.weights)
            while len(self._choices) > 2:
                self._choices.popitem(last=False)
        return self._choices[block]

    def _example(self, number: int, position: int, step: int, i: int) -> Example:
        """``position`` counts the examples drawn from this source since the first step."""
        source = self.sources[number]
        if len(source) == 0:
            return self._read(source, i, step, i)
        epoch, place = divmod(position, len(source))
        order = self._order(number, epoch)
        if self._data.bad_rows == "stop":
            return self._read(source, int(order[place]), step, i)
        # Rows of the next batch take the place of bad ones: those of this one are in the batch already.
        after = place + self._sizes[number]
        for at in (place, *range(after, after + len(source))):
            row = int(order[at % len(source)])
            if (number, row) not in self._bad:
                try:
                    return self._read(source, row, step, i)
                except InputError as e:
                    self._skip(number, row, str(e))
        raise InputError(f"None of the {len(source)} rows of the source {source.name!r} can be used.")

    def _read(self, source: Source, row: int, step: int, i: int) -> Example:
        together = isinstance(source, Paired) and source.paired
        rng = np.random.default_rng([self.seed, step, i - i % 2 if together else i])
        return self._finish(source.example(row, rng, step=step), rng)

    def _finish(self, example: Example, rng: Rng) -> Example:
        segments, negatives = example.segments, example.negatives
        if len(segments) > self._data.max_segments:
            kept = np.sort(rng.choice(len(segments), size=self._data.max_segments, replace=False))
            segments = tuple(segments[k] for k in kept)
        if example.caption is None or self._data.negatives == "none":
            negatives = ()
        elif self._data.negatives == "rules" and not negatives:
            made = rule_negatives(example.caption, rng)
            negatives = (made[str(rng.choice(sorted(made)))],) if made else ()
        return replace(example, segments=segments, negatives=negatives)

    def _skip(self, number: int, row: int, reason: str) -> None:
        self._bad.add((number, row))
        skipped = Skipped(source=self.sources[number].name, row=row, reason=reason)
        self.skipped.append(skipped)
        if self._skipped_to is not None:
            with open(self._skipped_to, "a", encoding="utf-8") as f:
                f.write(json.dumps(asdict(skipped)) + "\n")

    def _order(self, number: int, epoch: int) -> npt.NDArray[np.int64]:
        """[len] the rows of a source in the order of this epoch."""
        kept = self._orders.setdefault(number, OrderedDict())
        if epoch not in kept:
            source = self.sources[number]
            rng = np.random.default_rng([self.seed, number, epoch, _ORDER])
            order = source.order(rng) if isinstance(source, Ordered) else rng.permutation(len(source))
            if self._data.length_grouped:
                self._group(order, number, epoch, rng)
            kept[epoch] = order
            while len(kept) > _EPOCHS_KEPT:
                kept.popitem(last=False)
        return kept[epoch]

    def _group(self, order: npt.NDArray[np.int64], number: int, epoch: int, rng: Rng) -> None:
        """Sort the rows of 50 batches at a time by length; shuffle those batches, and the rows within each, so that
        the parts of the processes are of like length too."""
        size, rows = self._sizes[number], len(order)
        begun = -(epoch * rows) % size  # rows that complete the batch which the epoch before began
        whole = begun + max(0, rows - begun) // size * size
        lengths = self._row_lengths(number)
        for first in range(begun, whole, size * _MEGA_BATCH):
            mega = order[first : min(whole, first + size * _MEGA_BATCH)]
            batches = mega[np.argsort(lengths[mega], kind="stable")].reshape(-1, size)
            mega[:] = rng.permuted(rng.permutation(batches), axis=1).ravel()

    def _row_lengths(self, number: int) -> npt.NDArray[np.int64]:
        if number not in self._lengths:
            source = self.sources[number]
            self._lengths[number] = np.array([source.length(i) for i in range(len(source))], np.int64)
        return self._lengths[number]
