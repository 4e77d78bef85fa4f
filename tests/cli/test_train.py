from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models
from cli_helpers import Run
from transformers.utils import logging

TOY = """
[model]
base = "base"
rank = 2
num_tokens = 4
attention = "eager"

[data]
workers = 0
max_segments = 2
sources.scenes = { kind = "scenes", size = 32 }

[train]
steps = 2
batch_size = 2
"""


@pytest.fixture
def toy(place: Path) -> Path:
    logging.disable_progress_bar()
    base, processor = tiny_models.build("llava")
    base.save_pretrained(place / "base")
    processor.save_pretrained(place / "base")
    (place / "toy.toml").write_text(TOY)
    return place


def test_from_a_recipe_to_a_model_that_indexes(fwd2bot: Run, toy: Path) -> None:
    trained = fwd2bot("train", "--recipe", "toy.toml", "--out", "run")
    assert trained.code == 0, trained.err
    assert trained.out == "run/model\n"
    assert "fwd2bot index PICTURES --model run/model" in trained.err
    assert (toy / "run/report.html").is_file()
    again = fwd2bot("train", "--recipe", "toy.toml", "--out", "run", "--quiet")
    assert (again.code, again.out, again.err) == (0, "run/model\n", "")


def test_changes_from_the_command_line(fwd2bot: Run, toy: Path) -> None:
    assert fwd2bot("train", "--recipe", "toy.toml", "--set", "train.steps=1", "--set", "model.rank=3").code == 0
    config = json.loads((toy / "runs/toy/run.json").read_text())["config"]
    assert (config["train"]["steps"], config["model"]["rank"]) == (1, 3)


def test_a_dry_run_reads_and_shows_but_does_not_train(fwd2bot: Run, toy: Path) -> None:
    outcome = fwd2bot("train", "--recipe", "toy.toml", "--out", "run", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("train\tscenes\tendless\t")
    assert "<img" in (toy / "run/preview.html").read_text()
    assert not (toy / "run/model").exists()


def test_a_dry_run_names_the_first_bad_row(fwd2bot: Run, toy: Path) -> None:
    (toy / "pictures").mkdir()
    for i in range(3):
        tiny_models.pictures(1)[0].save(toy / f"pictures/{i}.png")
        (toy / f"pictures/{i}.txt").write_text("a dog")
    (toy / "pictures/1.png").write_bytes(b"nothing")
    source = "data.sources={mine={kind='folder', path='pictures'}}"
    outcome = fwd2bot("train", "--recipe", "toy.toml", "--data", ".", "--dry-run", "--set", source)
    assert outcome.code == 2
    assert "1.png" in outcome.sentence
    outcome = fwd2bot(
        "train", "--recipe", "toy.toml", "--data", ".", "--dry-run", "--set", source, "--set", "data.bad_rows=skip"
    )
    assert outcome.code == 0
    assert "1.png" in outcome.err
    assert outcome.out.rstrip().endswith("\t1")


def test_the_keys_are_explained_and_recipes_shown(fwd2bot: Run, toy: Path) -> None:
    explained = fwd2bot("train", "--help-config").out
    keys = ("model.base", "method.prefixes", "data.sources.NAME.kind", "train.micro_batch_size", "validation.every")
    for key in keys:
        assert f"\n{key}  (" in f"\n{explained}"
    shown = fwd2bot("train", "--recipe", "mini", "--show-recipe").out
    (toy / "mine.toml").write_text(shown)
    assert 'name = "double-pass"' in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--recipe mini"),
        (("--recipe", "nothing"), "Cannot read the recipe nothing"),
        (("--recipe", "toy.toml", "--set", "train.stepz=1"), "unknown key train.stepz; did you mean steps"),
        (("--recipe", "toy.toml", "--data", "nowhere"), "--data nowhere is no folder"),
        (("--recipe", "mini", "--dry-run"), "flickr8k"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(fwd2bot: Run, toy: Path, arguments: tuple[str, ...], said: str) -> None:
    outcome = fwd2bot("train", *arguments)
    assert outcome.code == 2
    assert said in outcome.sentence


def test_a_base_that_is_missing_is_named(fwd2bot: Run, toy: Path) -> None:
    outcome = fwd2bot("train", "--recipe", "toy.toml", "--set", "model.base=./elsewhere")
    assert outcome.code == 1
    assert "elsewhere" in outcome.sentence
