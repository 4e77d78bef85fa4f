"""Storage against quality: answers and retrieval at each number of summary tokens and codec, by bytes per picture.

Every cell is measured on tokens that went through the codec's bytes and back, as an index would give them. *Retrieval
from the tokens* embeds a picture by its stored tokens alone (their mean through the model's head), so that nothing else
has to be stored; *stored embedding* is what an index keeps beside them. A loss is against all tokens in float16, on the
same items: its interval is of the difference, which is narrower than those of the two scores suggest.

Shapes: N pictures, T texts, k of K summary tokens, D hidden size, E embedding size.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from fwd2bot_eval.default_model import held_out, stored
from fwd2bot_eval.metrics import Floats, estimate, ranks_of
from fwd2bot_eval.results import Estimate, Table, TaskResult
from fwd2bot_eval.runs import Progress, machine
from fwd2bot_eval.subjects import Fwd2BotSubject
from fwd2bot_eval.tasks.captioned import captioned
from fwd2bot_eval.tasks.options import TaskOptions
from fwd2bot_index import scenes
from fwd2bot_index.codec import CODEC_NAMES, payload_bytes
from fwd2bot_index.decoding import decode_image
from fwd2bot_index.errors import ImageError, InputError
from fwd2bot_index.model import Fwd2BotModel
from fwd2bot_index.types import SummaryTokens

SCENES: Final = 200
SCENE_SIDE: Final = 96
PLOT: Final = "budget.png"
_BATCH: Final = 64
_ANSWER_TOKENS: Final = 6
EMBEDDING_BYTES: Final = 2
"""Of a number: an index stores embeddings in float16."""
ANSWERS: Final = "answers"
BYTES: Final = "bytes"
STORED_EMBEDDING: Final = "stored embedding"
NO_TOKENS: Final = "most frequent answer"


Values = Mapping[str, Floats]
"""By column: what each item scored [items]."""


@dataclass(frozen=True, kw_only=True)
class _Pool:
    """Pictures to search among; ``of_text`` is the picture that each text is about."""

    title: str
    tokens: torch.Tensor
    """[N, K, D]"""
    embedding: Floats
    """[N, E], of all K tokens"""
    texts: Floats
    """[T, E]"""
    of_text: Sequence[int]
    keys: Sequence[str]

    @property
    def clusters(self) -> list[str]:
        """[T]"""
        return [self.keys[i] for i in self.of_text]

    def recalls(self, embedded: Floats) -> Values:
        """Whether each text finds its picture among those ``embedded`` [N, E]."""
        ranks = ranks_of(self.texts, embedded, [[i] for i in self.of_text])
        return {f"R@{k}": (ranks <= k).astype(np.float64) for k in (1, 10)}


def run_budget(
    model: Fwd2BotModel,
    folder: Path,
    *,
    data: Path | None = None,
    split: str | None = None,
    ks: Sequence[int] | None = None,
    limit: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    command: str = "",
) -> TaskResult:
    """Measure, and write ``result.json`` and the plot into ``folder``.

    Args:
        data: captioned pictures, as the retrieval task takes them; None: drawn scenes only.
        ks: numbers of summary tokens; None: all, and powers of two below.
        limit: pictures of each pool; None: 200 scenes, and all of ``data``.
    Raises:
        InputError: a training-free model, whose tokens are no prefixes of one another, or a k that it does not have.
    """
    if model.mode != "trained":
        raise InputError(
            f"{model.name} is training-free: its k tokens are pooled anew for each k, so there is no budget."
        )
    started = time.perf_counter()
    own = model.num_summary_tokens
    ks = sorted(set(ks or [own, *(k for k in (64, 32, 16, 8, 4, 2, 1) if k < own)]), reverse=True)
    if bad := [k for k in ks if not 1 <= k <= own]:
        raise InputError(f"{model.name} has {own} summary tokens; it cannot be read at k = {bad[0]}.")
    folder.mkdir(parents=True, exist_ok=True)
    drawn, questions = _drawn(model, limit or SCENES)
    pools = [drawn, *([_photos(model, data, split=split, limit=limit)] if data else [])]
    asked = sorted(((q, i) for i, qs in enumerate(questions) for q in qs), key=lambda pair: len(pair[0].text))
    clusters = {ANSWERS: [str(i) for _, i in asked], **{p.title: p.clusters for p in pools}}

    full = _cell(model, pools, asked, own, CODEC_NAMES[0])
    rows: dict[str, dict[str, dict[str, Estimate]]] = {title: {} for title in full}
    cells = [(k, name) for k in ks for name in CODEC_NAMES]
    for done, (k, name) in enumerate(cells, start=1):
        values = full if (k, name) == (own, CODEC_NAMES[0]) else _cell(model, pools, asked, k, name)
        size = payload_bytes(name, k, model.token_dim)
        for title, scored in values.items():
            rows[title][_row(k, name)] = _scores(size, scored, full[title], clusters[title])
        if progress is not None:
            progress(Progress(done=done, total=len(cells)))
    guessed = {ANSWERS: _most_frequent(asked)}
    rows[ANSWERS][NO_TOKENS] = _scores(0, guessed, full[ANSWERS], clusters[ANSWERS])
    size = EMBEDDING_BYTES * model.embedding_dim
    for p in pools:
        half = p.recalls(p.embedding.astype(np.float16).astype(np.float32))
        rows[p.title][STORED_EMBEDDING] = _scores(size, half, full[p.title], clusters[p.title])

    said = f"A loss is against k={own} {CODEC_NAMES[0]}."
    explanations = {
        ANSWERS: f"Exact answers to {len(asked)} questions about {len(drawn.keys)} drawn scenes; without tokens the "
        f"most frequent answer of each type of question, counted in these very questions. {said}",
        **{
            p.title: f"{len(p.of_text)} texts among {len(p.keys)} pictures, embedded from the tokens alone; by chance "
            f"R@1 is {1 / len(p.keys):.3g}. {said}"
            for p in pools
        },
    }
    tables = [
        Table(title=title, row_header="tokens", columns=_columns(full[title]), rows=r, explanation=explanations[title])
        for title, r in rows.items()
    ]
    note = plot(tables, ks, folder / PLOT)
    result = TaskResult(
        task="budget",
        model=model.name,
        fingerprint=model.fingerprint,
        data=str(data) if data else "drawn scenes",
        settings={"ks": list(ks), "codecs": list(CODEC_NAMES), "limit": limit, "split": split},
        tables=tables,
        items=len(asked) + sum(len(p.of_text) for p in pools),
        skipped=[],
        notes=["Bytes are of one picture, as an index stores it.", *([note] if note else [])],
        seconds=time.perf_counter() - started,
        machine=machine(),
        command=command,
        figures=[] if note else [PLOT],
    )
    result.write(folder / "result.json")
    return result


def _row(k: int, codec: str) -> str:
    return f"k={k} {codec}"


def _columns(values: Values) -> list[str]:
    return [BYTES, *(column for name in values for column in (name, f"loss of {name}"))]


def _cell(
    model: Fwd2BotModel, pools: Sequence[_Pool], asked: Sequence[tuple[scenes.Question, int]], k: int, codec: str
) -> dict[str, Values]:
    """By table, what tokens score that went through the codec; the first pool's are asked."""
    values: dict[str, Values] = {}
    for pool in pools:
        tokens = stored(pool.tokens[:, :k], codec)
        if pool is pools[0]:
            values[ANSWERS] = {ANSWERS: _answer(model, tokens, asked)}
        values[pool.title] = pool.recalls(_embedded(model, tokens))
    return values


