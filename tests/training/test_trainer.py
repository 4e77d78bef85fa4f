from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_objective import Batch, Log, Outputs, ToyMixture, ToyObjective, read_log, weights

from fwd2bot_index.errors import InputError
from fwd2bot_training.config import TrainConfig
from fwd2bot_training.distributed import Processes
from fwd2bot_training.stepping import TrainingDivergedError
from fwd2bot_training.trainer import Trainer


def make(
    folder: Path,
    *,
    objective: ToyObjective | None = None,
    mixture: ToyMixture | None = None,
    on_step: Callable[[int], None] = lambda _: None,
    export: Callable[[], None] = lambda: None,
    parts: dict[str, Any] | None = None,
    **settings: Any,
) -> Trainer:
    folder.mkdir(exist_ok=True)
    return Trainer(
        objective or ToyObjective(),  # type: ignore[arg-type]
        mixture or ToyMixture(),  # type: ignore[arg-type]
        TrainConfig(**{"steps": 6, "batch_size": 8, "lr": 1e-2, **settings}),
        folder,
        export=export,
        watch=Log(folder / "log.jsonl", on_step=on_step),
        **(parts or {}),
    )


def test_a_run_learns_logs_saves_and_exports(tmp_path: Path) -> None:
    objective = ToyObjective()
    exported: list[dict[str, torch.Tensor]] = []
    trainer = make(
        tmp_path,
        objective=objective,
        mixture=_Same(),
        export=lambda: exported.append(weights(objective)),
        steps=40,
        decay=0.0,
    )
    assert not trainer.resume()
    trainer.run()
    log = read_log(tmp_path / "log.jsonl")
    assert [row["step"] for row in log] == list(range(1, 41))
    assert log[-1]["losses"]["ar"] < log[0]["losses"]["ar"] / 2
    assert {row["source"] for row in log} == {"source1"}
    assert {row["size"] for row in log} == {8}
    assert log[0]["lr"] == pytest.approx(1e-2 / 1.2)
    assert (tmp_path / "state-40").is_dir()
    assert len(exported) == 1
    assert all(torch.equal(p, exported[0][n]) for n, p in objective.named_parameters())


class _Same(ToyMixture):
    """One batch, over and over."""

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> Any:
        return super().batch(1, rank=rank, world=world)


def test_micro_batches_and_loader_processes_change_nothing(tmp_path: Path) -> None:
    found = []
    for name, micro, workers in (("a", 0, 0), ("b", 3, 1)):
        objective = ToyObjective()
        make(tmp_path / name, objective=objective, parts={"workers": workers}, micro_batch_size=micro).run()
        found.append((read_log(tmp_path / name / "log.jsonl"), weights(objective)))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert one["losses"] == pytest.approx(other["losses"])
    for name, weight in found[0][1].items():
        torch.testing.assert_close(weight, found[1][1][name], rtol=1e-7, atol=1e-9)


def test_validation_runs_every_few_steps_and_at_the_end_in_eval_mode(tmp_path: Path) -> None:
    objective = ToyObjective()
    seen: list[tuple[int, bool]] = []
    parts = {"validate": lambda step: seen.append((step, objective.training)), "every": 3}
    trainer = make(tmp_path, objective=objective, parts=parts, on_step=lambda _: seen.append((-1, objective.training)))
    trainer.run()
    step = (-1, True)
    assert seen == [step] * 3 + [(3, False)] + [step] * 3 + [(6, False)]


