"""Storage against quality: answers and retrieval at each number of summary tokens and codec, by bytes per picture.

Every cell is measured on tokens that went through the codec's bytes and back, as an index would give them; codecs that
are fitted are fitted to other pictures, as far as there are any. *Retrieval
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from fwd2bot_eval.default_model import fit_tokens, held_out, stored
from fwd2bot_eval.metrics import Floats, estimate, ranks_of
from fwd2bot_eval.results import Estimate, Skipped, Table, TaskResult
from fwd2bot_eval.runs import PictureFile, Progress, claim, identity_of, machine
from fwd2bot_eval.subjects import Fwd2BotSubject, computing
from fwd2bot_eval.tasks.captioned import captioned
from fwd2bot_eval.tasks.options import TaskOptions
from fwd2bot_index import scenes
from fwd2bot_index.codec import CODEC_NAMES, is_fitted, payload_bytes
from fwd2bot_index.decoding import decode_image
from fwd2bot_index.errors import ImageError, InputError
from fwd2bot_index.model import Fwd2BotModel
from fwd2bot_index.product_codec import FIT_PICTURES
from fwd2bot_index.types import SummaryTokens

SCENES: Final = 200
SCENE_SIDE: Final = 96
PLOT: Final = "budget.png"
_BATCH: Final = 64
_ANSWER_TOKENS: Final = 6
EMBEDDING_BYTES: Final = 2
"""Of a number: an index stores embeddings in float16."""
BUDGET: Final = "budget"
ANSWERS: Final = "answers"
PHOTOS: Final = "text -> image, photos"
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
    fit: torch.Tensor | None = None
    """[F, K, D], of other pictures like these, which codecs are fitted to; None: there are none."""

    @property
    def clusters(self) -> list[str]:
        """[T]"""
        return [self.keys[i] for i in self.of_text]

    def recalls(self, embedded: Floats) -> Values:
        """Whether each text finds its picture among those ``embedded`` [N, E]."""
        ranks = ranks_of(self.texts, embedded, [[i] for i in self.of_text])
        return {f"R@{k}": (ranks <= k).astype(np.float64) for k in (1, 10)}


class Budget:
    """What is measured, and on what.

    Args:
        data: captioned pictures, as the retrieval task takes them; None: drawn scenes only.
        ks: numbers of summary tokens; None: all, and powers of two below.
        limit: pictures of each pool; None: 200 scenes, and all of ``data``.
        allow_missing: leave out pictures of ``data`` that are missing or broken.
    Raises:
        InputError: a training-free model, whose tokens are no prefixes of one another, a k that it does not have, or
            ``data`` as the retrieval task refuses it.
    """

    def __init__(
        self,
        model: Fwd2BotModel,
        *,
        data: Path | None = None,
        split: str | None = None,
        ks: Sequence[int] | None = None,
        limit: int | None = None,
        allow_missing: bool = False,
    ) -> None:
        if model.mode != "trained":
            raise InputError(
                f"{model.name} is training-free: its k tokens are pooled anew for each k, so there is no budget."
            )
        own = model.num_summary_tokens
        self.model = model
        self.ks = sorted(set(ks or [own, *(k for k in (64, 32, 16, 8, 4, 2, 1) if k < own)]), reverse=True)
        if bad := [k for k in self.ks if not 1 <= k <= own]:
            raise InputError(f"{model.name} has {own} summary tokens; it cannot be read at k = {bad[0]}.")
        if limit is not None and limit < 1:
            raise InputError(f"--limit must be at least 1, not {limit}.")
        if data is None and split is not None:
            raise InputError(f"--split {split}: drawn scenes have no splits; it is one of --data.")
        if data is not None and not data.exists():
            raise InputError(f"--data {data} does not exist.")
        self._options = TaskOptions(data=data or Path(), split=split, limit=limit, allow_missing=allow_missing)
        self._photos = captioned(self._options) if data is not None else None
        self.data = str(data) if data is not None else "drawn scenes"
        self.settings: dict[str, Any] = {
            "ks": self.ks,
            "codecs": list(CODEC_NAMES),
            "fit_pictures": FIT_PICTURES,
            **self._options.settings,
            **computing(model.base),
        }
        self.identity = identity_of(
            task=BUDGET,
            data=self._photos.signature(self._options) if self._photos is not None else "",
            model=model.full_fingerprint,
            settings=self.settings,
        )

    def run(self, folder: Path, *, progress: Callable[[Progress], None] | None = None, command: str = "") -> TaskResult:
        """Measure, and write ``result.json`` and the plot into ``folder``.

        Raises:
            InputError: a picture cannot be used, or ``folder`` holds something else.
        """
        claim(folder, self.identity)
        model, own, best = self.model, self.model.num_summary_tokens, CODEC_NAMES[0]
        started = time.perf_counter()
        skipped: list[Skipped] = []
        drawn, questions = _drawn(model, self._options.limit or SCENES)
        pools = [drawn, *([self._photo_pool(skipped)] if self._photos is not None else [])]
        asked = sorted(((q, i) for i, qs in enumerate(questions) for q in qs), key=lambda pair: len(pair[0].text))
        clusters = {ANSWERS: [str(i) for _, i in asked], **{p.title: p.clusters for p in pools}}

        full = _cell(model, pools, asked, own, best)
        rows: dict[str, dict[str, dict[str, Estimate]]] = {title: {} for title in full}
        cells = [(k, name) for k in self.ks for name in CODEC_NAMES]
        for done, (k, name) in enumerate(cells, start=1):
            values = full if (k, name) == (own, best) else _cell(model, pools, asked, k, name)
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

        said = f"A loss is against k={own} {best}."
        explanations = {
            ANSWERS: f"Exact answers to {len(asked)} questions about {len(drawn.keys)} drawn scenes; without tokens "
            f"the most frequent answer of each type of question, counted in these very questions. {said}",
            **{
                p.title: f"{len(p.of_text)} texts among {len(p.keys)} pictures, embedded from the tokens alone; by "
                f"chance R@1 is {1 / len(p.keys):.3g}. {said}"
                for p in pools
            },
        }
        tables = [
            Table(
                title=title, row_header="tokens", columns=_columns(full[title]), rows=r, explanation=explanations[title]
            )
            for title, r in rows.items()
        ]
        note = plot(tables, self.ks, folder / PLOT)
        result = TaskResult(
            task=BUDGET,
            model=model.name,
            fingerprint=model.full_fingerprint,
            data=self.data,
            settings=self.settings,
            tables=tables,
            items=len(asked) + sum(len(p.of_text) for p in pools),
            skipped=skipped,
            notes=[
                "Bytes are of one picture, as an index stores it.",
                *(_fit_note(pool) for pool in pools),
                *([note] if note else []),
            ],
            seconds=time.perf_counter() - started,
            machine=machine(self.settings),
            command=command,
            figures=[] if note else [PLOT],
        )
        result.write(folder / "result.json")
        return result

    def _photo_pool(self, skipped: list[Skipped]) -> _Pool:
        """Those that cannot be used are ``skipped``, where that is allowed."""
        assert self._photos is not None

        def scored() -> Iterator[tuple[str, Any, list[str]]]:
            assert self._photos is not None
            for picture, items in self._photos.read(True):
                texts = [text for item in items for text in item.references]
                try:
                    yield picture.key, self._decoded(picture), texts
                except ImageError as e:
                    if not self._options.allow_missing:
                        raise InputError(
                            f"{picture.where} cannot be used: {e.reason}. Use --allow-missing to go on."
                        ) from e
                    skipped.append(Skipped(where=picture.where, reason=e.reason, items=len(texts)))

        pool = _pool(self.model, PHOTOS, scored())
        others = itertools.islice(self._other_photos(set(pool.keys)), FIT_PICTURES)
        made: list[torch.Tensor] = []
        while batch := list(itertools.islice(others, _BATCH)):
            made.append(self.model.compress(batch).tokens.cpu())
        return replace(pool, fit=torch.cat(made) if made else None)

    def _other_photos(self, keys: set[str]) -> Iterator[Any]:
        """Of the same source, behind those that are scored, whose keys are ``keys``."""
        limit = self._options.limit
        if limit is None:
            return
        more = captioned(replace(self._options, limit=limit + FIT_PICTURES, allow_missing=True))
        for picture, _ in itertools.islice(more.read(True), limit, None):
            if picture.key in keys:
                continue
            try:
                image = self._decoded(picture)
            except ImageError:
                continue
            yield image

    def _decoded(self, picture: PictureFile) -> Any:
        return decode_image(picture.read(), max_side=self.model.decode_side).image


def _fit_note(pool: _Pool) -> str:
    codecs = ", ".join(name for name in CODEC_NAMES if is_fitted(name))
    if pool.fit is None:
        return (
            f"{pool.title}: {codecs} are fitted to the very pictures that are scored, for want of others (a --limit "
            "leaves some): their scores are better than an index of more pictures has them."
        )
    return f"{pool.title}: {codecs} are fitted to {len(pool.fit)} other pictures."


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
        tokens = stored(pool.tokens[:, :k], codec, fit=None if pool.fit is None else pool.fit[:, :k])
        if pool is pools[0]:
            values[ANSWERS] = {ANSWERS: _answer(model, tokens, asked)}
        values[pool.title] = pool.recalls(_embedded(model, tokens))
    return values


def _scores(size: int, values: Values, full: Values, clusters: Sequence[str]) -> dict[str, Estimate]:
    scores = {BYTES: Estimate.exact(size)}
    for name, scored in values.items():
        scores[name] = estimate(scored, clusters)
        lost = f"loss of {name}"
        itself = scored is full[name]
        scores[lost] = Estimate.exact(0) if itself else estimate(full[name] - scored, clusters, scale=(-1, 1))
    return scores


def _drawn(model: Fwd2BotModel, count: int) -> tuple[_Pool, list[list[scenes.Question]]]:
    pool, questions, captions = held_out(count)
    images = (scenes.render(s, size=SCENE_SIDE) for s in pool)
    texts = [[str(c)] for c in captions]
    keys = [str(i) for i in range(count)]
    made = _pool(model, "text -> image, scenes", zip(keys, images, texts, strict=True))
    return replace(made, fit=fit_tokens(model, FIT_PICTURES)), questions


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
