"""``fwd2bot bench``: what this machine makes of it."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fwd2bot_cli.console import shown
from fwd2bot_cli.models import ModelChoice, absolute
from fwd2bot_cli.options import Compile, Debug, Dtype, Json, Quiet
from fwd2bot_cli.progress import IndexProgress
from fwd2bot_cli.session import session_of
from fwd2bot_index.checkpoints import DEFAULT_MODEL
from fwd2bot_index.config import DEFAULT_CODEC
from fwd2bot_index.errors import InputError

if TYPE_CHECKING:
    from fwd2bot_eval.bench_stages import StageFigures

app = typer.Typer(no_args_is_help=True, help="Measure this machine with a model; no index is touched.")


@app.callback()
def _bench() -> None:
    """With one command only, typer would take ``index`` for the folder."""


@app.command()
def index(
    context: typer.Context,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATHS", help="Pictures, as for `fwd2bot index`.", show_default=False)
    ],
    model: Annotated[
        str, typer.Option(envvar="FWD2BOT_MODEL", metavar="NAME", help="As for `fwd2bot index`.")
    ] = DEFAULT_MODEL,
    revision: Annotated[
        str | None, typer.Option(envvar="FWD2BOT_REVISION", help="Branch, tag or commit of a model on the hub.")
    ] = None,
    codec: Annotated[
        str, typer.Option(envvar="FWD2BOT_CODEC", metavar="NAME", help="As for `fwd2bot index`.")
    ] = DEFAULT_CODEC,
    batch_size: Annotated[
        int, typer.Option(envvar="FWD2BOT_BATCH_SIZE", min=1, help="Pictures per run of the model.")
    ] = 32,
    workers: Annotated[
        int | None,
        typer.Option(envvar="FWD2BOT_WORKERS", min=1, help="Processes that decode pictures. Default: by the machine."),
    ] = None,
    dtype: Dtype = None,
    compile_layers: Compile = False,
    limit: Annotated[
        int, typer.Option(min=1, metavar="N", help="Of more pictures, N that are spread over all.")
    ] = 1000,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Index pictures into a temporary folder and show where the time goes.

    Stages: waiting for the decoders, preprocessing, the vision part, the LLM, the codec, writing. In the same run the
    model alone, and a plain loop over the same model as one would write it with transformers.
    """
    for path in paths:
        if not os.path.exists(path):
            raise InputError(f"There is no folder or file {shown(path)} to index.")
    from fwd2bot_eval.bench_stages import measure_stages
    from fwd2bot_index.model import Fwd2BotModel

    session = session_of(context)
    with session.output.waiting("loading the model"):
        loaded = session.models.load(
            ModelChoice(name=absolute(model), revision=revision, dtype=dtype, compile=compile_layers)
        )
    if not isinstance(loaded, Fwd2BotModel):
        raise InputError(f"{model} is no model that can be measured.")
    with IndexProgress(session.output) as progress:
        found = measure_stages(
            paths,
            loaded,
            limit=limit,
            batch_size=batch_size,
            workers=workers,
            codec=codec,
            progress=progress,
        )
    if as_json:
        session.output.json({**asdict(found), "over_model": found.over_model, "over_plain": found.over_plain})
        return
    session.output.table(("stage", "seconds", "ms an image", "share"), _rows(found))


def _rows(found: StageFigures) -> list[tuple[str, str, str, str]]:
    n = found.pictures

    def row(name: str, seconds: float, share: str) -> tuple[str, str, str, str]:
        return name, f"{seconds:.2f}", f"{1e3 * seconds / n:.2f}", share

    times = [
        ("the model alone", found.model_seconds, f"indexing takes {found.over_model:.2f} x"),
        ("a plain loop", found.plain_seconds, f"indexing is {found.over_plain:.2f} x as fast"),
        ("one decoder alone", found.decoder_seconds, f"{found.workers} at work"),
    ]
    return [
        *(row(name, seconds, f"{seconds / found.seconds:.0%}") for name, seconds in found.stages.items()),
        row("all", found.seconds, f"{n / found.seconds:.1f} images/s on {found.device}, {found.dtype}"),
        *(row(*each) for each in times),
    ]
