"""One LoRA per stage (or one for both) in the base's language model: the only module that touches PEFT, which is
imported on first use (it takes seconds, and a model without adapters never needs it).

PEFT's ``set_adapter`` freezes the adapter that it switches away from; after a joint loss through both passes that
adapter would have no gradient, and nothing would say so. :meth:`StageAdapters.activate` therefore restores every
``requires_grad`` to what it was.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args

import torch
from torch import nn

from fwd2bot_index.errors import ModelError
from fwd2bot_index.types import Stage

STAGES: tuple[Stage, ...] = get_args(Stage)
SHARED = "shared"
_WEIGHTS = "adapter_model.safetensors"
_MOST_MERGED = 200_000_000
"""Weights of the adapted layers."""
# PEFT's own folders name every tensor from inside its wrapper; written so that PeftModel.from_pretrained reads ours
_PEFT_PREFIX = "base_model.model."
# PEFT imports bitsandbytes where it is installed, which then advises every user of a CPU to install faster kernels
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """LoRA on every linear layer of the language model (not the vision encoder, the projector or the LM head)."""

    rank: int = 64
    alpha: float = 128.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ModelError(f"The LoRA rank must be at least 1, not {self.rank}.")
        if not 0 <= self.dropout < 1:
            raise ModelError(f"The LoRA dropout must be in [0, 1), not {self.dropout}.")


class StageAdapters:
    """The adapters ``compress`` and ``generate``, or ``shared`` alone in the place of both, injected into ``base``,
    which stays a plain Hugging Face model."""

    def __init__(self, base: nn.Module, configs: dict[str, Any]) -> None:
        """Inject fresh adapters (B is zero, so that they change nothing yet); ``configs`` are PEFT's, by name."""
        from peft import inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._base = base
        self._configs = configs
        trainable = [p for p in base.parameters() if p.requires_grad]
        with warnings.catch_warnings():  # several adapters in one model are what is wanted here
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            for name, config in configs.items():
                inject_adapter_in_model(config, base, adapter_name=name)
        for parameter in trainable:  # injection freezes the base; whether it trains is the caller's choice
            parameter.requires_grad_(True)
        self._layers: list[Any] = [m for m in base.modules() if isinstance(m, BaseTunerLayer)]
        if not self._layers:
            raise ModelError("No linear layer of the language model was found to carry an adapter.")
        for parameter in self._live_parameters():
            parameter.requires_grad_(True)
        self._is_merged = False
        self.active: Stage | None = STAGES[0]
        self.activate(None)

    @classmethod
    def add(cls, base: nn.Module, language_model: str, settings: LoraSettings, *, shared: bool = False) -> Self:
        """Fresh adapters on the linear layers below the module path ``language_model`` of ``base``."""
        from peft import LoraConfig

        root = base.get_submodule(language_model)
        leaves = sorted({n.rpartition(".")[2] for n, m in root.named_modules() if isinstance(m, nn.Linear)})
        target = rf"{re.escape(language_model)}\..*\.({'|'.join(map(re.escape, leaves))})"
        return cls(
            base,
            {
                name: LoraConfig(
                    r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=target
                )
                for name in _names(shared)
            },
        )

    @classmethod
    def load(cls, base: nn.Module, folder: Path, *, shared: bool = False) -> Self:
        """Read the adapters' folders in ``folder``; every tensor must have been asked for and be there.

        Raises:
            ModelError: a folder that is missing or broken, or tensors that do not fit the base.
        """
        from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
        from safetensors.torch import load_file

        try:
            configs = {name: LoraConfig.from_pretrained(str(folder / name)) for name in _names(shared)}
            weights = {name: load_file(folder / name / _WEIGHTS) for name in configs}
        except Exception as e:  # PEFT and safetensors raise many kinds for a broken folder
            raise ModelError(f"Cannot read the adapters in {folder}: {e}".splitlines()[0]) from e
        for config in configs.values():
            config.inference_mode = False
        adapters = cls(base, configs)
        for adapter in configs:
            state = {name.removeprefix(_PEFT_PREFIX): tensor for name, tensor in weights[adapter].items()}
            expected = get_peft_model_state_dict(base, adapter_name=adapter)
            if wrong := sorted(
                set(state.keys() | expected.keys())
                - {n for n in state.keys() & expected.keys() if state[n].shape == expected[n].shape}
            ):
                raise ModelError(
                    f"The {adapter} adapter in {folder} does not fit its base model: {len(wrong)} tensors are missing, "
                    f"unexpected or of another shape, the first {wrong[0]}."
                )
            set_peft_model_state_dict(base, state, adapter_name=adapter)
        return adapters

    def save(self, folder: Path, *, dtype: torch.dtype | None = None) -> None:
        """Write one PEFT folder for each adapter, by its name."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        for name, config in self._configs.items():
            state = get_peft_model_state_dict(self._base, adapter_name=name)
            (folder / name).mkdir(parents=True, exist_ok=True)
            save_file(
                {_PEFT_PREFIX + n: t.detach().to("cpu", dtype).contiguous() for n, t in state.items()},
                folder / name / _WEIGHTS,
            )
            config.save_pretrained(str(folder / name))

    def activate(self, stage: Stage | None) -> None:
        """Make one adapter active, or none (the base alone, exactly). Every ``requires_grad`` stays as it was."""
        if stage == self.active:
            return
        assert not self._is_merged, "an adapter that is part of the weights cannot be taken away"
        # looked up each time: FSDP puts other objects in the place of parameters
        parameters = self._live_parameters()
        flags = [p.requires_grad for p in parameters]
        for layer in self._layers:
            if stage is not None:
                layer.set_adapter(self._adapter_of(stage))
            layer.enable_adapters(stage is not None)
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)
        self.active = stage

    @contextmanager
    def merged(self, stage: Stage) -> Iterator[None]:
        """Inside, the adapter of ``stage`` is a part of the base's weights, so that a forward costs what the base alone
        costs; afterwards the weights are the very same as before. No other stage can be activated inside.

        Only for float32 and up to ``_MOST_MERGED`` weights, of which a copy is kept: in less precision something would
        be lost, and of a large model an adapter is a small part of the work. Else it is only active.
        """
        before = self.active
        self.activate(stage)
        weights = [layer.get_base_layer().weight for layer in self._layers]
        merges = sum(w.numel() for w in weights) <= _MOST_MERGED and all(w.dtype == torch.float32 for w in weights)
        kept = [w.detach().clone() for w in weights] if merges else []
        try:
            if merges:
                for layer in self._layers:
                    layer.merge(adapter_names=[self._adapter_of(stage)])
                self._is_merged = True
            yield
        finally:
            if merges:
                for layer in self._layers:
                    layer.unmerge()
                with torch.no_grad():
                    for weight, copy in zip(weights, kept, strict=True):
                        weight.copy_(copy)
                self._is_merged = False
            self.activate(before)

    @property
    def settings(self) -> LoraSettings:
        config = next(iter(self._configs.values()))
        return LoraSettings(rank=int(config.r), alpha=float(config.lora_alpha), dropout=float(config.lora_dropout))

    def parameters(self, stage: Stage) -> list[nn.Parameter]:
        """The LoRA weights of one stage."""
        return [p for n, p in self._base.named_parameters() if "lora_" in n and f".{self._adapter_of(stage)}." in n]

    def _live_parameters(self) -> list[nn.Parameter]:
        return [p for layer in self._layers for n, p in layer.named_parameters() if "lora_" in n]

    def _adapter_of(self, stage: Stage) -> str:
        return stage if stage in self._configs else SHARED

    def base_state_dict(self) -> dict[str, torch.Tensor]:
        """The weights of the base under the names that they have without adapters."""
        return {n.replace(".base_layer.", "."): t for n, t in self._base.state_dict().items() if ".lora_" not in n}


def _names(shared: bool) -> tuple[str, ...]:
    return (SHARED,) if shared else STAGES
