"""Recipes from end to end at toy size: what comes out loads, compresses and answers; what was stopped goes on."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_models
import torch
from PIL import Image
from transformers import AutoTokenizer
from transformers.utils import logging

from fwd2bot_index import scenes
from fwd2bot_index.errors import InputError
from fwd2bot_index.model import Fwd2BotModel
from fwd2bot_training.config import load_recipe, parse_recipe
from fwd2bot_training.runner import run_recipe, texts_of

TOY = ("train.steps=2", "train.batch_size=2", "train.micro_batch_size=1", "train.log_every=1", "data.workers=0")


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


def saved(folder: Path, family: str) -> Path:
    base, processor = tiny_models.build(family)
    base.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    tiny_models.pictures(1, seed=seed)[0].save(file, "JPEG")
    return file.getvalue()


def write_llava_data(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "cc3m").mkdir()
    records = []
    for i in range(4):
        (folder / f"images/{i}.jpg").write_bytes(jpeg(i))
        turns = [("human", "<image>\nwhat is it?"), ("gpt", f"noise {i}"), ("human", "sure?"), ("gpt", "yes")]
        said = [{"from": who, "value": value} for who, value in turns]
        records.append({"id": str(i), "image": f"{i}.jpg", "conversations": said})
    (folder / "llava_v1_5_mix665k.json").write_text(json.dumps(records))
    with tarfile.open(folder / "cc3m/0.tar", "w") as tar:
        for i in range(8):
            for name, data in ((f"{i}.jpg", jpeg(i)), (f"{i}.txt", f"two red cats, {i}".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_own_data(folder: Path) -> None:
    write_llava_data(folder)
    (folder / "llava_v1_5_mix665k.json").rename(folder / "conversations.json")
    for i in range(4):
        (folder / f"images/{i}.jpg").rename(folder / f"{i}.jpg")
    (folder / "captions").mkdir()
    for i in range(4):
        (folder / f"captions/{i}.jpg").write_bytes(jpeg(i))
        (folder / f"captions/{i}.txt").write_text(f"a dog, {i}")


def check(model: Path | None, tokens: int) -> None:
    assert model is not None
    loaded = Fwd2BotModel.from_pretrained(model, device="cpu")
    summary = loaded.compress([scenes.render(scenes.scene(0))])
    assert loaded.mode == "trained"
    assert summary.tokens.shape == (1, tokens, loaded.token_dim)
    assert len(loaded.generate(summary.tokens, "how many objects are there?", max_new_tokens=3)) == 1
    assert (loaded.embed_text(["a red circle"]) @ summary.embedding.T).isfinite().all()


@pytest.mark.parametrize(
    ("recipe", "family", "tokens"), [("llava-1.5-7b", "llava", 32), ("qwen3-vl-2b", "qwen3_vl", 16)]
)
def test_the_papers_recipes_at_toy_size(recipe: str, family: str, tokens: int, tmp_path: Path) -> None:
    write_llava_data(tmp_path / "data")
    changes = [*TOY, f"model.base='{saved(tmp_path / 'base', family)}'", "train.tensorboard=false"]
    chosen = load_recipe(recipe, overrides=changes)
    check(run_recipe(chosen, root=tmp_path / "data", out=tmp_path / "out", quiet=True), tokens)
    assert (tmp_path / "out/report.html").stat().st_size > 1000


def test_the_one_gpu_recipe_at_toy_size(tmp_path: Path) -> None:
    write_own_data(tmp_path / "data")
    changes = [*TOY, f"model.base='{saved(tmp_path / 'base', 'llava')}'", "model.quantize='none'"]
    chosen = load_recipe("one-gpu", overrides=changes)
    check(run_recipe(chosen, root=tmp_path / "data", out=tmp_path / "out", quiet=True), 16)


@pytest.mark.slow
def test_the_mini_recipe_at_toy_size(tmp_path: Path) -> None:
    """All its phases, from random weights."""
    cell = {"bytes": jpeg(0), "path": None}
    asked = {"qa": [{"question": "what?", "answer": "a xylophone"}]}
    columns: dict[str, Any] = {
        "flickr8k": {"captions": ["a dog runs .", "two dogs ."]},
        "cifar100": {"word": "apple"},
        **dict.fromkeys(("visual7w", "easy_vqa", "shapes", "daquar"), asked),
    }
    for name, column in columns.items():
        (tmp_path / name).mkdir()
        rows = 650 if name == "daquar" else 4  # of which the recipe names those that it takes
        table = pa.Table.from_pylist([{"image": cell, **column}] * rows)
        for split in ("train", "val", "test"):
            pq.write_table(table, tmp_path / name / f"{split}.parquet")
    phases = [phase.name for phase in load_recipe("mini").phases]
    changes = [f"{phase}.train.{change}" for phase in phases for change in ("steps=2", "batch_size=2")]
    changes += ["data.workers=0", "validation.pictures=2", "train.precision='float32'", "train.compile=false"]
    out = tmp_path / "out"
    check(run_recipe(load_recipe("mini", overrides=changes), root=tmp_path, out=out, quiet=True), 16)
    tokenizer = AutoTokenizer.from_pretrained(out / "vision/tokenizer")
    assert len(tokenizer.tokenize(" xylophone")) == 1, "a word that the first phase has no source for"
    last = out / "second-pass"
    assert [json.loads(v)["step"] for v in (last / "validation.jsonl").read_text().splitlines()] == [2]
    assert (last / "samples/samples.json").is_file()
    begun = (out / "model/config.json").stat().st_mtime_ns
    run_recipe(load_recipe("mini", overrides=changes), root=tmp_path, out=out, quiet=True)
    assert (out / "model/config.json").stat().st_mtime_ns == begun, "a finished recipe is not trained again"


def test_a_tokenizer_knows_the_words_of_every_phase() -> None:
    scene = {"kind": "scenes", "weight": 1.0}
    first = {"name": "first", "data": {"sources": {"boxes": {"kind": "boxes", "weight": 0.0}}}}
    tables = {"data": {"sources": {"scenes": scene, "boxes": {"kind": "boxes"}}}, "phases": [first, {"name": "second"}]}
    phases = parse_recipe(tables | {"model": {"base": "x"}}, name="x").phases
    assert [len(p.data.sources) for p in phases] == [1, 2]
    sources = [s for p in phases for s in p.data.sources]
    texts = list(texts_of(sources, root=None, bad_rows="stop", seed=0))
    assert any("tower" in t for t in texts)
    assert sum(t.count("color") > 0 and "\n" in t for t in texts) > 1000
    once = list(texts_of(sources[:1], root=None, bad_rows="stop", seed=0))
    assert once == texts[: len(once)], "the source that two phases name is read once"
    assert len(texts) < 2 * len(once)


def toy_recipe(tmp_path: Path, **method: Any) -> dict[str, Any]:
    return {
        "model": {"base": str(saved(tmp_path / "base", "llava")), "rank": 2, "num_tokens": 4, "dropout": 0.1},
        "method": {"prefixes": [2, 4], **method},
        "data": {"sources": {"scenes": {"kind": "scenes", "size": 32}}, "workers": 0, "max_segments": 2},
        "train": {"steps": 12, "batch_size": 4, "micro_batch_size": 2, "log_every": 5, "save_minutes": 0.002},
    }


def test_a_first_pass_that_is_frozen_gives_the_tokens_that_it_gave(tmp_path: Path) -> None:
    tables = toy_recipe(tmp_path)
    frozen = {"base": "previous", "lr_first_pass": 0.0, "lr_projector": 0.0}
    phases = [{"name": "both"}, {"name": "second", "model": frozen, "method": {"contrastive_weight": 0.0}}]
    tables["train"]["steps"] = 2
    out = tmp_path / "out"
    run_recipe(parse_recipe({**tables, "phases": phases}, name="x"), root=None, out=out, quiet=True)
    before, after = (Fwd2BotModel.from_pretrained(out / n, device="cpu") for n in ("both/model", "model"))
    pictures = [scenes.render(scenes.scene(n)) for n in range(3)]
    tokens = before.compress(pictures).tokens
    assert torch.equal(tokens, after.compress(pictures).tokens)
    assert torch.equal(before.embed_text(["a red circle"]), after.embed_text(["a red circle"]))
    ids, mask = before.prepare_prompts("how many?", 3, num_tokens=4)
    with torch.inference_mode():
        assert not torch.equal(*(model.second_pass(tokens, ids, mask) for model in (before, after)))


@pytest.mark.parametrize("method", [{"objective": "single-pass"}, {"compressor": "resampler"}])
def test_what_is_for_comparison_leaves_no_checkpoint(method: dict[str, str], tmp_path: Path) -> None:
    tables = toy_recipe(tmp_path, **method)
    tables["train"]["steps"] = 1
    assert run_recipe(parse_recipe(tables, name="x"), root=None, out=tmp_path / "out", quiet=True) is None
    assert not (tmp_path / "out/model").exists()


SCRIPT = """
import json, sys
from pathlib import Path
from fwd2bot_training.config import parse_recipe
from fwd2bot_training.runner import run_recipe, texts_of
run_recipe(parse_recipe(json.loads(sys.argv[1]), name="toy"), root=None, out=Path(sys.argv[2]), quiet=True)
"""


GUARDED = SCRIPT.replace("\nrun_recipe(", "\nif __name__ == '__main__':\n    run_recipe(")
"""Loader processes import the script again."""


def log_of(folder: Path) -> list[dict[str, Any]]:
    timing = ("seconds", "pictures_per_second", "memory_gb")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


@pytest.mark.slow
def test_a_run_killed_anywhere_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """The real double pass with dropout, cached gradients and random prefixes: the same log to the last digit, and the
    same checkpoint to the last byte."""
    tables = json.dumps(toy_recipe(tmp_path))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, "-c", SCRIPT, tables, str(whole)], check=True)
    kills = 0
    for wanted in (3, 7):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, tables, str(killed)])
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if any(int(p.name.partition("-")[2]) >= wanted for p in killed.glob("state-*") if p.name[6:].isdigit()):
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        process.wait()
    subprocess.run([sys.executable, "-c", SCRIPT, tables, str(killed)], check=True)
    assert kills >= 2
    assert log_of(killed) == log_of(whole)
    for path in sorted((whole / "model").rglob("*.safetensors")):
        assert path.read_bytes() == (killed / "model" / path.relative_to(whole / "model")).read_bytes(), path.name


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_stopped_run_leaves_with_a_state_and_without_its_loader(number: signal.Signals, tmp_path: Path) -> None:
    tables = toy_recipe(tmp_path)
    tables["data"]["workers"] = 1
    tables["train"] |= {"steps": 100_000, "save_minutes": 60.0, "log_every": 1}
    script = tmp_path / "script.py"
    script.write_text(GUARDED)
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, str(script), json.dumps(tables), str(out)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (out / "log.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(timeout=60) != 0
    finally:
        process.kill()
    assert len(list(out.glob("state-*"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["fsdp"])  # copies: test_distributed
def test_two_processes_train_as_one(sharding: str, tmp_path: Path) -> None:
    """The real double pass under torchrun: the losses of every step are those of one process with all pictures."""
    tables = toy_recipe(tmp_path, prefixes=[4])
    tables["model"]["dropout"] = 0.0
    tables["model"]["lr_language_model"] = 1.0
    tables["train"] |= {"steps": 4, "sharding": sharding, "optimizer": "adamw", "save_minutes": 10.0, "log_every": 1}
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, str(script), json.dumps(tables), str(tmp_path / "one")], check=True, env=environment
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    subprocess.run([*command, json.dumps(tables), str(tmp_path / "two")], check=True, env=environment)
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2, 3, 4]
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert b[name] == pytest.approx(value, rel=2e-3, abs=1e-4), name
    check(tmp_path / "two/model", 4)


def test_a_broken_mark_is_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "finished.json").write_text("{")
    with pytest.raises(InputError, match=r"finished\.json cannot be read"):
        run_recipe(parse_recipe(toy_recipe(tmp_path), name="x"), root=None, out=out, quiet=True)


def test_a_bad_picture_stops_with_its_name(tmp_path: Path) -> None:
    write_own_data(tmp_path / "data")
    (tmp_path / "data/captions/2.jpg").write_bytes(b"no picture")
    changes = [*TOY, f"model.base='{saved(tmp_path / 'base', 'llava')}'", "model.quantize='none'", "train.steps=20"]
    with pytest.raises(InputError, match=r"2\.jpg"):
        run_recipe(load_recipe("one-gpu", overrides=changes), root=tmp_path / "data", out=tmp_path / "out", quiet=True)
    skipping = load_recipe("one-gpu", overrides=[*changes, "data.bad_rows='skip'"])
    assert run_recipe(skipping, root=tmp_path / "data", out=tmp_path / "again", quiet=True) is not None
    assert "2.jpg" in (tmp_path / "again/skipped.jsonl").read_text()


def test_pictures_of_a_test_are_pictures() -> None:
    assert Image.open(io.BytesIO(jpeg(0))).size == (40, 40)
