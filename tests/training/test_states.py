from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from toy_objective import ToyMixture, ToyObjective, read_log, weights

from fwd2bot_index.errors import InputError
from fwd2bot_training import states
from fwd2bot_training.config import TrainConfig
from fwd2bot_training.distributed import Parallel, Processes
from fwd2bot_training.states import Progress
from fwd2bot_training.stepping import Stepper

from .test_distributed import finish, start


def make(**settings: Any) -> Stepper:
    return Stepper(Parallel(ToyObjective(), Processes(), "ddp"), TrainConfig(**settings))  # type: ignore[arg-type]


def take(stepper: Stepper, step: int) -> None:
    source, examples = ToyMixture().batch(step)
    stepper.step(step, [stepper.parallel.objective.collator()(step, source, examples)])  # type: ignore[arg-type]


def folders(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_state_goes_on_exactly(optimizer: str, tmp_path: Path) -> None:
    whole = make(optimizer=optimizer)
    for step in range(6):
        take(whole, step)
        if step == 2:
            states.save(tmp_path, 3, whole)
    again = make(optimizer=optimizer)
    with torch.no_grad():
        for p in again.named.values():
            p.zero_()
    assert states.resume(tmp_path, again) == Progress(3, {})
    for step in range(3, 6):
        take(again, step)
    for name, p in whole.named.items():
        assert torch.equal(p, again.named[name]), name


def test_the_last_few_are_kept_and_nothing_else_is_left(tmp_path: Path) -> None:
    stepper = make(keep=2)
    (tmp_path / "state.new").mkdir(parents=True)
    (tmp_path / "state-mine").mkdir()
    for step in (8, 9, 10):
        states.save(tmp_path, step, stepper)
    assert folders(tmp_path) == {"state-9", "state-10", "state-mine"}
    assert folders(tmp_path / "state-10") == {"weights.safetensors", "moments.safetensors", "progress.json"}
    assert states.resume(tmp_path, stepper) == Progress(10, {})


@pytest.mark.parametrize("damage", ["cut weights", "cut moments", "no progress", "empty progress"])
def test_a_damaged_state_gives_way_to_the_one_before(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stepper = make(keep=1)
    take(stepper, 0)
    before = weights(stepper.parallel.objective)
    states.save(tmp_path, 1, stepper)
    stepper.train = TrainConfig(keep=2)
    take(stepper, 1)
    states.save(tmp_path, 2, stepper)
    how, what = damage.split()
    file = tmp_path / "state-2" / (f"{what}.safetensors" if what != "progress" else "progress.json")
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    elif how == "empty":
        file.write_text("")
    else:
        file.unlink()
    again = make(keep=1)
    assert states.resume(tmp_path, again) == Progress(1, {})
    assert "state-2 cannot be read" in capsys.readouterr().err
    assert all(torch.equal(p, before[n]) for n, p in again.named.items())
    # the damaged one is later than what goes on from here, and must not be what is kept
    states.save(tmp_path, 1, again)
    assert folders(tmp_path) == {"state-1"}
    assert states.resume(tmp_path, make()) == Progress(1, {})


def test_no_state_and_no_readable_state_are_two_things(tmp_path: Path) -> None:
    assert states.resume(tmp_path, make()) is None
    (tmp_path / "state-3").mkdir()
    with pytest.raises(InputError, match="delete its state- folders"):
        states.resume(tmp_path, make())


@pytest.mark.parametrize("name", ["seed", "optimizer", "batch_size"])
def test_a_state_of_another_run_is_refused(name: str, tmp_path: Path) -> None:
    states.save(tmp_path, 1, make())
    other = {"seed": 9, "optimizer": "muon", "batch_size": 64}[name]
    stepper = make(**{name: other})
    before = weights(stepper.parallel.objective)
    with pytest.raises(InputError, match=rf"train\.{name} = .*, not {other!r}"):
        states.resume(tmp_path, stepper)
    assert all(torch.equal(p, before[n]) for n, p in stepper.named.items())


@pytest.mark.parametrize("settings", [{"steps": 9}, {"log_every": 3}, {"lr": 1.0}, {"micro_batch_size": 2}])
def test_other_settings_may_change(settings: dict[str, Any], tmp_path: Path) -> None:
    states.save(tmp_path, 1, make())
    assert states.resume(tmp_path, make(**settings)) == Progress(1, {})


def test_other_parameters_are_refused_by_name_and_shape(tmp_path: Path) -> None:
    states.save(tmp_path, 1, make())
    stepper = make()
    stepper.named["rare"] = nn.Parameter(torch.zeros(16))
    with pytest.raises(InputError, match=r"the first rare: \(6,\) there, \(16,\) here"):
        states.resume(tmp_path, stepper)
    del stepper.named["rare"]
    with pytest.raises(InputError, match=r"rare: \(6,\) there, none here"):
        states.resume(tmp_path, stepper)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon"])  # which has AdamW's moments too
def test_a_run_killed_at_any_step_is_the_run_that_was_not(optimizer: str, tmp_path: Path) -> None:
    """SIGKILL at random moments, which fall into steps, log lines and writing of states alike; every loss and every
    weight to the last bit, with dropout and validation in between."""
    settings = {"steps": 120, "optimizer": optimizer, "micro_batch_size": 3, "delay": 0.002, "save_minutes": 5e-4}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(1, "train", whole, settings), whole)
    rng = random.Random(optimizer)
    for target in (20, 75):
        (process,) = start(1, "train", killed, settings)
        _kill_after(process, killed / "log.jsonl", target + rng.randrange(20), rng.random() * 0.02)
    finish(start(1, "train", killed, settings), killed)

    expected = {row["step"]: row for row in read_log(whole / "log.jsonl")}
    found = read_log(killed / "log.jsonl")
    assert list(expected) == list(range(1, 121))
    assert {row["step"] for row in found} == set(expected)
    for row in found:  # a step that was done again is among them
        assert row == expected[row["step"]]
    for file in ("model.safetensors", "state-120/weights.safetensors", "state-120/moments.safetensors"):
        there, here = load_file(whole / file), load_file(killed / file)
        assert there.keys() == here.keys()
        assert all(torch.equal(here[n], t) for n, t in there.items())
    assert "state.new" not in folders(killed)
    assert len([f for f in folders(killed) if f.startswith("state-")]) == 2


def _kill_after(process: subprocess.Popen[bytes], log: Path, step: int, delay: float) -> None:
    try:
        for _ in range(6000):
            rows = read_log(log)
            if process.poll() is not None or (rows and rows[-1]["step"] >= step):
                break
            time.sleep(0.01)
        time.sleep(delay)
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    lines = [json.loads(line) for line in log.read_text().split("\n")[:-1]]
    assert {"closed": True} not in lines
