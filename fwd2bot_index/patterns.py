"""Which files are wanted, by patterns as in a ``.gitignore``.

A pattern is compared with the path from the folder that is indexed, with ``/`` between its parts:

===================  ==================================================================
``*.png``, ``raw``   without a slash: a file or a folder of that name, at any depth
``2023/*.png``       with a slash: from the folder that is indexed
``raw/``             a slash at the end: folders only
``*`` ``?`` ``[ab]`` within one name; ``[!ab]`` is any other character
``**``               any number of folders: ``**/old/*.jpg``, ``2023/**``
===================  ==================================================================

What matches a folder matches everything in it. Upper and lower case differ. An archive counts as a folder of its name.
There is no negation: what is excluded stays out, whatever is included.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from fwd2bot_index.errors import InputError


@dataclass(frozen=True)
class Patterns:
    """
    Raises:
        InputError: a pattern is empty or makes no sense.
    """

    include: Sequence[str] = ()
    """None: everything."""
    exclude: Sequence[str] = ()
    _included: re.Pattern[str] | None = field(init=False, repr=False)
    _excluded: re.Pattern[str] | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_included", _any_of(self.include))
        object.__setattr__(self, "_excluded", _any_of(self.exclude))

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.include or self.exclude)

    def takes(self, path: str) -> bool:
        """Whether the file of that relative path is wanted."""
        if self._excluded is not None and self._excluded.fullmatch(path):
            return False
        return self._included is None or self._included.fullmatch(path) is not None

    def enters(self, folder: str) -> bool:
        """Whether anything in the folder of that relative path can be wanted."""
        return self._excluded is None or not self._excluded.fullmatch(folder + "/")


def _any_of(patterns: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(_expression(p) for p in patterns), re.DOTALL) if patterns else None


def _expression(pattern: str) -> str:
    """A regular expression for the paths of all files that the pattern matches."""
    folder_only = pattern.endswith("/")
    body = pattern.strip("/")
    if not body or pattern.startswith("!"):
        why = "a pattern may not begin with '!'" if body else "it is empty"
        raise InputError(f"The pattern {pattern!r} makes no sense: {why}.")
    anchored = "/" in pattern.rstrip("/")
    parts = body.split("/")
    expression = "" if anchored else "(?:.*/)?"
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if part == "**":
            expression += ".*" if last else "(?:.*/)?"
        else:
            expression += _name(part) + ("" if last else "/")
    try:
        re.compile(expression)
    except re.error as e:
        raise InputError(f"The pattern {pattern!r} makes no sense: {e}.") from e
    return f"(?:{expression}{'/.*' if folder_only else '(?:/.*)?'})"


def _name(part: str) -> str:
    expression, i = "", 0
    while i < len(part):
        character = part[i]
        i += 1
        end = part.find("]", i + 1) if character == "[" else -1  # "]" may be the first in the brackets
        if character == "*":
            expression += "[^/]*"
        elif character == "?":
            expression += "[^/]"
        elif character == "[" and end >= 0:
            inside = part[i:end].replace("\\", r"\\").replace("[", r"\[")
            inside = "^/" + inside[1:] if inside.startswith("!") else inside.replace("^", r"\^", 1)
            expression += f"[{inside}]"
            i = end + 1
        else:
            expression += re.escape(character)
    return expression
