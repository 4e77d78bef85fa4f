"""From a recipe to a checkpoint: phases in turn, each resumed where it was stopped, and a report at the end.

Written below ``out`` (for a recipe of several phases, in a folder for each)::

    run.json  log.jsonl  validation.jsonl  samples/  state-<step>/  finished.json
    model/         of the last phase: what ``fwd2bot index --model`` takes; inner phases keep theirs beside their log
    report.html

A finished phase is passed over, so the same command goes on wherever it was killed.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from fwd2bot_index.errors import InputError
from fwd2bot_index.model import Fwd2BotModel
from fwd2bot_training import building, report
from fwd2bot_training.config import PREVIOUS, Recipe, RunConfig, SourceConfig
from fwd2bot_training.data import Mixture, Routing, Source, open_source
from fwd2bot_training.distributed import Processes
from fwd2bot_training.objectives import Objective, Settings, make_objective
from fwd2bot_training.trainer import Trainer
from fwd2bot_training.validation import Validation
from fwd2bot_training.watching import Watch

_RUN, _FINISHED, _MODEL, _SAMPLES = "run.json", "finished.json", "model", "samples"


@dataclasses.dataclass(frozen=True)
class TokenCounter:
    """Length of a caption; a class, so that it can be sent to a loader's process."""

    tokenizer: Any

    def __call__(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False))


def run_recipe(recipe: Recipe, *, root: Path | None, out: Path, quiet: bool = False) -> Path | None:
    """Train all phases; the folder of the model, or None if the last one leaves no checkpoint (a comparison).

    Args:
        root: where relative paths of sources start.
        out: takes everything; a run that was stopped there goes on.
    Raises:
        InputError: settings, data or a state in ``out`` that do not fit; before anything is trained.
        KeyboardInterrupt: stopped; the state is saved.
    """
    transformers_logging.disable_progress_bar()  # of loading and saving: milliseconds here, and many lines in a log
    processes = Processes.start()
    try:
        several = len(recipe.phases) > 1
        model: Path | None = None
        for i, phase in enumerate(recipe.phases):
            if phase.model.base == PREVIOUS:
                if model is None:
                    raise InputError(f"Phase {phase.name!r} has no model to start from: the one before leaves none.")
                base = dataclasses.replace(phase.model, base=str(model))
                phase = dataclasses.replace(phase, model=base)
            folder = out / phase.name if several else out
            last = i == len(recipe.phases) - 1
            if several and processes.rank == 0 and not quiet:
                print(f"phase {i + 1} of {len(recipe.phases)}: {phase.name}", file=sys.stderr)
            model = (out if last else folder) / _MODEL
            if not is_finished(folder, phase):
                made = Phase(
                    phase,
                    root=root,
                    folder=folder,
                    model=model,
                    processes=processes,
                    vocabulary=[s for p in recipe.phases for s in p.data.sources],
                    quiet=quiet,
                )
                made.train()
            if not leaves_checkpoint(phase):
                model = None
        if processes.rank == 0:
            report.write_report(out)
        return model
    finally:
        processes.close()


