"""The training benchmark: what is counted is right by hand, what is compared does the work that it says."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import torch.nn.functional as F

from fwd2bot_index.errors import InputError
from fwd2bot_index.model import Fwd2BotModel
from fwd2bot_training import bench
from fwd2bot_training.config import MethodConfig, read_recipe
from fwd2bot_training.data import Example
from fwd2bot_training.objectives import Objective

Make = Callable[..., Fwd2BotModel]


# ---- counting ----


@pytest.mark.parametrize(("trains", "products"), [(True, 3), (False, 2)])
def test_operations_of_a_linear_layer(trains: bool, products: int) -> None:
    """Forward, gradient of the input and, if it trains, of the weight: 2 * rows * in * out each."""
    layer = torch.nn.Linear(7, 5).requires_grad_(trains)
    x = torch.randn(3, 11, 7, requires_grad=True)
    assert bench.count_flops(lambda: layer(x).sum().backward()) == products * 2 * 3 * 11 * 7 * 5


def test_operations_of_a_convolution() -> None:
    """6x4 patches of 3 * 5 * 5 numbers, 8 features of each: forward, and the gradient of the weight."""
    layer = torch.nn.Conv2d(3, 8, kernel_size=5, stride=5)
    x = torch.randn(2, 3, 30, 20)
    assert bench.count_flops(lambda: layer(x).sum().backward()) == 2 * 2 * (2 * 6 * 4) * 3 * 5 * 5 * 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operations_of_fused_attention(dtype: torch.dtype) -> None:
    """Two products forward, four backward; the kernel that training uses would count as nothing on a CPU."""
    q, k, v = (torch.randn(2, 3, 10, 8, dtype=dtype, requires_grad=True) for _ in range(3))
    mask = torch.zeros(2, 1, 10, 10, dtype=dtype)
    one = 2 * (2 * 3) * 10 * 10 * 8
    assert bench.count_flops(lambda: F.scaled_dot_product_attention(q, k, v, mask)) == 2 * one
    assert bench.count_flops(lambda: F.scaled_dot_product_attention(q, k, v, mask).sum().backward()) == 6 * one


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base, processor = tiny_models.build("llava")
    base.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_recomputation_and_padding_are_executed_but_not_needed(folder: Path) -> None:
    plan = bench.make_plan(base=str(folder), batch_size=4)

    def counted(**train: Any) -> tuple[float, float]:
        settings = dataclasses.replace(plan.run.train, compile=False, **train)
        changed = dataclasses.replace(plan.run, train=settings)
        changed_plan = dataclasses.replace(plan, run=changed)
        model = bench.build(changed_plan, torch.device("cpu"))
        examples = bench.make_examples(changed_plan, model)
        variant = bench.Variant(bench.DOUBLE_PASS, model, changed_plan, examples)
        return variant.flops(), variant.executed_flops()

    needed, executed = counted()
    assert needed < executed < 1.5 * needed, "scenes have questions of unlike lengths"
    same, cached = counted(micro_batch_size=1)  # one at a time, nothing is padded: this is the first of two forwards
    assert same == needed
    assert 1.02 * needed < cached < 1.34 * needed
    same, checkpointed = counted(gradient_checkpointing=True)
    assert same == needed
    assert 1.05 * executed < checkpointed < 1.34 * executed


# ---- what is compared ----


def _one_by_one(model: Fwd2BotModel, example: Example) -> float:
    """The AR loss of an example's answers by the base's own forward, each alone behind all image tokens."""
    total = 0.0
    for s in example.segments:
        first = model.inputs.images([example.image])
        image_token = model.inputs.image_token
        asked = model.inputs.prompt(s.prompt).ids(image_token, int((first.input_ids == image_token).sum()))
        tokenizer = model.processor.tokenizer
        answer = [*tokenizer(s.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        ids = torch.tensor([asked + answer])
        with torch.no_grad(), model.stage("generate"):
            logits = model.base(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                **({"mm_token_type_ids": (ids == image_token).int()} if model.family.mrope else {}),
                **first.pixels,
            ).logits
        loss = F.cross_entropy(logits[0, len(asked) - 1 : -1], torch.tensor(answer), reduction="sum")
        total += loss.item() * len(answer) ** -0.5
    return total


def _variant(name: str, model: Fwd2BotModel) -> Objective:
    return bench.make_variant(name, model, MethodConfig(prefixes=(1, 2)))


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_uncompressed_is_the_same_model_on_all_image_tokens(
    family: str, make_model: Make, examples: list[Example]
) -> None:
    model = make_model(family)
    if model.family.mrope:
        examples = [dataclasses.replace(e, segments=e.segments[:1]) for e in examples]
    objective = _variant(bench.UNCOMPRESSED, model)
    batch = objective.collator()(0, "test", examples)
    outputs = objective(batch)
    assert outputs.images is None
    assert outputs.sums["ar"].item() == pytest.approx(sum(_one_by_one(model, e) for e in examples), rel=1e-4)

    outputs.sums["ar"].backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained
    assert all(".generate." in n for n in trained), "one adapter, as without compression"


def test_what_each_variant_computes(make_model: Make, examples: list[Example]) -> None:
    model = make_model()
    outputs = {}
    asked = []
    for name in bench.VARIANTS:
        objective = _variant(name, model)
        batch = objective.collator()(0, "test", examples)
        outputs[name] = objective(batch)
        asked.append(batch.packed.ids)
    assert all(ids.equal(asked[0]) for ids in asked)
    contrastive = {name for name, o in outputs.items() if o.images is not None}
    answering = {name for name, o in outputs.items() if "ar" in o.sums}
    assert contrastive == {bench.DOUBLE_PASS, bench.FIRST_PASS}
    assert answering == {bench.DOUBLE_PASS, bench.AR_ONLY, bench.UNCOMPRESSED}
    both, alone = outputs[bench.DOUBLE_PASS], outputs[bench.AR_ONLY]
    assert both.sums["ar"].item() == pytest.approx(alone.sums["ar"].item())
    # k' is K in every step, whatever the method's prefixes
    objective = _variant(bench.DOUBLE_PASS, model)
    later = objective(objective.collator()(5, "test", examples))
    assert later.sums["ar"].item() == pytest.approx(both.sums["ar"].item())


# ---- real shapes ----


@pytest.mark.parametrize(
    ("shape", "parameters", "image_tokens"),
    # the numbers of parameters are those that the published checkpoints' safetensors count
    [("llava-1.5-7b", 7_063_427_072, 576), ("qwen3-vl-2b", 2_127_532_032, 300)],
)
def test_shapes_are_the_published_ones(shape: str, parameters: int, image_tokens: int) -> None:
    cls, config, processor = bench.SHAPES[shape].make(None)
    with torch.device("meta"):
        base = cls._from_config(config)
    assert sum(p.numel() for p in base.parameters()) == parameters
    text = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "one two"}]}], tokenize=False
    )
    image = torch.zeros(3, *bench.SHAPES[shape].picture[::-1], dtype=torch.uint8)
    ids = processor(text=[text], images=[image])["input_ids"][0]
    assert list(ids).count(config.image_token_id) == image_tokens


def test_a_shape_cut_down_trains_what_its_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a hundredth of its width, so that it takes a second."""
    whole = bench.SHAPES["qwen3-vl-2b"]

    def narrow(layers: int | None) -> tuple[Any, Any, Any]:
        cls, config, processor = whole.make(layers)
        config.text_config.update({"hidden_size": 32, "intermediate_size": 48, "vocab_size": 1200})
        config.vision_config.update({"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "num_heads": 2})
        return cls, config, processor

    monkeypatch.setitem(bench.SHAPES, "qwen3-vl-2b", dataclasses.replace(whole, make=narrow))
    plan = bench.make_plan(shape="qwen3-vl-2b", layers=2, batch_size=2, micro_batch_size=1)
    model = bench.build(plan, torch.device("cpu"))
    examples = bench.make_examples(plan, model)
    assert len(model.language_model.layers) == 2  # type: ignore[arg-type]
    kept = {n: p.clone() for n, p in model.named_parameters()}
    variants = [bench.Variant(name, model, plan, examples) for name in bench.VARIANTS]
    for _ in range(2):  # in the first step, LoRA's B is zero and A does not move
        for variant in variants:
            variant.step()
    moved = {n for n, p in model.named_parameters() if not p.equal(kept[n])}
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    assert moved <= trains
    assert {n for n in trains if "lora_" in n} <= moved
    assert any("merger" in n for n in moved)
    assert not any(n in trains for n, p in model.named_parameters() if p.dtype == torch.bfloat16)
    assert all("lora_" in n or "merger" in n or not n.startswith("base.") for n in trains)
    [row] = {tuple(b.packed.ids.shape) for b in variants[0].batches}
    assert 100 <= row[1] <= 110, "a conversation of a hundred tokens"


# ---- the command ----


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"shape": "llava-1.5-7b"}, "needs a GPU"),
        ({"layers": 1}, "--layers cuts a --shape"),
        ({"shape": "llava-1.5-7b", "layers": 0}, "at least 1"),
        ({"batch_size": 0}, "train.batch_size"),
    ],
)
def test_what_cannot_be_measured(settings: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=says):
        bench.make_plan(**settings)


