from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from transformers.utils import logging

from fwd2bot_index import model as model_module
from fwd2bot_index.checkpoints import resolve
from fwd2bot_index.errors import ModelError
from fwd2bot_index.model import Fwd2BotModel, load_base
from fwd2bot_training.building import build_model, lr_factors, part_of
from fwd2bot_training.config import RunConfig, parse_recipe
from fwd2bot_training.data import SceneSource
from fwd2bot_training.objectives import make_objective

SCENES = {"data": {"sources": {"scenes": {"kind": "scenes"}}}}


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


def saved(folder: Path, family: str = "llava") -> Path:
    base, processor = tiny_models.build(family)
    base.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def run_of(base: Path, **tables: dict[str, Any]) -> RunConfig:
    model = {"base": str(base), "rank": 2, "num_tokens": 4, "attention": "eager", **tables.pop("model", {})}
    return parse_recipe({**SCENES, "model": model, **tables}, name="test").phases[0]


def build(run: RunConfig, folder: Path) -> Fwd2BotModel:
    return build_model(run, texts=lambda: (), folder=folder)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_exactly_what_is_named_trains(family: str, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", family)
    for named in ("lr_language_model", "lr_projector", "lr_vision"):
        factors = {"lr_language_model": 0.0, "lr_projector": 0.0, "lr_vision": 0.0, named: 0.5}
        model = build(run_of(base, model=factors), tmp_path)
        trains = {n for n, p in model.base.named_parameters() if p.requires_grad and "lora_" not in n}
        part = named.removeprefix("lr_")
        assert trains == {n for n, p in model.base.named_parameters() if part_of(n) == part and "lora_" not in n}
        assert trains or (named, family) == ("lr_projector", "none")
        assert all(p.requires_grad for n, p in model.named_parameters() if "lora_" in n or not n.startswith("base."))


def test_the_first_pass_alone_can_be_frozen(tmp_path: Path) -> None:
    settings = {"lr_first_pass": 0.0, "lr_projector": 0.0, "embedding_dim": 4, "token_norm": True, "pooling": "mlp"}
    run = run_of(saved(tmp_path / "base"), model=settings, method={"contrastive_weight": 0.0})
    trains = {n for n, p in build(run, tmp_path).named_parameters() if p.requires_grad}
    assert trains
    assert all(".generate." in name for name in trains)


def test_an_index_outlives_training_of_the_second_pass_alone(tmp_path: Path) -> None:
    frozen = {"lr_projector": 0.0}
    build(run_of(saved(tmp_path / "base"), model=frozen), tmp_path).save_pretrained(tmp_path / "before")
    run = run_of(tmp_path / "before", model={"lr_first_pass": 0.0, **frozen}, method={"contrastive_weight": 0.0})
    model = build(run, tmp_path)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.01)
    model.save_pretrained(tmp_path / "after")
    before, after = resolve(tmp_path / "before"), resolve(tmp_path / "after")
    assert after.fingerprint() == before.fingerprint()
    assert after.full_fingerprint() != before.full_fingerprint()


def test_learning_rates_follow_the_parts(tmp_path: Path) -> None:
    run = run_of(saved(tmp_path / "base"), model={"lr_language_model": 0.0, "lr_projector": 0.1, "lr_vision": 0.01})
    model = build(run, tmp_path)
    factor = lr_factors(model, run.model)
    objective = make_objective(model, run.method)
    found = {factor(n) for n, p in objective.named_parameters() if p.requires_grad}
    assert found == {0.1, 0.01, 1.0}
    assert {factor(n) for n, _ in objective.named_parameters() if "lora_" in n or "queries" in n} == {1.0}


def test_half_precision_is_for_frozen_weights_alone(tmp_path: Path) -> None:
    tables = {"model": {"dtype": "bfloat16"}, "train": {"precision": "bfloat16"}}
    model = build(run_of(saved(tmp_path / "base"), **tables), tmp_path)
    dtypes = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
