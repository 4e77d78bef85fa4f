"""How many clients ``fwd2bot serve`` bears, with and without batching, and whether each gets its own answers.

    python -m fwd2bot_eval.bench_serve --clients 64 --seconds 60

Draws scenes, indexes them with the bundled model, and starts a server in a process of its own, once for each batch
size. Every client asks, one request after another: a search for words of its own, then a question about a scene of its
own. What each must be told was asked before, one by one and without batching, so that an answer that is lost, another's
or another one is seen. (Rounding differs with the batch: where the best two scores lie closer than ``NEAR``, or an
answer was as good as undecided, either counts.)

Memory is the server's resident set, after a tenth of the time and at the end. Clients run in the benchmark's process,
and on a machine with few cores take time of the server's: what is reported is what such a machine gives both.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from fwd2bot_index import Corpus, Fwd2BotModel, index_images
from fwd2bot_index.scenes import QUESTION_TYPES, caption, questions, render, scene

NEAR = 2e-3
"""Of scores and confidences: what rounding may turn round."""
_START = "import sys; from fwd2bot_cli.main import main; sys.exit(main(sys.argv[1:]))"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a client asks, and what it must be told."""

    path: str
    body: dict[str, Any]
    right: dict[str, float]
    """What may be told, and how sure it is."""


@dataclass
class Measured:
    """Of one kind of request."""

    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def tasks(corpus: Corpus, folder: Path, count: int) -> list[tuple[Task, Task]]:
    """A search and a question for each of so many scenes."""
    made = []
    hits = {Path(hit.uri).stem: hit for hit in corpus.newest(count)}
    for i in range(count):
        drawn, rng = scene(i, stream="serve"), np.random.default_rng(i)
        words = str(caption(drawn, rng))
        found = corpus.search(words, top=5)
        best = {hit.id: hit.score for hit in found if found[0].score - hit.score < NEAR}
        search = Task(path="/search", body={"terms": [{"text": words}], "top": 5}, right=best)
        asked = questions(drawn, rng, types=QUESTION_TYPES)
        question = asked[i % len(asked)].text
        hit = hits[f"{i:04}"]
        [answer] = corpus.ask(question, [hit])
        ask = Task(path="/ask", body={"question": question, "ids": [hit.id]}, right={answer.text: answer.confidence})
        made.append((search, ask))
    return made


def told(task: Task, answer: dict[str, Any]) -> tuple[str, float]:
    if task.path == "/search":
        return answer["hits"][0]["id"], answer["hits"][0]["score"]
    [said] = answer["answers"]
    assert said["id"] == task.body["ids"][0], "an answer about another picture"
    return said["answer"], said["confidence"]


def check(task: Task, answer: dict[str, Any], measured: Measured) -> None:
    try:
        what, sure = told(task, answer)
    except (AssertionError, KeyError, IndexError, ValueError) as e:
        measured.wrong.append(f"{task.body}: {e!r}")
        return
    if what in task.right:
        if abs(sure - task.right[what]) > 10 * NEAR:
            measured.wrong.append(f"{task.body}: {what} with {sure}, not {task.right[what]}")
    else:
        measured.wrong.append(f"{task.body}: {what} with {sure}, not {task.right}")


