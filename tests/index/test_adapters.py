"""Stage adapters: what PEFT gets wrong by itself, and what must be refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import torch

from fwd2bot_index.adapters import STAGES, LoraSettings, StageAdapters
from fwd2bot_index.errors import ModelError

LANGUAGE_MODEL = "model.language_model"


def adapted(rank: int = 2) -> tuple[torch.nn.Module, StageAdapters]:
    base, _ = tiny_models.build("llava")
    adapters = StageAdapters.add(base, LANGUAGE_MODEL, LoraSettings(rank=rank, alpha=4))
    torch.manual_seed(1)
    for stage in STAGES:
        for parameter in adapters.parameters(stage):
            parameter.data.normal_(std=0.3)
    return base, adapters


def logits(base: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return base(input_ids=torch.arange(10, 20)[None]).logits


def test_only_the_linear_layers_of_the_language_model_are_adapted() -> None:
    base, _ = adapted()
    adapted_layers = {n.split(".lora_A")[0] for n, _ in base.named_parameters() if "lora_A" in n}
    linear = {
        f"{LANGUAGE_MODEL}.layers.{i}.{part}"
        for i in range(2)
        for part in (
            *(f"self_attn.{p}_proj" for p in "qkvo"), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
        )
    }  # fmt: skip
    assert adapted_layers == linear


def test_switching_keeps_every_requires_grad() -> None:
    base, adapters = adapted()
    assert all(p.requires_grad for p in base.parameters())  # the caller's choice is untouched
    adapters.parameters("generate")[0].requires_grad_(False)
    before = {n: p.requires_grad for n, p in base.named_parameters()}
    for stage in ("compress", "generate", None, "generate", "compress", None):
        adapters.activate(stage)  # type: ignore[arg-type]
        assert {n: p.requires_grad for n, p in base.named_parameters()} == before
        assert adapters.active == stage


def test_fresh_adapters_change_nothing() -> None:
    base, _ = tiny_models.build("llava")
    before = logits(base)
    adapters = StageAdapters.add(base, LANGUAGE_MODEL, LoraSettings(rank=2))
    for stage in STAGES:
        adapters.activate(stage)
        assert torch.equal(logits(base), before)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # inside PEFT
def test_saved_folders_are_peft_folders(tmp_path: Path) -> None:
    """PeftModel itself reads them, and gives the same outputs."""
    from peft import PeftModel

    base, adapters = adapted()
    adapters.save(tmp_path)
    for stage in STAGES:
        plain, _ = tiny_models.build("llava")
        by_peft = PeftModel.from_pretrained(plain, str(tmp_path / stage))
        adapters.activate(stage)
        torch.testing.assert_close(logits(by_peft), logits(base))
    assert not torch.allclose(logits(base), logits(tiny_models.build("llava")[0]), atol=1e-2)


def test_base_state_dict_is_that_of_the_base_alone() -> None:
    plain, _ = tiny_models.build("llava")
    _, adapters = adapted()
    state = adapters.base_state_dict()
    assert state.keys() == plain.state_dict().keys()
    assert all(torch.equal(t, state[n]) for n, t in plain.state_dict().items())


@pytest.mark.parametrize("damage", ["drop", "rename", "shape"])
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, damage: str) -> None:
    """PEFT would leave the adapter at random and say nothing."""
    from safetensors.torch import load_file, save_file

    _, adapters = adapted()
    adapters.save(tmp_path)
    path = tmp_path / "generate/adapter_model.safetensors"
    state = load_file(path)
    name = sorted(state)[0]
    tensor = state.pop(name)
    if damage == "rename":
        state[name.replace("layers", "blocks")] = tensor
    if damage == "shape":
        state[name] = tensor[:, :-1].contiguous()
    save_file(state, path)
    base, _ = tiny_models.build("llava")
    with pytest.raises(ModelError, match=r"generate adapter .* does not fit"):
        StageAdapters.load(base, tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Cannot read the adapters"):
        StageAdapters.load(tiny_models.build("llava")[0], tmp_path)


@pytest.mark.parametrize("settings", [{"rank": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_settings_check_themselves(settings: dict[str, float]) -> None:
    with pytest.raises(ModelError, match="LoRA"):
        LoraSettings(**settings)  # type: ignore[arg-type]


def test_peft_is_not_imported_without_need() -> None:
    code = "import sys, fwd2bot_index.adapters, fwd2bot_index.model; sys.exit('peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
