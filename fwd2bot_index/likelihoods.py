"""How likely an LLM finds given answers, from the logits of one forward.

Shapes: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class AnswerScores:
    """One answer for each row of a batch."""

    logprob: torch.Tensor
    """[B], float32: log-probability, summed over the answer's tokens."""
    num_tokens: torch.Tensor
    """[B], int64."""
    greedy: torch.Tensor
    """[B], bool: whether greedy decoding would have begun with this answer."""


def answer_scores(logits: torch.Tensor, ids: torch.Tensor, lengths: torch.Tensor) -> AnswerScores:
    """Scores of the last ``lengths`` [B] tokens of each row of ``ids`` [B, T].

    Args:
        logits: [B, S, V], of the last S positions of ``ids``; S exceeds the longest answer by one at least.
    """
    longest = int(lengths.max())
    predicted = logits[:, -longest - 1 : -1].float()
    said = ids[:, -longest:]
    inside = torch.arange(longest, device=ids.device) >= longest - lengths[:, None]
    each = predicted.gather(-1, said[..., None])[..., 0] - predicted.logsumexp(-1)
    return AnswerScores(
        logprob=each.masked_fill(~inside, 0.0).sum(-1),
        num_tokens=lengths,
        greedy=((predicted.argmax(-1) == said) | ~inside).all(-1),
    )
