"""What a row says of its picture, whatever kind of file it comes from, and which text goes to which loss.

Keys of a row that are understood: ``captions`` / ``caption`` / ``text`` (a text or a list of them), ``negatives``
(false captions that nearly fit), ``qa`` (``{"question", "answer"}`` or ``{"question", "options", "answer_index"}``),
``conversations`` (LLaVA's turns) and ``word`` (the name of what is there). A row may have several.

Conversations are taken as they stand. The other texts are tidied: no space before punctuation, no underscores, no
full stop behind a single sentence. Upper case stays: a tokenizer that wants none lowers it itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fwd2bot_training.data.example import CAPTION, DESCRIBE, NAME, Segment

CAPTION_KEYS: Final = ("captions", "caption", "text")
TEXT_KEYS: Final = (*CAPTION_KEYS, "negatives", "qa", "conversations", "word")
IMAGE_TAG: Final = "<image>"
_ASKERS: Final = ("human", "user")
_ANSWERERS: Final = ("gpt", "assistant")


class Unusable(Exception):
    """Why a row cannot be used; reads on from the name of the file and the row."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    captions: tuple[str, ...] = ()
    segments: tuple[Segment, ...] = ()
    """Of ``qa`` and ``conversations``."""
    word: str | None = None
    negatives: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[str]:
        """Each text; a question with its answer is one."""
        yield from self.captions
        yield from (f"{s.prompt}\n{s.answer}" for s in self.segments)
        if self.word is not None:
            yield self.word
        yield from self.negatives


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Which captions are short enough for the contrastive loss: on long ones it collapses (VladVA). ``count_tokens``
    None: words are counted."""

    max_caption_tokens: int = 30
    count_tokens: Callable[[str], int] | None = None

    def is_short(self, caption: str) -> bool:
        count = len(caption.split()) if self.count_tokens is None else self.count_tokens(caption)
        return count <= self.max_caption_tokens


def read_texts(row: Mapping[str, Any], *, kind: str) -> Texts:
    """The texts of a row. ``kind`` labels the segments of its questions.

    Raises:
        Unusable: a text is empty or of another form, or there is none.
    """
    if not isinstance(row, Mapping):
        raise Unusable(f"it is {_shown(row)}, not an object with keys")
    captions: list[str] = []
    for key in CAPTION_KEYS:
        captions += _list(row, key)
    segments = [_question(item, kind) for item in _items(row, "qa")]
    segments += _turns(row.get("conversations"), kind)
    word = None if row.get("word") is None else _filled(tidy(_text(row["word"], "word")), "word")
    if not captions and not segments and word is None:
        raise Unusable(f"it says nothing: there is none of {', '.join(k for k in TEXT_KEYS if k != 'negatives')}")
    return Texts(
        captions=tuple(captions), segments=tuple(segments), word=word, negatives=tuple(_list(row, "negatives"))
    )


def caption_segment(caption: str, *, short: bool) -> Segment:
    """A caption as something to say: a long one is a description."""
    if short:
        return Segment(prompt=CAPTION, answer=caption, kind="caption")
    return Segment(prompt=DESCRIBE, answer=caption, kind="describe")


def name_segment(word: str) -> Segment:
    return Segment(prompt=NAME, answer=word, kind="name")


def tidy(text: str) -> str:
    """On one line, without underscores, space before punctuation, and the full stop behind a single sentence.

    >>> tidy("A dog , running .")
    'A dog, running'
    """
    text = _spaced(text)
    return text.rstrip(". ") if text.endswith(".") and ". " not in text else text


def _spaced(text: str) -> str:
    return re.sub(r"\s+([.,;:!?])(?!\w)", r"\1", " ".join(text.replace("_", " ").split()))


def _question(item: Any, kind: str) -> Segment:
    if not isinstance(item, Mapping) or "question" not in item:
        raise Unusable(f"its qa has {_shown(item)}, which is no question with an answer")
    question = _filled(_spaced(_text(item["question"], "question")), "question")
    options = item.get("options")
    if options is not None:
        index = item.get("answer_index")
        if not isinstance(index, int) or not 0 <= index < len(options):
            raise Unusable(f"answer_index {index!r} of the question {question!r} is none of its {len(options)} options")
        answer = options[index]
    else:
        answer = item.get("answer")
    answer = _filled(tidy(_text(answer, f"answer to {question!r}")), f"answer to {question!r}")
    return Segment(prompt=question + "?" if question[-1].isalnum() else question, answer=answer, kind=kind)


def _turns(turns: Any, kind: str) -> Iterator[Segment]:
    """Each pair of a question and its answer is a segment of its own: it does not see the turns before it."""
    if turns is None:
        return
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise Unusable(f"its conversations are {_shown(turns)}, not a list of turns")
    asked: str | None = None
    for i, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or "from" not in turn or "value" not in turn:
            raise Unusable(f"turn {i} of its conversations is {_shown(turn)}, not one with from and value")
        who, said = turn["from"], _text(turn["value"], f"turn {i} of its conversations")
        if who == "system" and i == 0:
            continue
        if who not in (_ASKERS if asked is None else _ANSWERERS):
            raise Unusable(f"turn {i} of its conversations is from {who!r}; human and gpt must take turns")
        if asked is None:
            # LLaVA's first turn may be the picture alone.
            asked = said.replace(IMAGE_TAG, "").strip() or DESCRIBE
        else:
            yield Segment(prompt=asked, answer=_filled(said.strip(), f"answer to {asked!r}"), kind=kind)
            asked = None
    if asked is not None:
        raise Unusable(f"the question {asked!r} of its conversations has no answer")


def _items(row: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = row.get(key)
    if value is None:
        return []
    if isinstance(value, Sequence) and not isinstance(value, str):
        return value
    return [value]


def _list(row: Mapping[str, Any], key: str) -> list[str]:
    items = _items(row, key)
    return [_filled(tidy(_text(v, what)), what) for i, v in enumerate(items) if (what := f"{key}[{i}]")]


def _text(value: Any, what: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if value is None:
        raise Unusable(f"its {what} is missing")
    if not isinstance(value, str):
        raise Unusable(f"its {what} is {_shown(value)}, not a text")
    return value


def _filled(text: str, what: str) -> str:
    if not text:
        raise Unusable(f"its {what} is empty")
    return text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
