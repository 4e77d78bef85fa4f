"""``fwd2bot train``: a recipe and data into a checkpoint that ``fwd2bot index --model`` takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fwd2bot_cli.console import Output, shown
from fwd2bot_cli.options import Debug, Quiet
from fwd2bot_cli.session import session_of
from fwd2bot_index.errors import InputError

if TYPE_CHECKING:
    from fwd2bot_training.config import Recipe

PREVIEW = "preview.html"


def train(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="mini, mini-control, llava-1.5-7b, qwen3-vl-2b, one-gpu, or a TOML file.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where relative paths of the recipe's sources start.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Log, states, report and model. Default: runs/ and the recipe's name."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a setting: train.steps=100, or base.train.steps=100 of a phase."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Read all data, count, show samples of each phase in --out; train nothing."),
    ] = False,
    help_config: Annotated[bool, typer.Option("--help-config", help="Explain every key of a recipe.")] = False,
    show_recipe: Annotated[
        bool, typer.Option("--show-recipe", help="Print the recipe's file, to be edited and given as --recipe FILE.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a double-pass compressor; the same command again goes on where a run was stopped.

    Under torchrun (torchrun --no-python --nproc-per-node 8 fwd2bot train ...) it uses all of its processes.
    """
    from fwd2bot_training.config import load_recipe, read_recipe

    session = session_of(context)
    if help_config:
        _explain(session.output)
        return
    if recipe is None:
        raise InputError("Say what to train: --recipe mini, or a TOML file (--help-config explains its keys).")
    if show_recipe:
        session.output.data(read_recipe(recipe).rstrip("\n"))
        return
    if data is not None and not data.is_dir():
        raise InputError(f"--data {data} is no folder.")
    chosen = load_recipe(recipe, overrides=changes or [])
    folder = out or Path("runs") / chosen.name
    if dry_run:
        _dry_run(session.output, chosen, data, folder)
        return
    from fwd2bot_training.runner import run_recipe

    session.output.message(f"writing to {folder}; Ctrl-C stops after the step at hand, the same command goes on")
    model = run_recipe(chosen, root=data, out=folder, quiet=session.quiet)
    session.output.message(f"report: {shown(folder / 'report.html')}")
    if model is not None:
        session.output.message(f"try it: fwd2bot index PICTURES --model {shown(model)}")
        session.output.data(str(model))


def _explain(output: Output) -> None:
    from fwd2bot_training.config import describe_keys

    for key, kind, default, help in describe_keys():
        output.data(f"{key}  ({kind}; {default})\n    {help}")


def _dry_run(output: Output, recipe: Recipe, root: Path | None, folder: Path) -> None:
    """Of every phase: all rows read and every picture decoded, counted; ten of each source as training draws them."""
    from fwd2bot_training.data import Mixture, inspect, write_preview

    folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, ...]] = []
    bad = 0
    for phase in recipe.phases:
        report = inspect(phase.data, root=root, console=output.stderr if output.live else None)
        train = phase.train
        mixture = Mixture.from_config(phase.data, root=root, seed=train.seed, batch_size=train.batch_size)
        page = folder / (PREVIEW if len(recipe.phases) == 1 else f"{phase.name}-{PREVIEW}")
        write_preview(report, mixture, page)
        for source in report.sources:
            rows.append(
                (
                    phase.name,
                    source.name,
                    str(source.rows) if source.rows else "endless",
                    str(source.pictures),
                    str(source.segments),
                    str(source.short_captions),
                    str(source.long_captions),
                    str(source.negatives),
                    str(len(source.bad)),
                )
            )
            for sentence in source.bad:
                output.warning(sentence)
        bad += report.bad
        output.message(f"samples: {shown(page)}")
    columns = ("phase", "source", "rows", "pictures", "answers", "short captions", "long", "negatives", "bad")
    output.table(columns, rows)
    if bad:
        output.warning(f"{bad} rows cannot be used; training will put others in their place.")
