"""A run that is done, going on or killed, as one HTML file: settings, curves, scores, samples; no script in it.

Notable choices:

- The curves are small multiples, one line to a panel: the panel's title names it, so colour carries nothing. Only
  R@1, R@5 and R@10 share a panel, and are labelled at their ends.
- A long log is averaged in equal parts, at most `MAX_POINTS` to a curve. The table below the curves has just those
  numbers, and so do the hover titles.
- The same folder always gives the same bytes: no time of writing and no path is on the page.
- The page may be sent to somebody: it holds small copies of the sample pictures, and nothing is loaded from anywhere.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from fwd2bot_index.errors import Fwd2BotError, InputError
from fwd2bot_index.scenes import COLORS, PLACES, SHAPES, SIZES
from fwd2bot_index.thumbnails import thumbnail
from fwd2bot_training.config import describe_keys
from fwd2bot_training.watching import LOG, TOTAL, VALIDATION, duration, read_lines

Values = Sequence[float | None]
"""One for each point of a curve; None: there is none at this step."""

MAX_POINTS: Final = 80
THUMBNAILS: Final = {"side": 240, "quality": 85}
SHORT_ANSWER_WORDS: Final = 3
"""What is expected in more words may be said in others."""
WIDTH, HEIGHT = 280, 150
LEFT, RIGHT, TOP, BOTTOM = 46.0, 272.0, 24.0, 126.0
"""Of the plot within the SVG of a panel."""
NAME_WIDTH = 34.0
"""Room on the right for the names of curves."""
LINE_HEIGHT = 11.0
FEW_POINTS = 12
"""So many are drawn as dots besides."""
LOG_RATIO = 20.0
"""A loss that spans more than this has a logarithmic scale, for its end would be flat on the other."""

LOSSES: Final = {
    TOTAL: ("Total loss: the weighted sum of the others", ""),
    "ar": ("Autoregressive loss", "nats per token"),
    "contrastive": ("Contrastive loss (InfoNCE)", "nats"),
    "words": ("Word loss on image tokens", "nats"),
    "matching": ("Yes/no matching loss", "nats"),
    "orthogonality": ("Orthogonality of the summary tokens", "mean squared cosine"),
    "distillation": ("Distillation: KL to the uncompressed answers", "nats"),
}
"""Title and unit by name, in the order of the page."""
RUN_CURVES: Final = {
    "lr": ("Learning rate", ""),
    "pictures_per_second": ("Throughput", "pictures/s"),
    "memory_gb": ("Peak memory", "GB"),
}
SCENE_CHANCE: Final = {
    **dict.fromkeys(("exist", "relation", "match", "side"), 1 / 2),
    "color": 1 / len(COLORS),
    "shape": 1 / len(SHAPES),
    "size": 1 / len(SIZES),
    "place": 1 / sum(map(len, PLACES)),
}
"""What an even guess among the possible answers gets, for questions about drawn scenes."""


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run's folder, or into a recipe's, whose phases are sub-folders.

    Raises:
        InputError: there is no run in the folder, or a file of it is not what a run writes; names the file.
        Fwd2BotError: the page cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("fwd2bot_training", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plot = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
    runs = [_read(f) for f in _run_folders(folder)]
    page = environment.get_template("report.html.j2").render(runs=runs, **plot)
    path = folder / "report.html"
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as e:
        raise Fwd2BotError(f"The report {path} could not be written: {e.strerror or e}.") from e
    return path


# --- what the page shows


@dataclass(frozen=True, kw_only=True)
class Setting:
    key: str
    value: str
    default: str
    help: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    path: str
    """Of SVG."""
    dots: Sequence[tuple[str, str]]
    """Its points, where they are few enough to be told apart."""
    name: str
    name_y: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One small chart; coordinates are those of its SVG, as text."""

    title: str
    unit: str
    latest: str
    summary: str
    """For who cannot see it."""
    curves: Sequence[Curve]
    x_ticks: Sequence[tuple[str, str]]
    y_ticks: Sequence[tuple[str, str]]
    strips: Sequence[tuple[str, str, str]]
    """(left, width, title) of what the pointer finds."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Panels of one kind, and their numbers as a table."""

    title: str
    panels: Sequence[Panel]
    header: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    """(step, cells)."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A row of the last validation."""

    source: str
    name: str
    right: int
    count: int
    share: str
    interval: str
    chance: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    source: str
    picture: str | None
    """A data URI; None: it cannot be read."""
    prompt: str
    expected: str
    answer: str
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Query:
    source: str
    text: str
    pictures: Sequence[str | None]
    right: int
    """Place of the right picture, from 0."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder, ready for the template."""

    name: str
    facts: Sequence[tuple[str, str]]
    changed: Sequence[Setting]
    usual: Sequence[Setting]
    charts: Sequence[Chart]
    validations: int
    validation_step: str
    validation_charts: Sequence[Chart]
    scores: Sequence[Score]
    samples: Sequence[Sample]
    queries: Sequence[Query]


