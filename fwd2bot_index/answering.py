"""Questions answered from stored summary tokens, one picture at a time or several in one context.

*Confidence* is the model's own likelihood of what it says, in [0, 1]: of a free answer, the probability of the whole of
it, its end included; of a choice, its share among the choices' probabilities, each with its end included where one may
be the beginning of another, so that "yes" is not preferred to "yes, two" for being shorter. How far it can be trusted
depends on the model: docs/querying.md has what was measured for the bundled one.

Shapes: n hits, M pictures in one context, K summary tokens, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from fwd2bot_index.errors import InputError
from fwd2bot_index.keys import is_text
from fwd2bot_index.types import Answer, Compressor, Hit, JointAnswer

if TYPE_CHECKING:
    import torch

    from fwd2bot_index.payloads import Float32

ASK_BATCH: Final = 32
"""Pictures that are answered about at once."""
MAX_QUESTION: Final = 10_000
"""Characters."""
MAX_CHOICES: Final = 100
MAX_TOGETHER: Final = 512
"""Pictures in one context."""


def check_question(question: str) -> None:
    """
    Raises:
        InputError: it is empty, enormous or no text.
    """
    if not question.strip():
        raise InputError("The question is empty.")
    if not is_text(question):
        raise InputError("The question is not valid UTF-8.")
    if len(question) > MAX_QUESTION:
        raise InputError(f"The question has {len(question):,} characters; {MAX_QUESTION:,} are the most.")


def check_choices(choices: Sequence[str] | None) -> None:
    """
    Raises:
        InputError: there are less than two, one is empty or there twice, or there are too many.
    """
    if choices is None:
        return
    if len(choices) < 2:
        raise InputError("Give at least two choices.")
    if len(choices) > MAX_CHOICES:
        raise InputError(f"There are {len(choices)} choices; {MAX_CHOICES} are the most.")
    if not all(choice.strip() for choice in choices):
        raise InputError("A choice is empty.")
    if twice := sorted({choice for choice in choices if choices.count(choice) > 1}):
        raise InputError(f"The choice {twice[0]!r} is there twice.")


def replies(
    model: Compressor, tokens: torch.Tensor, question: str, choices: Sequence[str] | None, *, max_new_tokens: int = 32
) -> tuple[list[str], list[float]]:
    """Answers and confidences [n] about each row of ``tokens`` [n, K, D]; one of ``choices``, where they are given."""
    if choices is None:
        said = model.answer(tokens, question, max_new_tokens=max_new_tokens)
        return said.texts, said.logprob.exp().tolist()
    shares = model.loglikelihood(tokens, question, choices, ended=not _apart(choices)).softmax(dim=1)
    best = shares.max(dim=1)
    return [choices[i] for i in best.indices.tolist()], best.values.tolist()


def _apart(choices: Sequence[str]) -> bool:
    """Whether the first words differ: then what follows them tells nothing, and need not be computed."""
    return all(len(choice.split()) == 1 for choice in choices) and not any(
        a != b and b.startswith(a) for a in choices for b in choices
    )


def ask_each(
    model: Compressor,
    tokens: Callable[[Sequence[Hit]], Float32],
    question: str,
    hits: Sequence[Hit],
    *,
    choices: Sequence[str] | None = None,
    max_new_tokens: int = 32,
) -> Iterator[Answer]:
    """One answer about each hit, as soon as it is there.

    Args:
        tokens: of hits [n, K, D].
    """
    import torch

    for start in range(0, len(hits), ASK_BATCH):
        batch = hits[start : start + ASK_BATCH]
        texts, confidences = replies(
            model, torch.from_numpy(tokens(batch)), question, choices, max_new_tokens=max_new_tokens
        )
        for hit, text, confidence in zip(batch, texts, confidences, strict=True):
            yield Answer(hit=hit, text=text, confidence=confidence)


def ask_together(
    model: Compressor, tokens: Float32, question: str, hits: Sequence[Hit], *, max_new_tokens: int = 32
) -> JointAnswer:
    """One answer about all hits, whose ``tokens`` [M, K, D] are read one after another in one context.

    A picture's weight is what its absence costs: the context is read once more without each.

    Raises:
        InputError: there are more pictures than the model reads at once.
        ModelError: the model takes one picture at a time.
    """
    import torch

    if len(hits) > MAX_TOGETHER:
        raise InputError(f"{len(hits)} pictures cannot be asked about together; {MAX_TOGETHER} are the most.")
    read = torch.from_numpy(tokens)
    said = model.answer_together(read, question, max_new_tokens=max_new_tokens)
    weights = model.weigh_together(read, question, said.texts[0])
    return JointAnswer(
        text=said.texts[0],
        confidence=math.exp(float(said.logprob[0])),
        hits=tuple(hits),
        weights=tuple(weights.tolist()),
    )
