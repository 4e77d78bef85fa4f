"""The mean of two checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fwd2bot_index.errors import InputError, ModelError
from fwd2bot_training.averaging import average, main


def checkpoint(folder: Path, value: float, *, size: int = 2, dtype: torch.dtype = torch.bfloat16) -> Path:
    (folder / "base").mkdir(parents=True)
    save_file({"w": torch.full((size,), value, dtype=dtype)}, folder / "base" / "model.safetensors", {"format": "pt"})
    save_file({"q": torch.full((3,), -value)}, folder / "summary_tokens.safetensors")
    (folder / "config.json").write_text(f'{{"value": {value}}}')
    return folder


def test_the_mean(tmp_path: Path) -> None:
    before, after = checkpoint(tmp_path / "a", 1.0), checkpoint(tmp_path / "b", 3.0)
    main([str(before), str(after), str(tmp_path / "c"), "--weight", "0.25"])
    weights = load_file(tmp_path / "c" / "base" / "model.safetensors")
    assert weights["w"].dtype == torch.bfloat16
    assert weights["w"].tolist() == [1.5, 1.5]
    assert load_file(tmp_path / "c" / "summary_tokens.safetensors")["q"].tolist() == [-1.5] * 3
    assert (tmp_path / "c" / "config.json").read_text() == '{"value": 3.0}'


def test_what_has_no_mean(tmp_path: Path) -> None:
    before, after = checkpoint(tmp_path / "a", 1.0), checkpoint(tmp_path / "b", 3.0, size=4)
    with pytest.raises(ModelError, match="do not hold the same weights"):
        average(before, after, tmp_path / "c")
    (after / "summary_tokens.safetensors").unlink()
    with pytest.raises(ModelError, match="the same files"):
        average(before, after, tmp_path / "c")
    with pytest.raises(InputError, match="holds no weights"):
        average(before, tmp_path / "nowhere", tmp_path / "c")
    with pytest.raises(InputError, match="exists already"):
        average(before, before, after)
    assert not (tmp_path / "c").exists()
