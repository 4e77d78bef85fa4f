"""The processes of one run: alone, whole copies of the model (DDP), or one model in shards (FSDP2).

Notable choices:
- ``torchrun`` starts the processes; without it everything here is a no-op;
- objects travel by gloo and tensors on the device by nccl, so that telling one another a number never waits for a GPU;
- both DDP and FSDP average gradients over processes: `stepping` scales its sums up by their number;
- a parameter that no process used in a step has no gradient, as in one process: the optimiser leaves it alone. DDP
  does that by itself; of FSDP's shards we note which had one;
- FSDP shards layer by layer, and what is not in a layer together; the temperature stays whole, because the
  contrastive loss uses it outside of the forward.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from fwd2bot_index.errors import InputError

if TYPE_CHECKING:
    from fwd2bot_training.objectives import Batch, Objective, Outputs

T = TypeVar("T")
_LAYER_LISTS = ("layers", "blocks")


def in_layer(name: str) -> bool:
    """Whether a parameter's name lies in a layer of a transformer."""
    return any(part in _LAYER_LISTS for part in name.split("."))


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Who takes part in a run. Every method is a collective: all processes must call it, in the same order."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def start(cls) -> Processes:
        """Join the processes that torchrun started; alone where none did. Uses a GPU where there is one.

        Raises:
            InputError: there are fewer GPUs than processes.
        """
        rank, size, local = (int(os.environ.get(n, d)) for n, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
        device = torch.device("cpu")
        if torch.cuda.is_available():
            if local >= torch.cuda.device_count():
                raise InputError(
                    f"There are {torch.cuda.device_count()} GPUs here and more processes: lower --nproc-per-node."
                )
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)
        if size > 1:
            dist.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")
        return cls(rank=rank, size=size, device=device)

    def close(self) -> None:
        if self.size > 1:
            # gloo's threads need the interpreter for a moment to let go of the last tensors; DDP's destructor may wait
            # for these threads while it holds the interpreter (pytorch issue 56297)
            time.sleep(0.5)
            dist.destroy_process_group()

    def gather(self, value: T) -> list[T]:
        """Everyone's value, by rank. Small things that pickle."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather_tensors(self, tensors: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
        """Everyone's tensors, by rank, without gradient. Shapes may differ between processes; their number and the one
        dtype of them all may not."""
        if self.size == 1:
            return [list(tensors)]
        shapes = self.gather([t.shape for t in tensors])
        longest = max(sum(s.numel() for s in of_rank) for of_rank in shapes)
        flat = torch.cat([t.detach().flatten() for t in tensors])
        # all_gather takes tensors of one size only
        padded = torch.cat([flat, flat.new_zeros(longest - len(flat))])
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        gathered = []
        for part, of_rank in zip(parts, shapes, strict=True):
            sizes = [s.numel() for s in of_rank]
            pieces = part[: sum(sizes)].split(sizes)
            gathered.append([p.view(s) for p, s in zip(pieces, of_rank, strict=True)])
        return gathered


class Parallel:
    """An objective under however many processes there are.

    Args:
        objective: on ``processes.device`` already, or, under FSDP, still on the CPU: layer by layer, its parameters
            become shards on the device.

    Raises:
        InputError: FSDP cannot shard this objective.
    """

    def __init__(self, objective: Objective, processes: Processes, sharding: Literal["ddp", "fsdp"]) -> None:
        self.objective, self.processes = objective, processes
        self._ddp: DistributedDataParallel | None = None
        self._shards: _Shards | None = None
        if processes.size > 1:
            if sharding == "fsdp":
                self._shards = _Shards(objective, processes)
            else:
                self._ddp = DistributedDataParallel(
                    objective, find_unused_parameters=True, gradient_as_bucket_view=True
                )

    @property
    def sharded(self) -> bool:
        return self._shards is not None

    def forward(self, batch: Batch, *, embeddings_only: bool = False) -> Outputs:
        """One micro-batch. Without gradient nothing is told to the other copies."""
        if self._shards is not None:
            return self._shards.forward(batch, embeddings_only=embeddings_only)
        if self._ddp is not None and torch.is_grad_enabled():
            outputs: Outputs = self._ddp(batch, embeddings_only=embeddings_only)
            return outputs
        return self.objective(batch, embeddings_only=embeddings_only)

    def accumulating(self, *, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of one of several micro-batches: copies meet once, at the last. Shards meet
        every time, as whole gradients are what they have no memory for."""
        return nullcontext() if last or self._ddp is None else self._ddp.no_sync()

    def take_used(self) -> set[str]:
        """Names of the parameters that had a gradient here since the last call; known of shards only."""
        return self._shards.take_used() if self._shards is not None else set()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, any part of the objective can be run, not only its forward; outside it trains again."""
        self.objective.eval()
        with self._shards.whole_root() if self._shards is not None else nullcontext():
            yield
        self.objective.train()

    def gather_whole(self) -> None:
        """After training, before export: the first process's objective holds all weights, on the CPU if they were
        sharded; the others' shards are let go."""
        if self._shards is not None:
            self._shards.gather_whole()


