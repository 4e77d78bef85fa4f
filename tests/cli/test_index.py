"""``fwd2bot index``: what it does, says and returns."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from archives_made import make_parquet, make_zip
from cli_helpers import FakeModels, Run, draw_colours
from pictures import plain

from fwd2bot_cli.models import ModelChoice
from fwd2bot_index.config import Manifest


def manifest(index: Path) -> Manifest:
    path = index / "manifest.json"
    return Manifest.from_json(path.read_text(), path)


def test_first_run_then_nothing_to_do(fwd2bot: Run, place: Path, models: FakeModels) -> None:
    draw_colours(place / "pictures")
    outcome = fwd2bot("index", "pictures")
    assert (outcome.code, outcome.out) == (0, "")
    assert "3 added" in outcome.err
    assert (manifest(place / ".fwd2bot").model, manifest(place / ".fwd2bot").codec) == ("default", "pq8")

    outcome = fwd2bot("index", "pictures")
    assert "3 unchanged" in outcome.err
    assert (models.loads, models.model.compressed) == (1, 3)


def test_json_and_skipped_files(fwd2bot: Run, place: Path) -> None:
    draw_colours(place / "pictures")
    for i in range(12):
        (place / "pictures" / f"broken-{i:02}.png").write_bytes(b"no picture")
    outcome = fwd2bot("index", "pictures", "--json")
    assert outcome.code == 3
    document = json.loads(outcome.out)
    assert document["added"] == 3
    assert document["interrupted"] is False
    assert len(document["skipped"]) == 12  # all of them
    assert document["skipped"][0] == {
        "uri": str(place / "pictures" / "broken-00.png"),
        "reason": document["skipped"][0]["reason"],
    }
    listed = re.findall(r"^skipped pictures/broken-\d\d\.png: .+$", outcome.err, re.MULTILINE)
    assert len(listed) == 10
    assert "2 more" in outcome.err
    assert len(json.loads(fwd2bot("info", "--json").out)["skipped"]) == 12


def test_settings_are_passed_on_and_remembered(fwd2bot: Run, place: Path, models: FakeModels) -> None:
    draw_colours(place / "pictures")
    options = ["--model", "some/model", "--codec", "float16", "--batch-size", "1", "--workers", "1"]
    assert fwd2bot("index", "pictures", "--index", "there", *options).code == 0
    made = manifest(place / "there")
    assert (made.model, made.codec) == ("some/model", "float16")
    assert not (place / ".fwd2bot").exists()
    # a bare second run takes the index's own model and codec, not the defaults
    assert fwd2bot("index", "pictures", "--index", "there").code == 0
    assert manifest(place / "there") == made


def test_environment_stands_in_for_flags(fwd2bot: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_colours(place / "pictures")
    monkeypatch.setenv("FWD2BOT_INDEX", "from-environment")
    monkeypatch.setenv("FWD2BOT_MODEL", "env/model")
    monkeypatch.setenv("FWD2BOT_CODEC", "float16")
    assert fwd2bot("index", "pictures", "--codec", "int8").code == 0
    made = manifest(place / "from-environment")
    assert (made.model, made.codec) == ("env/model", "int8")  # the flag wins
    assert len(fwd2bot("search", "red").out.splitlines()) == 3


def test_a_model_folder_is_remembered_by_its_whole_path(fwd2bot: Run, place: Path) -> None:
    draw_colours(place / "pictures")
    (place / "models" / "mine").mkdir(parents=True)
    assert fwd2bot("index", "pictures", "--model", "models/mine").code == 0
    assert manifest(place / ".fwd2bot").model == str(place / "models" / "mine")


def test_the_index_above_is_continued(fwd2bot: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_colours(place / "pictures")
    assert fwd2bot("index", "pictures").code == 0
    draw_colours(place / "pictures" / "deep")
    monkeypatch.chdir(place / "pictures" / "deep")
    assert fwd2bot("index", ".").code == 0
    assert not (place / "pictures" / "deep" / ".fwd2bot").exists()
    assert json.loads(fwd2bot("info", "--json").out)["files"] == 6


def test_odd_file_names(fwd2bot: Run, place: Path) -> None:
    draw_colours(place / "pictures")
    name = "new\nline\x1b[31m [bold]ü.png"
    (place / "pictures" / "red.png").rename(place / "pictures" / name)
    (place / "pictures" / "bad\x1b.png").write_bytes(b"")
    outcome = fwd2bot("index", "pictures")
    assert outcome.code == 3
    assert r"bad\x1b.png" in outcome.err
    assert "\x1b" not in outcome.err
    row = fwd2bot("search", "red", "-n", "1").out
    assert row.endswith("pictures/new\\nline\\x1b[31m [bold]ü.png\n")
    assert fwd2bot("search", "red", "-n", "1", "-0").out == f"{place / 'pictures' / name}\0"


def test_a_picture_in_an_archive_serves_wherever_a_file_does(fwd2bot: Run, place: Path) -> None:
    draw_colours(place / "drawn")
    files = {f"{name}.png": (place / "drawn" / f"{name}.png").read_bytes() for name in ("red", "green")}
    make_zip(place / "x.zip", files)
    make_parquet(place / "x.parquet", [(place / "drawn" / "blue.png").read_bytes()])
    assert "3 added" in fwd2bot("index", "x.zip", "x.parquet").err
    assert "3 unchanged" in fwd2bot("index", "x.zip", "x.parquet").err

    outcome = fwd2bot("search", "blue", "-n", "1", "--html", "page.html")
    assert outcome.out.endswith("\tx.parquet!/image/0\n")
    page = (place / "page.html").read_text()
    assert "data:image/jpeg;base64," in page
    assert "picture not found" not in page
    assert "\tx.zip!/red.png\n" in fwd2bot("search", "--image", "x.zip!/red.png", "-n", "1").out
    assert fwd2bot("ask", "which colour?", "--image", "x.zip!/green.png").out == "green\n"
    make_zip(place / "y.zip", {"other.png": plain((0, 0, 250), (9, 9))})
    assert fwd2bot("ask", "which colour?", "--image", "y.zip!/other.png").out == "blue\n"
    assert "not in y.zip" in fwd2bot("search", "--image", "y.zip!/none.png").sentence
    assert "There is no picture" in fwd2bot("search", "--image", "z.zip!/none.png").sentence


def test_patterns_say_what_is_wanted_and_the_rest_is_dropped(fwd2bot: Run, place: Path) -> None:
    draw_colours(place / "pictures")
    draw_colours(place / "pictures" / "raw")
    assert "6 added" in fwd2bot("index", "pictures").err
    err = fwd2bot("index", "pictures", "--exclude", "raw/", "--exclude", "blue.*").err
    assert "4 removed, 2 unchanged" in err
    err = fwd2bot("index", "pictures", "--include", "raw/*.png", "--include", "red.png").err
    assert "2 added, 1 renamed, 1 unchanged" in err  # raw/green.png has the bytes of green.png, which is gone
    assert "makes no sense" in fwd2bot("index", "pictures", "--exclude", "!a").sentence


def watching(place: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, "index", "pictures", "--watch", "--watch-seconds", "0.3", *options],
        cwd=place,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def next_report(process: subprocess.Popen[str]) -> dict[str, int]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            report: dict[str, int] = json.loads(line)
            return report
    pytest.fail("it ended")


def test_watching_follows_changes_until_ctrl_c(fwd2bot: Run, place: Path) -> None:
    draw_colours(place / "pictures")
    for picture in (place / "pictures").iterdir():
        os.utime(picture, (10**9, 10**9))
    process = watching(place, "--json")
    assert next_report(process)["added"] == 3
    assert fwd2bot("index", "pictures").code == 0  # nobody holds the index between the rounds
    (place / "pictures" / "red.png").unlink()
    assert next_report(process)["removed"] == 1
    (place / "pictures" / "new.png").write_bytes(plain((1, 2, 3)))
    report = next_report(process)
    assert (report["added"], report["unchanged"]) == (1, 2)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in error


SLOW = """
import sys, time
from cli_helpers import FakeModels
from fwd2bot_cli.models import ModelChoice
from fwd2bot_cli.main import main
from fwd2bot_cli.session import Session

