"""Two real processes on gloo, as torchrun starts them, against one that does everything."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from toy_objective import CASES, gradients_of, read_log

from fwd2bot_training.distributed import Processes, clip

from .test_stepping import assert_same, reference

SCRIPT = Path(__file__).parents[1] / "toy_objective.py"


def start(size: int, what: str, folder: Path, settings: dict[str, Any] | None = None) -> list[subprocess.Popen[bytes]]:
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(SCRIPT), what, str(folder), json.dumps(settings or {})]
    common = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = []
    for rank in range(size):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        with (folder / f"stderr-{rank}").open("wb") as stderr:
            started.append(subprocess.Popen(command, env={**common, **own}, stderr=stderr))
    return started


def finish(processes: list[subprocess.Popen[bytes]], folder: Path) -> None:
    try:
        for rank, process in enumerate(processes):
            assert process.wait(timeout=120) == 0, (folder / f"stderr-{rank}").read_text()
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gradients")
    finish(start(2, "gradients", folder), folder)
    return folder


@pytest.mark.parametrize("micro", [4, 2])
@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_processes_are_one_process_of_twice_the_batch(sharding: str, case: str, micro: int, results: Path) -> None:
    name = f"{sharding} {case} {micro}"
    if sharding == "fsdp" and case in ("rare in the second half", "captions in the first half"):
        for rank in range(2):
            assert "use 'ddp'" in json.loads((results / f"{name} {rank}.json").read_text())["error"]
        return
    expected = reference(case)
    _, losses = gradients_of(case, Processes(), micro=8)
    for rank in range(2):
        assert_same(load_file(results / f"{name} {rank}.safetensors"), expected)
        assert json.loads((results / f"{name} {rank}.json").read_text()) == pytest.approx(losses)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_what_is_not_finite_in_one_process_stops_all(sharding: str, results: Path) -> None:
    for rank in range(2):
        told = json.loads((results / f"{sharding} diverged {rank}.json").read_text())
        assert told["error"].startswith("Step 2, a batch of 'toy' on process 1 of 2:")
        assert told["same"]
        assert told["gradients"] == 0


def _losses(folder: Path) -> dict[int, dict[str, float]]:
    return {row["step"]: row["losses"] for row in read_log(folder / "log.jsonl")}


@pytest.mark.slow
def test_a_sharded_run_is_a_run_and_resumes_whole_or_in_shards(tmp_path: Path) -> None:
    """Losses, validation, states and the exported weights; the second half goes on from the first's state, in one
    process and in two."""
    one, two, half = tmp_path / "one", tmp_path / "two", tmp_path / "half"
    settings = {"steps": 10, "dropout": 0.0, "keep": 9, "warmup": 0.0, "decay": 0.0}
    finish(start(1, "train", one, settings), one)
    finish(start(2, "train", two, {**settings, "sharding": "fsdp"}), two)
    finish(start(2, "train", half, {**settings, "steps": 6, "sharding": "fsdp"}), half)
    finish(start(1, "train", half, {**settings, "steps": 8}), half)
    finish(start(2, "train", half, {**settings, "sharding": "fsdp"}), half)
    expected = _losses(one)
    assert list(expected) == list(range(1, 11))
    for folder in (two, half):
        assert _losses(folder).keys() == expected.keys()
        for step, losses in _losses(folder).items():
            assert losses == pytest.approx(expected[step], rel=1e-6), step
        weights = load_file(folder / "model.safetensors")
        for name, weight in load_file(one / "model.safetensors").items():
            torch.testing.assert_close(weights[name], weight, rtol=1e-6, atol=1e-9)
    seen = [(f / f"validated-{r}").read_text().split() for f, r in ((one, 0), (two, 0), (two, 1))]
    assert [float(x) for x in seen[1]] == pytest.approx([float(x) for x in seen[0]])
    assert seen[1] == seen[2]
    assert (
        load_file(one / "state-10/moments.safetensors").keys() == load_file(two / "state-10/moments.safetensors").keys()
    )


@pytest.mark.slow
def test_a_copied_run_is_a_run_and_stops_together(tmp_path: Path) -> None:
    """A signal to one process stops both with a state; a bad row in one is told by both."""
    one, two = tmp_path / "one", tmp_path / "two"
    settings = {"steps": 30, "dropout": 0.0, "save_minutes": 10.0, "optimizer": "muon"}
    finish(start(1, "train", one, settings), one)
    running = start(2, "train", two, {**settings, "delay": 0.02})
    try:
        for _ in range(600):
            if len(read_log(two / "log.jsonl")) >= 5:
                break
            time.sleep(0.05)
        running[1].send_signal(signal.SIGTERM)
        finish(running, two)
    finally:
        for process in running:
            process.kill()
    stopped = {(two / f"interrupted-{rank}").read_text() for rank in range(2)}
    assert stopped == {str(len(read_log(two / "log.jsonl")))}
    step = int(stopped.pop())
    assert 5 <= step < 30
    assert (two / f"state-{step}").is_dir()

    finish(start(2, "train", two, {**settings, "bad_step": step + 2}), two)
    for rank in range(2):
        assert (two / f"error-{rank}").read_text() == f"rows.parquet, row {step + 2}: no picture."
    assert (two / f"state-{step + 2}").is_dir()
    finish(start(2, "train", two, settings), two)
    for number, losses in _losses(one).items():
        assert _losses(two)[number] == pytest.approx(losses, rel=1e-6), number


def test_alone_everything_is_a_no_op() -> None:
    alone = Processes()
    assert alone.gather("x") == ["x"]
    tensor = torch.ones(2, 3)
    assert alone.gather_tensors([tensor])[0][0] is tensor
    alone.close()


def test_clip_scales_to_the_joint_norm_and_leaves_what_is_not_finite() -> None:
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    a.grad, b.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip([a, b, nn.Parameter(torch.zeros(1))], 1.0) == pytest.approx(5.0)
    assert a.grad.tolist() == pytest.approx([0.6, 0.0])
    assert b.grad.tolist() == pytest.approx([0.8])
    assert clip([a, b], 10.0) == pytest.approx(1.0)
    assert b.grad.tolist() == pytest.approx([0.8])
    b.grad = torch.tensor([torch.inf])
    assert clip([a, b], 1.0) == torch.inf
    assert a.grad.tolist() == pytest.approx([0.6, 0.0])