@contextmanager
def server(index: Path, *, batch_size: int) -> Iterator[tuple[str, int]]:
    """Address and process id, when it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    arguments = ["serve", "--index", str(index), "--port", str(port), "--batch-size", str(batch_size), "--quiet"]
    process = subprocess.Popen([sys.executable, "-c", _START, *arguments])
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 300
        while not _is_ready(address):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit("The server did not start.")
            time.sleep(0.1)
        yield address, process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def _is_ready(address: str) -> bool:
    try:
        ready = httpx.get(f"{address}/health").status_code == 200
        return ready and httpx.get(f"{address}/status").json()["model_state"] == "ready"
    except httpx.HTTPError:
        return False


def memory(pid: int) -> float:
    """Resident, in MB."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def load(address: str, pid: int, made: Sequence[tuple[Task, Task]], *, clients: int, seconds: float) -> dict[str, Any]:
    """So many clients for so long."""
    kinds = {"/search": Measured(), "/ask": Measured()}
    lock = threading.Lock()
    end = time.perf_counter() + seconds

    def client(number: int) -> None:
        mine = list(made)
        random.Random(number).shuffle(mine)
        with httpx.Client(base_url=address, timeout=120) as http:
            turn = 0
            while time.perf_counter() < end:
                for task in mine[turn % len(mine)]:
                    start = time.perf_counter()
                    try:
                        answer = http.post(task.path, json=task.body)
                    except httpx.HTTPError as e:
                        with lock:
                            kinds[task.path].failed.append(repr(e))
                        continue
                    took = time.perf_counter() - start
                    with lock:
                        measured = kinds[task.path]
                        if answer.status_code != 200:
                            measured.failed.append(answer.text)
                            continue
                        measured.seconds.append(took)
                        check(task, answer.json(), measured)
                turn += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    time.sleep(seconds / 10)
    early = memory(pid)
    for thread in threads:
        thread.join()
    took = time.perf_counter() - started
    late = memory(pid)
    report: dict[str, Any] = {"seconds": took, "memory_mb": [early, late]}
    for path, measured in kinds.items():
        latency = np.array(measured.seconds) if measured.seconds else np.array([float("nan")])
        report[path] = {
            "answers": len(measured.seconds),
            "per_second": len(measured.seconds) / took,
            "p50": float(np.percentile(latency, 50)),
            "p99": float(np.percentile(latency, 99)),
            "failed": len(measured.failed),
            "wrong": len(measured.wrong),
            "examples": [*measured.failed[:3], *measured.wrong[:3]],
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 1])
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, index = Path(place) / "scenes", Path(place) / "index"
        folder.mkdir()
        for i in range(given.scenes):
            render(scene(i, stream="serve"), size=128).save(folder / f"{i:04}.png")
        model = Fwd2BotModel.from_pretrained()
        index_images([folder], index, model)
        made = tasks(Corpus.open(index, model=model), folder, given.scenes)
        reports = {}
        for batch_size in given.batch_sizes:
            with server(index, batch_size=batch_size) as (address, pid):
                load(address, pid, made, clients=given.clients, seconds=min(5.0, given.seconds))  # warm
                report = load(address, pid, made, clients=given.clients, seconds=given.seconds)
                report["metrics"] = _rows_per_call(httpx.get(f"{address}/metrics").text)
            reports[batch_size] = report
            print(f"batch size {batch_size}, {given.clients} clients, {report['seconds']:.0f} s", end="; ")
            print("memory {:.0f} -> {:.0f} MB; rows per call {}".format(*report["memory_mb"], report["metrics"]))
            for path in ("/search", "/ask"):
                print(f"  {path:8}", end="")
                print(
                    "{answers:6} answers, {per_second:6.1f}/s, p50 {p50:.3f} s, p99 {p99:.3f} s, ".format(
                        **report[path]
                    ),
                    end="",
                )
                print("{failed} failed, {wrong} wrong {examples}".format(**report[path]))
    if given.json is not None:
        given.json.write_text(json.dumps(reports, indent=2))


def _rows_per_call(text: str) -> dict[str, float]:
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("fwd2bot_model_rows_"))
    kinds = {name.split('"')[1] for name in values if name.startswith("fwd2bot_model_rows_count")}
    return {
        kind: round(
            float(values[f'fwd2bot_model_rows_sum{{kind="{kind}"}}'])
            / max(1.0, float(values[f'fwd2bot_model_rows_count{{kind="{kind}"}}'])),
            1,
        )
        for kind in sorted(kinds)
    }


if __name__ == "__main__":
    main()