def test_a_recipe_without_a_contrastive_loss_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[method]\ncontrastive_weight = 0.0\n[data.sources.scenes]\nkind = "scenes"\n')
    with pytest.raises(InputError, match=r"mine\.toml does not end in a double pass with both of its losses"):
        bench.make_plan(recipe=str(recipe))


def test_a_shape_too_large_for_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {"SC_PHYS_PAGES": 1024, "SC_PAGE_SIZE": 2**20}
    monkeypatch.setattr(bench.os, "sysconf", pages.__getitem__)
    plan = bench.make_plan(shape="llava-1.5-7b", layers=1)
    with pytest.raises(InputError, match=r"0.5 billion parameters need about 4 GiB.*--layers"):
        bench.build(plan, torch.device("cpu"))


def _figures(speed: float) -> bench.Figures:
    return bench.Figures(
        seconds=[1.0],
        pictures_per_second=speed,
        flops=2e12,
        executed_flops=3e12,
        utilization=0.25,
        datasheet_utilization=0.125,
        loaded_bytes=3 * 2**30,
        peak_bytes=5 * 2**30,
    )


def test_the_report_by_hand() -> None:
    machine = bench.Machine(
        device="a GPU",
        threads=2,
        torch="2",
        precision="bfloat16",
        load=0.0,
        product_flops=5e14,
        datasheet_flops=1e15,
    )
    work = bench.Work(batch_size=16, micro_batch_size=8, image_tokens=576, text_tokens=100, caption_tokens=30)
    plan = bench.make_plan(shape="llava-1.5-7b", layers=3)
    speeds = dict(zip(bench.VARIANTS, (10.0, 16.0, 20.0, 25.0), strict=True))
    said = bench.report(plan, machine, work, {n: _figures(s) for n, s in speeds.items()}, hours=720_000)
    assert "random weights, cut to 3 layers" in said
    assert "micro-batches of 8" in said
    [row] = [line for line in said.splitlines() if line.startswith("| double pass |")]
    assert row == "| double pass | 10 | 0.50 | 2000 | 3000 | 25% | 3.00 GiB | 2.00 GiB | 12% | 20.0 |"


