"""``fwd2bot eval``: a benchmark's own files into scores with intervals and baselines."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fwd2bot_cli.console import Output, shown
from fwd2bot_cli.models import ModelChoice
from fwd2bot_cli.options import Debug, Quiet
from fwd2bot_cli.progress import RunProgress
from fwd2bot_cli.session import Session, session_of
from fwd2bot_index.errors import InputError

if TYPE_CHECKING:
    from fwd2bot_eval.results import Table, TaskResult
    from fwd2bot_eval.runs import Progress
    from fwd2bot_eval.subjects import Subject
    from fwd2bot_index.model import Fwd2BotModel

BUDGET = "budget"
EXIT_SKIPPED = 3
_CLIP = "clip:"
_BASE = "base:"


def evaluate(
    context: typer.Context,
    task: Annotated[
        str | None, typer.Argument(metavar="TASK", help="What to score; without one, the tasks are listed.")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="A model, as for `index`; base:NAME is its LVLM training-free, clip:NAME a CLIP-type model. "
            "Several are scored one after the other and shown side by side.",
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="The benchmark's own files.")] = None,
    index: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Read summary tokens and embeddings from this index of the same pictures."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of the data; each task has its own default.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N rows of each file.")] = None,
    ks: Annotated[
        str | None, typer.Option("--k", metavar="N,N,...", help="Numbers of summary tokens to read, as 16,8,4.")
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            help="Read the tokens as an index with this codec would give them back: float16, int8, int4 or int2. "
            "Default: as the model makes them, not quantised at all. pq8, which `index` takes by default, and its like "
            "are fitted to an index: measure them by --index."
        ),
    ] = None,
    uncompressed: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The plain LVLM to compare with. Default: the model's own base."),
    ] = None,
    baselines: Annotated[
        bool, typer.Option(help="Also answer uncompressed, blind, and from another picture's tokens.")
    ] = True,
    matching_prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The yes-or-no question, with {text}. Default: the model's.")
    ] = None,
    caption_prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What a caption answers. Default: the model's.")
    ] = None,
    answer_suffix: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help='A line below open questions, "" for none. Default: "Answer the question using a single word or '
            'phrase." for a plain LVLM, none for a trained model.',
        ),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out items whose picture is missing or broken, and say so.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Records, result.json and report.md. Default: runs/eval/TASK-HASH."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result here too.")] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score models on a benchmark; the same command again goes on where a run was stopped.

    Every score comes with its number of items and a 95 % interval (bootstrap over pictures). Exit code 3: items were
    left out under --allow-missing.
    """
    session = session_of(context)
    if task is None:
        _list(session.output)
        return
    if out is not None and models is not None and len(models) > 1:
        raise InputError("--out is the folder of one run: with several models, leave it out.")
    chosen_ks = _numbers(ks)
    results: list[TaskResult] = []
    for name in models or ["default"]:
        if task == BUDGET:
            unread = {
                "--index": index is not None,
                "--codec": codec is not None,
                "--uncompressed": uncompressed is not None,
                "--no-baselines": not baselines,
                "--matching-prompt": matching_prompt is not None,
                "--caption-prompt": caption_prompt is not None,
                "--answer-suffix": answer_suffix is not None,
            }
            if given := [option for option, said in unread.items() if said]:
                raise InputError(f"{BUDGET} does not read {given[0]}: leave it out.")
            result, folder = _budget(
                session, name, data=data, split=split, ks=chosen_ks, limit=limit, allow_missing=allow_missing, out=out
            )
        else:
            from fwd2bot_eval.tasks import make_task
            from fwd2bot_eval.tasks.options import TaskOptions

            if data is None:
                raise InputError(f"Say where the files of {task} are: --data DIR.")
            made = make_task(task, TaskOptions(data=data, split=split, limit=limit, allow_missing=allow_missing))
            subject = _subject(
                session,
                name,
                ks=chosen_ks,
                index=index,
                codec=codec,
                uncompressed=uncompressed,
                baselines=baselines,
                prompts={"matching_prompt": matching_prompt, "caption_prompt": caption_prompt},
                answer_suffix=answer_suffix,
            )
            from fwd2bot_eval.runs import run, run_id

            folder = out or Path("runs") / "eval" / f"{task}-{run_id(made, subject)}"
            session.output.message(f"{task}, {name}: writing to {shown(folder)}")
            with RunProgress(session.output, unit="items", things="items") as bar:

                def tell(progress: Progress, bar: RunProgress = bar, label: str = f"{task}, {name}") -> None:
                    bar.update(phase=label, done=progress.done, total=progress.total)

                try:
                    result = run(made, subject, folder, allow_missing=allow_missing, progress=tell, command=_command())
                except KeyboardInterrupt:
                    session.output.message("stopped; what was scored is kept: the same command goes on")
                    raise
        from fwd2bot_eval.report import write_report

        report = write_report(result, folder)
        session.output.message(f"report: {shown(report)}")
        results.append(result)
    _show(session.output, results)
    if json_file is not None:
        _write_json(results, json_file)
    if any(r.skipped for r in results):
        raise typer.Exit(EXIT_SKIPPED)


def _list(output: Output) -> None:
    from fwd2bot_eval.tasks import TASKS

    rows = [(name, line) for name, (_, line) in TASKS.items()]
    output.table(("task", "what"), [*rows, (BUDGET, "answers and retrieval against bytes per picture, k by codec")])


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--k takes numbers with commas between them, as 16,8,4, not {text!r}.") from None


