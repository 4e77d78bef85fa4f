"""The first hits of a search, put in order again by what the second pass says about their stored summary tokens.

Three scores are standardised over the candidates and added, each with its weight of ``Weights``:

- the cosine of the search;
- *matching*: log P("yes") - log P("no") of the model's question whether the text fits the picture (VQAScore, arXiv
  2404.01291, from summary tokens);
- *caption*: log-probability of the text as the picture's caption.

The weights are those that were best on scenes of another seed and on other photos than what is reported. The caption's
is 0: it adds nothing to the other two, and takes as long as both. docs/querying.md has the figures.

Shapes: n candidates, K summary tokens, D hidden size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from fwd2bot_index.errors import InputError

if TYPE_CHECKING:
    import torch

    from fwd2bot_index.payloads import Float32
    from fwd2bot_index.types import Compressor

CANDIDATES: Final = 100
"""Hits that are scored again."""
BATCH: Final = 25
"""Hits that are scored at once; larger batches are no faster on a CPU, and a time limit is kept less closely."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Of the three scores."""

    cosine: float = 1.0
    matching: float = 0.5
    caption: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Reranked:
    """A new order of n candidates."""

    order: list[int]
    """[n]: places of the candidates, best first; those that the time did not suffice for keep theirs, behind the
    others, for they were behind them in the search."""
    matching: Float32
    """[n]: P("yes") / (P("yes") + P("no")) of each candidate, in the order given; not a number where there was no time.
    """


def rerank(
    model: Compressor,
    text: str,
    cosines: Float32,
    tokens: Callable[[int, int], Float32],
    *,
    weights: Weights | None = None,
    seconds: float | None = None,
) -> Reranked:
    """Put the candidates of a search for ``text`` in order again.

    Args:
        cosines: [n], best first.
        tokens: gives those [m, K, D] of the candidates from the first number to before the second.
        seconds: no batch is begun that will not be done by then, as far as those before it tell; the first one always
            is. None: all are scored.

    Raises:
        InputError: the time is no positive number.
    """
    import torch

    if seconds is not None and not seconds > 0:
        raise InputError(f"The time for re-ranking must be more than 0 seconds, not {seconds}.")
    weights = weights or Weights()
    started = time.perf_counter()
    matching, caption = (np.full(len(cosines), np.nan, np.float32) for _ in range(2))
    scored = 0
    with model.merged("generate"):
        while scored < len(cosines):
            spent = time.perf_counter() - started
            if scored and seconds is not None and spent + spent * BATCH / scored > seconds:
                break
            part = slice(scored, min(scored + BATCH, len(cosines)))
            read = torch.from_numpy(tokens(part.start, part.stop))
            matching[part] = matching_scores(model, read, text)
            if weights.caption:
                caption[part] = caption_scores(model, read, text)
            scored = part.stop
    total = combined(cosines[:scored], matching[:scored], caption[:scored], weights)
    order = np.argsort(-total, kind="stable").tolist() + list(range(scored, len(cosines)))
    return Reranked(order=order, matching=np.asarray(1 / (1 + np.exp(-matching.clip(-80, 80))), np.float32))


def matching_scores(model: Compressor, tokens: torch.Tensor, text: str | Sequence[str]) -> Float32:
    """[n]: log P("yes") - log P("no") that a text (one for all, or one each) fits pictures of ``tokens`` [n, K, D]."""
    texts = [text] * len(tokens) if isinstance(text, str) else text
    answers = model.loglikelihood(tokens, [model.matching_question(t) for t in texts], ["yes", "no"])
    return np.asarray((answers[:, 0] - answers[:, 1]).cpu().numpy(), np.float32)


def caption_scores(model: Compressor, tokens: torch.Tensor, text: str) -> Float32:
    """[n]: log-probability of ``text`` as the caption of each picture of ``tokens`` [n, K, D]."""
    return np.asarray(model.loglikelihood(tokens, model.caption_prompt, [text])[:, 0].cpu().numpy(), np.float32)


def combined(cosines: Float32, matching: Float32, caption: Float32, weights: Weights) -> Float32:
    """[..., n]: the weighted sum of the scores [..., n], each standardised over the n."""
    total = np.zeros(np.shape(cosines), np.float32)
    if total.size == 0:
        return total
    for scores, weight in ((cosines, weights.cosine), (matching, weights.matching), (caption, weights.caption)):
        if weight:
            deviation = scores.std(axis=-1, keepdims=True)
            spread = np.where(deviation > 1e-6, deviation, 1.0)
            total += weight * (scores - scores.mean(axis=-1, keepdims=True)) / spread
    return total