class Phase:
    """One run of a recipe, ready to train: everything is loaded and checked.

    Args:
        root: where relative paths of sources start.
        folder: takes the log, the states and the samples.
        model: becomes the folder of the checkpoint.
        vocabulary: sources whose texts a tokenizer from scratch is trained on: those of every phase that goes on with
            it. None of them: this phase's own.
    """

    def __init__(
        self,
        run: RunConfig,
        *,
        root: Path | None,
        folder: Path,
        model: Path,
        processes: Processes,
        vocabulary: Sequence[SourceConfig] = (),
        quiet: bool = False,
    ) -> None:
        self.run, self.folder, self.model, self.processes = run, folder, model, processes
        folder.mkdir(parents=True, exist_ok=True)
        train, data = run.train, run.data
        compressor = building.build_model(
            run,
            texts=lambda: texts_of(vocabulary or data.sources, root=root, bad_rows=data.bad_rows, seed=train.seed),
            folder=folder,
        )
        compressor.to(processes.device)
        counter = TokenCounter(compressor.processor.tokenizer)
        settings = Settings(
            seed=train.seed,
            max_text_tokens=data.max_text_tokens,
            lr_factor=building.lr_factors(compressor, run.model),
        )
        self.objective = make_objective(compressor, run.method, settings).to(processes.device)
        self.watch = Watch(
            folder,
            steps=train.steps,
            log_every=train.log_every,
            tensorboard=train.tensorboard and processes.rank == 0,
            quiet=quiet or processes.rank > 0,
        )
        self.validation = Validation(
            self.objective,
            open_sources(run.validation.sources, root=root, counter=counter),
            pictures=run.validation.pictures,
            batch_size=train.micro_batch_size or train.batch_size,
            processes=processes,
            precision=train.precision,
        )
        self.trainer = Trainer(
            self.objective,
            _mixture(run, root, folder, counter),
            train,
            folder,
            export=lambda: _export(self.objective, run, model),
            watch=self.watch,
            validate=self._validate if run.validation.sources else None,
            every=run.validation.every,
            workers=data.workers,
            processes=processes,
        )
        first = processes.rank == 0
        if self.trainer.resume() and first and not quiet:
            print(f"resumed at step {self.trainer.step}", file=sys.stderr)
        if first:
            _write_json(folder / _RUN, _about(run, processes))

    def train(self) -> None:
        """To the end, whatever was done before."""
        self.trainer.run()
        if self.processes.rank == 0:
            kept = leaves_checkpoint(self.run)
            _write_json(self.folder / _FINISHED, {"config": self.run.tables(), "checkpoint": kept})

    def _validate(self, step: int) -> None:
        result = self.validation()
        if self.processes.rank == 0:
            self.watch.validation(step, result)
        if step == self.run.train.steps:
            self.validation.write_samples(self.folder / _SAMPLES)


def leaves_checkpoint(run: RunConfig) -> bool:
    """Rivals and the single pass are trained to be compared with, and have nothing that could be stored."""
    return run.method.compressor == "llm" and run.method.objective != "single-pass"


def open_sources(
    sources: Sequence[SourceConfig], *, root: Path | None, counter: TokenCounter | None = None
) -> list[Source]:
    routing = Routing(max_caption_tokens=sys.maxsize, count_tokens=counter)  # every caption is looked for
    return [open_source(s, root=root, routing=routing, bad_rows="stop") for s in sources]


def texts_of(
    sources: Sequence[SourceConfig], *, root: Path | None, bad_rows: Literal["stop", "skip"], seed: int
) -> Iterator[str]:
    """Every text that training can show, for a tokenizer: of each source once, whatever phases name it; a sample of
    those of endless sources."""
    rng = np.random.default_rng(seed)
    for source in {s.name: s for s in sources}.values():
        yield from open_source(source, root=root, bad_rows=bad_rows).texts(rng)


def _mixture(run: RunConfig, root: Path | None, folder: Path, counter: TokenCounter | None) -> Mixture:
    return Mixture.from_config(
        run.data,
        root=root,
        seed=run.train.seed,
        batch_size=run.train.batch_size,
        count_tokens=counter,
        skipped_to=folder / "skipped.jsonl",
    )


def _export(objective: Objective, run: RunConfig, folder: Path) -> None:
    """A whole folder or none; the one from before is replaced."""
    if not leaves_checkpoint(run):
        return
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    model: Fwd2BotModel = objective.model
    if model.mode == "trained":
        # half the bytes, and what inference on a GPU computes in anyway
        model.save_pretrained(fresh, dtype=torch.bfloat16)
    else:
        model.base.save_pretrained(fresh)
        model.processor.save_pretrained(fresh)
    sources = ", ".join(s.name for s in run.data.sources)
    (fresh / "README.md").write_text(
        f"# {run.name}\n\nTrained by `fwd2bot train`: {run.train.steps} steps of {run.train.batch_size} pictures, from "
        f"`{Path(run.model.base).name}`, on {sources}. The settings:\n\n```json\n{run.to_json()}\n```\n",
        encoding="utf-8",
    )
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def _about(run: RunConfig, processes: Processes) -> dict[str, Any]:
    device = torch.cuda.get_device_name(processes.device) if processes.device.type == "cuda" else "cpu"
    return {
        "config": run.tables(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "device": device,
        "processes": processes.size,
    }


def is_finished(folder: Path, run: RunConfig) -> bool:
    """Whether this very run, with these settings, was trained to its end in ``folder``.

    Raises:
        InputError: its mark cannot be read.
    """
    path = folder / _FINISHED
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["config"] == json.loads(run.to_json()))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"{path} cannot be read ({e}); delete it to train that phase again.") from e


def _write_json(path: Path, content: dict[str, Any]) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)
