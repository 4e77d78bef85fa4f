from __future__ import annotations

from pathlib import Path

from fwd2bot_eval.report import markdown_table, write_report
from fwd2bot_eval.results import Estimate, Example, Skipped, Table, TaskResult


def cell(value: float, low: float, high: float) -> Estimate:
    return Estimate(value=value, low=low, high=high, items=7, clusters=5)


TABLE = Table(
    title="T",
    row_header="what",
    columns=["a", "b"],
    rows={
        "x|y": {"a": cell(0.5, 0.25, 0.75)},
        "z": {"a": cell(123.4, 120, 130), "b": cell(3, 3, 3)},
        "one picture": {"a": cell(0.5, float("nan"), float("nan")), "b": Estimate.exact(6144)},
        "itself": {"a": Estimate.exact(0)},
    },
    chance={"z": 0.25},
)


def test_tables_have_intervals_chance_counts_and_dashes() -> None:
    assert markdown_table(TABLE).splitlines() == [
        "| what | a | b | chance | items |",
        "| --- | --- | --- | --- | --- |",
        r"| x\|y | 0.500 [0.250, 0.750] | – | – | 7 |",
        "| z | 123.4 [120.0, 130.0] | 3.000 [3.000, 3.000] | 0.250 | 7 |",
        "| one picture | 0.500 [–] | 6144 | – | 7 |",
        "| itself | 0.000 | – | – | 0 |",
    ]


def test_a_report_says_what_was_lost_and_cannot_be_broken_by_names(tmp_path: Path) -> None:
    result = TaskResult(
        task="t",
        model="m`[x](javascript:1)",
        fingerprint="f",
        data="d\nd",
        settings={"columns": ["a"], "short_answer_suffix": "", "split": None},
        tables=[TABLE],
        items=7,
        skipped=[Skipped(where=f"{i}.jpg", reason="gone\n# not a heading", items=2) for i in range(25)],
        notes=["a note"],
        seconds=1.0,
        machine="2 cores",
        command="fwd2bot eval t",
        examples=[Example(category="c", right=False, text="said no", pictures=["pictures/1.jpg"])],
    )
    text = write_report(result, tmp_path).read_text()
    assert "25 pictures could not be used; 50 items were left out" in text
    assert "and 5 more" in text
    assert "\n# not a heading" not in text
    assert "- short_answer_suffix: `none`\n- split: `None`" in text
    assert text.splitlines()[0] == r"# t: m\`\[x\](javascript:1)"
    assert "![picture 1](pictures/1.jpg)" in text
    assert text.index("## Failures") < text.index("said no")


def test_undefined_scores_are_null_in_json() -> None:
    import json

    result = TaskResult(
        task="t", model="m", fingerprint="f", data="d", settings={}, items=0, skipped=[], notes=[], seconds=0.0,
        machine="", command="",
        tables=[Table(title="T", row_header="", columns=["a"], rows={"x": {"a": cell(float("nan"), 0, 0)}})],
    )  # fmt: skip
    plain = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert plain["tables"][0]["rows"]["x"]["a"]["value"] is None
    assert result.table("T").rows["x"]["a"].items == 7
