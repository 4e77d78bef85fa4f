"""The report of a run: every number on it against hand-computed ones, and nothing on it that can act."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from fwd2bot_index.errors import InputError
from fwd2bot_training import report
from fwd2bot_training.config import DataConfig, RunConfig, SourceConfig, TrainConfig, ValidationConfig
from fwd2bot_training.report import averaged, chance_at, number, ticks, verdict, wilson, write_report

SCENES = SourceConfig(name="toys", kind="scenes", size=64)
CONFIG = RunConfig(
    name="tiny",
    data=DataConfig(sources=(SCENES,)),
    train=TrainConfig(steps=40, lr=0.001),
    validation=ValidationConfig(every=20, sources=(SCENES,)),
)


class Page(HTMLParser):
    """Tables as rows of cells, the titles of the charts' strips, all text; complains of unbalanced tags."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.titles: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "title":
            self.titles.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data
        elif self.open and self.open[-1] == "title":
            self.titles[-1] += data
        self.text += data

    def table(self, *header: str) -> list[list[str]]:
        (found,) = [t[1:] for t in self.tables if t[0] == list(header)]
        return found


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_run(folder: Path, *, config: RunConfig = CONFIG, started: str = "2026-05-04T10:00:00") -> Path:
    folder.mkdir(parents=True)
    about = {"config": config.tables(), "started": started, "torch": "2.13.0", "device": "cpu"}
    (folder / "run.json").write_text(json.dumps(about))
    write_lines(
        folder / "log.jsonl",
        [
            {"step": 20, "seconds": 50.0, "lr": 0.001, "pictures_per_second": 10.0, "ar/toys": 4.0, "acc/color": 0.25},
            {"step": 30, "seconds": 90.0, "lr": 0.0005, "pictures_per_second": 20.0, "ar/toys": None, "x/toys": 7.0},
            {"step": 40, "seconds": 20.0, "lr": 0.0, "memory_gb": 1.5, "ar/toys": 1.0, "acc/color": 0.5},
        ],
    )
    retrieval = {"pictures": 20, "texts": 100, "text->image R@1": 0.3, "text->image R@5": 0.6, "image->text R@5": 0.5}
    write_lines(
        folder / "validation.jsonl",
        [
            {"step": 20, "answers": {"toys/color": {"right": 1, "count": 10}}, "retrieval": {}},
            {
                "step": 40,
                "answers": {"toys/color": {"right": 5, "count": 10}, "photos/color": {"right": 1, "count": 4}},
                "retrieval": {"photos": retrieval},
            },
        ],
    )
    return folder


def add_samples(folder: Path, *, prompt: str = "what?", picture: str = "0.jpg") -> None:
    samples = folder / "samples"
    samples.mkdir()
    for i in range(6):
        Image.new("RGB", (400, 300), (40 * i, 0, 0)).save(samples / f"{i}.jpg")
    rows = [
        {"source": "toys", "image": picture, "prompt": prompt, "expected": "red", "answer": answer}
        for answer in ("Red.", "blue")
    ]
    (samples / "samples.json").write_text(json.dumps(rows))
    images = [f"{i}.jpg" for i in range(5)]
    queries = [{"source": "toys", "text": prompt, "images": images, "right": right} for right in (3, 11)]
    (samples / "retrieval.json").write_text(json.dumps(queries))


def test_the_log_as_curves_and_as_a_table(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "run")))
    loss, unknown_loss = [t[1:] for t in page.tables if t[0] == ["step", "toys"]]
    assert loss == [["20", "4.00"], ["30", "–"], ["40", "1.00"]]
    assert unknown_loss == [["20", "–"], ["30", "7.00"], ["40", "–"]]
    assert page.table("step", "color") == [["20", "25.0"], ["30", "–"], ["40", "50.0"]]
    assert page.table("step", "Learning rate", "Throughput", "Peak memory") == [
        ["20", "0.00100", "10.0", "–"],
        ["30", "0.000500", "20.0", "–"],
        ["40", "0", "–", "1.50"],
    ]
    # what the pointer finds on the first curve: nothing where there is no number
    assert [t for t in page.titles if t in ("step 20: 4.00", "step 30: –", "step 40: 1.00")] == [
        "step 20: 4.00",
        "step 40: 1.00",
    ]


