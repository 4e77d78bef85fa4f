from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from toy_objective import CASES, WIDTH, ToyMixture, ToyObjective, gradients_of, weights

from fwd2bot_training.config import TrainConfig
from fwd2bot_training.distributed import Parallel, Processes
from fwd2bot_training.muon import FullPrecisionMuon
from fwd2bot_training.stepping import Stepper, TrainingDivergedError, _seed, lr_at


def reference(case: str, *, sizes: Sequence[int] = (8,), dropout: float = 0.0) -> dict[str, torch.Tensor]:
    """Gradients of the loss as it is written, all forwards in one graph; micro-batch i of ``sizes`` draws its dropout
    as the stepper's does."""
    objective = ToyObjective(dropout=dropout)
    _, examples = ToyMixture(rows=CASES[case]).batch(1)
    outputs, batches, start = [], [], 0
    for i, size in enumerate(sizes):
        batches.append(objective.collator()(1, "toy", examples[start : start + size]))
        _seed(0, 1, 0, i)
        outputs.append(objective(batches[-1]))
        start += size
    loss = torch.zeros((), dtype=torch.float64)
    for name in {n for o in outputs for n in o.sums}:
        total = sum(b.counts.get(name, 0.0) for b in batches)
        loss = loss + objective.weights[name] * sum(o.sums[name] for o in outputs if name in o.sums) / total
    having = [o for o in outputs if o.images is not None]
    if having:
        images, texts, negatives = (
            torch.cat([getattr(o, k) for o in having]) for k in ("images", "texts", "negatives")
        )
        loss = loss + objective.weights["contrastive"] * objective.contrast(images, texts, negatives)
    loss.backward()
    return {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Also which parameters have no gradient at all."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("micro", [8, 4, 3, 1])
@pytest.mark.parametrize("case", list(CASES))
def test_micro_batches_give_the_gradient_of_the_whole(case: str, micro: int) -> None:
    stepper, _ = gradients_of(case, Processes(), micro=micro)
    found = {n: p.grad for n, p in stepper.named.items() if p.grad is not None}
    assert_same(found, reference(case))
    assert ("rare" in found) == (case not in ("no rare, first half without negatives",))
    assert ("logit_scale" in found) == (case != "no captions")
    assert "never" not in found


def test_the_second_forward_has_the_dropout_of_the_first() -> None:
    stepper, _ = gradients_of("all", Processes(), micro=2, dropout=0.3)
    found = {n: p.grad for n, p in stepper.named.items() if p.grad is not None}
    assert_same(found, reference("all", sizes=(2, 2, 2, 2), dropout=0.3))
    other = reference("all", sizes=(4, 4), dropout=0.3)
    assert not torch.allclose(found["embed.weight"], other["embed.weight"], rtol=1e-3)


def test_losses_and_shares_are_means_over_all_micro_batches() -> None:
    objective = ToyObjective()
    _, examples = ToyMixture().batch(1)
    outputs = objective(whole := objective.collator()(1, "toy", examples))
    for micro in (8, 3):
        _, found = gradients_of("all", Processes(), micro=micro)
        assert found["ar"] == pytest.approx(outputs.sums["ar"].item() / whole.counts["ar"])
        assert found["rare"] == pytest.approx(outputs.sums["rare"].item() / 2)
        assert found["right"] == outputs.shares["right"][0]
        assert found["size"] == 8
        expected = objective.contrast(outputs.images, outputs.texts, outputs.negatives).item()
        assert found["contrastive"] == pytest.approx(expected)


def _stepper(objective: ToyObjective, **settings: Any) -> Stepper:
    return Stepper(Parallel(objective, Processes(), "ddp"), TrainConfig(**settings))  # type: ignore[arg-type]


def _batch(objective: ToyObjective, mixture: ToyMixture, step: int = 1) -> Any:
    source, examples = mixture.batch(step)
    return objective.collator()(step, source, examples)


@pytest.mark.parametrize("where", ["loss", "embedding", "gradient"])
def test_what_is_not_finite_stops_before_the_step(where: str) -> None:
    objective = ToyObjective()
    mixture = ToyMixture()
    if where == "loss":
        mixture.rows[3] = {"target": np.full(WIDTH, np.nan)}
    elif where == "embedding":
        mixture.rows[3] = {"caption": np.full(WIDTH, np.inf)}
    else:
        objective.layers[0].linear.weight.register_hook(lambda g: g * math.inf)
    stepper = _stepper(objective, seed=5)
    before = weights(objective)
    with pytest.raises(TrainingDivergedError, match=r"^Step 2, a batch of 'source1'.*seed 5"):
        stepper.step(1, [_batch(objective, mixture)])
    assert all(torch.equal(p, before[n]) for n, p in objective.named_parameters())
    assert all(p.grad is None for p in objective.parameters())
    assert not any(o.state for o in stepper.optimizers)


def test_gradients_are_clipped_together() -> None:
    objective = ToyObjective()
    stepper = _stepper(objective, clip=0.01)
    stepper.gradients(1, [_batch(objective, ToyMixture())])
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in stepper.named.values() if p.grad is not None))
    assert norm == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_moves_what_has_a_gradient_and_nothing_else(optimizer: str) -> None:
    objective = ToyObjective()
    stepper = _stepper(objective, optimizer=optimizer, warmup=0.0)
    before = weights(objective)
    stepper.step(1, [_batch(objective, ToyMixture())])
    moved = {n for n, p in objective.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, _ in objective.named_parameters()} - {"never", "frozen"}
    # embed's factor is 0.1; Adam's first step is the learning rate in every number that has a gradient
    steps = {n: (objective.get_parameter(n) - before[n]).abs().max().item() for n in ("embed.bias", "rare")}
    assert steps["rare"] == pytest.approx(2e-4, rel=0.01)
    assert steps["embed.bias"] == pytest.approx(2e-5, rel=0.01)


