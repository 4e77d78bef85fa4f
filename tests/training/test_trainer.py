from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fwd2bot_index import scenes
from fwd2bot_index.errors import InputError
from fwd2bot_index.model import Fwd2BotModel
from fwd2bot_training import compress, pretrain
from fwd2bot_training.data import Example, Mixture, Region, Segment
from fwd2bot_training.objectives import CompressObjective, PretrainObjective, collate
from fwd2bot_training.trainer import TrainConfig, Trainer, TrainingDivergedError

from .conftest import CONFIG


@pytest.fixture
def make_trainer(make_base: Callable[[], Any], tokenizer: Any, mixture: Mixture) -> Callable[..., Trainer]:
    def make(folder: Path, *, steps: int = 4, **settings: Any) -> Trainer:
        objective = PretrainObjective(make_base(), tokenizer, contrastive_weight=0.2)
        config = TrainConfig(steps=steps, lr=1e-3, warmup=2, log_every=1, loader_workers=0, **settings)
        return Trainer(objective, mixture, config, folder, export=lambda: None)

    return make


def _weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.named.items()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_is_the_run_that_was_not_stopped(
    optimizer: str, tmp_path: Path, make_trainer: Callable[..., Trainer]
) -> None:
    whole = make_trainer(tmp_path / "whole", optimizer=optimizer)
    whole.run()

    killed = make_trainer(tmp_path / "killed", optimizer=optimizer)
    for step in range(2):
        batch = collate(step, *killed.mixture.batch(step), killed.objective.tokenizer, probes=killed.objective.probes)
        killed.train_step(batch)
    killed.save()
    resumed = make_trainer(tmp_path / "killed", optimizer=optimizer)
    assert resumed.resume()
    assert resumed.step == 2
    resumed.run()

    for name, weight in _weights(whole).items():
        assert torch.equal(weight, resumed.named[name]), name


def test_muon_steps_the_layers_matrices_and_every_parameter_has_one_optimizer(
    tmp_path: Path, make_trainer: Callable[..., Trainer]
) -> None:
    trainer = make_trainer(tmp_path, optimizer="muon")
    adamw, muon = ([p for g in o.param_groups for p in g["params"]] for o in trainer.optimizers)
    names = {p: n for n, p in trainer.named.items()}
    assert len(adamw) + len(muon) == len(names) == len({*adamw, *muon})
    assert all(".layers." in names[p] and p.ndim == 2 for p in muon)
    assert {"embed_tokens", "position_embedding"} <= {n.split(".")[-2] for n in (names[p] for p in adamw) if "." in n}


def test_bfloat16_computes_nearly_the_same_and_keeps_float32_weights(
    tmp_path: Path, make_trainer: Callable[..., Trainer]
) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        trainer = make_trainer(tmp_path / precision, precision=precision)
        batch = collate(0, *trainer.mixture.batch(0), trainer.objective.tokenizer, probes=trainer.objective.probes)
        losses[precision] = trainer.train_step(batch).total.item()
        assert {p.dtype for p in trainer.named.values()} == {torch.float32}
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


