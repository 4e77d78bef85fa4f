"""A Fwd2Bot model as a chat model of lmms-eval: every answer comes from summary tokens.

    lmms-eval --model fwd2bot --model_args pretrained=default --tasks mme,pope --batch_size 16

The first pass reads each picture once, however many questions are asked about it in one call; the second pass answers
from its summary tokens alone.

Notable choices:

- One picture in one user turn: that is what the model was trained on. Several pictures, videos, sounds, a conversation
  or a system prompt are refused, as a silent part-answer would be a wrong score.
- Decoding is greedy. A task that asks for sampling or beams is refused with what to add to the command line.
- A continuation to be scored loses its leading space: lmms-eval writes it for models that go on in the middle of a
  line, but here it opens the answer's turn.

Needs lmms-eval (written for 0.7; not in ``fwd2bot[harness]``, because of the many packages that it brings, torchvision
among them): ``pip install lmms-eval``. Tests run against the real package where it can be imported, otherwise against
stand-ins for its base class and requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import torch

from fwd2bot_index.errors import InputError
from fwd2bot_index.model import Fwd2BotModel
from fwd2bot_index.types import ImageInput

try:
    from lmms_eval.api.model import lmms
except ModuleNotFoundError as e:
    raise ImportError(f"This plug-in needs lmms-eval ({e}): pip install lmms-eval.") from e

_MAX_NEW_TOKENS: Final = 128
"""Of a task that names no limit."""
_WITHOUT_EFFECT: Final = frozenset({"top_p", "top_k", "seed", "image_aspect_ratio"})
"""What tasks set though greedy decoding has no use for it; the last is LLaVA's own way to cut pictures."""


@dataclass(frozen=True, kw_only=True)
class _Question:
    """One request, read."""

    place: int
    """In the list of requests."""
    image: ImageInput
    prompt: str
    answer: str = ""
    """To be scored."""
    max_new_tokens: int = _MAX_NEW_TOKENS
    until: tuple[str, ...] = ()


class Fwd2BotChat(lmms):
    """Satisfies lmms-eval's interface for chat models (``is_simple = False``).

    Args:
        pretrained: any model that ``fwd2bot --model`` takes; ``default`` is the bundled one.
        batch_size: pictures of one first pass, and questions of one second pass.
        revision, num_summary_tokens, device: as :meth:`Fwd2BotModel.from_pretrained`.
    Raises:
        InputError: ``batch_size`` is no positive number (``auto`` is not offered).
        ModelError: as ``from_pretrained``.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "default",
        *,
        revision: str | None = None,
        num_summary_tokens: int | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise InputError(f"batch_size must be a positive number, not {batch_size!r}.")
        self.batch_size = int(batch_size)
        self.model = Fwd2BotModel.from_pretrained(
            pretrained, revision=revision, num_summary_tokens=num_summary_tokens, device=device
        )

    @property
    def device(self) -> torch.device:
        """Where lmms-eval puts the numbers that its processes exchange."""
        return self.model.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One answer for each request, cut at the first of its ``until``.

        Requests have ``args``: context, ``doc_to_messages``, generation arguments, number of the document, task, split.

        Raises:
            InputError: a request without exactly one picture and one user turn, or decoding that is not greedy.
        """
        answers = [""] * len(requests)
        for tokens, questions in self._batches(requests, _chat_question):
            limit = questions[0].max_new_tokens
            said = self.model.generate(tokens, [q.prompt for q in questions], max_new_tokens=limit)
            for question, answer in zip(questions, said, strict=True):
                answers[question.place] = _cut(answer, question.until)
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", (request.args[0], request.args[2]), answer)
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """For each request the log-probability of its continuation, summed over the tokens, and whether greedy decoding
        would begin with it.

        Requests have ``args``: context, continuation (or a function of the document), ``doc_to_visual``, number of the
        document, task, split.

        Raises:
            InputError: a request without exactly one picture, or an empty continuation.
        """
        scores = [(0.0, False)] * len(requests)
        for tokens, questions in self._batches(requests, _scored_question):
            found = self.model.score_answers(tokens, [q.prompt for q in questions], [q.answer for q in questions])
            for question, logprob, greedy in zip(questions, found.logprob.tolist(), found.greedy.tolist(), strict=True):
                scores[question.place] = (logprob, greedy)
        for request, score in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", (request.args[0], request.args[1]), score)
        return scores

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:
        """Raises InputError: the model answers one question at a time."""
        raise InputError("Fwd2Bot answers one question about one picture; tasks of several rounds are not offered.")

    def _batches(
        self, requests: Sequence[Any], read: Callable[[int, tuple[Any, ...], Any], _Question]
    ) -> Iterator[tuple[torch.Tensor, list[_Question]]]:
        """Summary tokens [B, K, D] and the questions [B] about them, of one ``max_new_tokens``.

        Every document is read and compressed once, and only when its turn comes: a data set's pictures do not fit in
        memory together.
        """
        places: dict[tuple[str, str, Any], list[int]] = {}
        for place, request in enumerate(requests):
            if len(request.args) != 6:  # how lmms-eval asks for the likelihood of an answer by itself
                raise InputError("An answer without a picture has no likelihood here (metric acc_mutual_info).")
            _, _, _, number, task, split = request.args
            places.setdefault((task, split, number), []).append(place)
        documents = list(places)
        for start in range(0, len(documents), self.batch_size):
            images: list[ImageInput] = []
            rows: dict[int, int] = {}
            alike: dict[int, list[_Question]] = {}
            for task, split, number in documents[start : start + self.batch_size]:
                document = self.task_dict[task][split][number]
                questions = [read(i, requests[i].args, document) for i in places[task, split, number]]
                for question in questions:
                    rows[question.place] = len(images)
                    alike.setdefault(question.max_new_tokens, []).append(question)
                images.append(questions[0].image)
            tokens = self.model.compress(images).tokens
            for group in alike.values():
                for i in range(0, len(group), self.batch_size):
                    batch = group[i : i + self.batch_size]
                    yield tokens[[rows[q.place] for q in batch]], batch