def test_states_are_saved_by_the_clock(tmp_path: Path) -> None:
    make(tmp_path / "often", save_minutes=0.0, keep=99).run()
    make(tmp_path / "seldom", save_minutes=1.0, keep=99).run()
    assert len(list((tmp_path / "often").glob("state-*"))) > 3
    assert [p.name for p in (tmp_path / "seldom").glob("state-*")] == ["state-6"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_step_with_a_state(number: int, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    exported: list[None] = []
    trainer = make(
        tmp_path,
        on_step=lambda step: os.kill(os.getpid(), number) if step == 3 else None,
        export=lambda: exported.append(None),
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert [row["step"] for row in read_log(tmp_path / "log.jsonl")] == [1, 2, 3]
    assert not exported
    assert signal.getsignal(number) is before
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1]) == {"closed": True}
    again = make(tmp_path, export=lambda: exported.append(None))
    assert again.resume()
    assert again.step == 3
    again.run()
    assert [row["step"] for row in read_log(tmp_path / "log.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert len(exported) == 1


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    reached: list[int] = []

    class Slow(ToyObjective):
        def forward(self, batch: Batch, *, embeddings_only: bool = False) -> Outputs:
            if batch.step == 2:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1.1)
                os.kill(os.getpid(), signal.SIGTERM)
                reached.append(batch.step)
                os.kill(os.getpid(), signal.SIGINT)
                raise AssertionError("not reached")
            return super().forward(batch)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, objective=Slow()).run()
    assert reached == [2], "torchrun's copy of a Ctrl-C, and a SIGTERM, do wait"
    assert not list(tmp_path.glob("state-*"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_row_is_told_in_its_own_words_and_costs_no_step(workers: int, tmp_path: Path) -> None:
    trainer = make(tmp_path, mixture=ToyMixture(bad_step=4), parts={"workers": workers})
    with pytest.raises(InputError, match=r"^rows\.parquet, row 4: no picture\.$"):
        trainer.run()
    assert (tmp_path / "state-4").is_dir()
    again = make(tmp_path)
    assert again.resume()
    assert again.step == 4


def test_a_diverged_run_keeps_the_state_before_the_step(tmp_path: Path) -> None:
    objective = ToyObjective()

    def poison(step: int) -> None:
        if step == 2:
            objective.frozen.data.fill_(torch.nan)

    with pytest.raises(TrainingDivergedError, match=r"^Step 3, a batch of 'source0'"):
        make(tmp_path, objective=objective, on_step=poison).run()
    again = make(tmp_path)
    assert again.resume()
    assert again.step == 2


def test_too_little_memory_names_what_to_lower(tmp_path: Path) -> None:
    class Hungry(ToyObjective):
        def forward(self, batch: Batch, *, embeddings_only: bool = False) -> Outputs:
            torch.empty(2**50)
            return super().forward(batch)

    with pytest.raises(InputError) as told:
        make(tmp_path / "whole", objective=Hungry()).run()
    said = str(told.value)
    assert said.startswith(
        "Step 1 needs more memory than there is: lower train.micro_batch_size to 4; then set train.gr"
    )
    assert "model.quantize" in said
    with pytest.raises(InputError) as told:
        make(tmp_path / "lowered", objective=Hungry(), micro_batch_size=1, gradient_checkpointing=True).run()
    assert "micro_batch_size" not in str(told.value)
    assert "gradient_checkpointing" not in str(told.value)


def test_another_error_is_not_taken_for_little_memory(tmp_path: Path) -> None:
    class Broken(ToyObjective):
        def forward(self, batch: Batch, *, embeddings_only: bool = False) -> Outputs:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match=r"^shapes do not match$"):
        make(tmp_path, objective=Broken()).run()


def test_parameters_that_nothing_trains_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make(tmp_path / "long", steps=51)
    assert trainer.check_gradients() == sorted(trainer.stepper.named)
    trainer.run()
    assert trainer.check_gradients() == ["never"]
    assert "no gradient in 50 steps for never:" in capsys.readouterr().err
    make(tmp_path / "short", steps=49).run()
    assert "no gradient" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("capability", "precision"), [("AVX2", "bfloat16"), ("AVX2", "float32"), ("AVX512", "bfloat16")]
)
def test_a_processor_without_bfloat16_is_told_of(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    capability: str,
    precision: str,
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    make(tmp_path, steps=1, precision=precision).run()
    warned = "no instructions for bfloat16" in capsys.readouterr().err
    assert warned == ((capability, precision) == ("AVX2", "bfloat16"))


def test_a_batch_must_be_shared_out_evenly(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.batch_size = 8 must be a multiple of the 3 processes"):
        make(tmp_path, parts={"processes": Processes(size=3)})
