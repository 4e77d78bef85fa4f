"""One optimiser step over a list of micro-batches: the same step however they are cut and over however many processes.

The loss of a step, over the micro-batches m of all processes::

    L = sum over names n of  weights[n] * (sum_m sums[n]) / (sum_m counts[n])
      + weights["contrastive"] * contrast(all images, all texts, all negatives)

Notable choices:
- the contrastive loss needs all embeddings at once, and has the memory of one micro-batch: gradient caching (GradCache,
  arXiv 2101.06983). A first forward without gradient gives the embeddings, the loss on them a gradient for each, and a
  second forward of each micro-batch takes that gradient on. With one micro-batch on a process its one forward does;
- random numbers are drawn anew from (seed, step, process, micro-batch) before every forward: the second forward has the
  dropout of the first, and a resumed run that of one never stopped, whatever validation drew in between;
- the contrastive loss is computed in float32 at least, also under autocast: its logits are large;
- hidden matrices may be stepped by Muon (Jordan et al. 2024), everything else by AdamW; weights, gradients and moments
  keep the parameters' own precision;
- a loss or gradient that is not finite, on any process, stops all of them before the optimiser step.
"""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from fwd2bot_index.errors import Fwd2BotError, InputError
from fwd2bot_training.config import TrainConfig
from fwd2bot_training.distributed import Parallel, clear_unused, clip, in_layer
from fwd2bot_training.muon import FullPrecisionMuon

if TYPE_CHECKING:
    from fwd2bot_training.objectives import Batch, Outputs

CONTRASTIVE = "contrastive"


class TrainingDivergedError(Fwd2BotError):
    """The loss or a gradient is not finite; the weights are those before the step."""


@dataclass(frozen=True, kw_only=True)
class StepLosses:
    """What a step was, over all processes."""

    source: str
    size: int
    """Pictures."""
    losses: dict[str, float]
    """Name -> mean, unweighted."""
    shares: dict[str, tuple[float, float]]
    """For the log: name -> (sum, count)."""


@dataclass(frozen=True)
class _Plan:
    """What one process is about to compute."""

    sizes: tuple[int, ...]
    counts: tuple[dict[str, float], ...]
    captions: tuple[bool, ...]

    @property
    def passes(self) -> list[tuple[list[str], bool]]:
        return [(sorted(c), b) for c, b in zip(self.counts, self.captions, strict=True)]


@dataclass(frozen=True)
class _Part:
    """What one process computed."""

    sums: dict[str, float]
    shares: dict[str, tuple[float, float]]
    finite: bool
    used: set[str]


@dataclass(frozen=True)
class _Contrast:
    loss: torch.Tensor
    gradients: list[dict[str, torch.Tensor]]
    """Of the weighted loss, for each own micro-batch: kind of embedding -> [rows, E]."""
    scale: torch.Tensor | None
    """Gradient for the temperature: of the whole step, the same on every process."""
    finite: torch.Tensor
    """[] bool: this process's embeddings are."""


