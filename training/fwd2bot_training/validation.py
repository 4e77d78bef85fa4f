"""Held-out answers and retrieval while a model trains, by the very objective that trains it: exact answers by teacher
forcing (an answer is right when every token of it is the likeliest, which is when greedy decoding would give it),
retrieval in the pool of each source's pictures, ties counted against the model.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fwd2bot_index.errors import InputError
from fwd2bot_training.data import Example, Source
from fwd2bot_training.distributed import Processes
from fwd2bot_training.objectives import Batch, Objective

_SAMPLES = 12
_QUERIES = 6
_SHOWN = 5
_LARGEST = 320
"""Longest side, in pixels, of a picture in the report."""


class Validation:
    """Called with a step; gives what ``validation.jsonl`` and the report hold.

    Args:
        sources: held-out ones; of each, the first ``pictures`` rows (or drawn scenes).
        processes: share the pictures out; all of them must call, and all get the whole result.
    """

    def __init__(
        self,
        objective: Objective,
        sources: Sequence[Source],
        *,
        pictures: int,
        batch_size: int,
        processes: Processes | None = None,
        precision: str = "float32",
    ) -> None:
        self.objective = objective
        self.sources = sources
        self.pictures = pictures
        self.batch_size = batch_size
        self.processes = processes or Processes()
        self.precision = precision
        self._collate = objective.collator()

    def __call__(
        self, *, num_tokens: int | None = None, answers: bool = True, retrieval: bool = True
    ) -> dict[str, Any]:
        """``answers``: {source/kind: {right, count}}; ``retrieval``: {source: {pictures, texts, R@k both ways}}.

        Args:
            num_tokens: k' of the K summary tokens that are read; embeddings are always of all.
            answers, retrieval: whether to compute this part; empty if not.
        """
        told: dict[str, dict[str, int]] = {}
        found: dict[str, dict[str, float]] = {}
        with self.evaluating():
            for source in self.sources:
                right: Counter[str] = Counter()
                count: Counter[str] = Counter()
                embedded: list[tuple[torch.Tensor, list[str]]] = []
                run = self._run(source, num_tokens=num_tokens, answers=answers, retrieval=retrieval)
                of_ranks = self.processes.gather(list(run))
                for kinds, images, captions in (item for items in of_ranks for item in items):
                    for kind, is_right in kinds:
                        right[kind] += is_right
                        count[kind] += 1
                    if images is not None:
                        embedded.append((images, captions))
                for kind in sorted(count):
                    told[f"{source.name}/{kind}"] = {"right": right[kind], "count": count[kind]}
                if embedded:
                    images = torch.cat([i for i, _ in embedded])
                    texts = self._embed_texts([c for _, captions in embedded for c in captions])
                    found[source.name] = recalls(texts.numpy() @ images.numpy().T)
        return {"answers": told, "retrieval": found}

    def examples(self, source: Source, indices: Sequence[int]) -> list[Example]:
        """Each drawn with a generator of its own number: the same at every validation."""
        return [source.example(i, np.random.default_rng([9, i]), step=0) for i in indices]

    def _run(
        self, source: Source, *, num_tokens: int | None, answers: bool, retrieval: bool
    ) -> Iterator[tuple[Any, torch.Tensor | None, list[str]]]:
        """One item a batch of this process; every process runs as many, so that sharded models stay in step."""
        total = min(self.pictures, len(source) or self.pictures)
        starts = range(0, total, self.batch_size)
        for turn in range(-(-len(starts) // self.processes.size)):
            place = turn * self.processes.size + self.processes.rank
            start = starts[min(place, len(starts) - 1)]
            examples = self.examples(source, range(start, min(start + self.batch_size, total)))
            batch = self._collate(0, source.name, examples).to(self.objective.model.device)
            answered = self.objective.answered(batch, num_tokens=num_tokens) if answers else []
            embeds = retrieval and batch.captions
            images = self.objective.embed(batch)[list(batch.captioned)].float().cpu() if embeds else None
            if place < len(starts):
                captions = [e.caption for e in examples if e.caption is not None] if embeds else []
                yield [(a.kind, a.right) for a in answered], images, captions

    def _embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        step = 4 * self.batch_size
        parts = [self.objective.embed_texts(texts[i : i + step]) for i in range(0, len(texts), step)]
        return torch.cat(parts).float().cpu()

    def write_samples(self, folder: Path) -> None:
        """Pictures with question, expected and given answer, and what a few captions find: ``samples.json`` and
        ``retrieval.json`` in ``folder``, which is replaced. All processes compute (a model in shards needs them), the
        first writes."""
        first = self.processes.rank == 0
        fresh = folder.with_name(folder.name + ".new") if first else Path(tempfile.mkdtemp())
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        samples: list[dict[str, Any]] = []
        found: list[dict[str, Any]] = []
        with self.evaluating():
            for source in self.sources:
                total = min(self.pictures, len(source) or self.pictures)
                samples += self._sample_answers(source, range(min(_SAMPLES, total)), fresh)
                found += self._sample_searches(source, total, fresh)
        if not first:
            shutil.rmtree(fresh)
            return
        (fresh / "samples.json").write_text(json.dumps(samples, indent=1), encoding="utf-8")
        (fresh / "retrieval.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)

    def _sample_answers(self, source: Source, indices: Sequence[int], folder: Path) -> Iterator[dict[str, Any]]:
        for i, example in zip(indices, self.examples(source, indices), strict=True):
            if not example.segments:
                continue
            segment = example.segments[i % len(example.segments)]
            batch = self._batch(source, [example])
            yield {
                "source": source.name,
                "image": _save(example, folder / f"{source.name}-{i}.jpg"),
                "prompt": segment.prompt,
                "expected": segment.answer,
                "answer": self.objective.answer(batch, segment.prompt)[0],
            }

    def _sample_searches(self, source: Source, total: int, folder: Path) -> Iterator[dict[str, Any]]:
        images: list[torch.Tensor] = []
        captions: list[str] = []
        numbers: list[int] = []
        for start in range(0, total, self.batch_size):
            examples = self.examples(source, range(start, min(start + self.batch_size, total)))
            batch = self._batch(source, examples)
            if not batch.captions:
                continue
            images.append(self.objective.embed(batch)[list(batch.captioned)].float().cpu())
            captions += [e.caption for e in examples if e.caption is not None]
            numbers += [start + i for i in batch.captioned]
        if not captions:
            return
        queries = list(range(min(_QUERIES, len(captions))))
        scores = self._embed_texts([captions[q] for q in queries]).numpy() @ torch.cat(images).numpy().T
        for q, row in zip(queries, scores, strict=True):
            order = np.argsort(-row, kind="stable").tolist()
            shown = [numbers[i] for i in order[:_SHOWN]]
            top = self.examples(source, shown)
            names = [_save(e, folder / f"{source.name}-{i}.jpg") for i, e in zip(shown, top, strict=True)]
            yield {"source": source.name, "text": captions[q], "images": names, "right": order.index(q)}

    def _batch(self, source: Source, examples: Sequence[Example]) -> Batch:
        return self._collate(0, source.name, examples).to(self.objective.model.device)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside: eval mode, no gradients, the precision of training."""
        training = self.objective.training
        self.objective.eval()
        device = self.objective.model.device.type
        try:
            with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=self.precision == "bfloat16"):
                yield
        finally:
            self.objective.train(training)


