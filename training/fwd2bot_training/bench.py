"""What a training step costs on this machine, against the floor of its arithmetic and against the same model trained on
its pictures uncompressed.

    OMP_NUM_THREADS=2 python -m fwd2bot_training.bench --json bench.json
    python -m fwd2bot_training.bench --shape llava-1.5-7b --gpu-hours

Notable choices:

- a step is `stepping.Stepper.step`, as training does it: forward, backward and optimiser, over micro-batches collated
  beforehand. Loading and drawing are not in it;
- the variants work around one model on the same pictures and questions, and take turns (A B C D A B C D), the matrix
  product that stands for the machine's peak among them, so that whatever else the machine does is shared fairly;
- the floor is what the method must compute, at that peak: matrix products, attention and convolutions, forward and
  backward, counted for each picture alone, so without padding, recomputed layers or the second forward of gradient
  caching. What the step really executes is counted beside it. Optimisers are in the time and not in the count;
- k' is always K, as the shorter prefixes of a recipe would make the steps unlike;
- memory is measured first, each variant alone in a process of its own;
- real shapes have random weights, and stand-ins for tokenizer and pictures that give rows of realistic length.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import logging as transformers_logging

from fwd2bot_index.adapters import LoraSettings
from fwd2bot_index.checkpoints import DEFAULT_MODEL, resolve
from fwd2bot_index.config import CompressorConfig
from fwd2bot_index.errors import Fwd2BotError, InputError
from fwd2bot_index.model import Fwd2BotModel
from fwd2bot_index.processors import without_video
from fwd2bot_training import building, small_llava
from fwd2bot_training.config import MethodConfig, RunConfig, load_recipe
from fwd2bot_training.data import Example, Mixture, SceneSource, Segment
from fwd2bot_training.distributed import Parallel, Processes
from fwd2bot_training.objectives import Batch, Lvlm, Objective, Outputs, Reading, make_objective
from fwd2bot_training.stepping import Stepper, warn_of_emulation

DOUBLE_PASS, AR_ONLY, UNCOMPRESSED, FIRST_PASS = (
    "double pass",
    "double pass, AR only",
    "uncompressed",
    "first pass alone",
)
VARIANTS = (DOUBLE_PASS, AR_ONLY, UNCOMPRESSED, FIRST_PASS)
INSTRUCTIONS = 665_000
"""Samples of LLaVA-1.5's instruction data, which the paper's recipe goes through once."""

_WARM_UP = 3
_MEMORY_STEPS = 2
_PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}
_PRODUCTS = 4
_DATASHEET = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""FLOP/s of dense bfloat16 products, by a part of the GPU's name."""
_PROMPT_WORDS, _ANSWER_WORDS, _CAPTION_WORDS = 40, 60, 12
_WORDS = "one two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured; goes to the processes that measure memory."""

    name: str
    """Of the base, as it was given."""
    run: RunConfig
    shape: str | None = None
    """One of `SHAPES`, with random weights; None: ``run.model.base`` is a folder."""
    layers: int | None = None
    """Cuts LLM and vision encoder of a shape to so many."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    device: str
    threads: int
    torch: str
    precision: str
    load: float
    """Processes that wanted to run, on average over the minute before."""
    product_flops: float
    """Per second, of a large square matrix product in that precision; median of the whole run."""
    datasheet_flops: float | None
    """Per second, of the GPU's maker, in bfloat16; None where it is not known."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A step, in the mean over its pictures."""

    batch_size: int
    micro_batch_size: int
    image_tokens: float
    text_tokens: float
    """Questions and answers."""
    caption_tokens: float
    """Captions and hard negatives, with their prompts."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one variant."""

    seconds: list[float]
    """Of each timed step."""
    pictures_per_second: float
    """By the median step."""
    flops: float
    """For each picture: what the method must compute."""
    executed_flops: float
    """For each picture: what the step computes, padding and recomputation included."""
    utilization: float
    """The floor's time over the measured one."""
    datasheet_utilization: float | None
    loaded_bytes: int
    """With the model loaded, before the first step: resident (CPU) or allocated (CUDA)."""
    peak_bytes: int
    """The most during the first steps."""


