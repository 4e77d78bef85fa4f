"""A run in miniature that follows the contract of the trainer's parts: a few numbers for a picture, an MLP for a model.

As a script it is one process of a run, for tests that kill it or start several::

    python tests/toy_objective.py train OUT '{"steps": 40}'     # the loop, as `fwd2bot train` would
    python tests/toy_objective.py gradients OUT                 # one step's gradients, case by case
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from fwd2bot_index.errors import InputError
from fwd2bot_training.config import TrainConfig
from fwd2bot_training.distributed import Parallel, Processes
from fwd2bot_training.stepping import Stepper, TrainingDivergedError
from fwd2bot_training.trainer import Trainer

WIDTH = 6


@dataclass(frozen=True)
class Example:
    picture: np.ndarray
    target: np.ndarray
    weight: float
    caption: np.ndarray | None
    negatives: np.ndarray
    """[M, WIDTH]"""
    rare: bool
    """Takes part in the loss that alone uses the parameter `rare`."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    step: int
    source: str
    size: int
    counts: dict[str, float]
    pictures: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    texts: torch.Tensor | None
    negatives: torch.Tensor | None
    captioned: torch.Tensor
    """Row numbers, one for each text."""
    rare: torch.Tensor
    """Row numbers."""

    @property
    def captions(self) -> bool:
        return self.texts is not None

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Batch:
        return self


@dataclass
class Outputs:
    sums: dict[str, torch.Tensor]
    images: torch.Tensor | None = None
    texts: torch.Tensor | None = None
    negatives: torch.Tensor | None = None
    shares: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Collator:
    dtype: torch.dtype

    def __call__(self, step: int, source: str, examples: Sequence[Example]) -> Batch:
        def stacked(rows: Sequence[np.ndarray]) -> torch.Tensor:
            return torch.from_numpy(np.array(rows).reshape(len(rows), WIDTH)).to(self.dtype)

        captions = [e.caption for e in examples if e.caption is not None]
        rare = [i for i, e in enumerate(examples) if e.rare]
        return Batch(
            step=step,
            source=source,
            size=len(examples),
            counts={"ar": sum(e.weight for e in examples)} | ({"rare": float(len(rare))} if rare else {}),
            pictures=stacked([e.picture for e in examples]),
            targets=stacked([e.target for e in examples]),
            weights=torch.tensor([e.weight for e in examples], dtype=self.dtype),
            texts=stacked(captions) if captions else None,
            negatives=stacked([n for e in examples if e.caption is not None for n in e.negatives])
            if captions
            else None,
            captioned=torch.tensor([i for i, e in enumerate(examples) if e.caption is not None], dtype=torch.long),
            rare=torch.tensor(rare, dtype=torch.long),
        )


