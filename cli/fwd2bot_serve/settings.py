"""What a server may do, and its limits."""

from __future__ import annotations

from dataclasses import dataclass

from fwd2bot_index.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one server.

    Raises:
        InputError: it would be open to the network without a token.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    """What every request must show. None: whoever reaches the server may use it."""
    public: bool = False
    """Another host than loopback is meant to be open without a token."""
    allowed_hosts: tuple[str, ...] = ()
    """Names, besides those of loopback and ``host``, by which the server is called, as behind a proxy."""
    read_only: bool = False
    """Nothing writes to the index: no ``/annotate``."""
    batch_size: int = 32
    """Rows, of any number of clients, that one call of the model takes together; 1: every client by itself."""
    time_limit: float = 60.0
    """Seconds that a body may take to arrive, and a search, or the next answers of a question, to be made."""
    max_body: int = 32 * 2**20
    """Bytes of the body of one request."""
    max_pixels: int = 50_000_000
    """Of one picture that a client sends."""
    max_requests: int = 256
    """At work or waiting at a time; more are told to come back."""
    threads: int = 64
    """That searches and questions wait in for the model."""

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and self.token is None and not self.public:
            raise InputError(
                f"Serving on {self.host} lets the whole network in: set a --token, or say --public if that is meant."
            )
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise InputError("The token must be printable ASCII characters.")
