"""Benchmarks by name.

A task reads the benchmark's own files and knows nothing of models; :mod:`fwd2bot_eval.runs` runs it. To add one,
write a class with the members of :class:`fwd2bot_eval.runs.Task` and name it in ``TASKS``.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Final

from fwd2bot_eval.runs import Task
from fwd2bot_eval.tasks.options import TaskOptions
from fwd2bot_index.errors import InputError

TASKS: Final[dict[str, tuple[str, str]]] = {
    "sugarcrepe": ("pairs:SugarCrepe", "seven categories of hard negatives: replace, swap, add (JSON files, val2017/)"),
    "sugarcrepe-pp": ("pairs:SugarCrepePP", "two true captions and a false one (JSON files, val2017/)"),
    "aro": ("pairs:Aro", "relations, attributes and word order (visual_genome_*.json, images/)"),
    "winoground": ("pairs:Winoground", "two pictures, two captions (examples.jsonl, images/)"),
    "retrieval": ("retrieval:Retrieval", "text to image and back: Karpathy JSON, nocaps, or caption parquet"),
    "visual7w": ("vqa:Visual7W", "multiple choice about photos (parquet with qa: options, answer_index)"),
    "vqav2": ("vqa:VQAv2", "soft accuracy over ten answers (the official two JSON files)"),
    "gqa": ("vqa:GQA", "exact match (testdev_balanced_questions.json, images/)"),
    "pope": ("vqa:POPE", "is there an object that is not there? accuracy, F1, yes-ratio (JSON lines)"),
    "mmbench": ("vqa:MMBench", "multiple choice (TSV with pictures in base64)"),
    "nlvr": ("vqa:NLVR", "true or false about drawn boxes (parquet)"),
    "daquar": ("vqa:DAQUAR", "free answers about rooms (parquet with qa)"),
    "easy-vqa": ("vqa:EasyVQA", "templated questions about one shape (parquet with qa)"),
    "shapes": ("vqa:Shapes", "compositional yes or no about grids of shapes (parquet with qa)"),
    "captions": ("captions:Captions", "CIDEr of a generated caption (COCO JSON, or caption parquet)"),
}
"""Name -> module and class, and one line for a list."""


def make_task(name: str, options: TaskOptions) -> Task[Any]:
    """The task ``name`` over the data that ``options`` names.

    Raises:
        InputError: there is no such task, or its files are not there or malformed.
    """
    if name not in TASKS:
        near = get_close_matches(name, TASKS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(TASKS)}."
        raise InputError(f"There is no task {name!r}; {hint}")
    if not options.data.exists():
        raise InputError(f"--data {options.data} does not exist.")
    if options.limit is not None and options.limit < 1:
        raise InputError(f"--limit must be at least 1, not {options.limit}.")
    module, _, attribute = TASKS[name][0].partition(":")
    factory: Callable[[TaskOptions], Task[Any]] = getattr(import_module(f"fwd2bot_eval.tasks.{module}"), attribute)
    return factory(options)
