"""What ``fwd2bot demo`` shows: the whole path on pictures that the package draws itself, with the truth beside it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fwd2bot_cli.console import Output, shown
from fwd2bot_cli.gallery import Card, Section, write_gallery
from fwd2bot_cli.index import run_index, tell_interrupted
from fwd2bot_cli.models import ModelChoice
from fwd2bot_cli.search import score
from fwd2bot_cli.session import Session
from fwd2bot_index.checkpoints import DEFAULT_MODEL
from fwd2bot_index.config import DEFAULT_CODEC
from fwd2bot_index.corpus import INDEX_FOLDER
from fwd2bot_index.errors import Fwd2BotError, IndexCorruptedError, IndexMismatchError, InputError
from fwd2bot_index.places import Place
from fwd2bot_index.scenes import Caption, Question, Scene, ask, caption, render, scene

if TYPE_CHECKING:
    from fwd2bot_index.corpus import Corpus
    from fwd2bot_index.types import Compressor, Hit

NUM_SCENES = 60
SCENE_SIDE = 256
STREAM = "demo"
"""A world of its own: none of these scenes was trained on."""
SHOWN_PER_SEARCH = 5
QUESTION_TYPES = ("count", "color", "exist")


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The demo's folder of pictures and what is in them."""

    folder: Path
    scenes: Sequence[Scene]

    def path(self, i: int) -> Path:
        return self.folder / f"scene-{i:02}.png"

    def scene_of(self, hit: Hit) -> Scene:
        return self.scenes[int(Path(hit.uri).stem.removeprefix("scene-"))]


def tour(session: Session, folder: Path) -> None:
    """Draw, index, search, ask, and write the gallery; every step is told on stdout.

    Raises:
        InputError: the folder holds other things.
        Fwd2BotError: it cannot be written, or there is no model.
    """
    output = session.output
    drawn = _draw(folder)
    output.data(f"Drew {NUM_SCENES} scenes in {shown(drawn.folder)}.")

    index = _index(session, folder, drawn)
    sections = [_search(output, index, drawn, wanted) for wanted in _searches(drawn)]
    sections.append(_questions(output, index, drawn))
    page = folder / "gallery.html"
    write_gallery(page, "fwd2bot demo", sections)

    output.data(f"\nAll of it with pictures: {shown(page)}")
    output.data(f"Now you:\n  cd {shown(folder)}")
    output.data(f'  {_program(folder)} search "a red circle above a blue square" --rerank')
    output.data(f'  {_program(folder)} ask "how many objects are there?" --image scenes/{drawn.path(0).name}')
    output.data(f"  {_program(folder)} index ~/Pictures --index ~/pictures.fwd2bot")


def _draw(folder: Path) -> Drawn:
    """The scenes as PNG files; those that are there already are left alone, so that a second run finds them unchanged.

    Raises:
        InputError: the folder holds other things.
        Fwd2BotError: it cannot be written.
    """
    scenes_folder = folder / "scenes"
    try:
        if folder.exists() and any(folder.iterdir()) and not scenes_folder.is_dir():
            raise InputError(f"{shown(folder)} holds other files: name an empty or a new folder for the demo.")
        scenes_folder.mkdir(parents=True, exist_ok=True)
        drawn = Drawn(folder=scenes_folder, scenes=[scene(i, stream=STREAM) for i in range(NUM_SCENES)])
        for i, picture in enumerate(drawn.scenes):
            file = BytesIO()
            render(picture, size=SCENE_SIDE).save(file, "PNG")
            path = drawn.path(i)
            if not path.exists() or path.read_bytes() != file.getvalue():
                path.write_bytes(file.getvalue())
    except OSError as e:
        raise Fwd2BotError(f"The demo cannot be written to {shown(folder)}: {e.strerror or e}.") from e
    return drawn


