"""``fwd2bot eval`` from outside: what it prints, where it writes, how it refuses."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import tiny_models
from cli_helpers import Run

from fwd2bot_cli.models import PretrainedModels
from fwd2bot_index.config import CompressorConfig
from fwd2bot_index.model import Fwd2BotModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base, processor = tiny_models.build("llava")
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    config = CompressorConfig(num_summary_tokens=4, adapters="none")
    Fwd2BotModel.from_base(base, processor, config, lora=None).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Winoground's layout, its pictures drawn."""
    folder = tmp_path_factory.mktemp("winoground")
    (folder / "images").mkdir()
    for i, picture in enumerate(tiny_models.pictures(4)):
        picture.save(folder / "images" / f"p{i}.png")
    rows = [
        {
            "id": i,
            "image_0": f"p{2 * i}",
            "image_1": f"p{2 * i + 1}",
            "caption_0": "a b",
            "caption_1": "b a",
            "tag": "Object",
            "secondary_tag": "",
            "num_main_preds": 1,
            "collapsed_tag": "Object",
        }
        for i in range(2)
    ]
    (folder / "examples.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    return folder


@pytest.fixture
def run(fwd2bot: Run) -> Run:
    """With real models behind the commands."""
    return partial(fwd2bot, models=PretrainedModels())


def test_scores_on_stdout_a_folder_with_everything_and_json(run: Run, model: Path, data: Path, place: Path) -> None:
    outcome = run("eval", "winoground", "--model", model, "--data", data, "--k", "4,2", "--json", "out.json")
    assert outcome.code == 0, outcome.err
    rows = [line.split("\t") for line in outcome.out.splitlines()]
    assert all(len(r) == 9 for r in rows)
    assert {r[0] for r in rows} == {"text score", "image score", "group score"}
    assert {"cosine", "matching k=4", "matching k=2", "text only"} <= {r[3] for r in rows}
    assert all(float(r[5]) <= float(r[4]) <= float(r[6]) and r[7] == "2" for r in rows)
    written = json.loads(Path("out.json").read_text())
    (folder,) = (place / "runs" / "eval").iterdir()
    assert json.loads((folder / "result.json").read_text()) == written
    assert written["items"] == 2
    assert (folder / "report.md").is_file()

    again = run("eval", "winoground", "--model", model, "--data", data, "--k", "4,2")
    assert again.out == outcome.out
    assert len(list((place / "runs" / "eval").iterdir())) == 1, "the same run, which was only read"


def test_several_models_and_the_base_beside_them(run: Run, model: Path, data: Path, place: Path) -> None:
    outcome = run(
        "eval", "winoground", "--model", model, "--model", f"base:{model}", "--data", data, "--k", "4",
        "--no-baselines", "--json", "out.json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    names = {line.split("\t")[2] for line in outcome.out.splitlines()}
    assert names == {str(model), str(model / "base")}
    first, second = json.loads(Path("out.json").read_text())
    assert first["fingerprint"] != second["fingerprint"]
    assert "Training-free" in second["notes"][-1]
    assert "text only" not in outcome.out


def test_from_an_index(run: Run, model: Path, data: Path) -> None:
    assert run("index", data / "images", "--model", model, "--index", "idx", "--codec", "float16").code == 0
    direct = run("eval", "winoground", "--model", model, "--data", data, "--codec", "float16", "--k", "4")
    stored = run("eval", "winoground", "--model", model, "--data", data, "--index", "idx", "--k", "4")
    assert stored.code == 0, stored.err
    cosines = [[r for r in o.out.splitlines() if "\tcosine\t" in r] for o in (direct, stored)]
    assert cosines[0] == cosines[1]
    other = run("eval", "winoground", "--data", data, "--index", "idx")
    assert other.code == 1
    assert "was made by" in other.sentence


def test_tasks_are_listed(run: Run) -> None:
    outcome = run("eval")
    assert outcome.code == 0
    assert {"sugarcrepe", "winoground", "retrieval", "vqav2", "budget"} <= {
        line.split("\t")[0] for line in outcome.out.splitlines()
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["winogroud", "--data", "DATA"], "did you mean winoground?"),
        (["winoground"], "--data DIR"),
        (["winoground", "--data", "nowhere"], "nowhere does not exist"),
        (["winoground", "--data", "DATA", "--limit", "0"], "--limit"),
        (["winoground", "--data", "DATA", "--k", "four"], "--k takes numbers"),
        (["winoground", "--data", "DATA", "--k", "99"], "k = 99"),
        (["winoground", "--data", "DATA", "--codec", "int3"], "int3"),
        (["winoground", "--data", "DATA", "--codec", "pq8"], "index them with --codec pq8"),
        (["winoground", "--data", "DATA", "--matching-prompt", "is it?"], "matching_prompt must contain {text}"),
        (["winoground", "--data", "DATA", "-m", "a", "-m", "b", "--out", "x"], "--out is the folder of one run"),
        (["winoground", "--data", "DATA", "--model", "clip:DATA"], "config.json"),
        (["winoground", "--data", "DATA", "--model", "clip:DATA", "--k", "4"], "no summary tokens"),
    ],
)
def test_bad_input_is_one_sentence(run: Run, data: Path, arguments: list[str], said: str) -> None:
    outcome = run("eval", *(a.replace("DATA", str(data)) for a in arguments))
    assert outcome.code in (1, 2)
    assert said in outcome.sentence