# --- reading a folder


def _run_folders(folder: Path) -> list[Path]:
    def is_run(path: Path) -> bool:
        return (path / LOG).is_file() or (path / "run.json").is_file()

    if is_run(folder):
        return [folder]
    phases = [p for p in folder.iterdir() if is_run(p)] if folder.is_dir() else []
    if not phases:
        raise InputError(f"There is no run in {folder}: neither it nor a folder in it holds {LOG}.")
    started = {p: str(_object(p / "run.json").get("started", "")) for p in phases}
    return sorted(phases, key=lambda p: (not started[p], started[p], p.name))


def _read(folder: Path) -> Run:
    about = _object(folder / "run.json")
    log, validations = read_lines(folder / LOG), read_lines(folder / VALIDATION)
    with _understood(folder / "run.json"):
        config = dict(about.get("config", {}))
        changed, usual = _settings(config)
        sources = config.get("validation", {}).get("sources", {})
        scenes = {name for name, source in sources.items() if source.get("kind") == "scenes"}
        facts = _facts(about, config, log)
    with _understood(folder / VALIDATION):
        validation_charts = _validation_charts([_flat_validation(v) for v in validations])
        scores = list(_scores(validations[-1], scenes)) if validations else []
    samples, queries = folder / "samples" / "samples.json", folder / "samples" / "retrieval.json"
    with _understood(samples):
        answered = [
            Sample(
                source=row["source"],
                picture=thumbnail(samples.parent / row["image"], **THUMBNAILS),
                prompt=row["prompt"],
                expected=row["expected"],
                answer=row["answer"],
                verdict=verdict(row["expected"], row["answer"]),
            )
            for row in _rows(samples)
        ]
    with _understood(queries):
        retrieved = [
            Query(
                source=row["source"],
                text=row["text"],
                pictures=[thumbnail(queries.parent / name, **THUMBNAILS) for name in row["images"]],
                right=int(row["right"]),
            )
            for row in _rows(queries)
        ]
    return Run(
        name=str(config.get("name", folder.resolve().name)),
        facts=facts,
        changed=changed,
        usual=usual,
        charts=_log_charts(log),
        validations=len(validations),
        validation_step=f"{validations[-1]['step']:,}" if validations else "",
        validation_charts=validation_charts,
        scores=scores,
        samples=answered,
        queries=retrieved,
    )


@contextmanager
def _understood(path: Path) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise InputError(
            f"{path} is not what a run writes ({type(e).__name__}: {e}); move it away to get a report without it."
        ) from e


