"""Muon (Jordan et al. 2024) whose Newton-Schulz iteration keeps the gradients' own precision.

torch iterates in bfloat16. A processor without instructions for it takes 40 times as long for that as in float32
(AVX2, two cores: 197 ms a matrix of 192 x 512, in place of 5): more than all the rest of a step of a small model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch


class FullPrecisionMuon(torch.optim.Muon):
    """`torch.optim.Muon` with Nesterov momentum and ``adjust_lr_fn="match_rms_adamw"``, in the precision of the
    gradients. Its state is the same, so a run may go on with either."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr, adjust_lr_fn="match_rms_adamw")

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        assert closure is None, "one step, of the gradients that are there"
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                momentum = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(momentum, group["momentum"])
                update = orthogonalized(ahead, group["ns_coefficients"], steps=group["ns_steps"], eps=group["eps"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                # an orthogonal matrix times this has the RMS of AdamW's steps (arXiv 2502.16982, equation 4)
                p.add_(update, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)
        return None


def orthogonalized(
    matrix: torch.Tensor, coefficients: tuple[float, float, float], *, steps: int, eps: float
) -> torch.Tensor:
    """Nearly U V^T of ``matrix`` (m, n) = U S V^T, by ``steps`` quintic Newton-Schulz iterations
    X <- a X + (b A + c A^2) X with A = X X^T: every singular value comes out near 1."""
    a, b, c = coefficients
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / wide.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrix else x.T