def test_muon_steps_the_layers_matrices_and_every_parameter_has_one_optimizer() -> None:
    stepper = _stepper(ToyObjective(), optimizer="muon", weight_decay=0.1)
    adamw, muon = ([p for g in o.param_groups for p in g["params"]] for o in stepper.optimizers)
    names = {p: n for n, p in stepper.named.items()}
    assert len(adamw) + len(muon) == len(names) == len({*adamw, *muon})
    assert sorted(names[p] for p in muon) == ["layers.0.linear.weight", "layers.1.linear.weight"]
    decay = {names[p]: g["weight_decay"] for o in stepper.optimizers for g in o.param_groups for p in g["params"]}
    assert {n for n, d in decay.items() if d} == {n for n in names.values() if n.endswith("weight") or n == "never"}
    assert isinstance(stepper.optimizers[1], FullPrecisionMuon)
    in_bfloat16 = _stepper(ToyObjective(), optimizer="muon", precision="bfloat16").optimizers[1]
    assert type(in_bfloat16) is torch.optim.Muon


def test_adapters_are_never_muons() -> None:
    objective = ToyObjective()
    objective.layers[0].lora_A = torch.nn.Parameter(torch.randn(2, 6))  # type: ignore[union-attr]
    stepper = _stepper(objective, optimizer="muon")
    muon = [p for g in stepper.optimizers[1].param_groups for p in g["params"]]
    assert not any(p is objective.layers[0].lora_A for p in muon)


def test_bfloat16_computes_nearly_the_same_and_keeps_float32() -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        objective = ToyObjective(dtype=torch.float32)
        objective.frozen.data /= 4
        stepper = _stepper(objective, precision=precision)
        losses[precision] = stepper.step(1, [_batch(objective, ToyMixture())]).losses
        assert {p.dtype for p in stepper.named.values()} == {torch.float32}
        assert {p.grad.dtype for p in stepper.named.values() if p.grad is not None} == {torch.float32}
    assert losses["bfloat16"]["ar"] != losses["float32"]["ar"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)


def test_the_schedule_rises_stays_and_falls() -> None:
    linear = TrainConfig(steps=100, lr=1.0, warmup=0.1, decay=0.4)
    cosine = dataclasses.replace(linear, schedule="cosine")
    for config in (linear, cosine):
        assert [lr_at(config, s) for s in (0, 4, 9, 30, 60)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0])
        assert lr_at(config, 80) == pytest.approx(0.5)
        assert 0 < lr_at(config, 99) < 0.03
    assert lr_at(linear, 70) == pytest.approx(0.75)
    assert lr_at(cosine, 70) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    level = TrainConfig(steps=3, lr=1.0, warmup=0.0, decay=0.0)
    assert [lr_at(level, s) for s in range(3)] == [1.0, 1.0, 1.0]
