"""Several questions about one picture in one row: they share its tokens and do not see each other.

``[prefix][segment 1][segment 2]...``: a segment attends to the prefix and, causally, to itself, and its positions go on
from the end of the prefix. So each segment's logits equal those of a run of its own, while the prefix, which is most of
the cost, is computed once. Families whose prompt is read in both directions together with the picture (PaliGemma)
cannot share a prefix: there every segment has a row of its own.

Shapes: B pictures, R rows, P prefix, T packed text, L labelled positions of the whole batch, S segments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from fwd2bot_index.errors import InputError
from fwd2bot_index.families import Family
from fwd2bot_index.inputs import InputMaker
from fwd2bot_training.data import Segment

MATCHING = "matching"
"""Kind of the segments that belong to the matching loss."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A micro-batch of rows, padded on the right."""

    ids: torch.Tensor
    """[R, T] token ids."""
    segment: torch.Tensor
    """[R, T] number of the segment from 1; 0 is padding."""
    offset: torch.Tensor
    """[R, T] place in the segment from 0."""
    asked: torch.Tensor
    """[R, T] whether the token belongs to a prompt, not to an answer."""
    picture: torch.Tensor
    """[R] the picture that a row is about."""
    predict: torch.Tensor
    """[L] flat places (row * T + column) whose *next* token is an answer's."""
    labels: torch.Tensor
    """[L] those tokens."""
    weights: torch.Tensor
    """[L] one over the square root of the answer's length: between every answer and every token counting alike."""
    answer: torch.Tensor
    """[L] number of the segment, over the whole batch, that a label belongs to."""
    kinds: tuple[str, ...]
    """[S] what each segment is, for the log."""
    last: torch.Tensor
    """[R, n] column of the last token of each row's trailing ``probes``; n is 0 without probes."""

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> Packed:
        """The same with every tensor moved."""
        tensors = {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), torch.Tensor)}
        there: dict[str, Any] = {n: move(t) for n, t in tensors.items()}
        return replace(self, **there)

    @property
    def matching(self) -> torch.Tensor:
        """[L] whether a label belongs to the matching loss."""
        of_segment = torch.tensor([k == MATCHING for k in self.kinds], dtype=torch.bool, device=self.labels.device)
        return of_segment[self.answer]


def pack(
    rows: Sequence[Sequence[Segment]],
    inputs: InputMaker,
    *,
    end: int,
    max_tokens: int,
    probes: Sequence[str] = (),
) -> Packed:
    """Tokenise and pack the segments of each picture, in the model's own chat format.

    Args:
        end: id of the token that ends an answer.
        max_tokens: of a prompt with its answer; a longer answer is cut (and then does not end).
        probes: prompts without an answer that go behind every row, for their last hidden states.
    Raises:
        InputError: an empty answer, or a prompt that leaves no room for one.
    """
    alone = inputs.family.token_types == "suffix"
    whole = [(i, [s]) for i, row in enumerate(rows) for s in row] if alone else list(enumerate(rows))
    kinds: list[str] = []
    packed: list[dict[str, list[int]]] = []
    predict: list[tuple[int, int]] = []
    labels: list[int] = []
    weights: list[float] = []
    answers: list[int] = []
    last: list[list[int]] = []
    for r, (_, segments) in enumerate(whole):
        columns: dict[str, list[int]] = {"ids": [], "segment": [], "offset": [], "asked": []}
        last.append([])
        texts = [(s.prompt, s.answer, s.kind) for s in segments] + [(p, None, "") for p in probes]
        for n, (prompt, answer, kind) in enumerate(texts, start=1):
            start = len(columns["ids"])
            ids = list(inputs.prompt(prompt).after)
            asked = len(ids)
            if answer is None:
                last[-1].append(start + asked - 1)
            else:
                if asked >= max_tokens:
                    raise InputError(
                        f"The prompt {prompt[:60]!r} has {asked} tokens, which leaves no room for an answer in "
                        f"data.max_text_tokens = {max_tokens}."
                    )
                answered = [*_answer_ids(inputs, prompt, answer), end][: max_tokens - asked]
                predict += [(r, start + asked - 1 + i) for i in range(len(answered))]
                labels += answered
                weights += [len(answered) ** -0.5] * len(answered)
                answers += [len(kinds)] * len(answered)
                kinds.append(kind)
                ids += answered
            columns["ids"] += ids
            columns["segment"] += [n] * len(ids)
            columns["offset"] += range(len(ids))
            columns["asked"] += [1] * asked + [0] * (len(ids) - asked)
        packed.append(columns)
    width = max((len(columns["ids"]) for columns in packed), default=0)

    def padded(name: str, fill: int) -> torch.Tensor:
        rows = [c[name] + [fill] * (width - len(c[name])) for c in packed]
        return torch.tensor(rows, dtype=torch.long).reshape(len(packed), width)

    return Packed(
        ids=padded("ids", inputs.padding),
        segment=padded("segment", 0),
        offset=padded("offset", 0),
        asked=padded("asked", 0).bool(),
        picture=torch.tensor([i for i, _ in whole]),
        predict=torch.tensor([r * width + c for r, c in predict], dtype=torch.long),
        labels=torch.tensor(labels, dtype=torch.long),
        weights=torch.tensor(weights),
        answer=torch.tensor(answers, dtype=torch.long),
        kinds=tuple(kinds),
        last=torch.tensor(last, dtype=torch.long).reshape(len(whole), len(probes)),
    )


