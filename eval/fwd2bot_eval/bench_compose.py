"""A picture and a change of it as one query: which way of composing them finds the changed picture.

    python -m fwd2bot_eval.bench_compose --json compose.json

A drawn scene is the reference; one of its objects gets another colour, and the changed scene is what is looked for,
among 1,000 scenes that hold both (the reference itself is left out of the answers, as ``--like`` does). Ways:

- *reference*, *words*: one of the two alone;
- *sum*: the sum of their embeddings;
- *words + reference*: what ``fwd2bot search "a red circle" --like REFERENCE`` does: terms by standardised cosines;
- *... - old words*: the same with ``--minus "a blue circle"``;
- *read*: the LLM reads the reference's summary tokens, where a picture would be, and the instruction ("with a red
  circle instead of the blue circle"), and its state at the position that embeds a text is the query. Nothing was
  trained for it.
- *described*: the model's own caption of the reference, followed by the instruction, embedded as a text.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from fwd2bot_eval.default_model import compress
from fwd2bot_index import scenes
from fwd2bot_index.checkpoints import DEFAULT_MODEL
from fwd2bot_index.queries import combined

if TYPE_CHECKING:
    from fwd2bot_index.model import Fwd2BotModel
    from fwd2bot_index.payloads import Float32

STREAM = "held out"


def changed(scene: scenes.Scene, rng: np.random.Generator) -> tuple[scenes.Scene, str, str] | None:
    """The scene with another colour of one object, and its words after and before; None where no object is alone in its
    shape."""
    alone = [i for i, t in enumerate(scene.things) if sum(t.shape == o.shape for o in scene.things) == 1]
    if not alone:
        return None
    i = int(rng.choice(alone))
    thing = scene.things[i]
    color = str(rng.choice([c for c in scenes.COLORS if c != thing.color]))
    things = (*scene.things[:i], replace(thing, color=color), *scene.things[i + 1 :])
    return replace(scene, things=things), f"a {color} {thing.shape}", f"a {thing.color} {thing.shape}"


@torch.inference_mode()
def read(model: Fwd2BotModel, tokens: torch.Tensor, instructions: Sequence[str]) -> Float32:
    """[B, E], unit length: see *read* above."""
    assert model.text_query is not None
    query = model.text_query
    ids, mask = model.prepare_prompts(list(instructions), len(tokens), num_tokens=tokens.shape[1])
    ids, mask = F.pad(ids, (0, 1), value=model.inputs.padding), F.pad(mask, (0, 1), value=1)
    places = ids == model.inputs.image_token

    def place(rows: torch.Tensor) -> torch.Tensor:
        rows = rows.masked_scatter(places[..., None], tokens)
        return torch.cat([rows[:, :-1], query.expand(len(rows), -1, -1)], dim=1)

    with model.stage("compress"):
        states = model._run(ids, mask, edit=place, suffix=1)[:, -1]
    head = model.text_head
    return np.asarray(F.normalize(head(states) if head is not None else states, dim=-1).numpy(), np.float32)


def measure(model: Fwd2BotModel, *, pool: int, queries: int) -> dict[str, dict[str, float]]:
    """R@1 and R@5 of each way, and their standard error."""
    all_scenes = [scenes.scene(i, stream=STREAM) for i in range(pool)]
    made = [(i, c) for i, s in enumerate(all_scenes) if (c := changed(s, np.random.default_rng([11, i])))][:queries]
    kept = pool - len(made)
    rows = [i for i, _ in made]
    others = [i for i in range(pool) if i not in set(rows)][: kept - len(made)]
    shown = [*(all_scenes[i] for i in rows), *(c[0] for _, c in made), *(all_scenes[i] for i in others)]
    tokens, embeddings = compress(model, [scenes.render(s, size=96) for s in shown])
    n = len(made)
    corpus = embeddings.numpy()
    new, old = [after for _, (_, after, _) in made], [before for _, (_, _, before) in made]
    words, away = (model.embed_text(texts).numpy() for texts in (new, old))
    instructions = [f"with {a} instead of the {b.removeprefix('a ')}" for a, b in zip(new, old, strict=True)]
    captions = model.generate(tokens[:n], model.caption_prompt, max_new_tokens=40)
    described = model.embed_text([f"{c} {i}" for c, i in zip(captions, instructions, strict=True)]).numpy()

    def terms(i: int, weights: Sequence[float]) -> Float32:
        chosen = np.stack([words[i], corpus[i], away[i]])[: len(weights)]
        return combined(chosen, weights, corpus)

    ways = {
        "reference": corpus[:n],
        "words": words,
        "sum": words + corpus[:n],
        "sum - old words": words + corpus[:n] - away,
        **{f"{w:g} words + reference": np.stack([terms(i, [w, 1]) for i in range(n)]) for w in (0.35, 0.5, 0.7, 1, 2)},
        **{
            f"{w:g} words + reference - {w:g} old words": np.stack([terms(i, [w, 1, -w]) for i in range(n)])
            for w in (0.35, 0.5, 0.7, 1)
        },
        "read": read(model, tokens[:n], instructions),
        "described": described,
    }
    found = {}
    for name, query in ways.items():
        scores = query @ corpus.T
        scores[np.arange(n), np.arange(n)] = -np.inf
        rank = (scores > scores[np.arange(n), n + np.arange(n)][:, None]).sum(axis=1)
        r1 = float((rank == 0).mean())
        found[name] = {"R@1": r1, "R@5": float((rank < 5).mean()), "error of R@1": float(np.sqrt(r1 * (1 - r1) / n))}
    return {**found, "of": {"queries": n, "pool": len(shown), "chance R@1": 1 / (len(shown) - 1)}}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fwd2bot_eval.bench_compose",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--pool", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args(arguments)

    from fwd2bot_index.model import Fwd2BotModel

    figures = measure(Fwd2BotModel.from_pretrained(given.model), pool=given.pool, queries=given.queries)
    of = figures.pop("of")
    print(f"{of['queries']} references and as many changed scenes among {of['pool']}; chance {of['chance R@1']:.4f}\n")
    print("| query | R@1 | R@5 |\n|---|---|---|")
    for name, by in figures.items():
        print(f"| {name} | {by['R@1']:.3f} ± {by['error of R@1']:.3f} | {by['R@5']:.3f} |")
    if given.json:
        given.json.write_text(json.dumps({**figures, "of": of}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
