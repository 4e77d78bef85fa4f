"""The losses, as sums over their items: the trainer divides by how many there are in all micro-batches and processes.
They know nothing of the trainer.

Shapes: B batch, E embedding size, K summary tokens, L labelled positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def autoregressive(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[L] next-token cross entropy after the second pass, in nats; a uniform prediction gives log V.

    Args:
        logits: [L, V], the prediction *of* each labelled token.
        labels: [L], the tokens.
    """
    return F.cross_entropy(logits.float(), labels, reduction="none")


def distillation(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """[L] Kullback-Leibler divergence of the prediction from the teacher's, in nats.

    Args:
        logits, teacher: [L, V]; no gradient flows into the teacher.
    """
    target = F.log_softmax(teacher.detach().float(), dim=-1)
    return F.kl_div(F.log_softmax(logits.float(), dim=-1), target, reduction="none", log_target=True).sum(-1)


def orthogonality(tokens: torch.Tensor) -> torch.Tensor:
    """[B] mean squared cosine between the different summary tokens [B, K, D] of one picture (as in ReMatch); 0 for
    K = 1."""
    unit = F.normalize(tokens.float(), dim=-1)
    squares = (unit @ unit.transpose(1, 2)) ** 2
    k = tokens.shape[1]
    off_diagonal = squares.sum((1, 2)) - squares.diagonal(dim1=1, dim2=2).sum(1)
    return off_diagonal / max(k * (k - 1), 1)


def words(features: torch.Tensor, codes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """[R] regions predict the words said of them (Joulin et al., arXiv 1511.02251): cross entropy in nats; features
    that say nothing give log V.

    Args:
        features: [R, D] averages of image tokens, as they enter the LLM. They are not normalised: nothing would hold
            their size then, and an LLM hardly moves a residual stream that starts much larger than its embeddings.
        codes: [V, D] one fixed direction for each word. Not the LLM's own embeddings: those of words that it cannot
            tell apart yet (all shapes, say) are nearly the same, so they would never teach the difference.
        targets: [R, V] rows sum to 1: the share of each word.
    """
    return -(targets * F.log_softmax(features @ codes.T, dim=-1)).sum(-1)


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


def matryoshka_info_nce(
    images: torch.Tensor,
    texts: torch.Tensor,
    logit_scale: torch.Tensor,
    negatives: torch.Tensor | None,
    sizes: Sequence[int],
) -> torch.Tensor:
    """[] mean of `info_nce` of the whole embeddings and of their first numbers alone, for each of ``sizes`` (arXiv
    2205.13147), so that a shortened embedding still searches."""

    def cut(embeddings: torch.Tensor, size: int) -> torch.Tensor:
        return F.normalize(embeddings[:, :size], dim=-1)

    losses = [info_nce(images, texts, logit_scale, negatives)]
    for size in sizes:
        short = None if negatives is None else cut(negatives, size)
        losses.append(info_nce(cut(images, size), cut(texts, size), logit_scale, short))
    return torch.stack(losses).mean()
