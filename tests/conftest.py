"""What all tests start from."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """A shell starts jobs in the background with SIGINT ignored, and their children inherit that; tests send it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
