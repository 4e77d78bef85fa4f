"""A corpus that was indexed: searched by texts and pictures, questioned and annotated from stored summary tokens.

    >>> corpus = Corpus.open(".fwd2bot")
    >>> hits = corpus.search("a red cube left of a ball", minus=["a large ball"], top=5)
    >>> corpus.ask("How many balls are there?", hits)[0].text
    >>> corpus.annotate("is there a ball?", "has_ball", choices=["yes", "no"])
    >>> corpus.search("a red cube", where="has_ball")

The files of the pictures are never opened: what was kept of them is enough. The store, the vector index and the model
are each imported and loaded when they are first needed, so that finding an index takes no time. Searching for a text
loads no model where a :class:`fwd2bot_index.text_encoder.TextEncoder` does as well.

Shapes: n hits, K summary tokens, D hidden size, E embedding size.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from fwd2bot_index.errors import (
    ImageError,
    IndexCorruptedError,
    IndexEmptyError,
    IndexMismatchError,
    IndexNotFoundError,
    InputError,
)
from fwd2bot_index.object_stores import absolute
from fwd2bot_index.queries import (
    MAX_TERMS,
    Background,
    Selection,
    Term,
    combined,
    diversified,
    near_duplicates,
)
from fwd2bot_index.reranking import CANDIDATES
from fwd2bot_index.results import Answers, Hits, require_pandas
from fwd2bot_index.types import Answer, Compressor, Hit, ImageInput, JointAnswer, Kept

if TYPE_CHECKING:
    import pyarrow as pa

    from fwd2bot_index.annotating import AnnotateReport
    from fwd2bot_index.config import Manifest
    from fwd2bot_index.facets import Facet
    from fwd2bot_index.payloads import Float32
    from fwd2bot_index.places import Place
    from fwd2bot_index.searching import Searcher
    from fwd2bot_index.store import EmbeddedRows, ImageRow, IndexStore, StoreStats
    from fwd2bot_index.text_encoder import TextEncoder

INDEX_FOLDER: Final = ".fwd2bot"
DIVERSE_POOL: Final = 50
"""Candidates among which different ones are chosen, at least; five times what is asked for, up to"""
MAX_DIVERSE_POOL: Final = 2000
KEPT_QUESTION: Final = "describe the picture"
KEPT_DEPTH: Final = 1000
"""How far down :meth:`Corpus.kept` looks for the picture."""
_ID = re.compile("[0-9a-f]{32}")
_ID_BEGINNING = re.compile("[0-9a-f]{6,32}")


def find_index(start: str | Path) -> Path:
    """The nearest index from ``start`` upward, as git finds its repository.

    Raises:
        IndexNotFoundError: there is none.
    """
    folder = Path(os.path.abspath(start))
    for place in (folder, *folder.parents):
        if os.path.isfile(place / INDEX_FOLDER / "manifest.json"):  # Path's own raises where one may not look
            return place / INDEX_FOLDER
    raise IndexNotFoundError(
        f"There is no index in {folder} or above it: make one with `fwd2bot index FOLDER`, or name one with --index."
    )


class Corpus:
    """An index, opened for questions. Every search sees what was committed last."""

    def __init__(
        self,
        store: IndexStore,
        model: Compressor | Callable[[], Compressor],
        text_encoder: Callable[[], TextEncoder | None] | None = None,
    ) -> None:
        self._store = store
        self._source = model
        self._text_source = text_encoder
        self._current: Searcher | None = None

    @classmethod
    def open(
        cls,
        path: str | Path | Place,
        *,
        model: Compressor | Callable[[], Compressor] | None = None,
        text_encoder: Callable[[], TextEncoder | None] | None = None,
    ) -> Self:
        """The index there.

        Args:
            path: the folder, or the prefix in an object store (``s3://BUCKET/KEY``), that holds ``manifest.json``.
            model: the model that made it, or what loads it when it is first needed. None: the one that the manifest
                names, from where it came.
            text_encoder: what makes the encoder of texts for as long as the model is not loaded; it may find that only
                the model will do. None: that of the model that the manifest names, unless ``model`` is given.

        Raises:
            IndexNotFoundError, IndexCorruptedError, IndexMismatchError: it cannot be read.
            InputError, ObjectStoreError: no such store is known, or it cannot be reached.
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
    def place(self) -> Place:
        """The folder or the prefix of an object store that holds the index."""
        return self._store.place

    def __len__(self) -> int:
        """How many files can be found."""
        return len(self._searcher)

    @property
    def version(self) -> int:
        """Of the table of files, which grows with every commit that changes it."""
        return self._store.images_version

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
                f"The index in {self.place} was made by {self.manifest.model}, and the first pass of {model.name} has "
                f"other weights or settings: use the model that made it, or delete the index and index again."
            )
        return model

    # ---- searching

    def search(
        self,
        *terms: str | Term,
        image: ImageInput | None = None,
        like: Hit | str | None = None,
        minus: Sequence[str | Term] = (),
        top: int = 10,
        skip: int = 0,
        where: str | None = None,
        diversity: float = 0.0,
        collapse: float | None = None,
        percentile: float | None = None,
        min_z: float | None = None,
        rerank: bool = False,
        seconds: float | None = None,
    ) -> Hits:
        """The files nearest to all terms together, best first; files with the same bytes follow each other.

        Args:
            terms: texts, or what :class:`fwd2bot_index.queries.Term` says, each with its weight.
            image: a picture, as a term of weight 1.
            like: a picture of the index, as a term of weight 1; it is not found itself.
            minus: terms that count the other way round.
            top, skip, where, diversity, collapse, percentile, min_z: see
                :class:`fwd2bot_index.queries.Selection`.
            rerank: put the best ``reranking.CANDIDATES`` in order again by what the second pass says of their tokens
                and the one text that is looked for; sets :attr:`Hit.match`.
            seconds: that re-ranking may take; those that it does not suffice for stay behind.

        Raises:
            InputError: there are no terms, or something about them or the rest makes no sense.
            ImageError: a picture cannot be used.
            IndexEmptyError: there is nothing to find.
        """
        selection = Selection(
            top=top,
            skip=skip,
            where=where,
            diversity=diversity,
            collapse=collapse,
            percentile=percentile,
            min_z=min_z,
        )
        query = [_term(term) for term in terms]
        query += [Term(image=image)] if image is not None else []
        query += [Term(like=like)] if like is not None else []
        query += [replace(term, weight=-term.weight) for term in map(_term, minus)]
        if not query:
            raise InputError("Search for something: a text, a picture, or both.")
        if len(query) > MAX_TERMS:
            raise InputError(f"A query has {MAX_TERMS} terms at most, not {len(query)}.")
        text = _text_to_match(query, diversity) if rerank else None
        searcher = self._not_empty()
        if where is not None:
            searcher.snapshot.checked(where)  # before a model is loaded for nothing
        embedded = [self._embed(term) for term in query]
        embeddings = np.stack([embedding for embedding, _ in embedded])
        background = searcher.background if len(query) > 1 else embeddings
        combination = combined(embeddings, [term.weight for term in query], background)
        return self._find(
            searcher,
            combination,
            selection,
            without={id_ for _, id_ in embedded if id_ is not None},
            reranker=partial(self._reranked, text=text, seconds=seconds) if text is not None else None,
        )

    def search_embedding(self, embedding: Float32, selection: Selection | None = None, *, top: int = 10) -> Hits:
        """The files nearest to an embedding [E] of unit length: those of ``selection`` or, without one, the ``top``
        best.

        Raises:
            InputError: it has another size or is not finite, or ``top`` is less than 1.
            IndexEmptyError: there is nothing to find.
        """
        selection = selection or Selection(top=top)
        searcher = self._not_empty()
        query = np.asarray(embedding, np.float32)
        if query.shape != (self.manifest.embedding_dim,) or not np.isfinite(query).all():
            raise InputError(f"An embedding of this index is {self.manifest.embedding_dim} finite numbers.")
        return self._find(searcher, query, selection)

    def _find(
        self,
        searcher: Searcher,
        query: Float32,
        selection: Selection,
        *,
        without: Set[str] = frozenset(),
        reranker: Callable[[list[Hit]], list[Hit]] | None = None,
    ) -> Hits:
        """
        Args:
            without: content ids that are left out.
            reranker: puts the first hits in another order.
        """
        least_pool = CANDIDATES if reranker is not None else 0
        try:
            found = self._candidates(searcher, query, selection, without, least_pool=least_pool)
        except IndexCorruptedError:
            if self._searcher is searcher:
                raise
            # another process has rewritten the table and swept what was being read
            found = self._candidates(self._searcher, query, selection, without, least_pool=least_pool)
        if reranker is not None:
            found = [*reranker(found[:CANDIDATES]), *found[CANDIDATES:]]
        chosen = enumerate(found[selection.skip : selection.skip + selection.top], start=selection.skip + 1)
        return Hits(hit if hit.rank == rank else replace(hit, rank=rank) for rank, hit in chosen)

    def _candidates(
        self, searcher: Searcher, query: Float32, selection: Selection, without: Set[str], *, least_pool: int
    ) -> list[Hit]:
        """In order, ranks yet to be set: those of ``selection`` and what comes before, ``least_pool`` at least."""
        background = Background(searcher.background @ query)
        least = background.least(selection)
        needed = selection.skip + selection.top
        # candidates are taken block by block, each large enough to choose from: so pages neither overlap nor leave out
        block = min(max(5 * selection.top, DIVERSE_POOL), MAX_DIVERSE_POOL)
        pool = max(-(-needed // block) * block if selection.diversity else needed, least_pool)
        wanted = pool + 8 * len(without)
        while True:
            addresses, scores = searcher.nearest(query, wanted, where=selection.where)
            complete = len(addresses) < wanted or scores[-1] < least
            addresses, scores = addresses[scores >= least], scores[scores >= least]
            hits = _hits(searcher.rows(addresses), scores, background)
            kept = [i for i, hit in enumerate(hits) if hit.id not in without]
            if selection.collapse is not None:
                kept, hits = _collapsed(kept, hits, searcher.embeddings(addresses), selection.collapse)
            if complete or (len(kept) >= pool and _has_copies(selection, scores, kept[pool - 1], wanted)):
                break
            wanted *= 2
        if selection.diversity:
            blocks = [kept[start : start + block] for start in range(0, min(len(kept), pool), block)]
            kept = []
            for candidates in blocks:
                embeddings = searcher.embeddings(addresses[candidates])
                order = diversified(scores[candidates], embeddings, needed - len(kept), selection.diversity)
                kept += [candidates[i] for i in order]
        return [hits[i] for i in kept]

    def _reranked(self, hits: list[Hit], *, text: str, seconds: float | None) -> list[Hit]:
        from fwd2bot_index.reranking import rerank

        again = rerank(
            self.model,
            text,
            np.array([hit.score for hit in hits], np.float32),
            lambda start, stop: self.tokens(hits[start:stop]),
            seconds=seconds,
        )
        matches = [None if math.isnan(match) else match for match in again.matching.tolist()]
        return [replace(hits[i], match=matches[i]) for i in again.order]

    def _embed(self, term: Term) -> tuple[Float32, str | None]:
        """The embedding [E] of a term and, where it is a picture of the index, its id."""
        if term.text is not None:
            return self.embed_text(term.text), None
        if term.image is not None:
            try:
                return self.embed_image(term.image), None
            except ImageError as e:  # one of several: say which
                if isinstance(term.image, str | Path):
                    raise ImageError(f"{term.image} cannot be used: {e.reason}") from e
                raise
        assert term.like is not None
        row = self._row_like(term.like)
        assert row.embedding is not None
        return np.asarray(row.embedding, np.float32), row.id

    def _row_like(self, like: Hit | str) -> ImageRow:
        if isinstance(like, Hit):
            found = self._store.rows(ids=[like.id])
        else:
            found = self._store.rows(uris=[like, absolute(like)])
            if not found and _ID_BEGINNING.fullmatch(like):
                found = self._store.rows_by_id(like)
        found = [row for row in found if row.status == "ok"]
        if not found:
            raise InputError(
                f"{like if isinstance(like, str) else like.uri} is no picture of the index in {self.place}."
            )
        if len({row.id for row in found}) > 1:
            raise InputError(f"{len({row.id for row in found})} pictures of the index have ids that begin with {like}.")
        return found[0]

    def embed_text(self, text: str) -> Float32:
        """[E], unit length.

        Raises:
            InputError: the text is empty, or enormous.
        """
        Term(text=text)  # says what is wrong with it
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

        uri = absolute(path)
        found = [row for row in self._store.rows(uris=[uri]) if row.status == "ok"]
        if not found:
            try:
                id_ = content_id(read_file(uri))
            except ImageError:
                return None
            found = [row for row in self._store.rows(ids=[id_]) if row.status == "ok"]
        if not found:
            return None
        return _hit_of(min(found, key=lambda row: row.uri))

    # ---- answering

    def tokens(self, hits: Sequence[Hit]) -> Float32:
        """[n, K, D]: the stored summary tokens of these hits.

        Raises:
            InputError: one of them has left the index meanwhile.
            IndexCorruptedError: they are not what was written.
        """
        return self._store.tokens([hit.id for hit in hits])

    def newest(self, top: int = 10, *, skip: int = 0, where: str | None = None) -> Hits:
        """Pictures that nothing is searched for among, those that were written last first; their score is 1.

        Raises:
            InputError: a number or the condition makes no sense.
        """
        Selection(top=top, skip=skip, where=where)
        rows = self._searcher.snapshot.newest(top, skip=skip, where=where)
        return Hits(Hit(rank=skip + rank, score=1.0, **row) for rank, row in enumerate(rows.to_pylist(), start=1))

    def files(self, id_: str) -> list[Hit]:
        """The indexed files with this content id, by name; none, if there is no such picture."""
        found = self._store.rows(ids=[id_]) if _ID.fullmatch(id_) else []
        return [_hit_of(row) for row in sorted(found, key=lambda row: row.uri) if row.status == "ok"]

    def pictures(self, ids: Sequence[str]) -> Hits:
        """A file of each of these content ids, in their order; its score is 1.

        Raises:
            InputError: there is no such picture.
        """
        found: dict[str, ImageRow] = {}
        for row in self._store.rows(ids=[id_ for id_ in ids if _ID.fullmatch(id_)]):
            if row.status == "ok" and row.id is not None and (row.id not in found or row.uri < found[row.id].uri):
                found[row.id] = row
        if missing := [id_ for id_ in ids if id_ not in found]:
            raise InputError(f"The index in {self.place} holds no picture with the id {missing[0][:64]!r}.")
        return Hits(replace(_hit_of(found[id_]), rank=rank) for rank, id_ in enumerate(ids, start=1))

    def facets(self) -> list[Facet]:
        """What can be filtered by: the user's own columns, width and height, and what they hold."""
        from fwd2bot_index.facets import facets

        return facets(self._searcher.snapshot, [*self._store.user_columns(), "width", "height"])

    def kept(self, hit: Hit) -> Kept:
        """How well the stored summary tokens of a picture keep it: what the model says of them alone, and where a
        search for these words finds the picture.

        Raises:
            InputError: it has left the index meanwhile.
        """
        [said] = self.ask(KEPT_QUESTION, [hit], max_new_tokens=64)
        found = self.search(said.text, top=KEPT_DEPTH) if said.text.strip() else Hits()
        ranks = [other.rank for other in found if other.id == hit.id]
        return Kept(caption=said.text, confidence=said.confidence, rank=min(ranks, default=None), among=len(self))

    def metadata(self, hits: Sequence[Hit]) -> list[dict[str, Any]]:
        """What the columns of ``fwd2bot index --metadata`` say of each of these hits."""
        return self._store.user_values([hit.uri for hit in hits])

    def ask(
        self,
        question: str,
        hits: Sequence[Hit],
        *,
        choices: Sequence[str] | None = None,
        max_new_tokens: int = 32,
    ) -> Answers:
        """One answer about each hit, from its stored tokens only; one of ``choices``, where they are given.

        Raises:
            InputError: the question or the choices make no sense, or a picture has left the index meanwhile.
            IndexEmptyError: the index holds no picture.
        """
        return Answers(self.ask_each(question, hits, choices=choices, max_new_tokens=max_new_tokens))

    def ask_each(
        self,
        question: str,
        hits: Sequence[Hit],
        *,
        choices: Sequence[str] | None = None,
        max_new_tokens: int = 32,
    ) -> Iterator[Answer]:
        """As :meth:`ask`, but every answer as soon as it is there."""
        from fwd2bot_index.answering import ask_each

        self._check_question(question, choices)
        return ask_each(self.model, self.tokens, question, hits, choices=choices, max_new_tokens=max_new_tokens)

    def ask_together(self, question: str, hits: Sequence[Hit], *, max_new_tokens: int = 32) -> JointAnswer:
        """One answer about all hits, read one after another in one context, from their stored tokens only.

        Raises:
            InputError: as :meth:`ask`, or there are no hits, or more than the model reads at once.
            IndexEmptyError: the index holds no picture.
            ModelError: the model takes one picture at a time.
        """
        from fwd2bot_index.answering import ask_together

        self._check_question(question, None)
        if not hits:
            raise InputError("There are no pictures to ask about.")
        return ask_together(self.model, self.tokens(hits), question, hits, max_new_tokens=max_new_tokens)

    def _check_question(self, question: str, choices: Sequence[str] | None) -> None:
        from fwd2bot_index.answering import check_choices, check_question

        check_question(question)
        check_choices(choices)
        self._not_empty()

    def annotate(
        self,
        question: str,
        column: str,
        *,
        choices: Sequence[str] | None = None,
        where: str | None = None,
        again: bool = False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> AnnotateReport:
        """Ask about every picture that has no answer in ``column`` yet, and keep the answers there: see
        :func:`fwd2bot_index.annotating.annotate`.

        Raises:
            IndexBusyError: another process writes to the index.
        """
        from fwd2bot_index.annotating import annotate, check
        from fwd2bot_index.store import writing

        check(self._store, question, column, choices=choices, again=again)
        with writing(self.place):
            return annotate(
                self._store,
                self.model,
                question,
                column,
                choices=choices,
                where=where,
                again=again,
                progress=progress,
            )

    # ---- as a table

    def to_arrow(self, *, where: str | None = None) -> pa.Table:
        """The files that can be found, with all columns but embeddings and checksums.

        Raises:
            InputError: the condition cannot be understood.
        """
        return self._searcher.snapshot.table(where)

    def to_pandas(self, *, where: str | None = None) -> Any:
        """:meth:`to_arrow` as a DataFrame.

        Raises:
            InputError: also where pandas is not installed.
        """
        table = self.to_arrow(where=where)
        require_pandas()
        return table.to_pandas()

    def stored(self, ids: Sequence[str]) -> tuple[Float32, Float32]:
        """Summary tokens [n, K, D] and embeddings [n, E] of the pictures with these content ids.

        Raises:
            InputError: one of them is not in the index.
        """
        if missing := [id_ for id_ in ids if id_ not in self._row_of]:
            raise InputError(f"The index in {self.place} does not hold {len(missing)} of these pictures.")
        embeddings = self._rows.embedding[[self._row_of[id_] for id_ in ids]].astype(np.float32)
        return self._store.tokens(ids), embeddings

    # ---- helpers

    @cached_property
    def _row_of(self) -> dict[str, int]:
        """A row of each content id: files with the same bytes have the same tokens."""
        return {id_: i for i, id_ in enumerate(self._rows.rows.column("id").to_pylist())}

    @cached_property
    def _text_encoder(self) -> TextEncoder | None:
        return self._text_source() if self._text_source is not None else None

    @cached_property
    def _rows(self) -> EmbeddedRows:
        return self._store.embeddings()

    @property
    def _searcher(self) -> Searcher:
        """For the latest version: whoever writes meanwhile, the next search sees it."""
        from fwd2bot_index.searching import Searcher

        if self._current is None or self._current.snapshot.version != self._store.images_version:
            self._current = Searcher.of(self._store)
        return self._current

    def _not_empty(self) -> Searcher:
        searcher = self._searcher
        if len(searcher) == 0:
            raise IndexEmptyError(f"The index in {self.place} holds no pictures: add some with `fwd2bot index FOLDER`.")
        return searcher


def _hits(rows: Any, scores: Float32, background: Background) -> list[Hit]:
    """Of Arrow's columns; ranked as they come."""
    columns = [rows.column(name).to_pylist() for name in ("id", "uri", "width", "height")]
    return [
        Hit(rank=rank, score=score, z=background.z(score), id=id_, uri=uri, width=width, height=height)
        for rank, (score, id_, uri, width, height) in enumerate(zip(scores.tolist(), *columns, strict=True), start=1)
    ]


def _hit_of(row: ImageRow) -> Hit:
    """Of a row that can be found, which nothing was searched for."""
    assert row.id is not None
    assert row.width is not None
    assert row.height is not None
    return Hit(rank=1, score=1.0, id=row.id, uri=row.uri, width=row.width, height=row.height)


def _has_copies(selection: Selection, scores: Float32, last: int, wanted: int) -> bool:
    """Whether the copies of the last picture that is needed are among those found: unit vectors with a cosine of t lie
    sqrt(2 - 2 t) apart, and their scores no further."""
    if selection.collapse is None:
        return True
    apart = math.sqrt(max(0.0, 2 - 2 * selection.collapse)) + 1e-3
    return bool(scores[-1] < scores[last] - apart) or wanted > 20 * (selection.skip + selection.top) + MAX_DIVERSE_POOL


def _collapsed(kept: list[int], hits: list[Hit], embeddings: Float32, threshold: float) -> tuple[list[int], list[Hit]]:
    """The first of each group of near copies, of those that are ``kept``, with the names of the others."""
    leader = near_duplicates(embeddings[kept], [hits[i].id for i in kept], threshold).tolist()
    copies: dict[int, list[str]] = {}
    for place, first in enumerate(leader):
        copies.setdefault(first, []).extend([hits[kept[place]].uri] if place != first else [])
    hits = list(hits)
    for first, uris in copies.items():
        hits[kept[first]] = replace(hits[kept[first]], copies=tuple(uris))
    return [kept[first] for first in copies], hits


def _text_to_match(query: Sequence[Term], diversity: float) -> str:
    """What re-ranking asks about.

    Raises:
        InputError: it would be unclear what.
    """
    texts = [term.text for term in query if term.text is not None and term.weight > 0]
    if len(texts) != 1:
        raise InputError(f"Re-ranking asks whether one text fits; this query looks for {len(texts)}.")
    if diversity:
        raise InputError("Re-ranking and diversity each put the results in an order of their own: ask for one.")
    return texts[0]


def _term(term: str | Term) -> Term:
    return Term(text=term) if isinstance(term, str) else term


def _decoded(image: ImageInput, decode_side: int | None) -> ImageInput:
    """A file or its bytes, decoded as indexing does, so that a picture finds itself; a Pillow image as it is."""
    from fwd2bot_index.decoding import MAX_SIDE, decode_image, read_file

    if not isinstance(image, str | Path | bytes):
        return image
    data = image if isinstance(image, bytes) else read_file(image)
    return decode_image(data, max_side=decode_side or MAX_SIDE).image


def _load(manifest: Manifest) -> Compressor:
    from fwd2bot_index.model import Fwd2BotModel

    tokens = manifest.num_summary_tokens if manifest.mode == "training-free" else None
    return Fwd2BotModel.from_pretrained(manifest.model, revision=manifest.model_revision, num_summary_tokens=tokens)


def _load_text_encoder(manifest: Manifest) -> TextEncoder | None:
    from fwd2bot_index.text_encoder import TextEncoder

    return TextEncoder.for_manifest(manifest)
