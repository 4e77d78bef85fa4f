"""A picture and a change of it as one query: which way of composing them finds the changed picture.

    python -m fwd2bot_eval.bench_compose --json compose.json

A drawn scene is the reference; one of its objects gets another colour (*color*), becomes another one (*object*) or goes
(*without*), and the changed scene is what is looked for, among 1,000 scenes that hold all references too. Summary
tokens are those that the default codec gives back. Ways:

- *reference*, *words*: one of the two alone. The words are those that ``fwd2bot search --but`` would be told: "with a
  red circle instead of the blue square", "without the green triangle";
- *sum*: reference and whole words, embeddings as they are;
- *whole, w*: reference and whole words as terms of standardised cosines, the words with weight w;
- *parts, w*: the same with the words taken apart by `fwd2bot_index.queries.changes`: what is to go counts against;
- *toward, w*: of the parts only what is to come, as if nobody had said what is to go;
- *read*: the LLM reads the reference's summary tokens, where a picture would be, and the words, and its state at the
  position that embeds a text is the query, under either stage; *recompressed*: its states at the summary positions
  after that are, as those of a picture. Nothing was trained for them;
- *generated*: the model is asked for the caption of the reference, so changed; the caption is embedded;
- *described*: everything in the changed scene, said in words: what a perfect reader could ask for.

Each without the references among the answers, as ``--like`` has it, and with all of them, as ``--image`` has it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch.nn import functional as F

from fwd2bot_eval.default_model import compress, stored
from fwd2bot_index import scenes
from fwd2bot_index.checkpoints import DEFAULT_MODEL
from fwd2bot_index.config import DEFAULT_CODEC
from fwd2bot_index.queries import changes, combined

if TYPE_CHECKING:
    from fwd2bot_index.model import Fwd2BotModel
    from fwd2bot_index.payloads import Float32
    from fwd2bot_index.types import Stage

WEIGHTS = (0.35, 0.5, 0.6, 0.7, 0.85, 1.0)
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Change:
    """A scene after a change, and the words for it."""

    scene: scenes.Scene
    words: str


def changed(scene: scenes.Scene, rng: np.random.Generator) -> dict[str, Change]:
    """One change of each kind, of an object that is alone in its shape; none where there is no such object."""
    alone = [i for i, t in enumerate(scene.things) if sum(t.shape == o.shape for o in scene.things) == 1]
    unused = sorted(set(scenes.SHAPES) - {t.shape for t in scene.things})
    if not alone or not unused or len(scene.things) == 1:
        return {}
    i = int(rng.choice(alone))
    thing = scene.things[i]
    old = f"the {thing.color} {thing.shape}"
    before, after = scene.things[:i], scene.things[i + 1 :]
    color = str(rng.choice([c for c in scenes.COLORS if c != thing.color]))
    shape = str(rng.choice(unused))

    def instead(**attributes: str) -> Change:
        new = replace(thing, **attributes)  # type: ignore[arg-type]
        words = f"with {scenes.a_or_an(f'{new.color} {new.shape}')} instead of {old}"
        return Change(scene=replace(scene, things=(*before, new, *after)), words=words)

    return {
        "color": instead(color=color),
        "object": instead(color=color, shape=shape),
        "without": Change(scene=replace(scene, things=(*before, *after)), words=f"without {old}"),
    }


@torch.inference_mode()
def read(
    model: Fwd2BotModel, tokens: torch.Tensor, words: Sequence[str], *, stage: Stage, at: Literal["text", "summary"]
) -> Float32:
    """[B, E], unit length: see *read* and *recompressed* above.

    Args:
        tokens: [B, K, D].
        at: the position whose states are the embedding.
    """
    assert model.queries is not None
    assert model.text_query is not None
    ids, mask = model.prepare_prompts(list(words), len(tokens), num_tokens=tokens.shape[1])
    queries = model.text_query if at == "text" else model.queries[: tokens.shape[1]]
    n = len(queries)
    ids, mask = F.pad(ids, (0, n), value=model.inputs.padding), F.pad(mask, (0, n), value=1)
    places = ids == model.inputs.image_token

    def place(rows: torch.Tensor) -> torch.Tensor:
        rows = rows.masked_scatter(places[..., None], tokens)
        # a summary position begins with the content of its region, of which the old token is what is left
        asked = queries.expand(len(rows), -1, -1) + (tokens if at == "summary" else 0)
        return torch.cat([rows[:, :-n], asked], dim=1)

    with model.stage(stage):
        states = model._run(ids, mask, edit=place, suffix=n)[:, -n:]
    if at == "summary":
        return np.asarray(model.embed_tokens(model.normalize_tokens(states)).numpy(), np.float32)
    head = model.text_head
    return np.asarray(F.normalize(head(states[:, -1]) if head is not None else states[:, -1], dim=-1), np.float32)


def embed(model: Fwd2BotModel, texts: Sequence[str]) -> Float32:
    parts = [model.embed_text(texts[i : i + BATCH]).cpu().numpy() for i in range(0, len(texts), BATCH)]
    return np.concatenate(parts)


def ways(
    model: Fwd2BotModel, tokens: torch.Tensor, references: Float32, made: Sequence[Change], corpus: Float32
) -> dict[str, Float32]:
    """Queries [n, E] by each way, for references with these tokens [n, K, D] and embeddings [n, E]."""
    whole = [c.words for c in made]
    terms = [changes(words, weight=1.0) for words in whole]
    texts = list(dict.fromkeys([*whole, *(str(t.text) for ts in terms for t in ts)]))
    embedded = dict(zip(texts, embed(model, texts), strict=True))

    def composed(parts: Sequence[Sequence[tuple[str, float]]], weight: float) -> Float32:
        return np.stack(
            [
                combined(
                    np.stack([reference, *(embedded[text] for text, _ in own)]),
                    [1.0, *(weight * sign for _, sign in own)],
                    corpus,
                )
                for reference, own in zip(references, parts, strict=True)
            ]
        )

    words = np.stack([embedded[w] for w in whole])
    as_one = [[(w, 1.0)] for w in whole]
    apart = [[(str(t.text), t.weight) for t in ts] for ts in terms]
    prompt = model.caption_prompt.rstrip(".")
    queries = {"reference": references, "words": words, "sum": words + references}
    queries |= {f"whole, {w:g}": composed(as_one, w) for w in WEIGHTS}
    queries |= {f"parts, {w:g}": composed(apart, w) for w in WEIGHTS}
    toward = [[(text, sign) for text, sign in own if sign > 0] for own in apart]
    queries |= {f"toward, {w:g}": composed(toward, w) for w in WEIGHTS}
    batches = [slice(i, i + BATCH) for i in range(0, len(made), BATCH)]
    stages: tuple[Stage, ...] = ("compress", "generate")
    for stage in stages:
        queries[f"read, {stage}"] = np.concatenate(
            [read(model, tokens[b], whole[b], stage=stage, at="text") for b in batches]
        )
        queries[f"recompressed, {stage}"] = np.concatenate(
            [read(model, tokens[b], whole[b], stage=stage, at="summary") for b in batches]
        )
    said = [t for b in batches for t in model.generate(tokens[b], [f"{prompt} {w}." for w in whole[b]])]
    queries["generated"] = embed(model, said)
    queries["described"] = embed(model, [scenes.describe(c.scene) for c in made])
    return queries


def measure(model: Fwd2BotModel, *, stream: str, pool: int, queries: int) -> dict[str, dict[str, dict[str, float]]]:
    """By kind of change and way: R@1 and its standard error, R@5, and both with the references among the answers."""
    all_scenes = [scenes.scene(i, stream=stream) for i in range(pool)]
    made = {i: c for i, s in enumerate(all_scenes) if (c := changed(s, np.random.default_rng([11, i])))}
    rows = list(made)[: min(queries, pool // 2)]
    n = len(rows)
    tokens, embeddings = compress(model, [scenes.render(s, size=96) for s in all_scenes])
    tokens = stored(tokens, DEFAULT_CODEC)[rows]
    others = [i for i in range(pool) if i not in set(rows)][: pool - 2 * n]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind in ("color", "object", "without"):
        own = [made[i][kind] for i in rows]
        _, targets = compress(model, [scenes.render(c.scene, size=96) for c in own])
        corpus = torch.cat([embeddings[rows], targets, embeddings[others]]).numpy()
        found[kind] = {
            way: recalls(query @ corpus.T) for way, query in ways(model, tokens, corpus[:n], own, corpus).items()
        }
    found["of"] = {"of": {"queries": n, "pool": pool, "chance R@1": 1 / pool}}
    return found


def recalls(scores: Float32) -> dict[str, float]:
    """Of n queries ``scores`` [n, pool], whose references come first in the pool and whose targets second, in order;
    ties count against us."""
    n = len(scores)
    at = np.arange(n)
    target = scores[at, n + at]
    with_it = (scores >= target[:, None]).sum(axis=1) - 1
    without_it = with_it - (scores[at, at] >= target)
    r1 = float((without_it == 0).mean())
    return {
        "R@1": r1,
        "error": float(np.sqrt(r1 * (1 - r1) / n)),
        "R@5": float((without_it < 5).mean()),
        "R@1 with references": float((with_it == 0).mean()),
        "R@5 with references": float((with_it < 5).mean()),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fwd2bot_eval.bench_compose",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--stream", default="held out", help="of scenes; weights were chosen on `val`")
    parser.add_argument("--pool", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=300, help="of each kind of change")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args(arguments)

    from fwd2bot_index.model import Fwd2BotModel

    model = Fwd2BotModel.from_pretrained(given.model)
    figures = measure(model, stream=given.stream, pool=given.pool, queries=given.queries)
    print(_table(figures))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _table(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """In Markdown."""
    of = figures["of"]["of"]
    kinds = [kind for kind in figures if kind != "of"]
    lines = [
        f"{of['queries']:g} references and as many changed scenes among {of['pool']:g}; chance {of['chance R@1']:.4f}. "
        "R@1 / R@5 without references among the answers; R@1 with them",
        "",
        "| query | " + " | ".join(kinds) + " |",
        "|---" * (len(kinds) + 1) + "|",
    ]
    for way in figures[kinds[0]]:
        cells = [
            f"{f['R@1']:.3f} ± {f['error']:.3f} / {f['R@5']:.3f}; {f['R@1 with references']:.3f}"
            for f in (figures[kind][way] for kind in kinds)
        ]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