def _subject(
    session: Session,
    name: str,
    *,
    ks: Sequence[int] | None,
    index: Path | None,
    codec: str | None,
    uncompressed: str | None,
    baselines: bool,
    prompts: dict[str, str | None],
    answer_suffix: str | None,
) -> Subject:
    if name.startswith(_CLIP):
        from fwd2bot_eval.clip import ClipSubject

        if ks or index or codec or uncompressed:
            raise InputError(f"{name} has no summary tokens: --k, --index, --codec and --uncompressed mean nothing.")
        with session.output.waiting(f"Loading the model {name} …"):
            return ClipSubject.from_pretrained(name.removeprefix(_CLIP))
    from dataclasses import replace

    from fwd2bot_eval.subjects import Fwd2BotSubject
    from fwd2bot_index.corpus import Corpus

    model = _load(session, name, ks=ks)
    said = {key: text for key, text in prompts.items() if text is not None}
    model.config = replace(model.config, **said)  # type: ignore[arg-type]
    plain = _load(session, uncompressed, ks=None) if uncompressed else None
    opened = None
    if index is not None:
        opened = Corpus.open(index, model=model)
        opened.model  # noqa: B018 - refuses an index of another model before anything is computed
    return Fwd2BotSubject(
        model,
        ks=ks,
        uncompressed=plain,
        baselines=baselines,
        index=opened,
        codec=codec,
        short_answer_suffix=f"\n{answer_suffix}" if answer_suffix else answer_suffix,
    )


def _load(session: Session, name: str, *, ks: Sequence[int] | None) -> Fwd2BotModel:
    from fwd2bot_index.checkpoints import resolve
    from fwd2bot_index.model import Fwd2BotModel

    plain = name.startswith(_BASE)
    if plain:
        found = resolve(name.removeprefix(_BASE))
        name = str(found.base_folder)
    trained = not plain and resolve(name).config.mode == "trained"
    number = None if trained or not ks else max(ks)
    with session.output.waiting(f"Loading the model {name} …"):
        model = session.models.load(ModelChoice(name=name, num_tokens=number))
    if not isinstance(model, Fwd2BotModel):
        raise InputError(f"{name} is no model that can be evaluated.")
    return model


def _budget(
    session: Session,
    name: str,
    *,
    data: Path | None,
    split: str | None,
    ks: Sequence[int] | None,
    limit: int | None,
    allow_missing: bool,
    out: Path | None,
) -> tuple[TaskResult, Path]:
    from fwd2bot_eval.budget import Budget
    from fwd2bot_eval.runs import hash_of

    model = _load(session, name, ks=None)
    budget = Budget(model, data=data, split=split, ks=ks, limit=limit, allow_missing=allow_missing)
    folder = out or Path("runs") / "eval" / f"{BUDGET}-{hash_of(budget.identity)}"
    session.output.message(f"{BUDGET}, {name}: writing to {shown(folder)}")
    with RunProgress(session.output, unit="cells", things="cells") as bar:

        def tell(progress: Progress) -> None:
            bar.update(phase=f"{BUDGET}, {name}", done=progress.done, total=progress.total)

        result = budget.run(folder, progress=tell, command=_command())
    return result, folder


def _show(output: Output, results: Sequence[TaskResult]) -> None:
    """Tables for eyes, models side by side; else one line a score: table, row, model, column, value, low, high, items,
    chance."""
    if not output.for_eyes:
        output.table((), [row for r in results for t in r.tables for row in _lines(r.model, t)])
        return
    for title in dict.fromkeys(t.title for r in results for t in r.tables):
        found = [(r, t) for r in results for t in r.tables if t.title == title]
        columns = [(r, t, c) for r, t in found for c in t.columns]
        several = len(results) > 1
        output.data(title)
        heads = [f"{r.model}: {c}" if several else c for r, _, c in columns]
        rows = []
        for row in dict.fromkeys(name for _, t in found for name in t.rows):
            cells = [t.rows.get(row, {}).get(c) for _, t, c in columns]
            chance = next((f"{t.chance[row]:.3f}" for _, t in found if row in t.chance), "")
            items = str(max((c.items for c in cells if c), default=0))
            rows.append((row, *("–" if c is None else f"{c.value:.3f}" for c in cells), chance, items))
        output.table((found[0][1].row_header, *heads, "chance", "items"), rows)
        output.data("")


def _lines(model: str, table: Table) -> list[tuple[str, ...]]:
    return [
        (
            table.title,
            row,
            model,
            column,
            f"{e.value:.6g}",
            f"{e.low:.6g}",
            f"{e.high:.6g}",
            str(e.items),
            f"{table.chance[row]:.6g}" if row in table.chance else "",
        )
        for row, cells in table.rows.items()
        for column, e in cells.items()
    ]


def _write_json(results: Sequence[TaskResult], path: Path) -> None:
    import json

    made = [r.to_json() for r in results]
    try:
        path.write_text(json.dumps(made[0] if len(made) == 1 else made, indent=2) + "\n", encoding="utf-8")
    except OSError as e:
        raise InputError(f"{path} cannot be written: {e.strerror or e}.") from e


def _command() -> str:
    """As it was typed, for the report."""
    return shlex.join(["fwd2bot", *sys.argv[1:]])