def clip(parameters: Sequence[torch.Tensor], max_norm: float) -> float:
    """Scale the gradients, sharded ones among them, down to a joint norm of at most ``max_norm``; returns the norm
    before. One that is not finite scales nothing."""
    having = [p for p in parameters if p.grad is not None]
    kinds = [[p for p in having if isinstance(p, DTensor) == sharded] for sharded in (False, True)]
    norms = [whole(nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds if kind]
    norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
    if math.isfinite(norm.item()):
        for kind in kinds:
            nn.utils.clip_grads_with_norm_(kind, max_norm, norm)
    return norm.item()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that may be sharded: a collective if it is."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()


@torch.no_grad()
def fill(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Set a tensor that may be sharded from all of its values, which every process has; returns it."""
    if isinstance(tensor, DTensor):
        values = distribute_tensor(values.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
    return tensor.copy_(values)


class _Root(nn.Module):
    """FSDP's hooks look for tensors in tuples and dicts, not in the objective's own classes."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: Batch, *, embeddings_only: bool) -> tuple[Outputs, list[torch.Tensor]]:
        outputs = self.objective(batch, embeddings_only=embeddings_only)
        embeddings = (outputs.images, outputs.texts, outputs.negatives)
        return outputs, [*outputs.sums.values(), *(e for e in embeddings if e is not None)]


class _Shards:
    def __init__(self, objective: Objective, processes: Processes) -> None:
        self.objective, self.processes = objective, processes
        self._used: set[str] = set()
        self._hooked: set[nn.Parameter] = set()
        self.root = _Root(objective)
        scale = objective.logit_scale
        for name, p in objective.named_parameters():
            if not p.is_floating_point():
                raise InputError(f"train.sharding = 'fsdp' cannot shard quantised weights ({name}): use 'ddp'.")
            if p.ndim == 0 and p is not scale:
                raise InputError(f"train.sharding = 'fsdp' cannot shard the scalar {name}: use 'ddp'.")
        for tensor in (*objective.parameters(), *objective.buffers()):
            dist.broadcast(tensor.detach(), src=0)
        if scale is not None:
            scale.data = scale.data.to(processes.device)
        mesh = init_device_mesh(processes.device.type, (processes.size,))
        # a list within a list comes before it, as fully_shard wants
        lists = [
            module
            for name, module in reversed(list(objective.named_modules()))
            if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in _LAYER_LISTS
        ]
        names = {module: name for name, module in self.root.named_modules()}
        for layer in (layer for layers in lists for layer in layers):
            fully_shard(layer, mesh=mesh)
        fully_shard(self.root, mesh=mesh, ignored_params=set() if scale is None else {scale})
        assert isinstance(self.root, FSDPModule)
        if not hasattr(self.root, "set_reduce_scatter_unused_params"):
            raise InputError("train.sharding = 'fsdp' needs a newer torch (2.13 has it): update torch, or use 'ddp'.")
        # processes whose batches use different parameters would otherwise wait for one another for ever
        self.root.set_reduce_scatter_unused_params(True)
        for module in self.root.modules():
            if isinstance(module, FSDPModule):
                module.register_forward_pre_hook(self._watch(names[module]))

    def _watch(self, prefix: str) -> Callable[[nn.Module, Any], None]:
        """A hook that runs once FSDP's own has made the parameters whole: those are other objects than the shards."""

        def hook(module: nn.Module, _: Any) -> None:
            for name, p in module.named_parameters(prefix):
                if p.requires_grad and not isinstance(p, DTensor) and p not in self._hooked:
                    self._hooked.add(p)
                    own = name.removeprefix("objective.")
                    p.register_post_accumulate_grad_hook(lambda _, own=own: self._used.add(own))

        return hook

    def forward(self, batch: Batch, *, embeddings_only: bool) -> Outputs:
        outputs: Outputs = self.root(batch, embeddings_only=embeddings_only)[0]
        return outputs

    def take_used(self) -> set[str]:
        used, self._used = self._used, set()
        return used

    @contextmanager
    def whole_root(self) -> Iterator[None]:
        """What lies in no layer is otherwise whole only in the objective's own forward."""
        assert isinstance(self.root, FSDPModule)
        self.root.unshard()
        yield
        self.root.reshard()

    def gather_whole(self) -> None:
        assert isinstance(self.root, FSDPModule)
        self.root.reshard()
        tied: dict[nn.Parameter, nn.Parameter] = {}
        for module in self.objective.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                if not isinstance(p, DTensor):
                    continue
                if p not in tied:
                    values = whole(p).cpu()
                    kept = values if self.processes.rank == 0 else values.new_empty(0)
                    tied[p] = nn.Parameter(kept, requires_grad=p.requires_grad)
                module.register_parameter(name, tied[p])


def clear_unused(named: Mapping[str, nn.Parameter], used: set[str]) -> None:
    """Shards of parameters that no process used get zeros from FSDP; the optimiser would decay them."""
    for name, p in named.items():
        if isinstance(p, DTensor) and name not in used:
            p.grad = None