class Stepper:
    """Holds the parameters that train and their optimisers.

    Args:
        parallel: trains the parameters of its objective that have ``requires_grad``; nothing else moves.
    """

    def __init__(self, parallel: Parallel, train: TrainConfig) -> None:
        self.parallel, self.train = parallel, train
        objective = parallel.objective
        self.named = {n: p for n, p in objective.named_parameters() if p.requires_grad}
        self.optimizers = _make_optimizers(self.named, train, objective.lr_factor)

    def step(self, number: int, batches: Sequence[Batch]) -> StepLosses:
        """Step ``number``, counted from 0, over this process's micro-batches. A collective.

        Raises:
            TrainingDivergedError: the loss or the gradient is not finite; nothing was changed.
            InputError: sharded processes have batches that take different paths.
        """
        lr = lr_at(self.train, number)
        for group in (g for optimizer in self.optimizers for g in optimizer.param_groups):
            group["lr"] = lr * group["factor"]
        done = self.gradients(number, batches)
        for optimizer in self.optimizers:
            optimizer.step()
        return done

    def gradients(self, number: int, batches: Sequence[Batch]) -> StepLosses:
        """All of a step but the optimisers': leaves each parameter's clipped gradient. Raises as `step` does."""
        parallel, processes = self.parallel, self.parallel.processes
        self.zero_grad()
        plans = processes.gather(
            _Plan(
                sizes=tuple(b.size for b in batches),
                counts=tuple(b.counts for b in batches),
                captions=tuple(b.captions for b in batches),
            )
        )
        if parallel.sharded and any(p.passes != plans[0].passes for p in plans):
            raise InputError(
                f"Step {number + 1}, a batch of {batches[0].source!r}: the processes' parts have different losses, "
                "which train.sharding = 'fsdp' cannot do: use 'ddp', or larger batches."
            )
        totals: Counter[str] = Counter()
        for counts in (c for plan in plans for c in plan.counts):
            totals.update(counts)

        contrast = None
        first: list[Outputs] = []
        once = len(batches) == 1
        if any(any(plan.captions) for plan in plans):
            with torch.set_grad_enabled(once):
                first = [self._forward(number, i, batch, embeddings_only=not once) for i, batch in enumerate(batches)]
            contrast = self._contrast(first)

        sums: dict[str, torch.Tensor] = {}
        shares: list[Mapping[str, tuple[float, float]]] = []
        for i, batch in enumerate(batches):
            with parallel.accumulating(last=i == len(batches) - 1):
                outputs = first[i] if first and once else self._forward(number, i, batch)
                assert outputs.sums.keys() == batch.counts.keys(), "an Objective's sums are those its collator counted"
                self._backward(outputs, totals, contrast.gradients[i] if contrast else {})
            for name, value in outputs.sums.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
            shares.append(outputs.shares)
        scale = parallel.objective.logit_scale
        if contrast is not None and contrast.scale is not None and scale is not None:
            # set by hand: DDP and FSDP, which would average it, never saw the temperature used
            scale.grad = contrast.scale

        local = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True)) if sums else {}
        finite = all(map(math.isfinite, local.values())) and (contrast is None or bool(contrast.finite))
        parts = processes.gather(_Part(sums=local, shares=_merged(shares), finite=finite, used=parallel.take_used()))
        clear_unused(self.named, set().union(*(p.used for p in parts)))
        losses = {n: sum(p.sums.get(n, 0.0) for p in parts) / t for n, t in sorted(totals.items()) if t}
        if contrast is not None:
            losses[CONTRASTIVE] = contrast.loss.item()
        done = StepLosses(
            source=batches[0].source,
            size=sum(sum(p.sizes) for p in plans),
            losses=losses,
            shares=_merged(p.shares for p in parts),
        )
        norm = clip(list(self.named.values()), self.train.clip)
        bad = [rank for rank, p in enumerate(parts) if not p.finite]
        if bad or not all(map(math.isfinite, (norm, *done.losses.values()))):
            self.zero_grad()
            where = f" on process {', '.join(map(str, bad))} of {processes.size}" if bad and processes.size > 1 else ""
            told = ", ".join(f"{n} {value:.4g}" for n, value in done.losses.items())
            raise TrainingDivergedError(
                f"Step {number + 1}, a batch of {done.source!r}{where}: the losses are {told}, the gradient's norm "
                f"{norm:.4g}. Nothing was updated; lower train.lr, or look at the batch (step {number}, seed "
                f"{self.train.seed})."
            )
        return done

    def zero_grad(self) -> None:
        for p in self.named.values():
            p.grad = None

    def _forward(self, number: int, micro: int, batch: Batch, *, embeddings_only: bool = False) -> Outputs:
        device = self.parallel.processes.device
        _seed(self.train.seed, number, self.parallel.processes.rank, micro)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.train.precision == "bfloat16"):
            return self.parallel.forward(batch.to(device, non_blocking=True), embeddings_only=embeddings_only)

    def _backward(self, outputs: Outputs, totals: Mapping[str, float], cached: Mapping[str, torch.Tensor]) -> None:
        weights, size = self.parallel.objective.weights, self.parallel.processes.size
        roots: list[torch.Tensor] = []
        gradients: list[torch.Tensor] = []
        for name, value in outputs.sums.items():
            # a total of 0 still goes backward: DDP waits for every parameter that the forward used
            factor = weights[name] * size / totals[name] if totals[name] else 0.0
            roots.append(value)
            gradients.append(torch.full_like(value, factor))
        for kind, gradient in cached.items():
            embeddings = getattr(outputs, kind)
            roots.append(embeddings)
            # without rows it may not know E
            gradients.append((gradient * size).to(embeddings.dtype).reshape(embeddings.shape))
        kept = [(r, g) for r, g in zip(roots, gradients, strict=True) if r.requires_grad]
        assert kept, "a micro-batch without any loss"
        torch.autograd.backward([r for r, _ in kept], [g for _, g in kept])

    def _contrast(self, first: Sequence[Outputs]) -> _Contrast | None:
        """The loss over all processes' embeddings, and its gradient for this process's own."""
        objective, processes = self.parallel.objective, self.parallel.processes
        kinds = ("images", "texts", "negatives")
        dtype = torch.promote_types(next(iter(self.named.values())).dtype, torch.float32)
        nothing = torch.zeros(0, 0, device=processes.device)
        own = [
            _rows([nothing, *(e.detach() for o in first if (e := getattr(o, kind)) is not None)]).to(dtype)
            for kind in kinds
        ]
        everyone = processes.gather_tensors(own)
        leaves = [t.requires_grad_() for t in own]
        everyone[processes.rank] = leaves
        images, texts, negatives = (_rows([of_rank[k] for of_rank in everyone]) for k in range(3))
        if not len(images):
            return None
        if not len(negatives):
            negatives = images.new_zeros(0, images.shape[1])
        with torch.enable_grad():
            loss = objective.contrast(images, texts, negatives)
            scale = s if (s := objective.logit_scale) is not None and s.requires_grad else None
            wanted = [*leaves, *([] if scale is None else [scale])]
            weighted = objective.weights[CONTRASTIVE] * loss
            found: list[torch.Tensor] = list(torch.autograd.grad(weighted, wanted, materialize_grads=True))
        gradients: list[dict[str, torch.Tensor]] = [{} for _ in first]
        for kind, gradient in zip(kinds, found, strict=False):
            having = [i for i, o in enumerate(first) if getattr(o, kind) is not None]
            pieces = gradient.split([len(getattr(first[i], kind)) for i in having])
            for i, piece in zip(having, pieces, strict=True):
                gradients[i][kind] = piece
        return _Contrast(
            loss=loss.detach(),
            gradients=gradients,
            # the first process's, so that rounding cannot drive the copies apart
            scale=None if scale is None else processes.gather_tensors([found[-1]])[0][0],
            finite=torch.stack([t.detach().isfinite().all() for t in own]).all(),
        )


