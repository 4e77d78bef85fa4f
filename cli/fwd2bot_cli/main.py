"""The ``fwd2bot`` command.

    fwd2bot index ./photos
    fwd2bot search "a red boat"

Exit codes: 0 done, 1 error, 2 usage, 3 finished but some files were skipped, 130 interrupted. Every error is one
sentence on stderr; ``--debug`` adds the traceback.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Annotated, NoReturn

import typer
from typer.main import get_command

from fwd2bot_cli import annotate, ask, bench, dedup, demo, evaluate, index, info, optimize, search, serve, train, verify
from fwd2bot_cli.options import Debug, Quiet
from fwd2bot_cli.session import Session
from fwd2bot_index.errors import Fwd2BotError, IndexNotFoundError, InputError

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="fwd2bot",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 error, 2 usage, 3 done but some files were skipped, 130 interrupted.",
)
app.command("index")(index.index)
app.command("search")(search.search)
app.command("ask")(ask.ask)
app.command("annotate")(annotate.annotate)
app.command("serve")(serve.serve)
app.command("dedup")(dedup.dedup)
app.command("info")(info.info)
app.command("verify")(verify.verify)
app.command("optimize")(optimize.optimize)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("demo")(demo.demo)
app.add_typer(bench.app, name="bench")


def _show_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"fwd2bot {version('fwd2bot')}")  # noqa: T201 - the answer itself
        raise typer.Exit


@app.callback()
def _fwd2bot(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compress an image corpus once, then search it and question it for ever without the images."""


class _NoPandas:
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name, name=name)


def _start_arrow_without_pandas() -> None:
    """Where pandas is installed, pyarrow imports it, once, to ask whether a value is a data frame: a quarter of the
    time of a search, which has no data frames. Others may import pandas afterwards."""
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        import pyarrow

        pyarrow.scalar(0)
    finally:
        sys.meta_path.remove(finder)


def run() -> NoReturn:
    """Entry point of the installed command."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries' advice to developers; python -W shows it
    if "search" in sys.argv[1:]:
        _start_arrow_without_pandas()
    if sys.stdout is None:  # closed by whoever started this: nothing is to be seen
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the process ends)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name must not stop a listing
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str], session: Session | None = None) -> int:
    """Run one command and return its exit code; nothing but a request to leave Python passes through."""
    session = session or Session()
    try:
        get_command(app).main(list(arguments), prog_name="fwd2bot", obj=session)
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        code = EXIT_ERROR
    except OSError as e:  # a full disk, most likely that of the output
        _report(session, _said_by_the_system(e))
        code = EXIT_ERROR
    except Fwd2BotError as e:
        _report(session, str(e))
        code = EXIT_USAGE if isinstance(e, InputError | IndexNotFoundError) else EXIT_ERROR
    except Exception as e:  # whatever it is, a person gets a sentence
        what = " ".join(f"{type(e).__name__}: {e}".split())
        _report(session, f"{what}. This is a bug in fwd2bot: please report it with the output of --debug.")
        code = EXIT_ERROR
    return _flush(session, code)


def _report(session: Session, sentence: str) -> None:
    if session.debug:
        traceback.print_exc()
    session.output.error(sentence)


def _said_by_the_system(error: OSError) -> str:
    return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}."


def _flush(session: Session, code: int) -> int:
    """A reader that had enough (``| head``) must not make Python complain at exit; a disk that is full is told of."""
    try:
        sys.stdout.flush()
    except OSError as e:
        if not isinstance(e, BrokenPipeError) and code == 0:
            _report(session, _said_by_the_system(e))
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    return code
