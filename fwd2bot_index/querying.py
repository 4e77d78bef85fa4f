"""Questions to an index: searching by text or picture, and answering from stored summary tokens.

    >>> index = Index.open(".fwd2bot")
    >>> hits = index.search("a red cube left of a ball", top=5)
    >>> index.ask("How many balls are there?", hits)[0].text

The files of the pictures are never opened: what was kept of them is enough. The store, the vector index and the model
are each imported and loaded when they are first needed, so that finding an index takes no time. Searching for a text
loads no model where a :class:`fwd2bot_index.text_encoder.TextEncoder` does as well.

Shapes: n hits, K summary tokens, D hidden size, E embedding size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from fwd2bot_index.errors import ImageError, IndexEmptyError, IndexMismatchError, IndexNotFoundError, InputError
from fwd2bot_index.types import Answer, Compressor, Hit, ImageInput

if TYPE_CHECKING:
    from fwd2bot_index.config import Manifest
    from fwd2bot_index.payloads import Float32
    from fwd2bot_index.store import EmbeddedRows, IndexStore, StoreStats
    from fwd2bot_index.text_encoder import TextEncoder
    from fwd2bot_index.vector_index import VectorIndex

INDEX_FOLDER: Final = ".fwd2bot"
ASK_BATCH: Final = 32
"""Pictures that are answered about at once."""


def find_index(start: str | Path) -> Path:
    """The nearest index from ``start`` upward, as git finds its repository.

    Raises:
        IndexNotFoundError: there is none.
    """
    folder = Path(os.path.abspath(start))
    for place in (folder, *folder.parents):
        if (place / INDEX_FOLDER / "manifest.json").is_file():
            return place / INDEX_FOLDER
    raise IndexNotFoundError(
        f"There is no index in {folder} or above it: make one with `fwd2bot index FOLDER`, or name one with --index."
    )


class Index:
    """An index, opened for questions. It answers from what was committed when it first searched; open it again to see
    later changes."""

    def __init__(
        self,
        store: IndexStore,
        model: Compressor | Callable[[], Compressor],
        text_encoder: Callable[[], TextEncoder | None] | None = None,
    ) -> None:
        self._store = store
        self._source = model
        self._text_source = text_encoder

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        model: Compressor | Callable[[], Compressor] | None = None,
        text_encoder: Callable[[], TextEncoder | None] | None = None,
    ) -> Self:
        """The index in that folder.

        Args:
            path: the folder that holds ``manifest.json``.
            model: the model that made it, or what loads it when it is first needed. None: the one that the manifest
                names, from where it came.
            text_encoder: what makes the encoder of texts for as long as the model is not loaded; it may find that only
                the model will do. None: that of the model that the manifest names, unless ``model`` is given.

        Raises:
            IndexNotFoundError, IndexCorruptedError, IndexMismatchError: it cannot be read.
        """
        from fwd2bot_index.store import IndexStore

        store = IndexStore.open(path)
        if model is None:
            text_encoder = text_encoder or (lambda: _load_text_encoder(store.manifest))
        return cls(store, model or (lambda: _load(store.manifest)), text_encoder)

    @property
    def manifest(self) -> Manifest:
        return self._store.manifest

    @property
    def path(self) -> Path:
        return self._store.path

    def __len__(self) -> int:
        """How many files can be found."""
        return len(self._rows)

    def stats(self) -> StoreStats:
        """Counts, and bytes on disk."""
        return self._store.stats()

    @cached_property
    def model(self) -> Compressor:
        """The model that made the index; loaded at first use.

        Raises:
            IndexMismatchError: it is another by now.
            ModelError: it cannot be found or loaded.
        """
        model = self._source if isinstance(self._source, Compressor) else self._source()
        if model.fingerprint != self.manifest.model_fingerprint:
            raise IndexMismatchError(
                f"The index in {self.path} was made by {self.manifest.model}, and {model.name} has other weights or "
                f"settings: use the model that made it, or delete the index and index again."
            )
        return model

    # ---- searching

    def search(self, text: str | None = None, *, image: ImageInput | None = None, top: int = 10) -> list[Hit]:
        """The ``top`` files nearest to a text or to a picture, best first; files with the same bytes follow each other.

        Raises:
            InputError: neither or both were given, the text is empty, or ``top`` is less than 1.
            ImageError: the picture cannot be used.
            IndexEmptyError: there is nothing to find.
        """
        if (text is None) == (image is None):
            raise InputError("Search for a text or for a picture: one of the two.")
        _check_top(top)
        self._check_not_empty()
        if text is not None:
            return self.search_embedding(self.embed_text(text), top=top)
        assert image is not None
        return self.search_embedding(self.embed_image(image), top=top)

    def search_embedding(self, embedding: Float32, *, top: int = 10) -> list[Hit]:
        """The ``top`` files nearest to an embedding [E] of unit length.

        Raises:
            InputError: it has another size or is not finite, or ``top`` is less than 1.
            IndexEmptyError: there is nothing to find.
        """
        _check_top(top)
        self._check_not_empty()
        query = np.asarray(embedding, np.float32)
        if query.shape != (self.manifest.embedding_dim,) or not np.isfinite(query).all():
            raise InputError(f"An embedding of this index is {self.manifest.embedding_dim} finite numbers.")
        rows, scores = self._vectors.search(query[None], top)
        return [
            self._hit(row, rank=rank, score=score)
            for rank, (row, score) in enumerate(zip(rows[0].tolist(), scores[0].tolist(), strict=True), start=1)
        ]

    def embed_text(self, text: str) -> Float32:
        """[E], unit length.

        Raises:
            InputError: the text is empty.
        """
        if not text.strip():
            raise InputError("The text to search for is empty.")
        encoder = None if "model" in self.__dict__ else self._text_encoder
        if encoder is not None:
            return encoder.embed_text([text])[0]
        embedding: Float32 = self.model.embed_text([text])[0].float().cpu().numpy()
        return embedding

    def embed_image(self, image: ImageInput) -> Float32:
        """[E], unit length.

        Raises:
            ImageError: the picture cannot be used.
        """
        picture = _decoded(image, self.model.decode_side)
        embedding: Float32 = self.model.compress([picture]).embedding[0].float().cpu().numpy()
        return embedding

    def find(self, path: str | Path) -> Hit | None:
        """An indexed file by its name or, failing that, by its content; None where there is neither."""
        from fwd2bot_index.decoding import content_id, read_file

        uri = os.path.abspath(path)
        found = [row for row in self._store.rows(uris=[uri]) if row.status == "ok"]
        if not found:
            try:
                id_ = content_id(read_file(uri))
            except ImageError:
                return None
            found = [row for row in self._store.rows(ids=[id_]) if row.status == "ok"]
        if not found:
            return None
        row = min(found, key=lambda row: row.uri)
        assert row.id is not None
        assert row.width is not None
        assert row.height is not None
        return Hit(rank=1, score=1.0, id=row.id, uri=row.uri, width=row.width, height=row.height)

    # ---- answering

    def tokens(self, hits: Sequence[Hit]) -> Float32:
        """[n, K, D]: the stored summary tokens of these hits.

        Raises:
            IndexCorruptedError: they are not there.
        """
        return self._store.tokens([hit.id for hit in hits])

    def metadata(self, hits: Sequence[Hit]) -> list[dict[str, Any]]:
        """What the columns of ``fwd2bot index --metadata`` say of each of these hits."""
        return self._store.user_values([hit.uri for hit in hits])

    def ask(self, question: str, hits: Sequence[Hit], *, max_new_tokens: int = 32) -> list[Answer]:
        """One answer about each hit, from its stored tokens only.

        Raises:
            InputError: the question is empty.
            IndexEmptyError: the index holds no picture.
        """
        if not question.strip():
            raise InputError("The question is empty.")
        self._check_not_empty()
        import torch

        answers: list[Answer] = []
        for start in range(0, len(hits), ASK_BATCH):
            batch = hits[start : start + ASK_BATCH]
            texts = self.model.generate(torch.from_numpy(self.tokens(batch)), question, max_new_tokens=max_new_tokens)
            answers += [Answer(hit=hit, text=text) for hit, text in zip(batch, texts, strict=True)]
        return answers

    def stored(self, ids: Sequence[str]) -> tuple[Float32, Float32]:
        """Summary tokens [n, K, D] and embeddings [n, E] of the pictures with these content ids.

        Raises:
            InputError: one of them is not in the index.
        """
        if missing := [id_ for id_ in ids if id_ not in self._row_of]:
            raise InputError(f"The index in {self.path} does not hold {len(missing)} of these pictures.")
        embeddings = self._rows.embedding[[self._row_of[id_] for id_ in ids]].astype(np.float32)
        return self._store.tokens(ids), embeddings

    # ---- helpers

    @cached_property
    def _row_of(self) -> dict[str, int]:
        """A row of each content id: files with the same bytes have the same tokens."""
        return {self._rows.row(i)[1]: i for i in range(len(self._rows))}

    @cached_property
    def _text_encoder(self) -> TextEncoder | None:
        return self._text_source() if self._text_source is not None else None

    @cached_property
    def _rows(self) -> EmbeddedRows:
        return self._store.embeddings()

    @cached_property
    def _vectors(self) -> VectorIndex:
        from fwd2bot_index.vector_index import ExactIndex

        return ExactIndex(self._rows.embedding)

    def _hit(self, row: int, *, rank: int, score: float) -> Hit:
        uri, id_, width, height = self._rows.row(row)
        return Hit(rank=rank, score=score, id=id_, uri=uri, width=width, height=height)

    def _check_not_empty(self) -> None:
        if len(self) == 0:
            raise IndexEmptyError(f"The index in {self.path} holds no pictures: add some with `fwd2bot index FOLDER`.")


def _check_top(top: int) -> None:
    if top < 1:
        raise InputError(f"At least one result must be asked for, not {top}.")


def _decoded(image: ImageInput, decode_side: int | None) -> ImageInput:
    """A file or its bytes, decoded as indexing does, so that a picture finds itself; a Pillow image as it is."""
    from fwd2bot_index.decoding import MAX_SIDE, decode_image, read_file

    if not isinstance(image, str | Path | bytes):
        return image
    data = image if isinstance(image, bytes) else read_file(image)
    return decode_image(data, max_side=min(MAX_SIDE, decode_side or MAX_SIDE)).image


def _load(manifest: Manifest) -> Compressor:
    from fwd2bot_index.model import Fwd2BotModel

    tokens = manifest.num_summary_tokens if manifest.mode == "training-free" else None
    return Fwd2BotModel.from_pretrained(manifest.model, revision=manifest.model_revision, num_summary_tokens=tokens)


def _load_text_encoder(manifest: Manifest) -> TextEncoder | None:
    from fwd2bot_index.text_encoder import TextEncoder

    return TextEncoder.for_manifest(manifest)