def panels(page: Page) -> dict[str, ET.Element]:
    """By what a screen reader says of them."""
    found = [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page.html, re.DOTALL)]
    return {svg.attrib["aria-label"]: svg for svg in found}


def test_a_curve_runs_through_its_numbers(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "run")))
    svg = panels(page)["toys over 40 steps: from 4.00 to 1.00 nats per token"]
    (line,) = svg.findall(".//path[@class='line']")
    (first, last) = [tuple(map(float, xy.split())) for xy in line.attrib["d"].removeprefix("M").split("L")]
    heights = {text.text: float(text.attrib["y"]) for text in svg.findall("text[@class='y']")}
    lefts = {text.text: float(text.attrib["x"]) for text in svg.findall("text[@class='x']")}
    assert first == pytest.approx((lefts["20"], heights["4"]), abs=0.1)
    assert last == pytest.approx((2 * lefts["20"] - lefts["0"], heights["1"]), abs=0.1)
    assert heights["4"] < heights["1"]  # y points down
    assert len(svg.findall(".//circle")) == 2


def test_a_loss_over_decades_has_a_log_scale(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    write_lines(folder / "log.jsonl", [{"step": i, "ar/toys": 10.0**-i} for i in range(1, 5)])
    svg = panels(Page(write_report(folder)))["toys over 4 steps: from 0.100 to 0.000100 nats per token"]
    assert "nats per token, log scale" in [text.text for text in svg.findall("text")]
    (line,) = svg.findall(".//path[@class='line']")
    ys = [float(xy.split()[1]) for xy in line.attrib["d"].removeprefix("M").split("L")]
    assert np.diff(ys) == pytest.approx([(ys[-1] - ys[0]) / 3] * 3, abs=0.1)


def test_the_last_validation_with_counts_intervals_and_chance(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "run")))
    assert page.table("source", "what", "right", "of", "share", "interval", "chance") == [
        # only the kinds of drawn scenes have a known number of answers: there are 8 colours
        ["photos", "color", "1", "4", "25.0 %", "4.6 to 69.9 %", ""],
        ["toys", "color", "5", "10", "50.0 %", "23.7 to 76.3 %", "12.5 %"],
        ["photos", "text → image R@1", "30", "100", "30.0 %", "21.9 to 39.6 %", "5.0 %"],
        ["photos", "text → image R@5", "60", "100", "60.0 %", "50.2 to 69.1 %", "25.0 %"],
        ["photos", "image → text R@5", "10", "20", "50.0 %", "29.9 to 70.1 %", "23.0 %"],
    ]
    assert page.table("step", "photos/color", "toys/color") == [["20", "–", "10.0"], ["40", "25.0", "50.0"]]
    several = panels(page)["photos text → image over 40 steps: R@1 from 30.0 to 30.0; R@5 from 60.0 to 60.0 %"]
    assert [name.text for name in several.findall(".//text[@class='name']")] == ["R@1", "R@5"]


def test_names_of_curves_that_end_together_are_legible(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    scores = {"pictures": 9, "texts": 9, "text->image R@1": 0.99, "text->image R@5": 1.0, "text->image R@10": 1.0}
    write_lines(folder / "validation.jsonl", [{"step": s, "retrieval": {"toys": scores}} for s in (20, 40)])
    (svg,) = [svg for label, svg in panels(Page(write_report(folder))).items() if "R@10" in label]
    heights = {name.text: float(name.attrib["y"]) for name in svg.findall(".//text[@class='name']")}
    assert sorted(heights, key=lambda n: heights[n]) == ["R@10", "R@5", "R@1"]
    assert min(b - a for a, b in itertools.pairwise(sorted(heights.values()))) >= 11
    (sheet,) = re.findall(r"svg text {[^}]*font-size: (\d+)px", Page(folder / "report.html").html)
    assert int(sheet) <= 11


def test_settings_that_were_changed_come_first(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "run")))
    changed, usual = [t[1:] for t in page.tables if t[0][0] == "setting"]
    assert [row[:3] for row in changed] == [
        ["data.toys.kind", '"scenes"', '"parquet"'],
        ["data.toys.size", "64", "96"],
        ["train.steps", "40", "1000"],
        ["train.lr", "0.001", "0.0002"],
        ["validation.every", "20", "0"],
        ["validation.toys.kind", '"scenes"', '"parquet"'],
        ["validation.toys.size", "64", "96"],
    ]
    assert ["train.batch_size", "32", "32", "pictures of one step, over all processes"] in usual
    assert all(row[1] == row[2] and row[3] for row in usual)


