"""Several prompts about one picture in one row: they share its tokens and do not see each other.

``[prefix][segment 1][segment 2]...``: a segment attends to the prefix and, causally, to itself, and its positions go on
from the end of the prefix. So each segment's logits equal those of a run of its own, while the prefix, which is most of
the cost, is computed once. Correct for LLMs with plain causal attention and one-dimensional positions (Llama, Qwen2 and
the like).

Shapes: B rows, P prefix, T packed text, L labelled positions of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fwd2bot_training.data import Segment


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A batch of rows, padded on the right."""

    ids: torch.Tensor
    """[B, T] token ids."""
    segment: torch.Tensor
    """[B, T] number of the segment from 1; 0 is padding."""
    offset: torch.Tensor
    """[B, T] place in the segment from 0."""
    predict: torch.Tensor
    """[L] flat places (row * T + column) whose *next* token is an answer's."""
    labels: torch.Tensor
    """[L] those tokens."""
    weights: torch.Tensor
    """[L] one over the square root of the answer's length: between every answer and every token counting alike."""
    kinds: tuple[str, ...]
    """What each label belongs to, for the log: kinds[label_kind[i]]."""
    label_kind: torch.Tensor
    last: torch.Tensor
    """[B, n] column of the last token of each row's trailing ``probes``; n is 0 without probes."""


def pack(
    rows: Sequence[Sequence[Segment]], tokenizer: PreTrainedTokenizerBase, *, probes: Sequence[str] = ()
) -> Packed:
    """Tokenise and pack. Each segment is ``{prompt}\\n{answer}<eos>``; each probe is a prompt without an answer that
    goes behind every row, for its last hidden state.

    Raises:
        ValueError: a batch without a single answer.
    """
    newline = tokenizer.encode("\n", add_special_tokens=False)
    eos = tokenizer.eos_token_id
    kinds: dict[str, int] = {}
    packed: list[tuple[list[int], list[int], list[int]]] = []
    predict: list[tuple[int, int]] = []
    labels: list[int] = []
    weights: list[float] = []
    label_kind: list[int] = []
    last: list[list[int]] = []
    for r, row in enumerate(rows):
        ids: list[int] = []
        segment: list[int] = []
        offset: list[int] = []
        texts = [(s.prompt, s.answer, s.kind) for s in row] + [(p, None, "") for p in probes]
        last.append([])
        for n, (prompt, answer, kind) in enumerate(texts, start=1):
            start = len(ids)
            ids += tokenizer.encode(prompt, add_special_tokens=False) + newline
            if answer is None:
                last[-1].append(len(ids) - 1)
            else:
                answered = [*tokenizer.encode(answer, add_special_tokens=False), eos]
                predict += [(r, len(ids) - 1 + i) for i in range(len(answered))]
                labels += answered
                weights += [len(answered) ** -0.5] * len(answered)
                label_kind += [kinds.setdefault(kind, len(kinds))] * len(answered)
                ids += answered
            segment += [n] * (len(ids) - start)
            offset += range(len(ids) - start)
        packed.append((ids, segment, offset))
    if not labels:
        raise ValueError("nothing to answer in this batch")
    width = max(len(ids) for ids, _, _ in packed)

    def padded(column: int, fill: int) -> torch.Tensor:
        return torch.tensor([list(p[column]) + [fill] * (width - len(p[0])) for p in packed])

    return Packed(
        ids=padded(0, tokenizer.pad_token_id),
        segment=padded(1, 0),
        offset=padded(2, 0),
        predict=torch.tensor([r * width + c for r, c in predict]),
        labels=torch.tensor(labels),
        weights=torch.tensor(weights),
        kinds=tuple(kinds),
        label_kind=torch.tensor(label_kind),
        last=torch.tensor(last, dtype=torch.long).reshape(len(rows), len(probes)),
    )


def packed_mask(segment: torch.Tensor, prefix: int, dtype: torch.dtype) -> torch.Tensor:
    """[B, 1, P+T, P+T] additive mask: 0 where a query may look, the lowest number elsewhere.

    Padding looks at the prefix like any text, so that no row of the softmax is empty.
    """
    batch, text = segment.shape
    whole = torch.cat([torch.zeros(batch, prefix, dtype=segment.dtype, device=segment.device), segment], dim=1)
    total = prefix + text
    causal = torch.ones(total, total, dtype=torch.bool, device=segment.device).tril()
    to_prefix = torch.arange(total, device=segment.device) < prefix
    same = whole[:, :, None] == whole[:, None, :]
    allowed = causal & (same | to_prefix)
    return torch.zeros(allowed.shape, dtype=dtype, device=segment.device).masked_fill_(
        ~allowed, torch.finfo(dtype).min
    )[:, None]


def run_packed(language_model: PreTrainedModel, prefix: torch.Tensor, packed: Packed) -> torch.Tensor:
    """Hidden states of the packed text behind a prefix.

    Args:
        language_model: takes ``inputs_embeds``, a 4-D ``attention_mask`` and ``position_ids``.
        prefix: [B, P, D] input embeddings: the picture's tokens and what surrounds them.
    Returns:
        [B, T, D] last-layer states.
    """
    length = prefix.shape[1]
    embeds = torch.cat([prefix, language_model.get_input_embeddings()(packed.ids)], dim=1)
    first = torch.arange(length, device=prefix.device).expand(len(prefix), length)
    out = language_model(
        inputs_embeds=embeds,
        attention_mask=packed_mask(packed.segment, length, prefix.dtype),
        position_ids=torch.cat([first, packed.offset + length], dim=1),
        use_cache=False,
    )
    return out.last_hidden_state[:, length:]