class Layer(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.dropout(torch.tanh(self.linear(x)))


class ToyObjective(nn.Module):
    """The answer reads what a first pass through the same layers made, as the double pass does."""

    def __init__(self, *, dropout: float = 0.0, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(Layer(dropout) for _ in range(2))
        self.head = nn.Linear(WIDTH, 5, bias=False)
        self.rare = nn.Parameter(torch.randn(WIDTH))
        self.never = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.frozen = nn.Parameter(torch.randn(WIDTH, WIDTH), requires_grad=False)
        self.logit_scale = nn.Parameter(torch.tensor(1.5))
        self.weights = {"ar": 1.0, "rare": 0.5, "contrastive": 0.7}
        self.to(dtype)

    def collator(self) -> Collator:
        return Collator(self.head.weight.dtype)

    def lr_factor(self, name: str) -> float:
        return 0.1 if name.startswith("embed.") else 1.0

    def run(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x) @ self.frozen
        for layer in self.layers:
            x = layer(x)
        return x

    def forward(self, batch: Batch, *, embeddings_only: bool = False) -> Outputs:
        tokens = self.run(batch.pictures)
        outputs = Outputs({})
        answers = self.run(tokens)
        errors = (answers - batch.targets).square().sum(-1)
        if not embeddings_only:
            outputs.sums["ar"] = (batch.weights * errors).sum()
            if len(batch.rare):
                outputs.sums["rare"] = (tokens[batch.rare] @ self.rare).square().sum()
        if batch.texts is not None and batch.negatives is not None:
            outputs.images = F.normalize(self.head(tokens[batch.captioned]), dim=-1)
            outputs.texts = F.normalize(self.head(self.run(batch.texts)), dim=-1)
            outputs.negatives = F.normalize(self.head(self.run(batch.negatives)), dim=-1)
        outputs.shares["right"] = (float((errors < 1).sum()), float(batch.size))
        return outputs

    def contrast(self, images: torch.Tensor, texts: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
        scale = self.logit_scale.exp()
        logits = scale * images @ texts.T
        labels = torch.arange(len(images))
        to_text = F.cross_entropy(torch.cat([logits, scale * images @ negatives.T], dim=1), labels)
        return (to_text + F.cross_entropy(logits.T, labels)) / 2


@dataclass
class ToyMixture:
    """Rows differ in weight and in their number of negatives; ``rows`` overrides fields of the rows that it names."""

    batch_size: int = 8
    seed: int = 0
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    bad_step: int | None = None

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> tuple[str, list[Example]]:
        share = self.batch_size // world
        if step == self.bad_step and rank == world - 1:
            raise InputError(f"rows.parquet, row {step}: no picture.")
        examples = [self._example(step, row) for row in range(rank * share, (rank + 1) * share)]
        return f"source{step % 2}", examples

    def _example(self, step: int, row: int) -> Example:
        rng = np.random.default_rng((self.seed, step, row))
        example = Example(
            picture=rng.normal(size=WIDTH),
            target=rng.normal(size=WIDTH),
            weight=float(rng.uniform(0.5, 2)),
            caption=rng.normal(size=WIDTH),
            negatives=rng.normal(size=(row % 3, WIDTH)),
            rare=step % 3 == 1 and row % 4 == 1,
        )
        return dataclasses.replace(example, **self.rows.get(row, {}))


@dataclass
class Log:
    """A watch that writes a line for every step."""

    path: Path
    delay: float = 0.0
    on_step: Callable[[int], None] = lambda _: None

    def start(self, step: int, pending: dict[str, Any] | None = None) -> None:
        assert (pending or {}).get("lines", step) == step, "the state's own"

    def pending(self) -> dict[str, Any]:
        return {"lines": read_log(self.path)[-1]["step"]} if self.path.exists() else {}

    def step(self, step: int, source: str, losses: dict[str, float], shares: Any, *, lr: float, size: int) -> None:
        with self.path.open("a") as file:
            row = {"step": step, "source": source, "losses": losses, "shares": shares, "lr": lr, "size": size}
            file.write(json.dumps(row) + "\n")
        self.on_step(step)
        time.sleep(self.delay)

    def close(self) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"closed": True}) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """A kill may cut a line short."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [row for row in map(json.loads, lines) if "step" in row]


def weights(objective: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in objective.named_parameters()}


def train(out: Path, settings: dict[str, Any]) -> None:
    """A whole run, or what is left of it. ``delay`` slows its steps down, ``bad_step`` has a bad row. Validation runs
    part of the objective and draws random numbers."""
    delay, dropout, bad_step = settings.pop("delay", 0.0), settings.pop("dropout", 0.2), settings.pop("bad_step", None)
    processes = Processes.start()
    config = TrainConfig(**{"batch_size": 8, "save_minutes": 0.0, "lr": 1e-2, **settings})
    objective = ToyObjective(dropout=dropout)

    def validate(step: int) -> None:
        torch.rand(3), np.random.rand(), random.random()  # validation may draw what it likes
        with (out / f"validated-{processes.rank}").open("a") as file:
            file.write(f"{step} {objective.run(torch.ones(1, WIDTH, dtype=torch.float64)).sum().item()}\n")

    trainer = Trainer(
        objective,
        ToyMixture(batch_size=config.batch_size, seed=config.seed, bad_step=bad_step),
        config,
        out,
        export=lambda: save_file(weights(objective), out / "model.safetensors"),
        watch=Log(out / "log.jsonl", delay=delay),
        validate=validate,
        every=7,
        processes=processes,
    )
    trainer.resume()
    try:
        trainer.run()
    except InputError as e:
        (out / f"error-{processes.rank}").write_text(str(e))
    except KeyboardInterrupt:
        (out / f"interrupted-{processes.rank}").write_text(str(trainer.step))
    finally:
        processes.close()


CASES: dict[str, dict[int, dict[str, Any]]] = {
    "all": {},
    "no rare, first half without negatives": {
        **{r: {"rare": False, "negatives": np.zeros((0, WIDTH))} for r in range(4)},
        **{r: {"rare": False} for r in range(4, 8)},
    },
    "rare in the second half": {r: {"rare": r == 6} for r in range(8)},
    "captions in the first half": {r: {"caption": None} for r in range(4, 8)},
    "no captions": {r: {"caption": None} for r in range(8)},
}


def gradients_of(
    case: str, processes: Processes, *, micro: int, dropout: float = 0.0, sharding: Any = "ddp"
) -> tuple[Stepper, dict[str, float]]:
    """One step's gradients, unclipped."""
    objective = ToyObjective(dropout=dropout)
    config = TrainConfig(clip=1e9, sharding=sharding)
    stepper = Stepper(Parallel(objective, processes, sharding), config)  # type: ignore[arg-type]
    _, examples = ToyMixture(rows=CASES[case]).batch(1, rank=processes.rank, world=processes.size)
    collate = objective.collator()
    batches = [collate(1, "toy", examples[i : i + micro]) for i in range(0, len(examples), micro)]
    done = stepper.gradients(1, batches)  # type: ignore[arg-type]
    return stepper, {**done.losses, "right": done.shares["right"][0], "size": done.size}


def gradients(out: Path) -> None:
    """Every case of `CASES`, whole and in micro-batches, by DDP and, where it can, FSDP; then one that diverges."""
    from fwd2bot_training.distributed import whole

    processes = Processes.start()
    for sharding in ("ddp", "fsdp"):
        for case in CASES:
            for micro in (4, 2):
                name = f"{sharding} {case} {micro}"
                try:
                    stepper, losses = gradients_of(case, processes, micro=micro, sharding=sharding)
                except InputError as e:
                    (out / f"{name} {processes.rank}.json").write_text(json.dumps({"error": str(e)}))
                    continue
                found = {n: whole(p.grad) for n, p in stepper.named.items() if p.grad is not None}
                save_file(found, out / f"{name} {processes.rank}.safetensors")
                (out / f"{name} {processes.rank}.json").write_text(json.dumps(losses))
    for sharding in ("ddp", "fsdp"):
        objective = ToyObjective()
        mixture = ToyMixture(rows={5: {"target": np.full(WIDTH, np.nan)}})
        stepper = Stepper(Parallel(objective, processes, sharding), TrainConfig(sharding=sharding))  # type: ignore[arg-type]
        _, examples = mixture.batch(1, rank=processes.rank, world=processes.size)
        before = {n: whole(p).clone() for n, p in stepper.named.items()}
        try:
            stepper.step(1, [objective.collator()(1, "toy", examples)])  # type: ignore[list-item]
        except TrainingDivergedError as e:
            same = all(torch.equal(whole(p), before[n]) for n, p in stepper.named.items())
            told = {"error": str(e), "same": same, "gradients": sum(p.grad is not None for p in stepper.named.values())}
            (out / f"{sharding} diverged {processes.rank}.json").write_text(json.dumps(told))
    processes.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "train":
        train(folder, json.loads(sys.argv[3]))
    else:
        gradients(folder)
