"""``fwd2bot serve``: the index over HTTP, and the page to look at it with."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Annotated

import typer

from fwd2bot_cli.console import shown
from fwd2bot_cli.location import existing_index
from fwd2bot_cli.models import ModelChoice
from fwd2bot_cli.options import Debug, IndexFolder, Quiet
from fwd2bot_cli.session import session_of
from fwd2bot_index.errors import Fwd2BotError, InputError

if TYPE_CHECKING:
    from fwd2bot_index.config import Manifest
    from fwd2bot_index.types import Compressor

GRACE = 5
"""Seconds that answers under way have at the end."""


def serve(
    context: typer.Context,
    index: IndexFolder = None,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(envvar="FWD2BOT_TOKEN", help="What every request must show; the page asks for it."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Let the whole network in at another --host, without a token.")
    ] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A name that the server goes by, as behind a proxy.")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Nobody may annotate.")] = False,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Questions, of all clients, that the model answers at once; 1: each alone.")
    ] = 32,
    time_limit: Annotated[
        float,
        typer.Option(
            min=1, help="Seconds that a body may take to arrive, and a request to be worked on; of a stream, each step."
        ),
    ] = 60.0,
    max_body: Annotated[int, typer.Option(metavar="MIB", min=1, help="Of the body of a request.")] = 32,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Serve an index over HTTP, with a page to search, see and question it in a browser.

    Only this machine is served, unless --host says otherwise, which takes a --token or --public. What is indexed
    meanwhile is found by the next search. Ctrl-C stops it. The API is described at /openapi.json and in
    docs/serving.md.
    """
    from fwd2bot_serve.settings import Settings

    session = session_of(context)
    settings = Settings(
        host=host,
        port=port,
        token=token or None,
        public=public,
        allowed_hosts=tuple(allow_host or ()),
        read_only=read_only,
        batch_size=batch_size,
        time_limit=time_limit,
        max_body=max_body * 2**20,
    )
    place = existing_index(index)
    try:
        import uvicorn

        from fwd2bot_serve.app import create_app
    except ImportError as e:
        raise InputError(
            f"Serving needs a package that is not installed ({e.name}): pip install 'fwd2bot[serve]'."
        ) from e
    from fwd2bot_index.store import IndexStore

    IndexStore.open(place)  # an index that is not there is told now; one that goes later is waited for

    def load(manifest: Manifest) -> Compressor:
        return session.models.load(ModelChoice.of(manifest))

    app = create_app(place, settings, load=load, text_encoder=session.models.text_encoder)
    config = uvicorn.Config(
        app, log_level="error", access_log=False, server_header=False, ws="none", timeout_graceful_shutdown=GRACE
    )
    with _listening(host, port) as listening:
        address = listening.getsockname()
        name = f"[{address[0]}]" if ":" in address[0] else address[0]
        session.output.message(f"Serving {shown(place)} at http://{name}:{address[1]}/ (Ctrl-C stops it).")
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:
            session.output.message("Stopped.")


def _listening(host: str, port: int) -> socket.socket:
    """
    Raises:
        InputError: there is no such address.
        Fwd2BotError: something else listens there, or it may not be listened at.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as e:
        raise InputError(f"{host} is no address to listen at: {e.strerror or e}.") from e
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(512)
    except OSError as e:
        listening.close()
        raise Fwd2BotError(
            f"Cannot listen at {host}, port {port}: {e.strerror or e}. --port names another; 0 takes any."
        ) from e
    return listening
