"""Safetensors read into numpy: the very numbers, and nothing from a file that is not whole."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fwd2bot_index.errors import ModelError
from fwd2bot_index.weights import Weights


def written(path: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {"a.weight": torch.randn(7, 5, generator=generator).to(dtype), "b": torch.randn(3, generator=generator)}
    save_file({**tensors, "counts": torch.arange(3)}, path)
    return tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_number_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = written(tmp_path / "w.safetensors", dtype)
    weights = Weights.of_file(tmp_path / "w.safetensors")
    assert weights.names() == {"a.weight", "b"}
    for name, tensor in tensors.items():
        assert weights.shape(name) == tuple(tensor.shape)
        read = weights.read(name)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, tensor.float().numpy())
    rows = weights.read("a.weight", rows=np.array([6, 0, 6]))
    np.testing.assert_array_equal(rows, tensors["a.weight"].float().numpy()[[6, 0, 6]])


def test_what_is_not_there_has_no_shape(tmp_path: Path) -> None:
    written(tmp_path / "w.safetensors")
    weights = Weights.of_file(tmp_path / "w.safetensors")
    assert weights.shape("nothing") is None
    assert weights.shape("counts") is None  # integers
    with pytest.raises(KeyError):
        weights.read("counts")
    with pytest.raises(IndexError):
        weights.read("a.weight", rows=np.array([7]))


def test_a_folder_is_read_whole_or_by_its_shards(tmp_path: Path) -> None:
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    whole.mkdir()
    sharded.mkdir()
    tensors = written(whole / "model.safetensors")
    homes = {name: f"model-{i}.safetensors" for i, name in enumerate(tensors)}
    for name, shard in homes.items():
        save_file({name: tensors[name]}, sharded / shard)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    for folder in (whole, sharded):
        weights = Weights.of_folder(folder)
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(weights.read(name), tensor.numpy())

    (sharded / homes["b"]).unlink()
    with pytest.raises(ModelError, match=r"model-1\.safetensors"):
        Weights.of_folder(sharded)
    (sharded / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ModelError, match=r"index\.json"):
        Weights.of_folder(sharded)
    with pytest.raises(ModelError, match=r"nowhere.model\.safetensors"):
        Weights.of_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("kept", [0, 7, 8, 100, -1])
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "w.safetensors"
    written(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"w\.safetensors is not a whole safetensors file"):
        Weights.of_file(path)


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"a": {}},
        {"a": None},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}},
        {"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
        {"a": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}},
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: Any) -> None:
    raw = json.dumps(header).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(8))
    with pytest.raises(ModelError, match=r"w\.safetensors"):
        Weights.of_file(path)


def test_a_header_as_long_as_it_likes_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(ModelError, match="cut off"):
        Weights.of_file(path)