# ---- real shapes ----


@dataclass(frozen=True, kw_only=True)
class Shape:
    make: Callable[[int | None], tuple[Any, Any, Any]]
    """Number of layers -> class, config and processor of the base."""
    picture: tuple[int, int]
    """Width and height."""


def _llava(layers: int | None) -> tuple[Any, Any, Any]:
    """The config of llava-hf/llava-1.5-7b-hf."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    tokenizer = _tokenizer(small_llava.IMAGE)
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=layers or 24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=layers or 32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(small_llava.IMAGE),
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=576,
        tie_word_embeddings=False,
    )
    size = small_llava.SmallLlavaConfig(image_size=336, patch_size=14)
    return LlavaForConditionalGeneration, config, small_llava.make_processor(tokenizer, size)


def _qwen3_vl(layers: int | None) -> tuple[Any, Any, Any]:
    """The config of Qwen/Qwen3-VL-2B-Instruct."""
    from transformers import (
        Qwen2VLImageProcessorPil,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
    )

    start, image, end, video = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"
    tokenizer = _tokenizer(image, before=start, after=end)
    tokenizer.add_tokens([video], special_tokens=True)
    names = ("vision_start_token_id", "image_token_id", "vision_end_token_id", "video_token_id")
    ids = tokenizer.convert_tokens_to_ids([start, image, end, video])
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": layers or 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 262144,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": layers or 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [i for i in (5, 11, 17) if i < (layers or 24)],
        },
        tie_word_embeddings=True,
        **dict(zip(names, ids, strict=True)),
    )
    processor = without_video(Qwen3VLProcessor)(
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=16, merge_size=2, size={"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096}
        ),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )
    return Qwen3VLForConditionalGeneration, config, processor


SHAPES = {
    "llava-1.5-7b": Shape(make=_llava, picture=(336, 336)),
    "qwen3-vl-2b": Shape(make=_qwen3_vl, picture=(640, 480)),
}


def _tokenizer(image_token: str, *, before: str = "", after: str = "") -> Any:
    """One token for each of `_WORDS` and of the prompts' words; ``before`` and ``after`` stand around the picture."""
    known = [f"{word} {word}" for word in _WORDS] + [CompressorConfig().compress_prompt, CompressorConfig().text_prompt]
    tokenizer = small_llava.train_tokenizer(known, vocab_size=1000)
    tokenizer.add_tokens([token for token in (before, after) if token], special_tokens=True)
    tokenizer.add_special_tokens({"image_token": image_token})
    tokenizer.chat_template = small_llava.CHAT_TEMPLATE.replace(small_llava.IMAGE, before + image_token + after)
    return tokenizer


def _random_model(plan: Plan, device: torch.device) -> Fwd2BotModel:
    """A real shape with random weights, of which exactly that trains which the recipe says."""
    assert plan.shape is not None
    settings = plan.run.model
    cls, config, processor = SHAPES[plan.shape].make(plan.layers)
    made = {"dtype": getattr(torch, settings.dtype), "attn_implementation": settings.attention}
    if device.type == "cpu":
        with torch.device("meta"):
            parameters = sum(p.numel() for p in cls._from_config(config, **made).parameters())
        _check_fits(parameters)
    torch.manual_seed(plan.run.train.seed)
    with device:
        base = cls._from_config(config, **made)
    described = CompressorConfig(
        num_summary_tokens=settings.num_tokens,
        queries=settings.queries,
        embedding_dim=settings.embedding_dim or None,
        pooling=settings.pooling,
        token_norm=settings.token_norm,
        adapters=settings.adapters,
    )
    lora = LoraSettings(rank=settings.rank, alpha=settings.alpha, dropout=settings.dropout)
    model = Fwd2BotModel.from_base(base, processor, described, lora=lora).to(device)
    factor = building.lr_factors(model, settings)
    for name, p in model.named_parameters():
        p.requires_grad_(factor(f"model.{name}") > 0)
        if p.requires_grad:
            p.data = p.data.float()
    if plan.run.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(compiled=plan.run.train.compile)
    return model


