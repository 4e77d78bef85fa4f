"""Search results as one HTML file: thumbnails inside it, no script, nothing loaded from anywhere.

The page may be sent to somebody: it holds small copies of the pictures and the file names as they were printed, and no
absolute path beyond those. A picture that is gone gets a placeholder in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from fwd2bot_index.errors import Fwd2BotError
from fwd2bot_index.thumbnails import thumbnail


@dataclass(frozen=True, kw_only=True)
class Card:
    """One picture of the page."""

    uri: str
    title: str
    notes: Sequence[str] = ()
    """Short lines below the title."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A query or a question, and the pictures that it brought."""

    title: str
    cards: Sequence[Card]


def write_gallery(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write the page.

    Raises:
        Fwd2BotError: it cannot be written.
    """
    try:
        path.write_text(gallery(title, sections), encoding="utf-8")
    except OSError as e:
        raise Fwd2BotError(f"The gallery {path} could not be written: {e.strerror or e}.") from e


def gallery(title: str, sections: Sequence[Section]) -> str:
    """The page as text; every string in it is escaped."""
    body = "\n".join(
        _SECTION.substitute(title=escape(section.title), cards="\n".join(_card(card) for card in section.cards))
        for section in sections
    )
    return _PAGE.substitute(title=escape(title), body=body)


def _card(card: Card) -> str:
    source = thumbnail(card.uri)
    picture = (
        f'<img src="{source}" alt="{escape(card.title)}" loading="lazy">'
        if source
        else '<div class="gone">picture not found</div>'
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in card.notes)
    return _CARD.substitute(picture=picture, title=escape(card.title), notes=notes)


_CARD = Template("<figure>$picture<figcaption><b>$title</b>$notes</figcaption></figure>")
_SECTION = Template('<section>\n<h2>$title</h2>\n<div class="cards">\n$cards\n</div>\n</section>')
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="fwd2bot">
<title>$title</title>
<style>
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --line: #ddd; --text: #1c1c1c; --soft: #666; }
@media (prefers-color-scheme: dark) {
  :root { --page: #161616; --card: #222; --line: #3a3a3a; --text: #eee; --soft: #aaa; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 90rem; background: var(--page); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 1rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .75rem; font-weight: 600; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(12rem, 100%), 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; overflow: hidden; }
figure img, .gone { display: block; width: 100%; height: 12rem; object-fit: contain; background: var(--page); }
.gone { display: grid; place-items: center; color: var(--soft); font-style: italic; }
figcaption { padding: .6rem .8rem; overflow-wrap: anywhere; }
figcaption b { font-weight: 600; }
figcaption p { margin: .15rem 0 0; color: var(--soft); }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")
