"""Rows of drawn embeddings, committed without any pictures."""

from __future__ import annotations

import numpy as np

from fwd2bot_index.decoding import content_id
from fwd2bot_index.store import ImageRow, IndexStore

E = 16
CENTRES = np.random.default_rng(0).normal(size=(20, E))


def embedding(number: int) -> np.ndarray:
    draw = np.random.default_rng(number)
    x = CENTRES[number % len(CENTRES)] + 0.5 * draw.normal(size=E)
    return (x / np.linalg.norm(x)).astype(np.float16)


def row(number: int, uri: str | None = None) -> ImageRow:
    return ImageRow(
        uri=uri or f"/photos/{number}.jpg",
        id=content_id(str(number).encode()),
        size=1,
        mtime_ns=2,
        width=number + 1,
        height=1,
        status="ok",
        embedding=embedding(number),
    )


def commit(store: IndexStore, *rows: ImageRow) -> None:
    store.commit(rows, {r.id or "": np.zeros((1, 2), np.float32) for r in rows})
