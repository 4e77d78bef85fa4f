"""Many threads, one model: calls are joined, and every thread gets its own answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fakes import FakeModel
from served_index import until

from fwd2bot_index.types import Compressor, Replies
from fwd2bot_serve.batching import BatchedModel, ModelThread, Scope
from fwd2bot_serve.failures import CancelledError, OverloadedError


class SlowModel(FakeModel):
    """Works only when it is let; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.let = threading.Event()
        self.started = threading.Event()
        self.texts: list[list[str]] = []

    def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
        self.started.set()
        assert self.let.wait(20)
        self.texts.append(list(texts))
        if any(text == "poison" for text in texts):
            raise ValueError("poison")
        return super().embed_text(texts)

    def answer(self, tokens: torch.Tensor, prompt: str | Sequence[str], *, max_new_tokens: int = 32) -> Replies:
        assert self.let.wait(20)
        assert not isinstance(prompt, str)
        said = super().answer(tokens, prompt, max_new_tokens=max_new_tokens)
        texts = [f"{asked} {text}" for asked, text in zip(prompt, said.texts, strict=True)]
        return Replies(texts=texts, logprob=said.logprob, num_tokens=said.num_tokens)


@pytest.fixture
def slow() -> SlowModel:
    return SlowModel()


@pytest.fixture
def thread(slow: SlowModel) -> Iterator[ModelThread]:
    thread = ModelThread(batch_size=8, max_waiting=20)
    yield thread
    slow.let.set()
    thread.close()


@pytest.fixture
def model(slow: SlowModel, thread: ModelThread) -> BatchedModel:
    return BatchedModel(slow, thread)


def occupied(slow: SlowModel, model: BatchedModel, pool: ThreadPoolExecutor) -> None:
    """The model is at work on a first call, so that all others wait."""
    pool.submit(model.embed_text, ["first"])
    assert slow.started.wait(20)


def test_is_a_compressor(model: BatchedModel) -> None:
    assert isinstance(model, Compressor)


def test_what_waits_is_computed_together(slow: SlowModel, thread: ModelThread, model: BatchedModel) -> None:
    with ThreadPoolExecutor(20) as pool:
        occupied(slow, model, pool)
        texts = [[f"text {i}"] for i in range(10)]
        found = [pool.submit(model.embed_text, text) for text in texts]
        until(lambda: thread.waiting == 10)
        slow.let.set()
        for text, embedding in zip(texts, found, strict=True):
            assert torch.equal(embedding.result(20), FakeModel().embed_text(text))
    assert [len(texts) for texts in slow.texts] == [1, 8, 2]


def test_answers_are_never_mixed_up(slow: SlowModel) -> None:
    slow.let.set()
    thread = ModelThread(batch_size=8)
    model = BatchedModel(slow, thread)
    names = list(FakeModel.COLOURS)

    def client(number: int) -> None:
        for round_ in range(20):
            rows = [(number + round_ + i) % 3 for i in range(1 + (number + round_) % 5)]
            tokens = torch.zeros(len(rows), 4, 8)
            for i, colour in enumerate(rows):
                tokens[i, :, colour] = 1
            said = model.answer(tokens, f"{number}/{round_}")
            assert said.texts == [f"{number}/{round_} {names[colour]}" for colour in rows]
            assert len(said.logprob) == len(said.num_tokens) == len(rows)
            shares = model.loglikelihood(tokens, "?", names).argmax(1)
            assert shares.tolist() == rows

    with ThreadPoolExecutor(12) as pool:
        for done in [pool.submit(client, number) for number in range(12)]:
            done.result(60)
    thread.close()


def test_pictures_too(slow: SlowModel, model: BatchedModel) -> None:
    from pictures import plain

    images = [[plain((250, 0, 0))], [plain((0, 250, 0)), plain((0, 0, 250))]]
    with ThreadPoolExecutor(4) as pool:
        occupied(slow, model, pool)
        found = [pool.submit(model.compress, some) for some in images]
        slow.let.set()
        for some, made in zip(images, found, strict=True):
            alone = FakeModel().compress(some)
            assert torch.equal(made.result(20).embedding, alone.embedding)
            assert torch.equal(made.result(20).tokens, alone.tokens)


def test_one_that_fails_spoils_no_other(slow: SlowModel, thread: ModelThread, model: BatchedModel) -> None:
    with ThreadPoolExecutor(4) as pool:
        occupied(slow, model, pool)
        good, bad = pool.submit(model.embed_text, ["good"]), pool.submit(model.embed_text, ["poison"])
        until(lambda: thread.waiting == 2)
        slow.let.set()
        assert good.result(20).shape == (1, 3)
        with pytest.raises(ValueError, match="poison"):
            bad.result(20)


def test_too_much_is_refused(slow: SlowModel, thread: ModelThread, model: BatchedModel) -> None:
    with ThreadPoolExecutor(4) as pool:
        occupied(slow, model, pool)
        waiting = pool.submit(model.embed_text, ["a"] * 15)
        until(lambda: thread.waiting == 15)
        with pytest.raises(OverloadedError):
            model.embed_text(["b"] * 6)
        slow.let.set()
        assert len(waiting.result(20)) == 15


@pytest.mark.parametrize("when", ["waiting", "at work", "before"])
def test_a_cancelled_request_ends(slow: SlowModel, thread: ModelThread, model: BatchedModel, when: str) -> None:
    scope = Scope()

    def work() -> object:
        with scope():
            return model.embed_text(["of nobody"])

    with ThreadPoolExecutor(4) as pool:
        if when == "at work":
            request = pool.submit(work)
            assert slow.started.wait(20)
            scope.cancel()
            slow.let.set()
        else:
            occupied(slow, model, pool)
            if when == "before":
                scope.cancel()
            request = pool.submit(work)
            if when == "waiting":
                until(lambda: thread.waiting == 1)
                scope.cancel()
        with pytest.raises(CancelledError):
            request.result(20)
        slow.let.set()
    thread.close()
    assert (["of nobody"] in slow.texts) == (when == "at work")


def test_ends_with_calls_waiting(slow: SlowModel, thread: ModelThread, model: BatchedModel) -> None:
    with ThreadPoolExecutor(4) as pool:
        occupied(slow, model, pool)
        waiting = pool.submit(model.embed_text, ["never"])
        until(lambda: thread.waiting == 1)
        closing = pool.submit(thread.close)
        with pytest.raises(CancelledError):
            waiting.result(20)
        slow.let.set()
        closing.result(20)
    with pytest.raises(CancelledError):
        model.embed_text(["late"])