def _check_fits(parameters: int) -> None:
    """Four times the weights in bfloat16 must fit half of the memory: a benchmark must not push others out of it."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if (needed := 4 * 2 * parameters) > there / 2:
        raise InputError(
            f"{parameters / 1e9:.1f} billion parameters need about {needed / 2**30:.0f} GiB, more than half of this "
            "machine's memory: give fewer --layers."
        )


# ---- what is measured ----


class _UncompressedRows(Lvlm):
    """The LVLM trained through one adapter, as one would without compression."""

    def read(self, batch: Batch, *, num_tokens: int | None = None) -> Reading:
        return replace(super().read(batch, num_tokens=num_tokens), stage="generate")


class _UncompressedForward(Objective):
    """The same for families with 2-D positions, by their own forward: one question for each picture."""

    def forward(self, batch: Batch, *, embeddings_only: bool = False) -> Outputs:
        assert not embeddings_only, "without a contrastive loss nothing is cached"
        model, first, packed = self.model, batch.first, batch.packed
        image_token = model.inputs.image_token
        prompt = model.inputs.prompt(model.config.compress_prompt)
        stop = first.input_ids.shape[1] - len(prompt.after)
        ids = torch.cat([first.input_ids[:, :stop], packed.ids], dim=1)
        with model.stage("generate"):
            states = model.base.model(
                input_ids=ids,
                attention_mask=torch.cat([first.attention_mask[:, :stop], (packed.segment > 0).long()], dim=1),
                mm_token_type_ids=(ids == image_token).int(),
                use_cache=False,
                **first.pixels,
            ).last_hidden_state
        outputs = Outputs()
        self._answer_losses(states[:, stop:], batch, outputs)
        return outputs


def make_variant(name: str, model: Fwd2BotModel, method: MethodConfig) -> Objective:
    """One of `VARIANTS` around ``model``, which others may share."""
    always_k = replace(method, prefixes=())
    match name:
        case "double pass":
            return make_objective(model, always_k)
        case "double pass, AR only":
            return make_objective(model, replace(always_k, contrastive_weight=0.0))
        case "first pass alone":
            alone = replace(always_k, ar_weight=0.0, matching_weight=0.0, distillation_weight=0.0)
            return make_objective(model, alone)
    plain = MethodConfig(objective="lvlm", ar_weight=method.ar_weight, contrastive_weight=0.0)
    return (_UncompressedForward if model.family.mrope else _UncompressedRows)(model, plain)


class Variant:
    """One objective with optimisers of its own, and the batch of its steps."""

    def __init__(self, name: str, model: Fwd2BotModel, plan: Plan, examples: Sequence[Example]) -> None:
        self.plan, self.model = plan, model
        self.examples = examples
        self.objective = make_variant(name, model, plan.run.method).train()
        self._collate = self.objective.collator()
        train = plan.run.train
        self.size = train.micro_batch_size or len(examples)
        self.batches = [self._batch(examples[i : i + self.size]) for i in range(0, len(examples), self.size)]
        self.stepper = Stepper(Parallel(self.objective, Processes(device=model.device), train.sharding), train)
        self._steps = 0

    def step(self) -> float:
        """Seconds."""
        device = self.model.device
        _synchronize(device)
        started = time.perf_counter()
        self.stepper.step(self._steps, self.batches)
        _synchronize(device)
        self._steps += 1
        self.stepper.zero_grad()  # gradients would count as the next variant's memory
        return time.perf_counter() - started

    def flops(self) -> float:
        """For each picture: what the method must compute."""
        # the pictures of a real shape are alike
        counted = self.examples[:1] if self.plan.shape else self.examples
        train = self.plan.run.train
        if train.gradient_checkpointing:
            self.model.base.activation_checkpointing_disable()
        total = sum(self._count([self._batch([e])]) for e in counted)
        if train.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(compiled=train.compile)
        return total / len(counted)

    def executed_flops(self) -> float:
        """For each picture: what the step computes."""
        return self._count(self.batches) / len(self.examples)

    def _count(self, batches: Sequence[Batch]) -> int:
        counted = count_flops(lambda: self.stepper.gradients(0, batches))
        self.stepper.zero_grad()
        return counted

    def _batch(self, examples: Sequence[Example]) -> Batch:
        return self._collate(0, "bench", examples)


def count_flops(run: Callable[[], object]) -> int:
    """Of the matrix products, attention and convolutions in ``run``, backward included; a multiply-add is two."""
    # attention as plain products: torch has no formula for the CPU's fused kernel, and one that recomputes for others
    with torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            run()
    return counter.get_total_flops()


def build(plan: Plan, device: torch.device) -> Fwd2BotModel:
    """The model of a plan, ready to train.

    Raises:
        ModelError: the base cannot be loaded.
        InputError: too many layers for this machine's memory.
    """
    transformers_logging.disable_progress_bar()
    if plan.shape is not None:
        return _random_model(plan, device)
    with tempfile.TemporaryDirectory() as folder:
        return building.build_model(plan.run, texts=tuple, folder=Path(folder)).to(device)


def make_examples(plan: Plan, model: Fwd2BotModel) -> list[Example]:
    """The pictures of a step: drawn scenes with their questions, or, for a real shape, noise with a conversation of
    about a hundred tokens, a caption and a hard negative."""
    count = plan.run.train.batch_size
    if plan.shape is None:
        data = replace(plan.run.data, max_segments=1) if model.family.mrope else plan.run.data
        return Mixture([(SceneSource(), 1.0)], seed=plan.run.train.seed, batch_size=count, data=data).batch(0)[1]
    rng = np.random.default_rng(plan.run.train.seed)
    width, height = SHAPES[plan.shape].picture

    def words(number: int) -> str:
        return " ".join(rng.choice(_WORDS, size=number))

    return [
        Example(
            image=Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)),
            segments=(Segment(prompt=words(_PROMPT_WORDS), answer=words(_ANSWER_WORDS)),),
            caption=words(_CAPTION_WORDS),
            negatives=(words(_CAPTION_WORDS),),
        )
        for _ in range(count)
    ]


# ---- measuring ----


def measure_memory(plan: Plan, name: str) -> tuple[int, int]:
    """Bytes with the model loaded, and at most during the first steps of one variant, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_memory_here, plan, name).result()
        except BrokenProcessPool as e:
            raise InputError(f"{name}: ended for lack of memory; give a lower --micro-batch-size.") from e


