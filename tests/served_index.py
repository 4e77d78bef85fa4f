"""An index of plain pictures made without decoding workers, and a server of it in a thread of this process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import uvicorn
from fakes import FakeModel, manifest
from PIL import Image

from fwd2bot_index.config import Manifest
from fwd2bot_index.decoding import content_id
from fwd2bot_index.places import Place
from fwd2bot_index.store import ImageRow, IndexStore
from fwd2bot_index.types import Compressor
from fwd2bot_serve.app import create_app
from fwd2bot_serve.settings import Settings


def add_pictures(index: Path, pictures: Path, colours: dict[str, tuple[int, int, int]]) -> dict[str, str]:
    """Draw ``NAME.png`` of each colour and commit them as indexing would; returns the id of each name."""
    store = IndexStore.open(index) if IndexStore.exists(index) else IndexStore.create(index, manifest(k=4, d=8, e=3))
    pictures.mkdir(exist_ok=True)
    rows, tokens, ids = [], {}, {}
    for name, colour in colours.items():
        path = pictures / f"{name}.png"
        Image.new("RGB", (32, 24), colour).save(path)
        data = path.read_bytes()
        made = FakeModel().compress([data])
        ids[name] = content_id(data)
        tokens[ids[name]] = made.tokens[0].numpy()
        rows.append(
            ImageRow(
                uri=str(path), id=ids[name], size=len(data), mtime_ns=1, width=32, height=24, status="ok",
                embedding=np.asarray(made.embedding[0], np.float16),
            )
        )  # fmt: skip
    store.commit(rows, tokens)
    return ids


def describe(index: Path, pictures: Path, column: str, values: dict[str, object]) -> None:
    """A column of metadata."""
    store = IndexStore.open(index)
    table = store.fitting(pa.table({column: list(values.values())}))
    store.set_columns([str(pictures / f"{name}.png") for name in values], table)


@contextmanager
def serving(
    index: Path | Place,
    settings: Settings | None = None,
    *,
    load: Callable[[Manifest], Compressor] = lambda manifest: FakeModel(),
    wait: bool = True,
) -> Iterator[str]:
    """The address of a server of that index. ``wait``: until it is ready."""
    app = create_app(index, settings or Settings(), load=load, text_encoder=lambda manifest: None)
    config = uvicorn.Config(app, log_level="error", access_log=False, ws="none", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            if wait:
                until(lambda: httpx.get(f"{address}/health").status_code == 200)
            yield address
        finally:
            server.should_exit = True
            thread.join()


def until(true: Callable[[], bool], *, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.02)