def test_facts_count_every_attempt(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "run")))
    assert re.findall(r"<dt>(.*)</dt><dd>(.*)</dd>", page.html) == [
        ("steps", "40 of 40"),
        ("started", "2026-05-04T10:00:00"),
        ("device", "cpu"),
        ("torch", "2.13.0"),
        ("time", "1 min 50 s"),  # the second process began at 0 again: 90 s and 20 s
        ("pictures per second", "15.0"),
        ("peak memory", "1.50 GB"),
    ]


def test_samples_and_retrieval(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    add_samples(folder)
    page = Page(write_report(folder))
    text = " ".join(page.text.split())
    assert "what? expected red answer Red. ✓ right toys" in text
    assert "what? expected red answer blue ✗ wrong toys" in text
    assert "✓ the right picture is number 4 1 2 3 4 ✓ right 5" in text
    assert "✗ the right picture is number 12, not among these 1 2 3 4 5" in text
    pictures = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(pictures) == 2 + 2 * 5
    assert all(value is not None and value.startswith("data:image/jpeg;base64,") for value in pictures)
    assert len(set(pictures)) == 5
    assert len(page.html) < 150_000  # small copies


def test_a_picture_that_is_gone_has_a_placeholder(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    add_samples(folder, picture="gone.jpg")
    assert Page(write_report(folder)).text.count("picture not found") == 2


def test_nothing_on_the_page_acts_or_is_loaded(tmp_path: Path) -> None:
    evil = "</style></title><script>alert(1)</script><img src='https://example.org/x'>\"'&{{ 7 * 7 }}"
    source = dataclasses.replace(SCENES, name=evil)
    config = dataclasses.replace(CONFIG, name=evil, data=DataConfig(sources=(source,)))
    folder = make_run(tmp_path / "run", config=config)
    write_lines(folder / "log.jsonl", [{"step": s, f"ar/{evil}": 1.0, f"acc/{evil}": 1.0} for s in (1, 2)])
    counts = {"right": 1, "count": 2}
    scores = {"pictures": 2, "texts": 2, f"{evil} R@1": 0.5}
    lines = [{"step": s, "answers": {f"{evil}/{evil}": counts}, "retrieval": {evil: scores}} for s in (1, 2)]
    write_lines(folder / "validation.jsonl", lines)
    add_samples(folder, prompt=evil)
    page = Page(write_report(folder))
    tags = {tag for tag, _, _ in page.attributes}
    assert not tags & {"script", "link", "iframe", "object"}
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    links = [value or "" for _, name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert all(value.startswith(("data:image/jpeg;base64,", "#")) for value in links)
    assert "url(" not in page.html
    assert page.text.count(evil) > 10


def test_the_same_folder_gives_the_same_bytes_wherever_it_is(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    add_samples(folder)
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
    assert write_report(tmp_path / "elsewhere" / "copy").read_bytes() == first
    assert str(tmp_path).encode() not in first


def test_phases_come_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    for name, started in [("a", "2026-05-04T12:00:00"), ("b", "2026-05-04T09:00:00"), ("c", "2026-05-05T01:00:00")]:
        make_run(tmp_path / name, config=dataclasses.replace(CONFIG, name=f"phase {name}"), started=started)
    (tmp_path / "data").mkdir()
    assert write_report(tmp_path) == tmp_path / "report.html"
    page = Page(tmp_path / "report.html")
    assert re.findall(r"<h2>(.*)</h2>", page.html) == ["phase b", "phase a", "phase c"]
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    ids = [value for tag, name, value in page.attributes if (tag, name) == ("article", "id")]
    assert links == [f"#{i}" for i in ids] == ["#phase-1", "#phase-2", "#phase-3"]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("")
    text = " ".join(Page(write_report(tmp_path)).text.split())
    for sentence in (
        "The settings are not known: there is no run.json in this folder.",
        "There was no validation: none has run yet, or the recipe has no [validation.sources.NAME].",
        "The log is empty: no step of this run was logged.",
        "There are no sample answers.",
        "There are no retrieval samples.",
    ):
        assert sentence in text
    write_lines(tmp_path / "validation.jsonl", [{"step": 5, "answers": {}, "retrieval": {}}])
    assert "The validation after step 5 measured nothing." in " ".join(Page(write_report(tmp_path)).text.split())


def test_a_single_validation_is_a_table_without_curves(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    write_lines(folder / "validation.jsonl", [{"step": 40, "answers": {"toys/color": {"right": 5, "count": 10}}}])
    page = Page(write_report(folder))
    assert len(page.table("source", "what", "right", "of", "share", "interval", "chance")) == 1
    assert "Answers right, by source" not in page.text


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "gone"):
        with pytest.raises(InputError, match=re.escape(f"no run in {folder}")):
            write_report(folder)
        assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "{"),
        ("run.json", "[]"),
        ("run.json", '{"config": 3}'),
        ("run.json", '{"config": {"train": 3}}'),
        ("validation.jsonl", '{"step": 1, "answers": {"a/b": 3}}'),
        ("validation.jsonl", '{"step": 1, "retrieval": {"a": {"pictures": 3}}}'),
        ("samples/samples.json", "{}"),
        ("samples/samples.json", '[{"source": "a"}]'),
        ("samples/retrieval.json", "[3]"),
        ("samples/retrieval.json", "\x00"),
    ],
)
def test_a_file_that_no_run_writes_is_named(tmp_path: Path, name: str, content: str) -> None:
    folder = make_run(tmp_path / "run")
    add_samples(folder)
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=re.escape(str(folder / name))):
        write_report(folder)