def test_training_learns_and_logs(tmp_path: Path, make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer(tmp_path, steps=12)
    trainer.run()
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == list(range(1, 13))
    assert log[-1]["ar/scenes"] < log[0]["ar/scenes"] - 0.1


def test_a_loss_that_is_not_finite_stops_before_the_step(tmp_path: Path, make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer(tmp_path)
    batch = collate(0, *trainer.mixture.batch(0), trainer.objective.tokenizer, probes=trainer.objective.probes)
    with torch.no_grad():
        trainer.objective.logit_scale.fill_(math.nan)
    before = _weights(trainer)
    with pytest.raises(TrainingDivergedError, match="'scenes'"):
        trainer.train_step(batch)
    assert trainer.step == 0
    for name, weight in before.items():
        assert torch.equal(weight, trainer.named[name]) or name == "logit_scale"


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path, make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer(tmp_path)
    trainer.step = 3
    trainer.save()
    (tmp_path / "state").rename(tmp_path / "state.old")
    again = make_trainer(tmp_path)
    assert again.resume()
    assert again.step == 3


def test_another_seed_or_recipe_cannot_resume(tmp_path: Path, make_trainer: Callable[..., Trainer]) -> None:
    make_trainer(tmp_path).save()
    other = make_trainer(tmp_path)
    other.mixture.seed = 9
    with pytest.raises(InputError, match="--seed 3"):
        other.resume()
    other.mixture.seed = 3
    other.config = dataclasses.replace(other.config, optimizer="adamw")
    with pytest.raises(InputError, match="--optimizer muon"):
        other.resume()
    other.config = dataclasses.replace(other.config, optimizer="muon")
    other.named.pop("logit_scale")
    with pytest.raises(InputError, match="other parameters"):
        other.resume()


def test_schedule() -> None:
    config = TrainConfig(steps=100, lr=1.0, warmup=10, decay=0.3)
    assert config.lr_at(0) == pytest.approx(0.1)
    assert config.lr_at(50) == 1.0
    assert config.lr_at(85) == pytest.approx(0.5)
    assert 0 < config.lr_at(99) < 0.05


def test_vision_only_moves_the_vision_part_alone(
    tmp_path: Path, make_base: Callable[[], Any], tokenizer: Any, mixture: Mixture
) -> None:
    base = make_base()
    base.model.language_model.requires_grad_(False)
    objective = PretrainObjective(base, tokenizer, contrastive_weight=0.0, vision_only=True)
    before = {n: p.detach().clone() for n, p in base.named_parameters()}
    trainer = Trainer(objective, mixture, TrainConfig(steps=1, warmup=1), tmp_path, export=lambda: None)
    losses = trainer.train_step(collate(0, *mixture.batch(0), tokenizer, probes=()))
    assert set(losses.parts) == {"words"}
    moved = {n for n, p in base.named_parameters() if not torch.equal(p, before[n])}
    assert any("projector" in n for n in moved)
    assert any("vision_tower" in n for n in moved)
    assert not any("language_model" in n for n in moved)


def test_the_word_loss_reads_the_cells_under_the_box(make_base: Callable[[], Any], tokenizer: Any) -> None:
    objective = PretrainObjective(make_base(), tokenizer, contrastive_weight=0.0, vision_only=True)
    image = np.zeros((48, 48, 3), np.uint8)
    corner = Region(box=(0.55, 0.0, 1.0, 0.2), text="red star")  # columns 2-3 of 4, row 0
    segment = Segment(prompt="what?", answer="yes")
    example = Example(image=image, segments=(segment,), regions=(corner,))
    batch = collate(0, "scenes", [example], tokenizer, probes=())
    features = torch.randn(1, 16, CONFIG.hidden_size, requires_grad=True)
    objective._word_loss(features, batch).backward()
    assert features.grad is not None
    assert features.grad[0].abs().sum(-1).nonzero().flatten().tolist() == [2, 3]


@pytest.fixture
def double_pass(base_folder: Path) -> Callable[[str], Fwd2BotModel]:
    def build(tune: str) -> Fwd2BotModel:
        torch.manual_seed(0)
        return compress.build(base_folder, num_tokens=4, queries="region", embedding_dim=16, rank=2, tune=tune)

    return build


def test_adapters_and_queries_are_stepped_by_adamw(
    tmp_path: Path, double_pass: Callable[[str], Fwd2BotModel], mixture: Mixture
) -> None:
    objective = CompressObjective(double_pass("full"), contrastive_weight=0.2, prefixes=(4,), seed=0)
    trainer = Trainer(objective, mixture, TrainConfig(steps=1, optimizer="muon"), tmp_path, export=lambda: None)
    adamw = {p for g in trainer.optimizers[0].param_groups for p in g["params"]}
    expected = {n for n in trainer.named if "lora_" in n or not n.startswith("model.base.")}
    assert len(expected) > 10
    assert expected <= {n for n, p in trainer.named.items() if p in adamw}


def test_hard_negatives_reach_the_contrastive_loss(
    double_pass: Callable[[str], Fwd2BotModel], mixture: Mixture
) -> None:
    """More rivals for each image, so a higher loss; the answers are not concerned."""
    objective = CompressObjective(double_pass("full"), contrastive_weight=1.0, prefixes=(4,), seed=0)
    batch = collate(0, *mixture.batch(0), objective.tokenizer, probes=())
    assert len(batch.negatives) >= 2
    with torch.no_grad():
        given, without = objective(batch).parts, objective(dataclasses.replace(batch, negatives=[])).parts
    assert given["nce"] > without["nce"] + 0.05
    assert given["ar"] == pytest.approx(without["ar"])


def _step(model: Fwd2BotModel, mixture: Mixture, *, prefixes: tuple[int, ...] = (4,), weight: float = 0.2) -> Any:
    objective = CompressObjective(model, contrastive_weight=weight, prefixes=prefixes, seed=0)
    losses = objective(collate(0, *mixture.batch(0), objective.tokenizer, probes=()))
    losses.total.backward()
    return losses


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_what_is_named_trains_and_nothing_else(
    tune: str, double_pass: Callable[[str], Fwd2BotModel], mixture: Mixture
) -> None:
    model = double_pass(tune)
    _step(model, mixture)
    for name, p in model.named_parameters():
        own = not name.startswith("base.")
        lora = "lora_" in name
        assert p.requires_grad == (own or lora or tune == "full"), name
        if own or "lora_B" in name:  # lora_A has no gradient as long as B is zero
            assert p.grad is not None, name
            assert p.grad.abs().sum() > 0, name
        elif not p.requires_grad:
            assert p.grad is None, name


def test_the_answer_loss_reaches_the_first_pass(double_pass: Callable[[str], Fwd2BotModel], mixture: Mixture) -> None:
    model = double_pass("lora")
    _step(model, mixture, weight=0.0)
    named = dict(model.named_parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for n, p in named.items() if ".compress." in n)
    assert model.queries is not None
    assert model.queries.grad is not None
    assert model.text_query is not None
    assert model.text_query.grad is None, "without the contrastive loss no text is embedded"


def test_a_short_prefix_trains_no_later_token(double_pass: Callable[[str], Fwd2BotModel], mixture: Mixture) -> None:
    model = double_pass("lora")
    _step(model, mixture, prefixes=(2,), weight=0.0)
    assert model.queries is not None
    assert model.queries.grad is not None
    assert model.queries.grad[:2].abs().sum() > 0
    assert model.queries.grad[2:].abs().sum() == 0


def test_the_double_pass_answers_as_inference_does(
    double_pass: Callable[[str], Fwd2BotModel], mixture: Mixture
) -> None:
    """The objective's AR loss equals the model's own log-likelihoods from its own summary tokens."""
    model = double_pass("full").eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    _, examples = mixture.batch(0)
    questions = [e.segments[0] for e in examples]
    alone = [type(e)(image=e.image, segments=(s,)) for e, s in zip(examples, questions, strict=True)]
    objective = CompressObjective(model, contrastive_weight=0.0, prefixes=(4,), seed=0)
    batch = collate(0, "scenes", alone, objective.tokenizer, probes=())
    with torch.no_grad():
        loss = objective(batch).total.item()

    tokens = model.compress([Image.fromarray(e.image) for e in examples]).tokens
    total = weights = 0.0
    for row, s in zip(tokens, questions, strict=True):
        length = len(objective.tokenizer.encode(s.answer, add_special_tokens=False)) + 1
        total -= model.loglikelihood(row[None], s.prompt, [s.answer + "<eos>"]).item() / length**0.5
        weights += length**0.5
    assert loss == pytest.approx(total / weights, rel=1e-4)


@pytest.mark.slow
def test_the_recipes_run_end_to_end(tmp_path: Path) -> None:
    """The commands of the docstrings, two steps each, on scenes alone; what comes out loads, compresses and answers."""
    base, out = tmp_path / "base", tmp_path / "compress"
    arguments = ["--mixture", "scenes=1", "--batch-size", "2", "--steps", "2"]
    assert pretrain.main(["--out", str(base), *arguments]) == 0  # with a loader process; the others without
    arguments += ["--loader-workers", "0"]
    assert compress.main(["--base", str(base / "model"), "--out", str(out), *arguments]) == 0
    model = Fwd2BotModel.from_pretrained(out / "model")
    picture = scenes.render(scenes.scene(0))
    summary = model.compress([picture])
    assert model.mode == "trained"
    assert summary.tokens.shape == (1, 16, model.token_dim)
    assert len(model.generate(summary.tokens, "how many objects are there?", max_new_tokens=3)) == 1
    assert torch.isfinite(model.embed_text(["a red circle"]) @ summary.embedding.T).all()
    control = tmp_path / "control"
    assert pretrain.main(["--init", str(base / "model"), "--out", str(control), *arguments]) == 0
    assert (control / "model" / "config.json").is_file()


@pytest.mark.parametrize(("item", "said"), [("scenes", "no weight"), ("scenes=much", "'much'")])
def test_a_mixture_without_numbers_is_refused(item: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        pretrain.main(["--out", "x", "--steps", "1", "--mixture", item])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
