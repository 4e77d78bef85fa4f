from __future__ import annotations

import copy

import pytest
import torch

from fwd2bot_training.muon import FullPrecisionMuon, orthogonalized

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@pytest.mark.parametrize("shape", [(24, 64), (64, 24), (32, 32)])
def test_every_singular_value_comes_out_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalized(matrix, COEFFICIENTS, steps=5, eps=1e-7)
    assert found.dtype is matrix.dtype
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    # of all matrices, U V^T has the greatest product with the matrix for its size
    assert torch.nn.functional.cosine_similarity(found.flatten(), (left @ right).flatten(), dim=0) > 0.97
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_it_steps_as_torch_does_and_goes_on_from_its_state() -> None:
    torch.manual_seed(0)
    models = [torch.nn.Linear(40, 24, bias=False)]
    models.append(copy.deepcopy(models[0]))
    start = models[0].weight.detach().clone()
    torchs = torch.optim.Muon(models[0].parameters(), lr=0.02, adjust_lr_fn="match_rms_adamw")
    ours = FullPrecisionMuon(models[1].parameters(), lr=0.02)
    for group in (*torchs.param_groups, *ours.param_groups):
        group["weight_decay"] = 2.0

    def steps(number: int) -> None:
        for _ in range(number):
            gradient = torch.randn(24, 40)
            for model, optimizer in zip(models, (torchs, ours), strict=True):
                model.weight.grad = gradient.clone()
                optimizer.step()

    steps(3)
    ours.load_state_dict(torchs.state_dict())
    steps(3)
    moved = [m.weight.detach() - start for m in models]
    # torch rounds every product of its iteration to bfloat16
    assert torch.linalg.norm(moved[0] - moved[1]) < 0.15 * torch.linalg.norm(moved[0])
    assert torch.equal(*(o.state_dict()["state"][0]["momentum_buffer"] for o in (torchs, ours)))
    models[1].weight.grad = None
    before = models[1].weight.detach().clone()
    ours.step()
    assert torch.equal(models[1].weight, before)