def _memory_here(plan: Plan, name: str) -> tuple[int, int]:
    device = _device()
    model = build(plan, device)
    variant = Variant(name, model, plan, make_examples(plan, model))
    if device.type == "cuda":
        loaded = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        loaded = _peak_resident()  # the most so far: what loading itself took is not a step's
    for _ in range(_MEMORY_STEPS):
        variant.step()
    return loaded, torch.cuda.max_memory_allocated() if device.type == "cuda" else _peak_resident()


def measure(plan: Plan, *, steps: int) -> tuple[Machine, Work, dict[str, Figures]]:
    """Every variant of a plan, by its name; medians of ``steps`` timed steps each.

    Raises:
        ModelError: the base cannot be loaded.
        InputError: too little memory.
    """
    load = os.getloadavg()[0]
    memory = {name: measure_memory(plan, name) for name in VARIANTS}
    device = _device()
    model = build(plan, device)
    examples = make_examples(plan, model)
    variants = {name: Variant(name, model, plan, examples) for name in VARIANTS}
    flops = {name: v.flops() for name, v in variants.items()}
    executed = {name: v.executed_flops() for name, v in variants.items()}
    gc.collect()

    product = _Product(device, plan.run.train.precision)
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    rates: list[float] = []
    for turn in range(_WARM_UP + steps):
        taken = {name: v.step() for name, v in variants.items()}
        rate = product.flops_per_second()
        if turn >= _WARM_UP:
            rates.append(rate)
            for name, t in taken.items():
                seconds[name].append(t)
    machine = _machine(device, plan, load=load, product_flops=statistics.median(rates))
    figures = {}
    for name in VARIANTS:
        speed = len(examples) / statistics.median(seconds[name])
        datasheet = machine.datasheet_flops
        loaded, peak = memory[name]
        figures[name] = Figures(
            seconds=seconds[name],
            pictures_per_second=speed,
            flops=flops[name],
            executed_flops=executed[name],
            utilization=flops[name] * speed / machine.product_flops,
            datasheet_utilization=flops[name] * speed / datasheet if datasheet else None,
            loaded_bytes=loaded,
            peak_bytes=peak,
        )
    return machine, _work(variants[DOUBLE_PASS]), figures


