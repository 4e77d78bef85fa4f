"""An S3 on loopback (moto's server), behind a door that a test can close: an endpoint that is down, or says nothing."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import pytest

DoorState = Literal["open", "down", "silent"]


class Door:
    """Forwards connections to the server. ``after``: bytes sent to the server, counted from now, until it changes."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._state: DoorState = "open"
        self._then: DoorState = "open"
        self._left: int | None = None
        self.requests = 0
        """Pieces of data that clients have sent since the last :meth:`set`."""
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def set(self, state: DoorState, *, after: int | None = None) -> None:
        """At once, or when ``after`` more pieces of data have been sent."""
        with self._lock:
            self.requests = 0
            self._then, self._left = state, after
            if after is None:
                self._change(state)

    def _change(self, state: DoorState) -> None:
        self._state, self._left = state, None
        if state == "down":
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            with suppress(OSError):
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            if self._state == "down":
                return
            with socket.create_connection(self._target) as server:
                with self._lock:
                    self._open |= {client, server}
                back = threading.Thread(target=self._copy, args=(server, client), daemon=True)
                back.start()
                self._copy(client, server, count=True)
                with suppress(OSError):
                    server.shutdown(socket.SHUT_RDWR)
                back.join()
                with self._lock:
                    self._open -= {client, server}

    def _copy(self, source: socket.socket, target: socket.socket, *, count: bool = False) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if count:
                    with self._lock:
                        self.requests += 1
                        if self._left is not None:
                            self._left -= 1
                            if self._left < 0:
                                self._change(self._then)
                if self._state == "silent":
                    continue
                if self._state == "down":
                    return
                target.sendall(data)


class Bucket:
    """An empty bucket, and the door to it."""

    def __init__(self, name: str, client: Any, door: Door) -> None:
        self.name = name
        self.door = door
        self._client = client

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"

    def put(self, files: dict[str, bytes]) -> None:
        for key, data in files.items():
            self._client.put_object(Bucket=self.name, Key=key, Body=data)

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self.name, Key=key)

    def keys(self, prefix: str = "") -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", ())]


@contextmanager
def s3_server() -> Iterator[Door]:
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield Door(server.get_host_and_port())
    finally:
        server.stop()


def use(monkeypatch: pytest.MonkeyPatch, door: Door, *, seconds: float = 5) -> None:
    """Let the environment name it, as a user's would."""
    from fwd2bot_index import object_stores

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", door.url)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("FWD2BOT_STORE_SECONDS", str(seconds))
    monkeypatch.setattr(object_stores, "_opened", {})


_made = 0


def new_bucket(door: Door) -> Bucket:
    import boto3

    global _made
    _made += 1
    client = boto3.client(
        "s3", endpoint_url=door.url, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )
    client.create_bucket(Bucket=f"bucket-{_made}")
    return Bucket(f"bucket-{_made}", client, door)