def _scores(size: int, values: Values, full: Values, clusters: Sequence[str]) -> dict[str, Estimate]:
    scores = {BYTES: Estimate(value=size, low=size, high=size, items=0, clusters=0)}
    for name, scored in values.items():
        scores[name] = estimate(scored, clusters)
        scores[f"loss of {name}"] = estimate(full[name] - scored, clusters)
    return scores


def _drawn(model: Fwd2BotModel, count: int) -> tuple[_Pool, list[list[scenes.Question]]]:
    pool, questions, captions = held_out(count)
    images = (scenes.render(s, size=SCENE_SIDE) for s in pool)
    texts = [[str(c)] for c in captions]
    keys = [str(i) for i in range(count)]
    return _pool(model, "text -> image, scenes", zip(keys, images, texts, strict=True)), questions


def _photos(model: Fwd2BotModel, data: Path, *, split: str | None, limit: int | None) -> _Pool:
    source = captioned(TaskOptions(data=data, split=split, limit=limit))

    def read() -> Iterator[tuple[str, Any, list[str]]]:
        for picture, items in source.read(True):
            try:
                image = decode_image(picture.read(), max_side=model.decode_side).image
            except ImageError as e:
                raise InputError(f"{picture.where} cannot be used: {e.reason}.") from e
            yield picture.key, image, [text for item in items for text in item.references]

    return _pool(model, "text -> image, photos", read())


