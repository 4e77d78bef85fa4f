"""The two losses of Fwd2Bot (arXiv 2503.21757). They know nothing of the trainer.

Shapes: B batch, E embedding size, L labelled positions, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def autoregressive(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Next-token cross entropy after the second pass, in nats.

    Args:
        logits: [L, V], the prediction *of* each labelled token.
        labels: [L], the tokens.
        weights: [L], relative weight of each token; None: all alike.
    Returns:
        [] the weighted mean; a uniform prediction gives log V.
    """
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    if weights is None:
        return losses.mean()
    return (losses * weights).sum() / weights.sum()


def words(features: torch.Tensor, codes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Regions predict the words said of them (Joulin et al., arXiv 1511.02251).

    Args:
        features: [R, D] averages of image tokens, as they enter the LLM. They are not normalised: nothing would hold
            their size then, and an LLM hardly moves a residual stream that starts much larger than its embeddings.
        codes: [V, D] one fixed direction for each word. Not the LLM's own embeddings: those of words that it cannot
            tell apart yet (all shapes, say) are nearly the same, so they would never teach the difference.
        targets: [R, V] rows sum to 1: the share of each word.
    Returns:
        [] cross entropy in nats; features that say nothing give log V.
    """
    return -(targets * F.log_softmax(features @ codes.T, dim=-1)).sum(-1).mean()


def info_nce(
    images: torch.Tensor, texts: torch.Tensor, logit_scale: torch.Tensor, negatives: torch.Tensor | None = None
) -> torch.Tensor:
    """Symmetric InfoNCE after the first pass (CLIP's form, arXiv 2103.00020), in nats.

    Args:
        images, texts: [B, E] unit length; row i of one belongs to row i of the other.
        negatives: [M, E] unit length: texts that are true of no image here; every image is told apart from them as
            well (NegCLIP, arXiv 2210.01936).
        logit_scale: [] log of the inverse temperature; its exponential is capped at 100, as in CLIP.
    Returns:
        [] the mean of both directions; embeddings that tell nothing apart give log B.
    """
    scale = logit_scale.exp().clamp(max=100.0)
    with torch.autocast(images.device.type, enabled=False):  # cosines differ by less than bfloat16 can tell
        logits = scale * images.float() @ texts.float().T
        false = scale * images.float() @ (texts[:0] if negatives is None else negatives).float().T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(torch.cat([logits, false], dim=1), target) + F.cross_entropy(logits.T, target)) / 2