def test_left_out_items_are_exit_code_3(run: Run, model: Path, data: Path, place: Path) -> None:
    import shutil

    shutil.copytree(data, "broken")
    Path("broken/images/p1.png").write_bytes(b"no picture")
    stopped = run("eval", "winoground", "--model", model, "--data", "broken")
    assert stopped.code == 2
    assert "broken/images/p1.png (broken/examples.jsonl, line 1) cannot be used" in stopped.sentence
    outcome = run("eval", "winoground", "--model", model, "--data", "broken", "--allow-missing")
    assert outcome.code == 3, outcome.err
    assert all(line.split("\t")[7] == "1" for line in outcome.out.splitlines())


def test_ctrl_c_says_that_what_was_scored_is_kept(
    run: Run, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fwd2bot_eval.subjects.Fwd2BotSubject.see", stop)
    outcome = run("eval", "winoground", "--model", model, "--data", data)
    assert outcome.code == 130
    assert "the same command goes on" in outcome.err


@pytest.mark.parametrize(
    "option",
    [
        ["--index", "idx"], ["--codec", "int8"], ["--uncompressed", "default"], ["--no-baselines"],
        ["--matching-prompt", "is {text} there?"], ["--caption-prompt", "say."], ["--answer-suffix", ""],
    ],
)  # fmt: skip
def test_the_budget_refuses_what_it_does_not_read(run: Run, model: Path, option: list[str]) -> None:
    outcome = run("eval", "budget", "--model", model, *option)
    assert outcome.code == 2
    assert f"budget does not read {option[0]}" in outcome.sentence


@pytest.mark.parametrize(
    ("given", "line"),
    [([], ""), (["--answer-suffix", ""], ""), (["--answer-suffix", "In a word."], "\nIn a word.")],
)
def test_what_follows_open_questions_is_a_line_and_in_the_result(
    run: Run, model: Path, data: Path, given: list[str], line: str
) -> None:
    outcome = run("eval", "winoground", "--model", model, "--data", data, "--k", "4", *given, "--json", "out.json")
    assert outcome.code == 0, outcome.err
    settings = json.loads(Path("out.json").read_text())["settings"]
    assert settings["short_answer_suffix"] == settings["short_answer_suffix_uncompressed"] == line


def test_the_budget_of_drawn_scenes(run: Run, model: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fwd2bot_eval.budget.FIT_PICTURES", 3)
    outcome = run("eval", "budget", "--model", model, "--k", "4,1", "--limit", "2", "--out", "b", "--json", "b.json")
    assert outcome.code == 0, outcome.err
    rows = [line.split("\t") for line in outcome.out.splitlines()]
    sizes = {r[1]: float(r[4]) for r in rows if r[0] == "answers" and r[3] == "bytes"}
    assert sizes["k=4 float16"] == 4 * sizes["k=1 float16"] == 4 * 2 * tiny_models.HIDDEN
    assert json.loads(Path("b.json").read_text())["settings"]["ks"] == [4, 1]
    assert Path("b/report.md").is_file()
    another = run("eval", "budget", "--model", model, "--k", "4", "--limit", "2", "--out", "b")
    assert another.code == 2
    assert "b holds a run of another task, model, data or setting" in another.sentence
    refused = run("eval", "budget", "--model", f"base:{model}")
    assert refused.code == 2
    assert "training-free" in refused.sentence
