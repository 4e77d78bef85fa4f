"""The paper's ablations, and ours, as reruns: one recipe, one base, one change each; equal steps and equal data.

    python -m fwd2bot_training.ablations --base runs/base/model --data DIR --out runs/ablations --seeds 0

Every variant trains in a folder of its own, resumes there and is passed over when finished; ``--only`` chooses some,
and a run without any left prints the table. All are scored alike, by teacher forcing and cosines, on held-out scenes
and the photos of Flickr8k's validation split; see `score`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F

from fwd2bot_index import scenes
from fwd2bot_training.config import RunConfig, SourceConfig, SourceKind, load_recipe, parse_recipe
from fwd2bot_training.distributed import Processes
from fwd2bot_training.runner import Phase, open_sources
from fwd2bot_training.validation import Validation

RECIPE = str(Path(__file__).with_name("recipes") / "ablation.toml")
SCENES = SourceConfig(name="scenes", kind="scenes", split="val")
LOOK_ALIKES: Mapping[SourceKind, str] = {"grids": "grid", "boxes": "boxes"}
"""Drawn pictures that look like those of SHAPES and NLVR, and the kind of question that their statements are."""
PHOTOS = SourceConfig(name="flickr8k", path="flickr8k/val.parquet")


@dataclass(frozen=True, kw_only=True)
class Variant:
    group: str
    changes: tuple[str, ...] = ()
    """As ``--set`` of ``fwd2bot train`` takes them."""
    lengths: tuple[int, ...] = (16, 8, 4)
    """Numbers of summary tokens at which it answers."""


def _k(num_tokens: int, prefixes: Sequence[int]) -> tuple[str, ...]:
    return (f"model.num_tokens={num_tokens}", f"method.prefixes={list(prefixes)}")


SINGLE = ("method.objective='single-pass'", "model.adapters='none'")
NO_ADAPTERS = "model.adapters='none'"
FROZEN = ("model.lr_language_model=0.0", "model.lr_projector=1.0")
VARIANTS: Mapping[str, Variant] = {
    "reference": Variant(group="reference"),
    "answers only": Variant(group="losses", changes=("method.contrastive_weight=0.0",)),
    "contrast only": Variant(group="losses", changes=("method.ar_weight=0.0", "method.contrastive_weight=1.0")),
    "single pass, both losses": Variant(group="passes", changes=SINGLE),
    "VoCo-like: single pass, answers only": Variant(
        group="compressors", changes=(*SINGLE, "method.contrastive_weight=0.0")
    ),
    "full fine-tuning, no adapters": Variant(group="adapters", changes=(NO_ADAPTERS,)),
    "stage LoRA, frozen LLM": Variant(group="adapters", changes=FROZEN),
    "shared LoRA, frozen LLM": Variant(group="adapters", changes=(*FROZEN, "model.adapters='shared'")),
    "shared LoRA and full": Variant(group="adapters", changes=("model.adapters='shared'",)),
    "average pooling": Variant(group="compressors", changes=("method.compressor='pooling'", NO_ADAPTERS)),
    "resampler, constant queries (MQT-like)": Variant(
        group="compressors", changes=("method.compressor='resampler'", NO_ADAPTERS, "model.queries='constant'")
    ),
    "resampler, region queries": Variant(group="compressors", changes=("method.compressor='resampler'", NO_ADAPTERS)),
    "constant queries": Variant(group="queries", changes=("model.queries='constant'",)),
    "nested k = 1..32": Variant(group="k", changes=_k(32, [1, 4, 8, 16, 32]), lengths=(32, 16, 8, 4, 1)),
    "k = 16 alone": Variant(group="k", changes=_k(16, [16]), lengths=(16, 8, 4, 1)),
    "k = 4 alone": Variant(group="k", changes=_k(4, [4]), lengths=(4, 1)),
    "k = 1 alone": Variant(group="k", changes=_k(1, [1]), lengths=(1,)),
    "no hard negatives": Variant(group="extras", changes=("data.negatives='none'",)),
    "token norm": Variant(group="extras", changes=("model.token_norm=true",)),
    "perceptron in the pooling": Variant(group="extras", changes=("model.pooling='mlp'",)),
    "orthogonality 0.1": Variant(group="extras", changes=("method.orthogonality_weight=0.1",)),
    "matching 0.3": Variant(group="extras", changes=("method.matching_weight=0.3",)),
    "distillation 0.5": Variant(group="extras", changes=("method.distillation_weight=0.5",)),
    "Matryoshka 24, 48, 96": Variant(group="extras", changes=("method.matryoshka=[24, 48, 96]",)),
    "storage noise int4": Variant(group="extras", changes=("method.storage_noise='int4'",)),
}


def run_of(name: str, *, base: Path, seed: int, recipe: str = RECIPE, overrides: Sequence[str] = ()) -> RunConfig:
    """The last phase of ``recipe`` that trains both passes, from this base, changed by ``overrides`` and then as the
    variant says: what it is named after is never overridden."""
    tables = load_recipe(recipe).last_of_both.tables()
    fixed = (f"model.base={json.dumps(str(base))}", f"train.seed={seed}")
    changed = parse_recipe(tables, name="ablation", overrides=[*fixed, *overrides, *VARIANTS[name].changes])
    return changed.phases[0]


def score(phase: Phase, variant: Variant, *, root: Path, count: int) -> dict[str, Any]:
    """Held-out scores of a trained phase.

    - ``answers``: for each number of tokens, share of exact answers of each question type over ``count`` scenes;
    - ``look_alikes``: the same of half as many of the other drawn pictures (more is asked of each), where the recipe
      trains on them;
    - ``retrieval``: R@k among ``count`` scenes and among all photos of the split, one caption each;
    - ``negatives``: how often a true caption is nearer (cosine) than one false by one edit; with Matryoshka also at the
      short sizes.
    """
    found: dict[str, Any] = {"answers": {}, "look_alikes": {}}
    settings: dict[str, Any] = {"batch_size": 50, "precision": phase.run.train.precision}
    on_scenes = Validation(phase.objective, open_sources([SCENES], root=root), pictures=count, **settings)
    trained_on = {s.kind for s in phase.run.data.sources}
    alike = [SourceConfig(name=kind, kind=kind, split="val") for kind in LOOK_ALIKES if kind in trained_on]
    on_alike = Validation(phase.objective, open_sources(alike, root=root), pictures=count // 2, **settings)
    for k in variant.lengths:
        num_tokens = k if k < phase.run.model.num_tokens else None
        cells = on_scenes(num_tokens=num_tokens, retrieval=False)["answers"]
        found["answers"][str(k)] = {name.partition("/")[2]: cell for name, cell in cells.items()}
        found["look_alikes"][str(k)] = on_alike(num_tokens=num_tokens, retrieval=False)["answers"]
    photos = Validation(phase.objective, open_sources([PHOTOS], root=root), pictures=1000, **settings)
    found["retrieval"] = {k: v for of in (on_scenes, photos) for k, v in of(answers=False)["retrieval"].items()}
    found["negatives"] = {"whole": hard_negatives(phase, count=count)}
    for size in phase.run.method.matryoshka:
        found["negatives"][str(size)] = hard_negatives(phase, count=count, size=size)
    return found


def hard_negatives(phase: Phase, *, count: int, size: int | None = None) -> dict[str, dict[str, int]]:
    """By kind of edit; a tie counts against the model. ``size``: of the shortened embeddings."""
    objective = phase.objective
    source = open_sources([SCENES], root=None)[0]
    precision = phase.run.train.precision
    validation = Validation(objective, [source], pictures=count, batch_size=50, precision=precision)
    won: dict[str, dict[str, int]] = defaultdict(lambda: {"right": 0, "count": 0})
    for start in range(0, count, 50):
        numbers = range(start, min(start + 50, count))
        pool = [scenes.scene(i, stream="val") for i in numbers]
        captions = [scenes.caption(s, np.random.default_rng([7, i])) for i, s in zip(numbers, pool, strict=True)]
        edits: list[Any] = [
            (row, kind, str(caption), str(false))
            for row, (i, s, caption) in enumerate(zip(numbers, pool, captions, strict=True))
            for kind, false in scenes.hard_negatives(s, caption, np.random.default_rng([8, i])).items()
        ]
        batch = objective.collator()(0, "scenes", validation.examples(source, numbers)).to(objective.model.device)
        with validation.evaluating():
            images = objective.embed(batch)[[row for row, *_ in edits]]
            true, false = (objective.embed_texts([e[n] for e in edits]) for n in (2, 3))
        images, true, false = (F.normalize(e.float()[:, :size], dim=-1) for e in (images, true, false))
        nearer = (images * true).sum(-1) > (images * false).sum(-1)
        for (_, kind, *_), is_nearer in zip(edits, nearer.tolist(), strict=True):
            won[kind]["right"] += is_nearer
            won[kind]["count"] += 1
    return dict(won)


def train_and_score(
    name: str,
    *,
    base: Path,
    root: Path,
    folder: Path,
    seed: int,
    count: int,
    recipe: str = RECIPE,
    overrides: Sequence[str] = (),
) -> None:
    run = run_of(name, base=base, seed=seed, recipe=recipe, overrides=overrides)
    phase = Phase(run, root=root, folder=folder, model=folder / "model", processes=Processes(), quiet=True)
    begun, step = time.monotonic(), phase.trainer.step
    phase.train()
    seconds = time.monotonic() - begun
    trained = sum(p.numel() for p in phase.objective.parameters() if p.requires_grad)
    scores = {
        "variant": name,
        "seed": seed,
        "steps": run.train.steps,
        "seconds": round(seconds, 1) if step == 0 else None,
        "trained_parameters": trained,
        **score(phase, VARIANTS[name], root=root, count=count),
    }
    fresh = folder / "scores.new"
    fresh.write_text(json.dumps(scores, indent=1))
    fresh.rename(folder / "scores.json")


def type_mean(cells: Mapping[str, Mapping[str, int]]) -> float:
    """Mean over the question types; the description is no question."""
    return float(np.mean([c["right"] / c["count"] for kind, c in cells.items() if kind in scenes.QUESTION_TYPES]))


def table(folder: Path) -> str:
    """Markdown: one row for each finished variant and seed, in the order of `VARIANTS`, without empty columns."""
    order = list(VARIANTS)
    found = [json.loads(p.read_text()) for p in folder.glob("*/scores.json")]
    found.sort(key=lambda s: (order.index(s["variant"]), s["seed"]))
    rows = [_row(s) for s in found]
    columns = [name for name in (rows[0] if rows else ()) if any(row[name] for row in rows)]
    lines = [columns, ["---"] * len(columns), *([row[name] for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(scores: Mapping[str, Any]) -> dict[str, str]:
    answers = {int(k): cells for k, cells in scores["answers"].items()}
    most = max(answers)
    negatives = scores["negatives"]["whole"]
    return {
        "group": VARIANTS[scores["variant"]].group,
        "variant": scores["variant"],
        "seed": str(scores["seed"]),
        "answers at K": f"{type_mean(answers[most]):.3f} (K={most})",
        **{f"k={k}": f"{type_mean(answers[k]):.3f}" if k in answers and k != most else "" for k in (8, 4, 1)},
        "description": _share(answers[most], "describe"),
        **{
            f"{source} k={k}": _share(scores["look_alikes"].get(str(k), {}), f"{source}/{kind}")
            for source, kind in LOOK_ALIKES.items()
            for k in (16, 8, 4)
        },
        "scenes t2i R@1": _recall(scores, "scenes", "R@1"),
        "photos t2i R@10": _recall(scores, "flickr8k", "R@10"),
        "swap attribute": _share(negatives, "swap_attribute"),
        "swap relation": _share(negatives, "swap_relation"),
        "replace, add": _share(negatives, "replace_attribute", "replace_object", "add"),
        "minutes": f"{scores['seconds'] / 60:.1f}" if scores["seconds"] is not None else "resumed",
    }


def _recall(scores: Mapping[str, Any], source: str, at: str) -> str:
    """Without a contrastive loss nothing has learned to embed, and nothing is searched."""
    found = scores["retrieval"].get(source)
    return f"{found[f'text->image {at}']:.3f}" if found else "none"


def _share(cells: Mapping[str, Mapping[str, int]], *kinds: str) -> str:
    """Right of these kinds together; empty where none of them was asked."""
    asked = [cells[k] for k in kinds if k in cells]
    return f"{sum(c['right'] for c in asked) / sum(c['count'] for c in asked):.3f}" if asked else ""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fwd2bot_training.ablations", description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="folder of the base LVLM that all start from")
    parser.add_argument("--data", type=Path, required=True, help="folder with flickr8k/{train,val}.parquet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default=RECIPE, help="whose last phase all change; default: ablation.toml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), metavar="VARIANT", default=list(VARIANTS))
    parser.add_argument("--scenes", type=int, default=500, help="held-out scenes that the scores are of")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="for all variants, as fwd2bot train")
    args = parser.parse_args(argv)
    for seed in args.seeds:
        for name in args.only:
            folder = args.out / f"{''.join(c if c.isalnum() else '-' for c in name)}-{seed}"
            if not (folder / "scores.json").is_file():
                print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
                train_and_score(
                    name,
                    base=args.base,
                    root=args.data,
                    folder=folder,
                    seed=seed,
                    count=args.scenes,
                    recipe=args.recipe,
                    overrides=args.set,
                )
    print(table(args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
