"""``fwd2bot index``: compress pictures into the index."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from fwd2bot_cli.console import Output, printable, shown
from fwd2bot_cli.location import index_to_write
from fwd2bot_cli.models import ModelChoice, absolute, check_devices
from fwd2bot_cli.options import Compile, Debug, Dtype, IndexFolder, Json, Quiet
from fwd2bot_cli.progress import IndexProgress
from fwd2bot_cli.session import Session, session_of
from fwd2bot_index.checkpoints import DEFAULT_MODEL
from fwd2bot_index.config import DEFAULT_CODEC
from fwd2bot_index.errors import InputError
from fwd2bot_index.object_stores import is_uri
from fwd2bot_index.places import Place

if TYPE_CHECKING:
    from fwd2bot_index.engines import EngineMaker
    from fwd2bot_index.types import Compressor, IndexReport, ModelIdentity, SkippedFile

EXIT_SKIPPED = 3
EXIT_INTERRUPTED = 130
SKIPPED_SHOWN = 10
UNMATCHED_SHOWN = 3


def index(
    context: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATHS",
            help="Folders, searched in depth; picture files; zip, tar and Parquet files of pictures; s3://BUCKET/PREFIX.",
        ),
    ],
    index: IndexFolder = None,
    model: Annotated[
        str | None,
        typer.Option(
            envvar="FWD2BOT_MODEL",
            metavar="NAME",
            help="'default' (bundled), a model folder, or a vision-language model on the Hugging Face hub. "
            "Default: the model that made the index, else the bundled one.",
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(envvar="FWD2BOT_REVISION", help="Branch, tag or commit of a model on the hub.")
    ] = None,
    num_tokens: Annotated[
        int | None,
        typer.Option(
            envvar="FWD2BOT_NUM_TOKENS",
            min=1,
            metavar="K",
            help="Summary tokens per picture; only for a model without Fwd2Bot training.",
        ),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            envvar="FWD2BOT_CODEC",
            metavar="NAME",
            help="How tokens are stored: float16, int8, int4 or int2, each half the size of the one before; or pq8, "
            "pq16 or pq32, fitted to the first pictures, in an 8th, 16th or 32nd of the bytes of float16. Default: "
            f"{DEFAULT_CODEC}, or what the index has.",
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(envvar="FWD2BOT_BATCH_SIZE", min=1, help="Pictures per run of the model.")
    ] = 32,
    workers: Annotated[
        int | None,
        typer.Option(envvar="FWD2BOT_WORKERS", min=1, help="Processes that decode pictures. Default: by the machine."),
    ] = None,
    dtype: Dtype = None,
    compile_layers: Compile = False,
    devices: Annotated[
        str | None,
        typer.Option(
            envvar="FWD2BOT_DEVICES",
            metavar="A,B,...",
            help="Run the model once on each of these devices of this machine: cuda:0,cuda:1. Default: one GPU, or "
            "the processors.",
        ),
    ] = None,
    ray: Annotated[
        bool,
        typer.Option("--ray", envvar="FWD2BOT_RAY", help="Decode and compress on a Ray cluster: see --ray-address."),
    ] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_ADDRESS",
            metavar="ADDRESS",
            help="For --ray: auto, HOST:PORT or ray://HOST:PORT of a cluster whose nodes see the pictures by the same "
            "names. Default: a cluster on this machine, for this run.",
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Only files that match this or another --include: '*.png' or 'raw' at any depth, '2023/*.jpg' from "
            "the folder given, 'raw/' folders only, '**' any folders; what matches a folder holds for all in it, and "
            "an archive is a folder. What is not wanted is dropped from the index.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Not what matches this pattern, even if it is included; repeatable too."),
    ] = None,
    metadata: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A .csv, .jsonl or .parquet table whose columns are joined to the files that its column path (or "
            "file, file_name, filename, uri, image) names, from its own folder or from one that is indexed.",
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep the index fresh until Ctrl-C; with --json, one line for each change.")
    ] = False,
    watch_seconds: Annotated[
        float,
        typer.Option(
            envvar="FWD2BOT_WATCH_SECONDS",
            min=0.1,
            metavar="S",
            help="Look for changes this often, and leave files alone that changed less than this ago.",
        ),
    ] = 10.0,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compress pictures into the index; run it again after changes.

    Only new and changed files are computed; deleted ones are dropped and renamed ones followed.

    Pictures in zip, tar and Parquet files, also in those that lie in the folders, are read in place. One is called
    ARCHIVE!/MEMBER wherever a path is wanted (a.zip!/x/y.jpg; by column and row in Parquet: a.parquet!/image/12).

    Ctrl-C keeps what is done; the same command continues.
    """
    session = session_of(context)
    output = session.output
    place = index_to_write(index)
    for path in paths:
        # indexing would say so too, but only after a model was downloaded
        if not is_uri(path) and not os.path.exists(path):
            raise InputError(f"There is no folder or file {shown(path)} to index.")
    choice, codec = _settings(place, model=model, revision=revision, num_tokens=num_tokens, codec=codec)
    choice = replace(choice, dtype=dtype, compile=compile_layers)
    load = cache(lambda: session.models.load(choice))
    identity = session.models.identity(choice, show_download=output.live)
    engine = _engine(session, choice, identity, devices=devices, ray=ray, ray_address=ray_address)
    run = partial(
        run_index,
        session,
        paths,
        place,
        choice,
        codec=codec,
        load=load,
        identity=identity,
        engine=engine,
        batch_size=batch_size,
        workers=workers,
        include=include or (),
        exclude=exclude or (),
        metadata=metadata,
    )
    if watch:
        _watch(output, partial(run, settle_seconds=watch_seconds), place, watch_seconds, as_json=as_json)
        return
    report = run()
    if as_json:
        output.json({"index": str(place), **asdict(report)})
    else:
        _tell(output, report, place)
    _tell_skipped(output, report)
    tell_interrupted(output, report)
    if report.skipped:
        raise typer.Exit(EXIT_SKIPPED)