def _answer_ids(inputs: InputMaker, prompt: str, answer: str) -> list[int]:
    try:
        return inputs.completion(answer)
    except InputError as e:
        raise InputError(f"The answer {answer!r} to {prompt[:60]!r} has no tokens, so it teaches nothing.") from e


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """What stands before the text: the picture in some form."""

    embeds: torch.Tensor
    """[B, P, D]."""
    first_token: int
    """Column of the first picture token; those up to P are picture tokens as well."""
    hidden: tuple[tuple[int, int], ...] = ()
    """Ranges of columns (from, to) that the text does not see."""


@dataclass(frozen=True, kw_only=True)
class States:
    """Last hidden states of a packed run."""

    prefix: torch.Tensor
    """[R, P, D]."""
    text: torch.Tensor
    """[R, T, D]."""


def packed_mask(packed: Packed, prefix: Prefix, family: Family, dtype: torch.dtype) -> torch.Tensor:
    """[R, 1, P+T, P+T] additive mask: 0 where a query may look, the lowest number elsewhere.

    Padding looks at the prefix like any text, so that no row of the softmax is empty.
    """
    rows, text = packed.segment.shape
    length, device = prefix.embeds.shape[1], packed.segment.device
    total = length + text
    before = torch.zeros(rows, length, dtype=packed.segment.dtype, device=device)
    segment = torch.cat([before, packed.segment], dim=1)
    column = torch.arange(total, device=device)
    in_prefix = column < length
    allowed = (column[:, None] >= column) & ((segment[:, :, None] == segment[:, None, :]) | in_prefix)
    match family.token_types:
        case "image":
            token = in_prefix & (column >= prefix.first_token)
            allowed = allowed | (token[:, None] & token)
        case "suffix":
            asked = torch.cat([before == 0, packed.asked], dim=1)
            allowed = allowed | (asked[:, :, None] & asked[:, None, :])
    for start, stop in prefix.hidden:
        allowed = allowed & ~(~in_prefix[:, None] & (column >= start) & (column < stop))
    mask = torch.zeros(allowed.shape, dtype=dtype, device=device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def run_packed(language_model: Any, prefix: Prefix, packed: Packed, family: Family) -> States:
    """Run the packed text behind the prefix of its picture.

    Args:
        language_model: takes ``inputs_embeds``, a 4-D ``attention_mask`` and ``position_ids``.
    """
    embeds = prefix.embeds if len(packed.ids) == len(prefix.embeds) else prefix.embeds[packed.picture]
    length = embeds.shape[1]
    text = language_model.get_input_embeddings()(packed.ids).to(embeds.dtype)
    first = torch.arange(length, device=embeds.device).expand(len(embeds), length)
    out = language_model(
        inputs_embeds=torch.cat([embeds, text], dim=1),
        attention_mask=packed_mask(packed, prefix, family, embeds.dtype),
        position_ids=torch.cat([first, packed.offset + length], dim=1) + family.first_position,
        use_cache=False,
    )
    hidden: torch.Tensor = out.last_hidden_state
    return States(prefix=hidden[:, :length], text=hidden[:, length:])
