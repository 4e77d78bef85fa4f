"""Three ways to say how well a text fits a picture.

- ``cosine`` of the embeddings: what search does.
- ``matching k=16``: log P("yes") - log P("no") of the matching question, from the summary tokens (VQAScore, arXiv
  2404.01291; ITM of ReMatch).
- ``caption k=16``: log-likelihood of the text as the picture's caption; ``caption/blind k=16``: less its likelihood
  without a picture, so that a text is not preferred for being the likelier sentence (VisualGPTScore, arXiv 2306.01879).

``text only`` is that blind likelihood by itself: what the best of the language shortcuts scores.

Shapes: n pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from fwd2bot_eval.subjects import BLIND, OTHER, Float32, Seen, Subject

COSINE: Final = "cosine"
TEXT_ONLY: Final = "text only"


def scorer_names(subject: Subject) -> list[str]:
    """The columns of :func:`fit_scores`, in its order."""
    names = [COSINE]
    for column in _read(subject):
        names += [f"matching {column}", f"caption {column}"]
        if BLIND in subject.columns:
            names.append(f"caption/blind {column}")
    return names + ([TEXT_ONLY] if BLIND in subject.columns else [])


def fit_scores(subject: Subject, seen: Seen, rows: Sequence[int], texts: Sequence[str]) -> dict[str, Float32]:
    """Scores [n] of ``texts`` [n] for the pictures in ``rows`` [n], by scorer; more is a better fit."""
    scores: dict[str, Float32] = {}
    distinct = list(dict.fromkeys(texts))
    place = {text: i for i, text in enumerate(distinct)}
    embedded = subject.embed_text(distinct)[[place[t] for t in texts]]
    scores[COSINE] = (embedded * seen.embedding[list(rows)]).sum(-1)
    blind: Float32 | None = None
    if BLIND in subject.columns:
        said, _ = seen.reader(BLIND).score([0] * len(distinct), [subject.caption_prompt] * len(distinct), distinct)
        blind = said[[place[t] for t in texts]]
    questions = [subject.matching_question(t) for t in texts]
    for column in _read(subject):
        reader = seen.reader(column)
        yes, _ = reader.score(rows, questions, ["yes"] * len(texts))
        no, _ = reader.score(rows, questions, ["no"] * len(texts))
        scores[f"matching {column}"] = yes - no
        said, _ = reader.score(rows, [subject.caption_prompt] * len(texts), texts)
        scores[f"caption {column}"] = said
        if blind is not None:
            scores[f"caption/blind {column}"] = said - blind
    if blind is not None:
        scores[TEXT_ONLY] = blind
    return {name: np.asarray(scores[name], np.float32) for name in scorer_names(subject)}


def _read(subject: Subject) -> list[str]:
    return [c for c in subject.columns if c not in (BLIND, OTHER)]