def run_index(
    session: Session,
    paths: Sequence[str | Path],
    place: Place,
    choice: ModelChoice,
    *,
    codec: str,
    batch_size: int = 32,
    workers: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    settle_seconds: float = 0.0,
    metadata: Path | None = None,
    load: Callable[[], Compressor] | None = None,
    identity: ModelIdentity | None = None,
    engine: EngineMaker | None = None,
) -> IndexReport:
    """Index with a progress bar. ``load`` replaces loading by the session, for who needs the same model afterwards."""
    from fwd2bot_index.indexing import index_images

    identity = identity or session.models.identity(choice, show_download=session.output.live)
    with IndexProgress(session.output) as progress:
        return index_images(
            paths,
            place,
            load or (lambda: session.models.load(choice)),
            model_identity=identity,
            codec=codec,
            batch_size=batch_size,
            workers=workers,
            include=include,
            exclude=exclude,
            settle_seconds=settle_seconds,
            metadata=metadata,
            engine=engine,
            progress=progress,
        )


def _engine(
    session: Session,
    choice: ModelChoice,
    identity: ModelIdentity,
    *,
    devices: str | None,
    ray: bool,
    ray_address: str | None,
) -> EngineMaker | None:
    """
    Raises:
        InputError: the options contradict each other, or name devices that are not there.
    """
    if ray and devices is not None:
        raise InputError("--devices are of this machine, and --ray finds its own: give one of them.")
    if ray:
        from fwd2bot_index.ray_engine import RayEngine

        load = partial(session.models.load, choice)
        return partial(RayEngine, load, identity, address=ray_address)
    if devices is None:
        return None
    from fwd2bot_index.engines import DevicesEngine

    names = [name.strip() for name in devices.split(",")]
    check_devices(names)
    models: dict[int, Compressor] = {}

    def load_on(i: int) -> Compressor:  # once, however many runs --watch makes
        if i not in models:
            models[i] = session.models.load(replace(choice, device=names[i]))
        return models[i]

    return partial(DevicesEngine, [partial(load_on, i) for i in range(len(names))])


