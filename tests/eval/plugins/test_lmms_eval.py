"""The chat model of lmms-eval, against the real package where it is installed.

It is not among this project's dependencies (it brings torchvision and dozens more); elsewhere, stand-ins take the place
of its base class, its requests and its registry, as version 0.7 documents them.
"""

from __future__ import annotations

import abc
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from PIL import Image

from fwd2bot_index.errors import InputError
from fwd2bot_index.model import Fwd2BotModel

REAL = find_spec("lmms_eval") is not None


class _Base(abc.ABC):
    is_simple = True

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}
        self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)

    @abc.abstractmethod
    def loglikelihood(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests: Any) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    model_id: str
    chat_class_path: str


@pytest.fixture(scope="module")
def plugin() -> Iterator[Any]:
    """The plug-in's module."""
    with pytest.MonkeyPatch.context() as patch:
        if not REAL:
            for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.models"):
                patch.setitem(sys.modules, name, ModuleType(name))
            patch.setattr(sys.modules["lmms_eval.api.model"], "lmms", _Base, raising=False)
            registry = ModuleType("lmms_eval.models.registry_v2")
            registry.ModelManifest = _Manifest  # type: ignore[attr-defined]
            patch.setitem(sys.modules, "lmms_eval.models.registry_v2", registry)
        import fwd2bot_eval.plugins.lmms_eval as module

        yield module
        if not REAL:
            del sys.modules["fwd2bot_eval.plugins.lmms_eval"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    base, processor = tiny_models.build("llava")
    base.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return tiny_models.pictures(5)


@pytest.fixture
def chat(plugin: Any, folder: str, pictures: list[Image.Image]) -> Any:
    made = plugin.Fwd2BotChat(pretrained=folder, device="cpu", batch_size=2, num_summary_tokens=4)
    made.task_dict = {
        "drawn": {"test": [{"image": p, "question": f"what is {i}?"} for i, p in enumerate(pictures)]},
        "other": {"test": [{"image": pictures[4], "question": "why?"}]},
    }
    return made


def messages(document: dict[str, Any]) -> list[dict[str, Any]]:
    content = [{"type": "image", "url": document["image"]}, {"type": "text", "text": document["question"]}]
    return [{"role": "user", "content": content}]


def request(*args: Any) -> Any:
    if not REAL:
        return SimpleNamespace(args=args)
    from lmms_eval.api.instance import Instance

    where = {"task": "drawn", "doc_id": 0, "repeats": 1}
    return Instance(request_type="generate_until", arguments=args, idx=0, metadata=where)


def ask(number: int, settings: dict[str, Any], *, task: str = "drawn", doc_to_messages: Any = messages) -> Any:
    return request("the context", doc_to_messages, settings, number, task, "test")


def score(number: int, context: str, continuation: Any, *, doc_to_visual: Any = lambda d: [d["image"]]) -> Any:
    return request(context, continuation, doc_to_visual, number, "drawn", "test")


def expected(model: Fwd2BotModel, picture: Image.Image, prompt: str, n: int) -> str:
    return model.generate(model.compress([picture]).tokens, prompt, max_new_tokens=n)[0]


def test_it_is_a_chat_model_by_its_name(plugin: Any, chat: Any) -> None:
    made = plugin.manifest()
    assert (made.model_id, made.chat_class_path) == ("fwd2bot", "fwd2bot_eval.plugins.lmms_eval.Fwd2BotChat")
    assert chat.is_simple is False
    assert chat.device == torch.device("cpu")
    if REAL:
        from lmms_eval.models.registry_v2 import ModelRegistryV2

        registry = ModelRegistryV2()
        registry.register_manifest(made)
        assert registry.get_model_class("fwd2bot") is plugin.Fwd2BotChat


def test_answers_come_in_the_order_of_the_requests(chat: Any, pictures: list[Image.Image]) -> None:
    order = [3, 0, 4, 1, 2, 0]
    lengths = [5, 9, 5, 9, 5, 5]
    asked = [ask(i, {"max_new_tokens": n, "until": []}) for i, n in zip(order, lengths, strict=True)]
    answers = chat.generate_until([*asked, ask(0, {"max_new_tokens": 5}, task="other")])
    wanted = [expected(chat.model, pictures[i], f"what is {i}?", n) for i, n in zip(order, lengths, strict=True)] + [
        expected(chat.model, pictures[4], "why?", 5)
    ]
    assert answers == wanted
    assert len(set(answers)) > 3


def test_each_picture_is_compressed_once_and_in_batches(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    compress = chat.model.compress

    def counting(images: Any) -> Any:
        sizes.append(len(images))
        return compress(images)

    monkeypatch.setattr(chat.model, "compress", counting)
    chat.loglikelihood([score(i, "what?", a) for a in ("yes", "no", "maybe") for i in range(5)])
    assert sizes == [2, 2, 1]


def test_answers_stop_at_until(chat: Any, pictures: list[Image.Image]) -> None:
    whole = expected(chat.model, pictures[0], "what is 0?", 12)
    first, later = whole[4:6], whole[7:9]
    assert whole.find(first) < whole.find(later)

    def answer(until: Any) -> str:
        return chat.generate_until([ask(0, {"max_new_tokens": 12, "until": until})])[0]

    assert answer([later, first]) == whole[: whole.find(first)]
    assert answer(later) == whole[: whole.find(later)]
    assert answer(["", "not in it"]) == answer(None) == whole


def test_likelihoods(chat: Any, pictures: list[Image.Image]) -> None:
    tokens = chat.model.compress(pictures).tokens
    greedy = expected(chat.model, pictures[2], "what?", 1)
    requests = [score(i, "what?", a) for i in range(5) for a in (" yes", "no, never")]
    scores = chat.loglikelihood([*requests, score(2, "what?", lambda d: greedy), score(2, "", "yes")])
    wanted = chat.model.loglikelihood(tokens, "what?", ["yes", "no, never"])
    assert [s for s, _ in scores[:10]] == pytest.approx(wanted.flatten().tolist(), abs=1e-4)
    assert scores[10][1] is True
    assert not any(g for _, g in scores[:10])
    assert scores[11][0] == pytest.approx(float(chat.model.loglikelihood(tokens[2:3], "", ["yes"])), abs=1e-4)


def test_what_is_done_is_told_to_the_cache(chat: Any) -> None:
    told: list[Any] = []
    chat.cache_hook = SimpleNamespace(add_partial=lambda *what: told.append(what))
    settings = {"max_new_tokens": 2}
    answers = chat.generate_until([ask(0, settings)])
    scores = chat.loglikelihood([score(0, "what?", "yes")])
    assert told == [
        ("generate_until", ("the context", settings), answers[0]),
        ("loglikelihood", ("what?", "yes"), scores[0]),
    ]


def test_the_text_around_a_picture_is_one_prompt(chat: Any, pictures: list[Image.Image]) -> None:
    def around(document: dict[str, Any]) -> list[dict[str, Any]]:
        before, after = {"type": "text", "text": "look"}, {"type": "text", "text": "well?"}
        return [{"role": "user", "content": [before, {"type": "image", "url": document["image"]}, after]}]

    answers = chat.generate_until([ask(0, {"max_new_tokens": 6}, doc_to_messages=around)])
    assert answers == [expected(chat.model, pictures[0], "look\nwell?", 6)]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0, "do_sample": False, "top_p": 1.0, "num_beams": 1},
        {"temperature": 0.7, "do_sample": False, "top_k": 5, "seed": 3},
        {"temperature": None, "num_beams": None, "image_aspect_ratio": "original"},
    ],
)
def test_settings_that_mean_greedy_decoding(chat: Any, settings: dict[str, Any], pictures: list[Image.Image]) -> None:
    answers = chat.generate_until([ask(1, {**settings, "max_new_tokens": 4})])
    assert answers == [expected(chat.model, pictures[1], "what is 1?", 4)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": True}, "sampling or beams"),
        ({"temperature": 0.2}, "sampling or beams"),
        ({"num_beams": 3}, "sampling or beams"),
        ({"repetition_penalty": 2}, "drawn sets repetition_penalty"),
        ({"max_new_tokens": 0}, "at least 1"),
    ],
)
def test_settings_that_are_refused(chat: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        chat.generate_until([ask(0, settings)])


def user(*content: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


PICTURE = {"type": "image", "url": Image.new("RGB", (8, 8))}


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        (user(PICTURE, PICTURE), "2 pictures"),
        (user({"type": "text", "text": "why?"}), "0 pictures"),
        (user(PICTURE, {"type": "video", "url": "a.mp4"}), "shows video"),
        ([{"role": "system", "content": []}, *user(PICTURE)], r"conversation \(system, user\)"),
    ],
)
def test_what_it_cannot_read_is_refused(chat: Any, shown: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        chat.generate_until([ask(0, {}, doc_to_messages=lambda document: shown)])


def test_likelihoods_that_are_refused(chat: Any) -> None:
    with pytest.raises(InputError, match="2 pictures"):
        chat.loglikelihood([score(0, "what?", "yes", doc_to_visual=lambda d: [d["image"]] * 2)])
    with pytest.raises(InputError, match="0 pictures"):
        chat.loglikelihood([score(0, "what?", "yes", doc_to_visual=lambda d: None)])
    with pytest.raises(InputError, match="no tokens"):
        chat.loglikelihood([score(0, "what?", " ")])
    with pytest.raises(InputError, match="without a picture"):
        chat.loglikelihood([request("", "yes")])
    with pytest.raises(InputError, match="several rounds"):
        chat.generate_until_multi_round([ask(0, {})])


@pytest.mark.parametrize("size", ["auto", 0, -1, "1.5"])
def test_a_batch_size_is_a_number(plugin: Any, folder: str, size: Any) -> None:
    with pytest.raises(InputError, match="positive number"):
        plugin.Fwd2BotChat(pretrained=folder, batch_size=size)


def test_a_missing_package_is_named(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval.api.model", None)
    monkeypatch.delitem(sys.modules, "fwd2bot_eval.plugins.lmms_eval")
    with pytest.raises(ImportError, match="pip install lmms-eval"):
        __import__("fwd2bot_eval.plugins.lmms_eval")
