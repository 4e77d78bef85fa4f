"""The model as an embedding function of LanceDB, for tables that are made without ``fwd2bot index``.

    >>> import lancedb
    >>> from lancedb.embeddings import get_registry
    >>> from lancedb.pydantic import LanceModel, Vector
    >>> import fwd2bot_index.lancedb_embedding  # registers it
    >>> embed = get_registry().get("fwd2bot").create()
    >>> class Photo(LanceModel):
    ...     path: str = embed.SourceField()
    ...     vector: Vector(embed.ndims()) = embed.VectorField()

Then ``table.add([{"path": "boat.jpg"}])`` embeds pictures, and ``table.search("a boat").metric("dot")`` words. (Tables
that ``fwd2bot index`` made have their embeddings already: ``lancedb.connect(".fwd2bot").open_table("images")``.)
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lancedb.embeddings import EmbeddingFunction, register

from fwd2bot_index.decoding import decode_image, read_file
from fwd2bot_index.errors import ImageError, InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fwd2bot_index.model import Fwd2BotModel


@register("fwd2bot")
class Fwd2BotEmbeddings(EmbeddingFunction):
    """Pictures and texts into one space, [E], unit length. Its fields are those of its ``create``."""

    name: str = "default"
    """What ``--model`` takes."""
    device: str | None = None
    batch_size: int = 32

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> list[npt.NDArray[np.float32] | None]:
        """Of a text, or of a picture that is given as its bytes, a ``pathlib.Path`` or a Pillow image.

        Raises:
            InputError: the text is empty.
            ImageError: the picture cannot be used.
        """
        if isinstance(query, str):
            if not query.strip():
                raise InputError("The text to search for is empty.")
            return list(self._model.embed_text([query]).cpu().numpy())
        return list(self._model.compress([query]).embedding.cpu().numpy())

    def compute_source_embeddings(self, images: Any, *args: Any, **kwargs: Any) -> list[npt.NDArray[np.float32] | None]:
        """Of pictures: paths (also as strings), bytes or Pillow images. None for one that cannot be used."""
        given = [images] if isinstance(images, str | bytes) else self.sanitize_input(images)
        found: list[npt.NDArray[np.float32] | None] = []
        for start in range(0, len(given), self.batch_size):
            found += self._embedded(given[start : start + self.batch_size])
        return found

    def ndims(self) -> int:
        """E"""
        return self._model.embedding_dim

    def _embedded(self, images: Iterable[Any]) -> list[npt.NDArray[np.float32] | None]:
        pictures = [self._decoded(image) for image in images]
        usable = [picture for picture in pictures if picture is not None]
        embeddings = iter(self._model.compress(usable).embedding.cpu().numpy() if usable else ())
        return [None if picture is None else next(embeddings) for picture in pictures]

    def _decoded(self, image: Any) -> Any:
        try:
            if isinstance(image, bytes):
                return decode_image(image, max_side=self._model.decode_side).image
            if not hasattr(image, "convert"):  # a path
                return decode_image(read_file(image), max_side=self._model.decode_side).image
        except ImageError:
            return None
        return image

    @cached_property
    def _model(self) -> Fwd2BotModel:
        from fwd2bot_index.model import Fwd2BotModel

        return Fwd2BotModel.from_pretrained(self.name, device=self.device)
