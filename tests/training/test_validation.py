from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fwd2bot_index.errors import InputError
from fwd2bot_index.model import Fwd2BotModel
from fwd2bot_training.config import MethodConfig
from fwd2bot_training.data import Example
from fwd2bot_training.distributed import Processes
from fwd2bot_training.objectives import make_objective
from fwd2bot_training.validation import Validation, recalls

Make = Callable[..., Fwd2BotModel]


class Rows:
    """A source of the three examples, again and again."""

    name = "rows"

    def __init__(self, examples: list[Example], count: int = 7) -> None:
        self.examples, self.count = examples, count

    def __len__(self) -> int:
        return self.count

    def length(self, index: int) -> int:
        return 1

    def example(self, index: int, rng: np.random.Generator, *, step: int) -> Example:
        return self.examples[index % 3]

    def texts(self, rng: np.random.Generator) -> Any:
        return iter(())


def test_recalls_by_hand() -> None:
    """Text 0 finds its picture first, text 1 second, text 2 ties with another: the tie counts against it."""
    scores = np.array([[0.9, 0.1, 0.1], [0.8, 0.5, 0.1], [0.1, 0.7, 0.7]], np.float32)
    found = recalls(scores)
    assert found["text->image R@1"] == pytest.approx(1 / 3)
    assert found["text->image R@5"] == 1
    assert found["image->text R@1"] == pytest.approx(2 / 3)
    with pytest.raises(InputError):
        recalls(scores[:2])


def validation_of(make_model: Make, examples: list[Example], **settings: Any) -> Validation:
    objective = make_objective(make_model(), MethodConfig())
    return Validation(objective, [Rows(examples)], pictures=5, **{"batch_size": 2, **settings})


def test_every_answer_is_counted_once(make_model: Make, examples: list[Example]) -> None:
    validation = validation_of(make_model, examples)
    validation.objective.train()
    result = validation()
    assert result["answers"]["rows/qa"]["count"] == 5
    assert result["answers"]["rows/caption"]["count"] == 5
    assert result["retrieval"]["rows"]["pictures"] == 5
    assert validation.objective.training, "training goes on as before"


def test_parts_can_be_left_out(make_model: Make, examples: list[Example]) -> None:
    validation = validation_of(make_model, examples)
    whole = validation()
    assert validation(retrieval=False) == {"answers": whole["answers"], "retrieval": {}}
    assert validation(answers=False) == {"answers": {}, "retrieval": whole["retrieval"]}


@pytest.mark.parametrize("size", [2, 4])
def test_processes_share_the_pictures_and_get_one_result(
    size: int, make_model: Make, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three batches for two processes, and for four."""
    alone = validation_of(make_model, examples)()
    parts = []
    for rank in range(size):
        validation = validation_of(make_model, examples, processes=Processes(rank=rank, size=size))
        parts.append(list(validation._run(validation.sources[0], num_tokens=None, answers=True, retrieval=True)))
    monkeypatch.setattr(Processes, "gather", lambda self, value: parts)
    together = validation_of(make_model, examples, processes=Processes(rank=0, size=size))()
    assert together["answers"] == alone["answers"]
    assert together["retrieval"]["rows"]["pictures"] == 5


def test_samples_can_be_looked_at(make_model: Make, examples: list[Example], tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    (folder / "old.jpg").write_bytes(b"")
    validation_of(make_model, examples).write_samples(folder)
    assert not (folder / "old.jpg").exists()
    samples = json.loads((folder / "samples.json").read_text())
    assert len(samples) == 5
    assert {s["prompt"] for s in samples} <= {"is it big?", "where?", "what is it", "say"}
    assert all(isinstance(s["answer"], str) and s["expected"] for s in samples)
    found = json.loads((folder / "retrieval.json").read_text())
    assert len(found) == 5
    for query in found:
        assert 0 <= query["right"] < 5
        assert len(query["images"]) == 5
    for name in {s["image"] for s in samples} | {i for q in found for i in q["images"]}:
        Image.open(folder / name).verify()