def _watch(output: Output, run: Callable[[], IndexReport], place: Place, seconds: float, *, as_json: bool) -> NoReturn:
    """Tell of the first run and of every one that changed something, until Ctrl-C."""
    from fwd2bot_index.watching import watch

    skipped: Sequence[SkippedFile] | None = None
    try:
        for report in watch(run, seconds=seconds, tell=output.warning):
            changed = report.added or report.updated or report.renamed or report.removed or report.described
            if changed or report.skipped != skipped or report.interrupted:
                if as_json:
                    output.data(json.dumps({"index": str(place), **asdict(report)}))
                    output.flush()
                else:
                    _tell(output, report, place)
                if report.skipped != skipped:
                    _tell_skipped(output, report)
            skipped = report.skipped
            tell_interrupted(output, report)
    except KeyboardInterrupt:
        output.message("No longer watching.")
    raise typer.Exit(EXIT_INTERRUPTED)


def tell_interrupted(output: Output, report: IndexReport) -> None:
    """Leave with 130 after a run that Ctrl-C ended."""
    if report.interrupted:
        kept = report.added + report.updated + report.renamed + report.unchanged
        output.warning(f"Interrupted: {kept} files are in the index; the same command continues from here.")
        raise typer.Exit(EXIT_INTERRUPTED)


def _settings(
    place: Place, *, model: str | None, revision: str | None, num_tokens: int | None, codec: str | None
) -> tuple[ModelChoice, str]:
    """What was asked for; the rest as in the index that is there, so that ``index PATHS`` brings it up to date."""
    from fwd2bot_index.store import IndexStore

    if not IndexStore.exists(place):
        name = absolute(model or DEFAULT_MODEL)
        return ModelChoice(name=name, revision=revision, num_tokens=num_tokens), codec or DEFAULT_CODEC
    manifest = IndexStore.open(place).manifest
    choice = ModelChoice.of(manifest)
    if model is not None and absolute(model) != choice.name:
        choice = ModelChoice(name=absolute(model))
    if revision is not None:
        choice = replace(choice, revision=revision)
    if num_tokens is not None:
        choice = replace(choice, num_tokens=num_tokens)
    return choice, codec or manifest.codec


def _tell(output: Output, report: IndexReport, place: Place) -> None:
    counts = (
        (report.added, "added"),
        (report.updated, "updated"),
        (report.renamed, "renamed"),
        (report.removed, "removed"),
        (report.unchanged, "unchanged"),
        (len(report.skipped), "skipped"),
        (report.waiting, "still being written"),
        (report.described, "with new metadata"),
    )
    said = ", ".join(f"{count} {what}" for count, what in counts if count) or "nothing to do"
    computed = report.added + report.updated
    speed = f" ({computed / report.seconds:.1f} images/s)" if computed and report.seconds else ""
    output.message(f"{shown(place)}: {said} in {report.seconds:.1f} s{speed}.")
    if report.unmatched:
        first = ", ".join(printable(name) for name in report.unmatched[:UNMATCHED_SHOWN])
        more = ", ..." if len(report.unmatched) > UNMATCHED_SHOWN else ""
        output.message(f"{len(report.unmatched)} names in the metadata are of no file in the index: {first}{more}")


def _tell_skipped(output: Output, report: IndexReport) -> None:
    for file in report.skipped[:SKIPPED_SHOWN]:
        output.warning(f"skipped {shown(file.uri)}: {printable(file.reason)}")
    if (rest := len(report.skipped) - SKIPPED_SHOWN) > 0:
        output.warning(f"... and {rest} more; `fwd2bot info --json` lists them all.")