def _pool(model: Fwd2BotModel, title: str, pictures: Iterator[tuple[str, Any, Sequence[str]]]) -> _Pool:
    """Of keys, pictures and their texts; pictures are compressed a batch at a time, and only tokens and embeddings
    stay.

    Raises:
        InputError: there are none, or a text is too long for the model.
    """
    keys: list[str] = []
    texts: list[str] = []
    of_text: list[int] = []
    made: list[SummaryTokens] = []
    while batch := list(itertools.islice(pictures, _BATCH)):
        made.append(model.compress([image for _, image, _ in batch]))
        for key, _, said in batch:
            texts += said
            of_text += [len(keys)] * len(said)
            keys.append(key)
    if not keys:
        raise InputError("There are no pictures to measure on.")
    return _Pool(
        title=title,
        tokens=torch.cat([m.tokens.cpu() for m in made]),
        embedding=torch.cat([m.embedding.cpu() for m in made]).numpy(),
        texts=Fwd2BotSubject(model, baselines=False).embed_text(texts),
        of_text=of_text,
        keys=keys,
    )


@torch.inference_mode()
def _embedded(model: Fwd2BotModel, tokens: torch.Tensor) -> Floats:
    """[N, E]: of these tokens alone."""
    embedded: Floats = model.embed_tokens(tokens.to(model.device)).cpu().numpy()
    return embedded


def _answer(model: Fwd2BotModel, tokens: torch.Tensor, asked: Sequence[tuple[scenes.Question, int]]) -> Floats:
    """[questions]: 1 where the answer is right."""
    right = []
    for start in range(0, len(asked), _BATCH):
        part = asked[start : start + _BATCH]
        answers = model.generate(tokens[[i for _, i in part]], [q.text for q, _ in part], max_new_tokens=_ANSWER_TOKENS)
        right += [float(a == q.answer) for (q, _), a in zip(part, answers, strict=True)]
    return np.array(right)


def _most_frequent(asked: Sequence[tuple[scenes.Question, int]]) -> Floats:
    """[questions]: 1 where the most frequent answer to questions of the type is right."""
    said: dict[str, Counter[str]] = {}
    for q, _ in asked:
        said.setdefault(q.type, Counter())[q.answer] += 1
    return np.array([float(said[q.type].most_common(1)[0][0] == q.answer) for q, _ in asked])


def plot(tables: Sequence[Table], ks: Sequence[int], path: Path) -> str | None:
    """The first score of each table over bytes, a line for each codec, as a PNG; a sentence where there is no
    matplotlib."""
    try:
        # without pyplot: that would choose a backend for the whole process
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
    except ImportError:
        return "There is no plot: it takes matplotlib, `pip install 'fwd2bot[eval]'`."
    figure = Figure(figsize=(5.6 * len(tables), 4.2), layout="constrained")
    for axes, table in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables, strict=True):
        score = table.columns[1]
        for i, name in enumerate(CODEC_NAMES):
            above = i % 2 == 0  # lines often meet: two of them are labelled on the other side
            rows = [table.rows[_row(k, name)] for k in ks]
            (line,) = axes.plot(
                [r[BYTES].value for r in rows], [r[score].value for r in rows], marker="o", markersize=4, label=name
            )
            for k, r in zip(ks, rows, strict=True):
                axes.annotate(
                    str(k),
                    (r[BYTES].value, r[score].value),
                    textcoords="offset points",
                    xytext=(-3, 4) if above else (4, -10),
                    ha="right" if above else "left",
                    fontsize=8,
                    color=line.get_color(),
                )
        if NO_TOKENS in table.rows:
            axes.axhline(table.rows[NO_TOKENS][score].value, color="grey", linestyle=":", label=NO_TOKENS)
        if STORED_EMBEDDING in table.rows:
            r = table.rows[STORED_EMBEDDING]
            axes.plot([r[BYTES].value], [r[score].value], "kD", markersize=5, label=STORED_EMBEDDING)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(LogLocator(base=2, numticks=20))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(0.08)
        axes.set_title(table.title, fontsize=10)
        axes.set_xlabel("bytes per picture (at each point: its number of tokens)")
        axes.set_ylabel("exact answers, share" if score == ANSWERS else f"{score}, share")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, loc="lower right", fontsize=8)
    figure.savefig(path, dpi=150)
    return None
