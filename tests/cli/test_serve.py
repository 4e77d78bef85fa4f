"""``fwd2bot serve``: what it refuses, and that it starts and ends. What it answers is tested in tests/serve."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from cli_helpers import Run
from served_index import until

TESTS = Path(__file__).parents[1]
START = (
    f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
    "from cli_helpers import FakeModels\nfrom fwd2bot_cli.main import main\nfrom fwd2bot_cli.session import Session\n"
    "sys.exit(main(sys.argv[1:], Session(models=FakeModels())))"
)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--host", "0.0.0.0"], 2, "--token"),
        (["--host", "no.such.host.invalid", "--token", "x"], 2, "no address"),
        (["--index", "nowhere"], 2, "There is no index"),
        (["--token", "schlüssel"], 2, "ASCII"),
    ],
)
def test_refuses(fwd2bot: Run, indexed: Path, arguments: list[str], code: int, words: str) -> None:
    outcome = fwd2bot("serve", *arguments)
    assert outcome.code == code
    assert words in outcome.sentence


def test_a_port_that_is_taken(fwd2bot: Run, indexed: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        outcome = fwd2bot("serve", "--port", str(other.getsockname()[1]))
    assert outcome.code == 1
    assert "--port" in outcome.sentence


def test_serves_until_ctrl_c(indexed: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", START, "serve", "--port", "0", "--token", "sesame"],
        cwd=indexed, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/", said)
        assert found is not None, said
        until(lambda: httpx.get(f"{found[0]}health").status_code == 200)
        headers = {"authorization": "Bearer sesame"}
        answer = httpx.get(f"{found[0]}search", params={"query": "green"}, headers=headers)
        assert answer.json()["hits"][0]["path"].endswith("green.png")
    finally:
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=30)
    assert (process.returncode, rest) == (0, "Stopped.\n")
