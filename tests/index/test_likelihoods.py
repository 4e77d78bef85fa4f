from __future__ import annotations

import math

import torch

from fwd2bot_index.likelihoods import answer_scores


def test_scores_by_hand() -> None:
    """Vocabulary of 3; position t predicts position t + 1; the second answer is one token long."""
    probabilities = torch.tensor(
        [
            [[0.2, 0.3, 0.5], [0.6, 0.3, 0.1], [1 / 3, 1 / 3, 1 / 3]],
            [[0.9, 0.05, 0.05], [0.1, 0.2, 0.7], [1 / 3, 1 / 3, 1 / 3]],
        ]
    )
    ids = torch.tensor([[1, 1, 2, 1], [0, 2, 2, 2]])
    scores = answer_scores(probabilities.log() + 5.0, ids, torch.tensor([2, 1]))  # logits need not be normalised
    torch.testing.assert_close(scores.logprob, torch.tensor([math.log(0.5 * 0.3), math.log(0.7)]))
    assert scores.num_tokens.tolist() == [2, 1]
    assert scores.greedy.tolist() == [False, True]
    first = answer_scores(probabilities.log(), torch.tensor([[1, 1, 2, 0], [0, 2, 2, 2]]), torch.tensor([2, 1]))
    assert first.greedy.tolist() == [True, True]


def test_scores_are_float32_of_half_precision_logits() -> None:
    logits = torch.randn(2, 3, 5, dtype=torch.bfloat16)
    scores = answer_scores(logits, torch.zeros(2, 4, dtype=torch.long), torch.tensor([1, 2]))
    assert scores.logprob.dtype == torch.float32