@given(st.lists(st.one_of(st.none(), st.floats(-10, 10)), min_size=1, max_size=400))
def test_averages_are_those_of_equal_parts(values: list[float | None]) -> None:
    lines = [{"step": 3 * i, "ar": v, "seconds": 1.0} for i, v in enumerate(values)]
    steps, columns = averaged(lines)
    size = math.ceil(len(values) / report.MAX_POINTS)
    parts = [[v for v in values[i : i + size] if v is not None] for i in range(0, len(values), size)]
    assert len(steps) == len(parts) <= report.MAX_POINTS
    assert steps[-1] == lines[-1]["step"]
    if not any(parts):
        assert columns == {}
        return
    assert list(columns) == ["ar"]
    for mean, part in zip(columns["ar"], parts, strict=True):
        assert mean == (pytest.approx(np.mean(part), abs=1e-9) if part else None)


@pytest.mark.parametrize(("k", "pool", "right"), [(1, 10, 1), (5, 200, 1), (10, 200, 5), (10, 8, 1), (3, 4, 2)])
def test_chance_is_the_hypergeometric_one(k: int, pool: int, right: int) -> None:
    drawn = min(k, pool)
    expected = 1 - math.comb(pool - right, drawn) / math.comb(pool, drawn)
    assert chance_at(k, pool, right) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("right", "count", "interval"), [(0, 10, (0.0, 0.2775)), (5, 10, (0.2366, 0.7634)), (10, 10, (0.7225, 1.0))]
)
def test_the_interval_of_a_share(right: int, count: int, interval: tuple[float, float]) -> None:
    assert wilson(right, count) == pytest.approx(interval, abs=1e-4)


@pytest.mark.parametrize(
    ("expected", "answer", "judged"),
    [
        ("red", " Red. ", "right"),
        ("left  of it", "left of it", "right"),
        ("red", "dark red", "wrong"),
        ("red", "", "wrong"),
        ("a cat on a mat", "a mat with a cat", "differs"),
        ("a cat on a mat", "A cat on a mat.", "right"),
    ],
)
def test_verdicts(expected: str, answer: str, judged: str) -> None:
    assert verdict(expected, answer) == judged


@example(0.0, 5e-324, 2)
@given(st.floats(0, 1e9), st.floats(0, 1e9), st.integers(2, 5))
def test_ticks_enclose_and_are_few(a: float, b: float, parts: int) -> None:
    low, high = sorted((a, b))
    if 0 < high - low < 1e-6 * high:
        low = high
    found = ticks(low, high, parts)
    slack = 1e-6 * max(high, 1e-300)
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    assert found == sorted(set(found))
    assert 2 <= len(found) <= parts + 3


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0"), (0.09716, "0.0972"), (77.0, "77.0"), (100.0, "100"), (12345.6, "12,346")],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_the_template_is_in_the_package() -> None:
    assert resources.files("fwd2bot_training").joinpath("report.html.j2").is_file()
