from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from fwd2bot_index.errors import InputError
from fwd2bot_training.config import (
    SHIPPED,
    DataConfig,
    RunConfig,
    SourceConfig,
    describe_keys,
    load_recipe,
    parse_recipe,
    read_recipe,
)

SCENES = {"data": {"sources": {"scenes": {"kind": "scenes"}}}}


def run_of(**tables: Any) -> RunConfig:
    return parse_recipe({**SCENES, **tables}, name="test").phases[0]


def test_tables_become_settings_and_the_rest_is_default() -> None:
    run = run_of(train={"lr": 1, "steps": 7}, method={"prefixes": [1, 2]})
    assert (run.train.lr, run.train.steps, run.train.batch_size) == (1.0, 7, 32)
    assert isinstance(run.train.lr, float)
    assert run.method.prefixes == (1, 2)
    assert run.data.sources[0].kind == "scenes"


def test_a_phase_overrides_what_all_share_and_a_list_is_replaced() -> None:
    recipe = parse_recipe(
        {
            **SCENES,
            "train": {"lr": 0.1, "steps": 5},
            "method": {"prefixes": [4, 8]},
            "phases": [
                {"name": "one", "train": {"steps": 9}},
                {"name": "two", "model": {"base": "previous"}, "method": {"prefixes": [2]}},
            ],
        },
        name="two-phases",
    )
    one, two = recipe.phases
    assert (one.train.lr, one.train.steps, two.train.steps) == (0.1, 9, 5)
    assert (one.method.prefixes, two.method.prefixes) == ((4, 8), (2,))


def test_a_phase_says_only_what_it_changes_of_a_source_and_leaves_some_out() -> None:
    sources = {"scenes": {"kind": "scenes", "twins": 0.5}, "photos": {"path": "p", "crop": True}, "more": {"path": "m"}}
    changed = {"photos": {"weight": 0.3}, "more": {"weight": 0}, "grids": {"kind": "grids"}}
    phases = [{"name": "one"}, {"name": "two", "data": {"sources": changed}}]
    one, two = parse_recipe({"data": {"sources": sources}, "phases": phases}, name="x").phases
    assert [s.name for s in one.data.sources] == ["scenes", "photos", "more"]
    assert [(s.name, s.weight) for s in two.data.sources] == [("scenes", 1.0), ("photos", 0.3), ("grids", 1.0)]
    assert two.data.sources[0] == one.data.sources[0]
    assert two.data.sources[1].crop


def test_changes_from_the_command_line_win_over_phases() -> None:
    tables = {**SCENES, "phases": [{"name": "one", "train": {"steps": 9}}, {"name": "two"}]}
    changes = ["train.steps=3", "two.train.lr=0.5", "model.base=some/model"]
    one, two = parse_recipe(tables, name="x", overrides=changes).phases
    assert (one.train.steps, two.train.steps) == (3, 3)
    assert (one.train.lr, two.train.lr) == (2e-4, 0.5)
    assert one.model.base == "some/model"