@pytest.mark.slow
def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # a processor that emulates bfloat16 would take many minutes
    recipe = tmp_path / "mini.toml"
    eager = read_recipe("mini").replace("compile = true", "compile = false")
    recipe.write_text(eager.replace('precision = "bfloat16"', 'precision = "float32"'))
    arguments: Sequence[str] = ("--base", str(folder), "--batch-size", "2", "--steps", "3", "--gpu-hours")
    bench.main([*arguments, "--recipe", str(recipe), "--json", str(tmp_path / "figures.json")])
    printed = capsys.readouterr().out
    assert "steps of 2 pictures in micro-batches of 2" in printed
    found = json.loads((tmp_path / "figures.json").read_text())
    assert list(found["variants"]) == list(bench.VARIANTS)
    assert found["work"]["image_tokens"] == 16
    for figures in found["variants"].values():
        assert len(figures["seconds"]) == 3
        speed = 2 / statistics.median(figures["seconds"])
        assert figures["pictures_per_second"] == pytest.approx(speed)
        assert figures["utilization"] == pytest.approx(figures["flops"] * speed / found["machine"]["product_flops"])
        assert 0 < figures["utilization"] < 1
        assert 0 < figures["loaded_bytes"] <= figures["peak_bytes"]
    if not torch.cuda.is_available():
        assert "GPU-hours" not in printed
        assert all(f["datasheet_utilization"] is None for f in found["variants"].values())


def test_a_base_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.main(["--base", "./nowhere"])
    assert ended.value.code == 2
    assert "There is no model folder ./nowhere" in capsys.readouterr().err


def test_the_command_warns_of_a_processor_without_bfloat16(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(bench, "_device", lambda: torch.device("cpu"))

    def measure(plan: bench.Plan, *, steps: int) -> None:
        raise InputError("measured")

    monkeypatch.setattr(bench, "measure", measure)
    with pytest.raises(SystemExit):
        bench.main(["--base", str(folder), "--batch-size", "2"])
    said = capsys.readouterr().err
    assert said.index("no instructions for bfloat16") < said.index("measured")