class _Product:
    """The matrix product that stands for the machine's peak."""

    def __init__(self, device: torch.device, precision: str) -> None:
        self.side = _PRODUCT_SIDE[device.type]
        dtype = getattr(torch, precision)
        self.left, self.right = (torch.randn(self.side, self.side, device=device, dtype=dtype) for _ in range(2))

    def flops_per_second(self) -> float:
        device = self.left.device
        torch.mm(self.left, self.right)
        _synchronize(device)
        started = time.perf_counter()
        for _ in range(_PRODUCTS):
            torch.mm(self.left, self.right)
        _synchronize(device)
        return _PRODUCTS * 2 * self.side**3 / (time.perf_counter() - started)


def _work(variant: Variant) -> Work:
    batches, count = variant.batches, len(variant.examples)
    image_token = variant.model.inputs.image_token
    return Work(
        batch_size=count,
        micro_batch_size=variant.size,
        image_tokens=sum(int((b.first.input_ids == image_token).sum()) for b in batches) / count,
        text_tokens=sum(int((b.packed.segment > 0).sum()) for b in batches) / count,
        caption_tokens=sum(int(b.texts[1].sum()) for b in batches if b.texts) / count,
    )


def _machine(device: torch.device, plan: Plan, *, load: float, product_flops: float) -> Machine:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return Machine(
        device=name,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        precision=plan.run.train.precision,
        load=load,
        product_flops=product_flops,
        datasheet_flops=next((f for part, f in _DATASHEET.items() if part in name), None),
    )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((v.strip() for k, _, v in (x.partition(":") for x in lines) if k.strip() == "model name"), "") or (
        platform.processor() or platform.machine()
    )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_resident() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# ---- the command ----


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fwd2bot_training.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--base", default=DEFAULT_MODEL, help="hub id or folder of an LVLM, or of a Fwd2Bot model's")
    what.add_argument("--shape", choices=SHAPES, help="random weights of that model's size, trained by its recipe")
    parser.add_argument("--recipe", default="mini", help="whose last phase says how --base is trained")
    parser.add_argument("--layers", type=int, metavar="N", help="cut a --shape to N layers, to try it on a CPU")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="default: the recipe's; two micro-batches (--shape)"
    )
    parser.add_argument("--micro-batch-size", type=int, metavar="N", help="default: the recipe's")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="timed steps of each variant")
    parser.add_argument(
        "--gpu-hours",
        type=int,
        nargs="?",
        const=INSTRUCTIONS,
        metavar="N",
        help=f"of N pictures (default: {INSTRUCTIONS}, LLaVA's instruction data once) at the measured speed",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args(arguments)
    try:
        plan = make_plan(
            base=given.base,
            shape=given.shape,
            recipe=given.recipe,
            layers=given.layers,
            batch_size=given.batch_size,
            micro_batch_size=given.micro_batch_size,
        )
        if given.steps < 1:
            raise InputError("--steps must be at least 1.")
        warn_of_emulation(plan.run.train.precision, _device())
        machine, work, figures = measure(plan, steps=given.steps)
    except torch.OutOfMemoryError:
        parser.error("too little GPU memory: give a lower --micro-batch-size.")
    except Fwd2BotError as e:
        parser.error(str(e))
    hours = given.gpu_hours if torch.cuda.is_available() else None
    print(report(plan, machine, work, figures, hours=hours))
    if given.json:
        content = {
            "plan": asdict(plan),
            "machine": asdict(machine),
            "work": asdict(work),
            "variants": {name: asdict(f) for name, f in figures.items()},
        }
        given.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def make_plan(
    *,
    base: str = DEFAULT_MODEL,
    shape: str | None = None,
    recipe: str = "mini",
    layers: int | None = None,
    batch_size: int | None = None,
    micro_batch_size: int | None = None,
) -> Plan:
    """
    Raises:
        InputError: settings that cannot be measured.
        ModelError: there is no such base.
    """
    if layers is not None and (shape is None or layers < 1):
        raise InputError("--layers cuts a --shape, to at least 1.")
    if shape is not None and layers is None and not torch.cuda.is_available():
        raise InputError(f"--shape {shape} needs a GPU, and there is none: give --layers 1 to try it on a CPU.")
    run = load_recipe(shape or recipe).last_of_both
    method, train = run.method, run.train
    if method.objective != "double-pass" or not (method.ar_weight and method.contrastive_weight):
        raise InputError(f"The recipe {recipe} does not end in a double pass with both of its losses.")
    if micro_batch_size is not None:
        train = replace(train, micro_batch_size=micro_batch_size)
    if batch_size is not None:
        train = replace(train, batch_size=batch_size)
    elif shape is not None:
        train = replace(train, batch_size=2 * train.micro_batch_size or train.batch_size)
    model = run.model
    if shape is None:
        model = replace(model, base=str(resolve(base).base_folder))
    return Plan(name=shape or base, run=replace(run, model=model, train=train), shape=shape, layers=layers)


def report(plan: Plan, machine: Machine, work: Work, figures: dict[str, Figures], *, hours: int | None) -> str:
    header = [
        "training step",
        "pictures/s",
        "of uncompressed",
        "GFLOP/picture",
        "executed",
        "share of floor",
        "memory, loaded",
        "step above it",
    ]
    if machine.datasheet_flops:
        header.append("share of datasheet")
    if hours is not None:
        header.append(f"GPU-hours for {hours}")
    plain = figures[UNCOMPRESSED].pictures_per_second
    rows = []
    for name, f in figures.items():
        row = [
            name,
            f"{f.pictures_per_second:.3g}",
            f"{f.pictures_per_second / plain:.2f}",
            f"{f.flops / 1e9:.4g}",
            f"{f.executed_flops / 1e9:.4g}",
            f"{f.utilization:.0%}",
            f"{f.loaded_bytes / 2**30:.2f} GiB",
            f"{(f.peak_bytes - f.loaded_bytes) / 2**30:.2f} GiB",
        ]
        if f.datasheet_utilization is not None:
            row.append(f"{f.datasheet_utilization:.0%}")
        if hours is not None:
            row.append(f"{hours / f.pictures_per_second / 3600:.1f}")
        rows.append(row)
    table = "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])
    what = plan.name + (", random weights" if plan.shape else "")
    cut = f", cut to {plan.layers} layers" if plan.layers else ""
    lines = [
        f"{machine.device}, {machine.threads} threads, torch {machine.torch}, {machine.precision}; load "
        f"{machine.load:.1f} before this run; a matrix product runs at {machine.product_flops / 1e12:.3g} TFLOP/s.",
        f"{what}{cut}: steps of {work.batch_size} pictures in micro-batches of {work.micro_batch_size}; each picture "
        f"has {work.image_tokens:.0f} image tokens, {work.text_tokens:.0f} of questions and answers, "
        f"{work.caption_tokens:.0f} of captions; K = {plan.run.model.num_tokens}.",
    ]
    if hours is not None:
        lines.append(f"GPU-hours: {hours} pictures once, at this speed on one GPU of this kind, data at hand.")
    return "\n".join([*lines, "", table])


if __name__ == "__main__":
    main()