@pytest.mark.filterwarnings("ignore")  # bitsandbytes tells of its casts
def test_a_quantised_base_trains_both_adapters(quantize: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the [train] extra")
    usual = tiny_models.text_settings
    sizes = {"intermediate_size": 64, "num_key_value_heads": 4}  # whole blocks of its 4-bit kernel
    monkeypatch.setattr(tiny_models, "text_settings", lambda v, **more: usual(v, **{**sizes, **more}))
    base = saved(tmp_path / "base")
    settings = {"quantize": quantize, "lr_projector": 0.0, "dtype": "bfloat16"}
    run = run_of(base, model=settings, train={"precision": "bfloat16"})
    model = build(run, tmp_path)
    kinds = {type(m).__name__ for n, m in model.base.named_modules() if "base_layer" in n}
    assert kinds == {"Linear8bitLt" if quantize == "8bit" else "Linear4bit"}
    outside = [m for n, m in model.base.named_modules() if part_of(n) != "language_model"]
    assert not any("bit" in type(m).__name__ for m in outside), "the vision part stays as it is"

    objective = make_objective(model, run.method)
    examples = [SceneSource(size=32).example(i, np.random.default_rng(i), step=0) for i in range(2)]
    batch = objective.collator()(0, "scenes", examples)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = objective(batch)
    assert outputs.images is not None
    (outputs.sums["ar"] + outputs.images.sum()).backward()
    trained = [n for n, p in objective.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    for stage in ("compress", "generate"):
        assert sum(f".{stage}." in n and "lora_B" in n for n in trained) == 14
    model.save_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    assert Fwd2BotModel.from_pretrained(tmp_path / "out", device="cpu").config.base_model == str(base)


def test_a_frozen_base_is_named_and_a_trained_one_copied(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    frozen = build(run_of(base, model={"lr_projector": 0.0}), tmp_path)
    assert frozen.config.base_model == str(base)
    frozen.save_pretrained(tmp_path / "frozen")
    assert not (tmp_path / "frozen/base").exists()
    assert Fwd2BotModel.from_pretrained(tmp_path / "frozen", device="cpu").num_summary_tokens == 4
    assert build(run_of(base), tmp_path).config.base_model == "base"


def test_a_checkpoint_is_trained_further_if_it_fits(tmp_path: Path) -> None:
    run = run_of(saved(tmp_path / "base"))
    first = build(run, tmp_path)
    with torch.no_grad():
        for p in first.parameters():
            p.add_(0.01)
    first.save_pretrained(tmp_path / "checkpoint")
    again = build(run_of(tmp_path / "checkpoint"), tmp_path)
    for (name, p), (_, q) in zip(first.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(p, q), name
        assert p.requires_grad == q.requires_grad, name


def test_a_checkpoint_is_loaded_as_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(run_of(saved(tmp_path / "base")), tmp_path).save_pretrained(tmp_path / "checkpoint")
    asked: dict[str, Any] = {}

    def load(name: str, folder: Path, **options: Any) -> Any:
        asked.update(options)
        return load_base(name, folder, **(options | {"quantization": None}))  # bitsandbytes wants a GPU

    monkeypatch.setattr(model_module, "load_base", load)
    frozen = {"lr_language_model": 0.0, "lr_projector": 0.0, "lr_vision": 0.0}
    build(run_of(tmp_path / "checkpoint", model={"quantize": "4bit", "attention": "eager", **frozen}), tmp_path)
    assert asked["attention"] == "eager"
    assert asked["quantization"].load_in_4bit


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_tokens": 8}, "num_summary_tokens is 4, not 8"),
        ({"adapters": "shared"}, "adapters is 'stage', not 'shared'"),
        ({"queries": "constant"}, "queries is 'region', not 'constant'"),
        ({"embedding_dim": 7}, "embedding_dim is None, not 7"),
        ({"pooling": "mlp", "num_tokens": 8}, "num_summary_tokens is 4, not 8."),
        ({"rank": 4}, "have LoraSettings(rank=2, "),
        ({"alpha": 3.0}, "alpha=3.0"),
        ({"dropout": 0.25}, "dropout=0.25"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    build(run_of(saved(tmp_path / "base")), tmp_path).save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(ModelError) as error:
        build(run_of(tmp_path / "checkpoint", model=settings), tmp_path)
    assert said in str(error.value)


def test_a_checkpoint_goes_on_with_a_perceptron_but_not_without(tmp_path: Path) -> None:
    first = build(run_of(saved(tmp_path / "base")), tmp_path)
    first.save_pretrained(tmp_path / "mean")
    with_mlp = build(run_of(tmp_path / "mean", model={"pooling": "mlp"}), tmp_path)
    tokens = torch.randn(2, 4, first.token_dim)
    assert torch.equal(with_mlp.embed_tokens(tokens), first.embed_tokens(tokens))
    assert all(p.requires_grad for n, p in with_mlp.named_parameters() if n.startswith("image_mlp."))
    with_mlp.save_pretrained(tmp_path / "mlp")
    with pytest.raises(ModelError, match="pooling is 'mlp', not 'mean'"):
        build(run_of(tmp_path / "mlp"), tmp_path)


def test_a_double_pass_is_no_plain_lvlm(tmp_path: Path) -> None:
    build(run_of(saved(tmp_path / "base")), tmp_path).save_pretrained(tmp_path / "checkpoint")
    lvlm = {"method": {"objective": "lvlm"}, "model": {"adapters": "none", "lr_language_model": 1.0}}
    with pytest.raises(ModelError, match="needs a plain LVLM"):
        build(run_of(tmp_path / "checkpoint", **lvlm), tmp_path)


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        build(run_of(tmp_path / "nowhere"), tmp_path)


def test_the_small_llava_keeps_its_tokenizer(tmp_path: Path) -> None:
    """A resumed run must read the same tokens, whatever texts there are by then."""
    tables = {
        "model": {"base": "small-llava", "adapters": "none", "lr_language_model": 1.0},
        "method": {"objective": "lvlm"},
    }
    run = run_of(tmp_path, **tables)
    texts: list[Callable[[], list[str]]] = [lambda: ["a red circle"] * 9, lambda: ["quite other words"] * 9]
    vocabularies = [build_model(run, texts=t, folder=tmp_path).processor.tokenizer.get_vocab() for t in texts]
    assert vocabularies[0] == vocabularies[1]
    assert "circle" in "".join(vocabularies[0])
