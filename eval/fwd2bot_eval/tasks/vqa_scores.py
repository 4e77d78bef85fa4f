"""What an answer is worth: scores of texts, which know nothing of models and files.

Shapes: sums [..., S], as :func:`fwd2bot_eval.metrics.estimate` gives them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np

from fwd2bot_eval.metrics import Floats

_PUNCTUATION: Final = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WORDS: Final = "zero one two three four five six seven eight nine ten"
_NUMBERS: Final = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())} | {"none": "0"}
_ARTICLES: Final = frozenset({"a", "an", "the"})
_FULL_FORMS: Final = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    """Forms that lack one apostrophe -> the full form."""
    lacking = {form[:i] + form[i + 1 :]: form for form in _FULL_FORMS.split() for i, c in enumerate(form) if c == "'"}
    # the published table has this one the wrong way round; a score that is to compare with others keeps it
    return lacking | {"somebody'd": "somebodyd"}


_CONTRACTIONS: Final = _contractions()


def vqa_punctuation(text: str) -> str:
    """An annotator's answer as the evaluation of VQA compares it (visualqa.org/evaluation.html).

    A mark that stands beside a space goes, any other becomes a space; in a text with a comma between digits all of them
    go. Full stops go unless a digit follows. (The published pattern means to spare one behind a digit as well, and does
    not.)
    """
    together = re.search(r"\d,\d", text) is not None
    kept = text
    for mark in _PUNCTUATION:
        beside_a_space = f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if together or beside_a_space else " ")
    return re.sub(r"\.(?!\d)", "", kept)


def vqa_answer(text: str) -> str:
    """A model's answer as the evaluation of VQA compares it: as :func:`vqa_punctuation`; in lower case; number words to
    digits; no articles; apostrophes where they belong."""
    words = vqa_punctuation(text.replace("\n", " ").replace("\t", " ").strip()).lower().split()
    words = [_NUMBERS.get(word, word) for word in words]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(said: str, answers: Sequence[str]) -> float:
    """Soft accuracy (Antol et al. 2015, arXiv 1505.00468): min(annotators who said the same / 3, 1), averaged over
    leaving out each of the annotators.

    As in the published evaluation, answers of annotators who all agree are compared as they stand.
    """
    if len(set(answers)) > 1:
        answers = [vqa_punctuation(answer) for answer in answers]
    same = answers.count(vqa_answer(said))
    others = len(answers) - same
    return (same * min((same - 1) / 3, 1) + others * min(same / 3, 1)) / len(answers)


def plain_answer(text: str) -> str:
    """In lower case, on one line, without underscores, and without a full stop at its end."""
    return " ".join(text.replace("_", " ").lower().split()).rstrip(". ")


def exact_match(said: str, answers: Sequence[str]) -> float:
    """1 where ``said`` is one of the answers, by :func:`plain_answer`."""
    return float(plain_answer(said) in {plain_answer(answer) for answer in answers})


def list_match(said: str, answers: Sequence[str]) -> float:
    """As :func:`exact_match`; of answers that are lists ("chair, table") the order does not matter."""

    def parts(text: str) -> list[str]:
        return sorted(filter(None, (plain_answer(part) for part in text.split(","))))

    return float(parts(said) in [parts(answer) for answer in answers])


def pope_answer(text: str) -> str:
    """``yes`` or ``no``, as POPE reads free text (Li et al. 2023, arXiv 2305.10355): no, if the first sentence has the
    word No, no or not; whatever else is said is a yes."""
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def confusion(yes: Floats, truly: Floats) -> Floats:
    """[items, 4]: true and false positives, false and true negatives; ``yes`` was said, ``truly`` is right, both
    [items] of 0 and 1."""
    return np.stack([yes * truly, yes * (1 - truly), (1 - yes) * truly, (1 - yes) * (1 - truly)], axis=-1)


def accuracy(sums: Floats) -> Floats:
    """Of sums of :func:`confusion`, as all of the following."""
    return np.asarray((sums[..., 0] + sums[..., 3]) / sums[..., :4].sum(-1))


def precision(sums: Floats) -> Floats:
    """NaN where nothing was answered with yes."""
    return np.asarray(sums[..., 0] / (sums[..., 0] + sums[..., 1]))


def recall(sums: Floats) -> Floats:
    """NaN where yes is never right."""
    return np.asarray(sums[..., 0] / (sums[..., 0] + sums[..., 2]))


def f1(sums: Floats) -> Floats:
    """Harmonic mean of precision and recall; 0 where yes is never said though it should be."""
    return np.asarray(2 * sums[..., 0] / (2 * sums[..., 0] + sums[..., 1] + sums[..., 2]))


def yes_ratio(sums: Floats) -> Floats:
    """How often yes was said."""
    return np.asarray((sums[..., 0] + sums[..., 1]) / sums[..., :4].sum(-1))