def _object(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object; an empty one if there is no file."""
    found = _json(path)
    if found is not None and not isinstance(found, dict):
        raise InputError(f"{path} is not what a run writes; move it away to get a report without it.")
    return found or {}


def _rows(path: Path) -> list[Any]:
    """A file that holds a JSON list; an empty one if there is no file."""
    found = _json(path)
    if found is not None and not isinstance(found, list):
        raise InputError(f"{path} is not what a run writes; move it away to get a report without it.")
    return found or []


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise InputError(f"{path} cannot be read ({e}); move it away to get a report without it.") from e


def verdict(expected: str, answer: str) -> str:
    """``right`` where only case, spaces and a last full stop differ, else ``wrong``; ``differs`` where the expected
    answer is a longer text, for which other words may be as good."""
    wanted, given = (" ".join(text.casefold().split()).rstrip(".") for text in (expected, answer))
    if wanted == given:
        return "right"
    return "wrong" if len(wanted.split()) <= SHORT_ANSWER_WORDS else "differs"


def _facts(about: Mapping[str, Any], config: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What one would ask first: (name, value)."""
    facts = []
    if log:
        wanted = config.get("train", {}).get("steps")
        facts.append(("steps", f"{log[-1]['step']:,}" + (f" of {wanted:,}" if wanted else "")))
    facts += [(name, str(about[name])) for name in ("started", "device", "processes", "torch") if name in about]
    if seconds := _finite(line.get("seconds") for line in log):
        # the seconds of a resumed run begin again at 0
        ends = [a for a, b in pairwise(seconds) if b < a] + seconds[-1:]
        facts.append(("time", duration(sum(ends))))
    if rates := _finite(line.get("pictures_per_second") for line in log):
        facts.append(("pictures per second", number(fmean(rates))))
    if peaks := _finite(line.get("memory_gb") for line in log):
        facts.append(("peak memory", f"{number(max(peaks))} GB"))
    return facts


def _settings(config: Mapping[str, Any]) -> tuple[list[Setting], list[Setting]]:
    """(changed, left at their defaults)."""
    documented = {key: (default, help) for key, _, default, help in describe_keys()}
    changed: list[Setting] = []
    usual: list[Setting] = []
    for key, general, value in _flat_config(config):
        default, help = documented.get(general, ("", ""))
        shown = json.dumps(value, ensure_ascii=False)
        setting = Setting(key=key, value=shown, default=default, help=help)
        (usual if shown == default else changed).append(setting)
    return changed, usual


def _flat_config(config: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(key, the key under which it is documented, value)."""
    for table, settings in config.items():
        if table == "name":
            continue
        for name, value in settings.items():
            if name != "sources":
                yield f"{table}.{name}", f"{table}.{name}", value
                continue
            for source, keys in value.items():
                for inner, of_source in keys.items():
                    yield f"{table}.{source}.{inner}", f"data.sources.NAME.{inner}", of_source


# --- scores


def _flat_validation(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of validation.jsonl as a line of a log: ``source/kind`` and ``source direction R@k``, in per cent."""
    flat: dict[str, Any] = {"step": line["step"]}
    for key, found in line.get("answers", {}).items():
        if found["count"]:
            flat[key] = 100 * found["right"] / found["count"]
    for source, found in line.get("retrieval", {}).items():
        flat |= {f"{source} {_arrow(key)}": 100 * value for key, value in found.items() if " R@" in key}
    return flat


def _scores(line: Mapping[str, Any], scenes: set[str]) -> Iterator[Score]:
    for key, found in sorted(line.get("answers", {}).items()):
        source, _, kind = key.partition("/")
        if found["count"]:
            chance = SCENE_CHANCE.get(kind) if source in scenes else None
            yield _score(source, kind, found["right"], found["count"], chance)
    for source, found in sorted(line.get("retrieval", {}).items()):
        pictures, texts = found["pictures"], found["texts"]
        for key, value in found.items():
            direction, at, k = key.rpartition(" R@")
            if at:
                to_image = direction == "text->image"
                count, pool, right_ones = (texts, pictures, 1.0) if to_image else (pictures, texts, texts / pictures)
                yield _score(source, _arrow(key), round(value * count), count, chance_at(int(k), pool, right_ones))


def _arrow(text: str) -> str:
    return text.replace("->", " → ")


def _score(source: str, name: str, right: int, count: int, chance: float | None) -> Score:
    low, high = wilson(right, count)
    return Score(
        source=source,
        name=name,
        right=right,
        count=count,
        share=f"{100 * right / count:.1f} %",
        interval=f"{100 * low:.1f} to {100 * high:.1f} %",
        chance="" if chance is None else f"{100 * chance:.1f} %",
    )


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927)."""
    z = 1.959964
    share, spread = right / count, z * z / count
    middle = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / count + spread / count / 4)
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def chance_at(k: int, pool: int, right: float) -> float:
    """R@k of a random order of ``pool`` items, of which ``right`` (on average) are right answers."""
    miss = 1.0
    for i in range(min(k, pool)):
        miss *= max(0.0, pool - right - i) / (pool - i)
    return 1 - miss


# --- curves


def _log_charts(log: Sequence[Mapping[str, Any]]) -> list[Chart]:
    steps, columns = averaged(log)
    by_loss: dict[str, dict[str, Values]] = defaultdict(dict)
    for key in sorted(columns):
        loss, slash, rest = key.partition("/")
        if slash:
            by_loss[loss][rest] = columns[key]
    order = {name: i for i, name in enumerate(LOSSES)}
    charts = []
    accuracies = by_loss.pop("acc", {})
    for loss in sorted(by_loss, key=lambda name: (order.get(name, len(order)), name)):
        title, unit = LOSSES.get(loss, (loss, ""))
        charts.append(_chart(title, unit, steps, {source: {"": v} for source, v in by_loss[loss].items()}))
    if accuracies:
        kinds = {kind: {"": [v if v is None else 100 * v for v in vs]} for kind, vs in accuracies.items()}
        charts.append(
            _chart("Tokens of answers right, on the training batches, by kind of question", "%", steps, kinds)
        )
    if found := {title: {"": columns[key]} for key, (title, _) in RUN_CURVES.items() if key in columns}:
        units = dict(RUN_CURVES.values())
        charts.append(_chart("Learning rate, throughput, memory", "", steps, found, units=units))
    return charts


def _validation_charts(lines: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """None for a single validation: its table says it all."""
    if len(lines) < 2:
        return []
    steps, columns = averaged(lines)
    answers = {key: {"": v} for key, v in sorted(columns.items()) if " R@" not in key}
    retrieval: dict[str, dict[str, Values]] = defaultdict(dict)
    for key, values in columns.items():
        title, at, k = key.rpartition(" R@")
        if at:
            retrieval[title][f"R@{k}"] = values
    charts = []
    if answers:
        charts.append(_chart("Answers right, by source and kind of question", "%", steps, answers))
    if retrieval:
        title = "Retrieval: queries with a right answer among the first 1, 5, 10"
        charts.append(_chart(title, "%", steps, dict(sorted(retrieval.items()))))
    return charts


def averaged(lines: Sequence[Mapping[str, Any]]) -> tuple[list[int], dict[str, Values]]:
    """At most `MAX_POINTS` points of a log: (the last step of each, their means by key).

    Keys are in the order of their first appearance; one that never has a number is left out.
    """
    size = math.ceil(len(lines) / MAX_POINTS) or 1
    parts = [lines[i : i + size] for i in range(0, len(lines), size)]
    keys = dict.fromkeys(k for line in lines for k in line if k not in ("step", "seconds"))
    columns: dict[str, Values] = {}
    for key in keys:
        found = [_finite(line.get(key) for line in part) for part in parts]
        if any(found):
            columns[key] = [fmean(values) if values else None for values in found]
    return [int(part[-1]["step"]) for part in parts], columns


def _chart(
    title: str,
    unit: str,
    steps: Sequence[int],
    panels: Mapping[str, Mapping[str, Values]],
    *,
    units: Mapping[str, str] | None = None,
) -> Chart:
    """``units``: of the panels by title, where they differ; such panels begin at 0."""
    return Chart(
        title=title,
        panels=[
            _panel(panel, units[panel] if units else unit, steps, curves, from_zero=units is not None)
            for panel, curves in panels.items()
        ],
        header=[f"{panel} {name}".strip() for panel, curves in panels.items() for name in curves],
        rows=[
            (f"{step:,}", [number(values[i]) for curves in panels.values() for values in curves.values()])
            for i, step in enumerate(steps)
        ],
    )


def _panel(
    title: str, unit: str, steps: Sequence[int], curves: Mapping[str, Values], *, from_zero: bool = False
) -> Panel:
    known = {name: _finite(values) for name, values in curves.items()}
    to_y, y_ticks, is_log = _scale([v for vs in known.values() for v in vs], per_cent=unit == "%", from_zero=from_zero)
    right = RIGHT - NAME_WIDTH * (len(curves) > 1)
    end = max(steps[-1], 1)
    xs = [LEFT + (right - LEFT) * step / end for step in steps]
    points = {
        name: [(f"{x:.1f}", f"{to_y(v):.1f}") for x, v in zip(xs, values, strict=True) if v is not None]
        for name, values in curves.items()
    }
    name_ys = _apart([to_y(values[-1]) for values in known.values()])
    edges = [xs[0] - 2, *((a + b) / 2 for a, b in pairwise(xs)), xs[-1] + 2]
    spoken = [f"{name} from {number(values[0])} to {number(values[-1])}".strip() for name, values in known.items()]
    return Panel(
        title=title,
        unit=f"{unit}, log scale".lstrip(", ") if is_log else unit,
        latest=" · ".join(f"{name} {number(values[-1])}".strip() for name, values in known.items()),
        summary=f"{title} over {end:,} steps: {'; '.join(spoken)} {unit}".rstrip(),
        curves=[
            Curve(
                path="M" + "L".join(f"{x} {y}" for x, y in points[name]),
                dots=points[name] if len(points[name]) <= FEW_POINTS else [],
                name=name,
                name_y=f"{y:.1f}",
            )
            for name, y in zip(curves, name_ys, strict=True)
        ],
        x_ticks=[
            (f"{x:.1f}", _short(tick))
            for tick in ticks(0, end, 4)
            if (x := LEFT + (right - LEFT) * tick / end) < right - 36  # there "step" is written
        ],
        y_ticks=[(f"{to_y(tick):.1f}", f"{tick:,g}") for tick in y_ticks],
        strips=[
            (f"{a:.1f}", f"{b - a:.1f}", f"step {step:,}: {found}")
            for i, (step, (a, b)) in enumerate(zip(steps, pairwise(edges), strict=True))
            if (found := ", ".join(f"{n} {number(vs[i])}".strip() for n, vs in curves.items() if vs[i] is not None))
        ],
    )


def _scale(
    values: Sequence[float], *, per_cent: bool, from_zero: bool
) -> tuple[Callable[[float], float], list[float], bool]:
    """(value to y, ticks, whether it is logarithmic)."""
    low, high = min(values), max(values)
    if per_cent:
        marks = [0.0, 50.0, 100.0]
    elif not from_zero and low > 0 and high > LOG_RATIO * low:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        bottom, top = math.log(low), math.log(high)
        every = [m * 10.0**d for d in decades for m in ((1,) if len(decades) > 3 else (1, 3))]
        marks = [m for m in every if low <= m <= high]
        return lambda v: BOTTOM - (BOTTOM - TOP) * (math.log(v) - bottom) / (top - bottom), marks, True
    else:
        marks = ticks(0.0 if from_zero else low, high, 3)
    first, last = marks[0], marks[-1]
    return lambda v: BOTTOM - (BOTTOM - TOP) * (v - first) / (last - first), marks, False


def ticks(low: float, high: float, parts: int) -> list[float]:
    """Round numbers that enclose low..high, in about so many parts; at least two."""
    # the smallest numbers have no power of ten below them
    width = next(w for w in ((high - low) / parts, abs(high), 1.0) if w > 1e-300)
    power = 10.0 ** math.floor(math.log10(width))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= width * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, max(last, first + 1) + 1)]


def _apart(ys: Sequence[float]) -> list[float]:
    """The same heights, moved as little as it takes to write a line of text at each."""
    moved = list(ys)
    order = sorted(range(len(ys)), key=lambda i: (ys[i], -i))  # of equals, R@10 above R@5
    for above, below in pairwise(order):
        moved[below] = max(moved[below], moved[above] + LINE_HEIGHT)
    for below, above in pairwise(reversed(order)):
        moved[below] = min(moved[below], BOTTOM)
        moved[above] = min(moved[above], moved[below] - LINE_HEIGHT)
    return moved


def _finite(values: Iterable[Any]) -> list[float]:
    """The numbers among them."""
    return [v for v in values if isinstance(v, int | float) and math.isfinite(v)]


def number(value: float | None) -> str:
    """Three digits, for eyes."""
    if not value:
        return "–" if value is None else "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _short(step: float) -> str:
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if step >= unit:
            return f"{step / unit:g}{name}"
    return f"{step:g}"