def _index(session: Session, folder: Path, drawn: Drawn) -> Corpus:
    """The demo's index, opened; one that another model left behind, or that is damaged, is made anew."""
    from fwd2bot_index.corpus import Corpus

    choice = ModelChoice(name=DEFAULT_MODEL)
    path = folder / INDEX_FOLDER
    place = Place.of(path)

    @cache
    def load() -> Compressor:
        return session.models.load(choice)

    def build() -> None:
        report = run_index(session, [drawn.folder], place, choice, codec=DEFAULT_CODEC, load=load)
        tell_interrupted(session.output, report)
        known = report.added + report.updated + report.renamed + report.unchanged
        session.output.data(f"Indexed {known} pictures in {report.seconds:.1f} s ({shown(path)}).")

    try:
        build()
    except (IndexMismatchError, IndexCorruptedError):
        shutil.rmtree(path)
        build()
    return Corpus.open(path, model=load)


def _searches(drawn: Drawn) -> list[Caption]:
    """One object, two objects, and two that stand in a relation; each is true of at least one scene."""
    rng = np.random.default_rng(0)
    third = NUM_SCENES // 3
    return [
        _true_caption(drawn.scenes[:third], rng, mentions=1, relation=False),
        _true_caption(drawn.scenes[third : 2 * third], rng, mentions=2, relation=False),
        _true_caption(drawn.scenes[2 * third :], rng, mentions=2, relation=True),
    ]


def _true_caption(scenes: Sequence[Scene], rng: np.random.Generator, *, mentions: int, relation: bool) -> Caption:
    """A caption of the first scene that has as much to say."""
    for picture in scenes:
        true = caption(picture, rng, max_mentions=mentions, relation=float(relation))
        if len(true.mentions) == mentions and bool(true.relations) == relation:
            return true
    raise AssertionError("the demo's scenes are fixed, and some have two objects in a relation")


def _search(output: Output, index: Corpus, drawn: Drawn, wanted: Caption) -> Section:
    fitting = sum(wanted.fits(s) for s in drawn.scenes)
    title = f'search "{wanted}" --rerank (true of {fitting} of {NUM_SCENES} scenes)'
    output.data(f"\n{title}")
    hits = index.search(str(wanted), top=SHOWN_PER_SEARCH, rerank=True)
    truths = ["true" if wanted.fits(drawn.scene_of(hit)) else "not true" for hit in hits]
    output.table(
        ("rank", "score", "fits", "path"),
        [(str(h.rank), score(h), truth, shown(h.uri)) for h, truth in zip(hits, truths, strict=True)],
    )
    return Section(
        title=title,
        cards=[
            Card(uri=h.uri, title=shown(h.uri), notes=(f"{h.rank}. · {score(h)} · {truth}",))
            for h, truth in zip(hits, truths, strict=True)
        ],
    )


def _questions(output: Output, index: Corpus, drawn: Drawn) -> Section:
    title = "ask, from the stored summary tokens alone"
    output.data(f"\n{title}")
    rows, cards = [], []
    for i, question in _asked(drawn):
        hit = index.find(drawn.path(i))
        assert hit is not None, "every scene was indexed"
        (answer,) = index.ask(question.text, [hit])
        rows.append((shown(hit.uri), question.text, answer.text, question.answer))
        notes = (question.text, f"answer: {answer.text}", f"truth: {question.answer}")
        cards.append(Card(uri=hit.uri, title=shown(hit.uri), notes=notes))
    output.table(("picture", "question", "answer", "truth"), rows)
    return Section(title=title, cards=cards)


def _asked(drawn: Drawn) -> list[tuple[int, Question]]:
    """One question of each type, each about the next scene that has one."""
    rng = np.random.default_rng(0)
    asked: list[tuple[int, Question]] = []
    i = 0
    for kind in QUESTION_TYPES:
        while (question := ask(drawn.scenes[i], kind, rng)) is None:
            i += 1
        asked.append((i, question))
        i += 1
    return asked


def _program(folder: Path) -> str:
    """How to start this very command from ``folder``: by its name where that is on the PATH."""
    if shutil.which("fwd2bot"):
        return "fwd2bot"
    return os.path.relpath(sys.argv[0], folder) if os.path.basename(sys.argv[0]) == "fwd2bot" else "fwd2bot"