models = FakeModels()
compress = models.model.compress
def slowly(images):
    print("compressing", flush=True)
    time.sleep(0.3)
    return compress(images)
models.model.compress = slowly
sys.exit(main(sys.argv[1:], Session(models=models)))
"""


def test_ctrl_c_keeps_what_is_done(fwd2bot: Run, place: Path) -> None:
    for i in range(10):
        draw_colours(place / f"pictures-{i}")
        for picture in (place / f"pictures-{i}").iterdir():
            picture.write_bytes(picture.read_bytes() + bytes([i]))  # all different
    arguments = ["index", *(f"pictures-{i}" for i in range(10)), "--batch-size", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments],
        cwd=place,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline() == "compressing\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "the same command continues" in error
    assert "Traceback" not in error
    kept = json.loads(fwd2bot("info", "--json").out)["files"]
    assert 2 <= kept < 30
    outcome = fwd2bot(*arguments)
    assert f"{30 - kept} added" in outcome.err
    assert f"{kept} unchanged" in outcome.err


def test_on_several_devices(fwd2bot: Run, place: Path, models: FakeModels) -> None:
    draw_colours(place / "pictures")
    assert fwd2bot("index", "pictures", "--devices", "cpu, cpu").code == 0
    assert (models.loads, models.choice) == (2, ModelChoice(name="default", device="cpu"))
    assert json.loads(fwd2bot("info", "--json").out)["files"] == 3
    for name in ("gpu", "cuda:99", "cuda:x", ""):
        assert "There is no device" in fwd2bot("index", "pictures", "--devices", f"cpu,{name}").sentence
    assert "give one of them" in fwd2bot("index", "pictures", "--devices", "cpu", "--ray").sentence
    nowhere = fwd2bot("index", "pictures", "--ray", "--ray-address", "127.0.0.1:1", "--index", "new")
    assert "No Ray cluster answers at 127.0.0.1:1" in nowhere.sentence


def test_the_numbers_that_it_computes_with(fwd2bot: Run, place: Path, models: FakeModels) -> None:
    draw_colours(place / "pictures")
    assert fwd2bot("index", "pictures", "--dtype", "bfloat16").code == 0
    assert models.choice == ModelChoice(name="default", dtype="bfloat16")
    assert "float16" in fwd2bot("index", "pictures", "--dtype", "float16").err
    draw_colours(place / "more")
    assert fwd2bot("index", "more", "--compile", "--index", "other").code == 0
    assert models.choice == ModelChoice(name="default", compile=True)