def test_changes_reach_into_sources_of_one_phase_or_all() -> None:
    tables = {**SCENES, "phases": [{"name": "one"}, {"name": "two"}]}
    changes = ["data.sources.scenes.twins=0.5", "two.data.sources.scenes.size=64", "data.sources.more={kind='grids'}"]
    one, two = parse_recipe(tables, name="x", overrides=changes).phases
    assert [(s.name, s.kind, s.twins, s.size) for s in one.data.sources] == [
        ("scenes", "scenes", 0.5, 96),
        ("more", "grids", 0.0, 96),
    ]
    assert [s.size for s in two.data.sources] == [64, 96]
    (run,) = parse_recipe(SCENES, name="x", overrides=["data.sources={mine={kind='boxes'}}"]).phases
    assert [s.name for s in run.data.sources] == ["mine"]
    assert SCENES == {"data": {"sources": {"scenes": {"kind": "scenes"}}}}


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"train": {"stepz": 1}}, "unknown key train.stepz; did you mean steps"),
        ({"trian": {}}, "unknown key trian; did you mean train"),
        ({"train": {"steps": "many"}}, "train.steps must be int, not 'many'"),
        ({"train": {"steps": True}}, "train.steps must be int, not True"),
        ({"train": {"steps": 0}}, "train.steps must be at least 1"),
        ({"train": {"optimizer": "sgd"}}, "train.optimizer must be one of 'adamw', 'muon', not 'sgd'"),
        ({"train": {"optimizer": "muon", "sharding": "fsdp"}}, "needs whole matrices"),
        ({"method": {"prefixes": [17]}}, "beyond model.num_tokens"),
        ({"method": {"prefixes": [0]}}, "each of method.prefixes must be at least 1"),
        ({"method": {"ar_weight": 0, "contrastive_weight": 0}}, "nothing to train"),
        ({"method": {"objective": "lvlm"}}, "trains without adapters"),
        ({"method": {"objective": "words", "prefixes": [2]}, "model": {"adapters": "none"}}, "prefixes means nothing"),
        ({"method": {"objective": "single-pass", "compressor": "pooling"}}, "no tokens of its own"),
        ({"method": {"matryoshka": [64]}, "model": {"embedding_dim": 64}}, "must stay below"),
        ({"model": {"adapters": "none"}}, "the LLM must train"),
        ({"model": {"quantize": "4bit", "lr_vision": 1.0}}, "freezes the base"),
        ({"model": {"lr_first_pass": -1.0}}, "lr_first_pass must be at least 0"),
        ({"model": {"lr_first_pass": 0.0, "lr_projector": 0.0}}, "contrastive_weight has nothing to train"),
        ({"model": {"lr_first_pass": 0.0, "lr_projector": 0.0, "adapters": "shared"}}, "adapters of their own"),
        ({"model": {"dtype": "bfloat16"}}, "need train.precision"),
        ({"model": {"base": "previous"}}, "no previous one"),
        ({"model": {"text_prompt": "no place"}}, "must contain {text}"),
        ({"data": {"sources": {}}}, "nothing to train on"),
        ({"data": {"sources": {"a": {"kind": "scenes", "weight": 0}}}}, "nothing to train on"),
        ({"data": {"sources": {"a": {"kind": "scenes", "weight": -1}}}}, "needs a weight of at least 0"),
        ({"data": {"sources": {"a": {"kind": "scenes", "weight": False}}}}, "data.sources.a.weight must be float"),
        ({"data": {"sources": {"a": {"knid": "scenes"}}}}, "unknown key data.sources.a.knid; did you mean kind"),
        ({"data": {"sources": {"a": {"path": ""}}}}, "'a' needs a path"),
        ({"data": {"sources": {"a": {"path": "x", "images": "y"}}}}, "images means nothing"),
        ({"data": {"sources": {"a": {"kind": "scenes", "rows": "0:9"}}}}, "rows means nothing"),
        ({"data": {"sources": {"a": {"kind": "scenes", "path": "x"}}}}, "path means nothing"),
        ({"data": {"sources": {"a": {"kind": "grids", "counts": 3}}}}, "counts means nothing to"),
        ({"data": {"sources": {"a": {"path": "x", "favored": ["count"]}}}}, "favored means nothing"),
        ({"data": {"sources": {"a": {"path": "x", "split": "val"}}}}, "split means nothing"),
        ({"data": {"sources": {"a": {"path": "x", "rows": "9"}}}}, "FIRST:AFTER_LAST"),
        ({"data": {"sources": [{"name": "a", "kind": "scenes"}]}}, "must be tables by name, [data.sources.NAME]"),
        ({"data": {"sources": {"a": {"name": "b", "kind": "scenes"}}}}, "data.sources must be tables by name"),
        ({"validation": {"sources": "scenes"}}, "validation.sources must be tables by name"),
        ({"data": 3}, "data must be a table"),
        ({"phases": [{"name": "a"}, {"name": "a"}]}, "Two phases have one name"),
        ({"phases": [{}]}, "needs a name"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(tables: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        parse_recipe({**SCENES, **tables}, name="test")
    assert said in str(error.value)


@pytest.mark.parametrize("change", ["train.steps", "steps=1", "three.train.steps=1", "a.b.c.d=1"])
def test_a_change_that_is_none_is_refused(change: str) -> None:
    with pytest.raises(InputError, match="is not"):
        parse_recipe(SCENES, name="x", overrides=[change])


def test_two_sources_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="Two sources are called 'a'"):
        DataConfig(sources=(SourceConfig(name="a", kind="scenes"),) * 2)


def test_files_are_named_in_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Cannot read the recipe .*none\.toml"):
        load_recipe(str(tmp_path / "none.toml"))
    broken = tmp_path / "mine.toml"
    broken.write_text("[train\n")
    with pytest.raises(InputError, match=r"mine\.toml is not valid TOML"):
        load_recipe(str(broken))
    broken.write_text("[train]\nlrr = 1\n")
    with pytest.raises(InputError, match=r"mine\.toml: unknown key train\.lrr"):
        load_recipe(str(broken))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_parse_and_can_be_edited(name: str, tmp_path: Path) -> None:
    mine = tmp_path / f"{name}.toml"
    mine.write_text(read_recipe(name))
    assert load_recipe(str(mine)) == load_recipe(name)


def test_every_key_is_documented() -> None:
    described = {key for key, *_ in describe_keys()}
    tables = [f for f in dataclasses.fields(RunConfig) if dataclasses.is_dataclass(f.default)]
    assert {f.name for f in tables} == {"model", "method", "data", "train", "validation"}
    for table in tables:
        for field in dataclasses.fields(type(table.default)):
            assert f"{table.name}.{field.name}" in described
    assert all(len(help) > 5 for *_, help in describe_keys())


def test_settings_survive_json() -> None:
    run = run_of(validation={"sources": {"held-out": {"kind": "grids", "split": "val"}}}, method={"prefixes": [2, 4]})
    assert parse_recipe(json.loads(run.to_json()), name="test").phases == (run,)
