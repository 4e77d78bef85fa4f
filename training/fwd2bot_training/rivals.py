"""Other ways to make K tokens of a picture, trained like ours to be compared with: none of them is stored or shipped.

Average pooling of image tokens is `Fwd2BotModel.image_regions`; masked attention (VoCo) is the single pass of
`objectives`. Here is the third.
"""

from __future__ import annotations

import torch
from torch import nn


class Resampler(nn.Module):
    """Learned queries that look at the image tokens through cross-attention (as in MQT, arXiv 2405.19315, and
    Perceiver-type projectors); the first k' of its tokens serve alone when it is trained on random prefixes."""

    def __init__(self, dim: int, *, heads: int, layers: int, scale: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_CrossLayer(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.scale = scale

    def forward(self, queries: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """[B, K, D] of ``queries`` [B, K, D] and ``image`` [B, N, D]; as large as the LLM's embeddings."""
        tokens = queries
        for layer in self.layers:
            tokens = layer(tokens, image)
        return self.norm(tokens) * self.scale


class _CrossLayer(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm_queries, self.norm_image, self.norm_mlp = (nn.LayerNorm(dim) for _ in range(3))
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, tokens: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        seen = self.norm_image(image)
        tokens = tokens + self.attention(self.norm_queries(tokens), seen, seen, need_weights=False)[0]
        mixed: torch.Tensor = tokens + self.mlp(self.norm_mlp(tokens))
        return mixed