def recalls(similarities: np.ndarray[Any, np.dtype[np.float32]]) -> dict[str, float]:
    """R@1, R@5 and R@10 both ways from cosines [texts, pictures], text i of picture i; a tie counts against us."""
    if similarities.shape[0] != similarities.shape[1]:
        raise InputError("There must be one text for each picture.")
    own = similarities.diagonal()
    results: dict[str, float] = {"pictures": len(own), "texts": len(own)}
    for name, axis in (("text->image", 1), ("image->text", 0)):
        rank = (similarities >= (own[:, None] if axis == 1 else own[None])).sum(axis=axis)  # 1 is best
        results |= {f"{name} R@{k}": float((rank <= k).mean()) for k in (1, 5, 10)}
    return results


def totals(result: dict[str, Any]) -> dict[str, float]:
    """Share of right answers of each source, kinds counting alike: for a line of progress."""
    shares: dict[str, list[float]] = defaultdict(list)
    for name, cell in result["answers"].items():
        shares[name.partition("/")[0]].append(cell["right"] / cell["count"])
    return {source: float(np.mean(values)) for source, values in shares.items()}


def _save(example: Example, path: Path) -> str:
    if not path.exists():
        image = example.image.copy()
        image.thumbnail((_LARGEST, _LARGEST))
        image.save(path, quality=85)
    return path.name
