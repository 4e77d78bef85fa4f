"""What of an embedding the mean of the summary tokens cannot give."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

_WIDTH = 4
"""Of the hidden layer, in token sizes."""


class TokenMLP(nn.Module):
    """The mean over the summary tokens of a two-layer perceptron of each, with a bias of its own for each position.

    A linear head of the mean can only add up what the tokens hold; the mean of a nonlinear function can tell sets of
    them apart that add up to the same (Deep Sets, arXiv 1703.06114). It is added to the head's output and is zero until
    it has learned something, so a model that is given one embeds as it did before.

    Shapes: B batch, K summary tokens, D hidden size of the LLM, E embedding size.
    """

    def __init__(self, num_tokens: int, token_dim: int, embedding_dim: int, *, device: torch.device) -> None:
        super().__init__()
        self.up = nn.Linear(token_dim, _WIDTH * token_dim, bias=False, device=device)
        self.position = nn.Parameter(torch.zeros(num_tokens, _WIDTH * token_dim, device=device))
        self.down = nn.Linear(_WIDTH * token_dim, embedding_dim, bias=False, device=device)
        nn.init.zeros_(self.down.weight)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, E] of tokens [B, K', D], the first K' <= K of a picture."""
        hidden = self.up(tokens) + self.position[: tokens.shape[1]]
        pooled: torch.Tensor = self.down(F.silu(hidden).mean(dim=1))
        return pooled
