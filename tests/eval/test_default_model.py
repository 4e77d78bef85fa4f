"""The scores of the bundled model, computed for models whose scores are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fwd2bot_eval import default_model
from fwd2bot_index.codec import CODEC_NAMES, fit_codec
from fwd2bot_index.types import SummaryTokens


class Knowing:
    """Likes exactly the captions that are true; with ``blind``, all alike."""

    def __init__(self, true: set[str], *, blind: bool) -> None:
        self.true, self.blind = true, blind

    def _likes(self, text: str) -> float:
        return 0.0 if self.blind else float(text in self.true)

    def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[self._likes(t)] for t in texts])

    def matching_question(self, text: str) -> str:
        return f"does this show {text}?"

    def loglikelihood(self, tokens: torch.Tensor, prompts: Sequence[str], completions: Sequence[str]) -> torch.Tensor:
        assert list(completions) == ["yes", "no"]
        said = [p.removeprefix("does this show ").removesuffix("?") for p in prompts]
        return torch.tensor([[self._likes(s), 0.0] for s in said])


@pytest.mark.parametrize(("blind", "expected"), [(False, 1.0), (True, 0.0)])
def test_hard_negatives_are_won_by_knowing_and_lost_by_ties(blind: bool, expected: float) -> None:
    pool, _, captions = default_model.held_out(40)
    model: Any = Knowing({str(c) for c in captions}, blind=blind)
    scores = default_model.hard_negative_scores(model, torch.zeros(40, 2, 3), torch.ones(40, 1), pool, captions)
    assert set(scores) == {"add", "replace_attribute", "replace_object", "swap_attribute", "swap_relation"}
    for won in scores.values():
        assert (won["cosine"], won["matching question"]) == (expected, expected)
        assert won["items"] > 3


def test_what_several_draws_have_in_common() -> None:
    draws = [{"a": {"x": 1.0, "only here": 2.0}, "b": 4}, {"a": {"x": 2.0}, "b": 1}]
    assert default_model.over_draws(draws) == {
        "a": {"x": {"mean": 1.5, "least": 1.0, "greatest": 2.0}},
        "b": {"mean": 2.5, "least": 1, "greatest": 4},
    }


def test_draws_are_different_scenes() -> None:
    one, other = (default_model.held_out(5, stream)[0] for stream in (default_model.STREAM, "another"))
    assert one == default_model.held_out(5)[0]
    assert one != other


class Seeing:
    """Embeds each of the pictures and texts that it is given as a number of its own; equal ones alike."""

    def __init__(self) -> None:
        self.seen: dict[bytes, int] = {}
        self.truths: dict[str, int] = {}

    def _one_hot(self, numbers: list[int]) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor(numbers), 100).float()

    def compress(self, images: Sequence[Any]) -> SummaryTokens:
        numbers = [self.seen.setdefault(i.tobytes(), len(self.seen)) for i in images]
        return SummaryTokens(tokens=torch.zeros(len(images), 1, 1), embedding=self._one_hot(numbers))

    def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
        return self._one_hot([self.truths.setdefault(t, len(self.truths)) for t in texts])


def test_twins_are_found_by_who_tells_them_apart() -> None:
    """Captions come in the order of their pictures, so both have the same numbers: no caption is said twice."""
    model: Any = Seeing()
    scores = default_model.twin_scores(model, 60)
    assert 55 < scores["pool"] == len(model.seen) <= 60
    assert len(model.truths) == scores["pool"]
    assert scores["R@1"] == 1
    for kind in ("swap_attribute", "swap_relation"):
        won = scores[f"before its twin by {kind} (chance 0.5)"]
        assert won["cosine"] == 1
        assert won["items"] > 10


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_stored_tokens_are_those_of_the_codec(name: str) -> None:
    tokens = torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(0))
    back = default_model.stored(tokens, name)
    error = float((back - tokens).norm() / tokens.norm())
    most = {"float16": 1e-3, "int8": 0.02, "int4": 0.11, "int2": 0.37, "pq8": 0.37, "pq16": 0.7, "pq32": 0.9}
    assert 0 < error < most[name]


def test_a_codec_may_be_fitted_to_other_tokens() -> None:
    """It remembers the mean of what it was fitted to: others far from it come back worse."""
    draw = torch.Generator().manual_seed(0)
    tokens, far = torch.randn(40, 4, 64, generator=draw), 9 + torch.randn(40, 4, 64, generator=draw)
    own, other = (default_model.stored(tokens, "pq16", fit=fit) for fit in (None, far))
    assert (other - tokens).norm() > 1.2 * (own - tokens).norm()
    codec = fit_codec("pq16", far.numpy())
    assert torch.equal(other, torch.from_numpy(codec.decode(codec.encode(tokens.numpy()), k=4, d=64)))
    assert torch.equal(default_model.stored(tokens, "int8", fit=far), default_model.stored(tokens, "int8"))


def test_what_codecs_are_fitted_to_is_not_scored() -> None:
    model: Any = Seeing()
    tokens = default_model.fit_tokens(model, 20)
    assert len(tokens) == len(model.seen) == 20
    model.compress([default_model.scenes.render(s, size=96) for s in default_model.held_out(20)[0]])
    assert len(model.seen) == 40


def test_visual7w_tells_what_the_photo_adds(tmp_path: Path) -> None:
    """A model that reads its answer off the tokens: right for a photo's own, wrong for another's."""
    image = {"bytes": b"", "path": ""}
    rows = [
        {"image": image, "qa": [{"question": "Who?", "options": ["No.", f"Answer {i}."], "answer_index": 1}]}
        for i in range(5)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "val.parquet")

    class Reading:
        def compress(self, images: Sequence[Any]) -> SummaryTokens:
            tokens = torch.arange(len(images)).float().reshape(-1, 1, 1)
            return SummaryTokens(tokens=tokens, embedding=tokens[:, 0])

        def generate(self, tokens: torch.Tensor, prompts: Sequence[str], *, max_new_tokens: int) -> list[str]:
            assert set(prompts) == {"who?"}
            return [f"answer {int(t)}" for t in tokens]

    model: Any = Reading()
    scores = default_model.visual7w_scores(model, tmp_path / "val.parquet")
    assert scores == {"photos": 5, "questions": 5, "own photo": 1.0, "another photo": 0.0}