def manifest() -> Any:
    """What the entry point ``lmms_eval.models`` of this package gives to lmms-eval: ``--model fwd2bot``."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="fwd2bot", chat_class_path=f"{__name__}.{Fwd2BotChat.__name__}")


def _chat_question(place: int, args: tuple[Any, ...], document: Any) -> _Question:
    """The context, ``args[0]``, is not read: the messages say the same, with the picture's place."""
    _, doc_to_messages, settings, _, task, _ = args
    image, prompt = _read_messages(doc_to_messages(document), task)
    max_new_tokens, until = _read_settings(settings, task)
    return _Question(place=place, image=image, prompt=prompt, max_new_tokens=max_new_tokens, until=until)


def _scored_question(place: int, args: tuple[Any, ...], document: Any) -> _Question:
    context, continuation, doc_to_visual, _, task, _ = args
    answer = continuation if isinstance(continuation, str) else str(continuation(document))
    image = _only_one(doc_to_visual(document) or [], task)
    return _Question(place=place, image=image, prompt=context, answer=answer.lstrip())


def _read_messages(messages: Sequence[Mapping[str, Any]], task: str) -> tuple[ImageInput, str]:
    """The picture and the text of one user turn; the picture stands first, wherever the task has it."""
    if [message["role"] for message in messages] != ["user"]:
        roles = ", ".join(str(message["role"]) for message in messages)
        raise InputError(f"{task} has a conversation ({roles}); Fwd2Bot reads one turn of a user.")
    content = messages[0]["content"]
    if other := sorted({str(part["type"]) for part in content} - {"text", "image"}):
        raise InputError(f"{task} shows {' and '.join(other)}; Fwd2Bot reads pictures.")
    image = _only_one([part["url"] for part in content if part["type"] == "image"], task)
    return image, "\n".join(part["text"] for part in content if part["type"] == "text")


def _only_one(images: Sequence[ImageInput], task: str) -> ImageInput:
    if len(images) != 1:
        raise InputError(f"{task} shows {len(images)} pictures in one request; Fwd2Bot answers about exactly one.")
    return images[0]


def _read_settings(settings: Mapping[str, Any], task: str) -> tuple[int, tuple[str, ...]]:
    """``max_new_tokens`` and ``until`` of a task's generation arguments; None stands for unset."""
    given = {name: value for name, value in settings.items() if value is not None and name not in _WITHOUT_EFFECT}
    temperature = given.pop("temperature", 0)
    if given.pop("do_sample", temperature > 0) or given.pop("num_beams", 1) != 1:
        raise InputError(
            f"{task} asks for sampling or beams; Fwd2Bot decodes greedily. To measure that, add "
            "--gen_kwargs do_sample=False,temperature=0,num_beams=1."
        )
    until = given.pop("until", ())
    max_new_tokens = int(given.pop("max_new_tokens", _MAX_NEW_TOKENS))
    if given:
        raise InputError(f"{task} sets {', '.join(sorted(given))}, which Fwd2Bot does not know.")
    return max_new_tokens, (until,) if isinstance(until, str) else tuple(until)


def _cut(answer: str, until: Sequence[str]) -> str:
    """Up to the first of the stop strings; an empty one stops nothing."""
    return answer[: min((i for stop in until if stop and (i := answer.find(stop)) >= 0), default=len(answer))]