def lr_at(train: TrainConfig, step: int) -> float:
    """Learning rate of ``step``, counted from 0: up over ``warmup``, level, down to zero over ``decay``. A run can be
    lengthened or shortened when it is resumed, as long as its decay has not begun."""
    rising = (step + 1) / max(train.warmup * train.steps, 1)
    falling = min((train.steps - step) / max(train.decay * train.steps, 1), 1.0)
    if train.schedule == "cosine":
        falling = (1 - math.cos(math.pi * falling)) / 2
    return train.lr * min(1.0, rising, falling)


def _seed(*place: int) -> None:
    words = [int(w) for w in np.random.SeedSequence(place).generate_state(4)]
    torch.manual_seed(words[0] << 32 | words[1])
    np.random.seed(words[2])
    random.seed(words[3])


def _rows(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Joined; parts without rows may not know E."""
    return torch.cat([p for p in parts if len(p)] or list(parts[:1]))


def _merged(parts: Iterable[Mapping[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    merged: dict[str, tuple[float, float]] = {}
    for name, (value, count) in (item for part in parts for item in part.items()):
        before = merged.get(name, (0.0, 0.0))
        merged[name] = (before[0] + value, before[1] + count)
    return merged


def _make_optimizers(
    named: Mapping[str, torch.nn.Parameter], train: TrainConfig, lr_factor: Callable[[str], float]
) -> list[torch.optim.Optimizer]:
    """One AdamW, and one Muon where the config says so. Muon's steps are scaled to AdamW's size, so one learning rate
    serves both."""
    groups: dict[tuple[bool, float, bool, bool], list[torch.nn.Parameter]] = {}
    for name, p in named.items():
        hidden = p.ndim == 2 and in_layer(name) and "lora_" not in name
        # a fused step takes sharded and whole tensors, but not together
        key = (hidden and train.optimizer == "muon", lr_factor(name), p.ndim > 1, isinstance(p, DTensor))
        groups.setdefault(key, []).append(p)

    def of(muon: bool) -> list[dict[str, Any]]:
        return [
            {"params": ps, "factor": factor, "weight_decay": train.weight_decay if matrix else 0.0}
            for (by_muon, factor, matrix, _), ps in groups.items()
            if by_muon == muon
        ]

    optimizers: list[torch.optim.Optimizer] = []
    if others := of(False):
        optimizers.append(torch.optim.AdamW(others, lr=train.lr, betas=(0.9, 0.98), fused=True))
    if hidden_matrices := of(True):
        if train.precision == "float32":
            optimizers.append(FullPrecisionMuon(hidden_matrices, lr=train.lr))
        else:
            optimizers.append(torch.optim.Muon(hidden_matrices, lr=train.lr, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def warn_of_emulation(precision: str, device: torch.device) -> None:
    """Of bfloat16 on a processor that has no instructions for it: 0.6 pictures/s where float32 had 12 (LOG.md)."""
    if precision == "bfloat16" and device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        print(
            "warning: this processor has no instructions for bfloat16 and takes many times as long for it; "
            "set train.precision = 'float32'.",
            file=sys.stderr,
        )
