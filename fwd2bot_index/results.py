"""What searches and questions bring: lists that become tables, and that a notebook shows with their pictures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fwd2bot_index.errors import InputError
from fwd2bot_index.types import Answer, Hit

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T", Hit, Answer)

SHOWN: Final = 60
"""Pictures in a notebook; more would make it heavy."""


class Results(list[T]):
    """A list, best first, with columns."""

    @abstractmethod
    def columns(self) -> dict[str, list[Any]]:
        """The values by name, in the order of the list."""

    @abstractmethod
    def _caption(self, result: T) -> str: ...

    @abstractmethod
    def _uri(self, result: T) -> str: ...

    def to_arrow(self) -> pa.Table:
        """One row each."""
        import pyarrow as pa

        return pa.table(self.columns())

    def to_pandas(self) -> Any:
        """A DataFrame with one row each.

        Raises:
            InputError: pandas is not installed.
        """
        return require_pandas().DataFrame(self.columns())

    def _repr_html_(self) -> str:
        from fwd2bot_index.thumbnails import thumbnail

        cards = []
        for result in self[:SHOWN]:
            source = thumbnail(self._uri(result), side=200)
            picture = f'<img src="{source}" style="max-width:100%">' if source else "<i>picture not found</i>"
            cards.append(
                f'<figure style="width:200px;margin:4px">{picture}'
                f'<figcaption style="overflow-wrap:anywhere">{escape(self._caption(result))}</figcaption></figure>'
            )
        rest = f"<p>... and {len(self) - SHOWN} more</p>" if len(self) > SHOWN else ""
        return f'<div style="display:flex;flex-wrap:wrap;align-items:flex-end">{"".join(cards)}</div>{rest}'


def require_pandas() -> Any:
    """The package, which nothing else here needs.

    Raises:
        InputError: it is not installed.
    """
    try:
        return import_module("pandas")
    except ImportError as e:
        raise InputError("pandas is not installed: `pip install pandas`, or use to_arrow().") from e


class Hits(Results[Hit]):
    """What a search found."""

    def columns(self) -> dict[str, list[Any]]:
        return hit_columns(self)

    def _caption(self, result: Hit) -> str:
        return f"{result.rank}. {result.score:.3f} {result.uri.rsplit('/', 1)[-1]}"

    def _uri(self, result: Hit) -> str:
        return result.uri


class Answers(Results[Answer]):
    """What was answered about each picture."""

    def columns(self) -> dict[str, list[Any]]:
        said: dict[str, list[Any]] = {"answer": [a.text for a in self], "confidence": [a.confidence for a in self]}
        return {**said, **hit_columns([a.hit for a in self])}

    def _caption(self, result: Answer) -> str:
        return f"{result.text} ({result.confidence:.2f})"

    def _uri(self, result: Answer) -> str:
        return result.hit.uri


def hit_columns(hits: Sequence[Hit]) -> dict[str, list[Any]]:
    """The fields of hits by name."""
    rows = [asdict(hit) for hit in hits]
    return {name: [row[name] for row in rows] for name in Hit.__dataclass_fields__}
