"""Conditions in SQL (``year > 2020 AND camera = 'X'``), and what is wrong with one in words for who wrote it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from fwd2bot_index.errors import InputError

MAX_LENGTH: Final = 100_000
"""Characters."""
MAX_TOKENS: Final = 64
"""Between one AND, OR or comma and the next: what stands there is nested by the parser, and the time and the stack that
planning takes grow with the depth. 400 sums take longer than a minute, and 1,000 end the process."""
MAX_DEPTH: Final = 32
"""Brackets in brackets."""
_TOKEN = re.compile(r"'(?:[^']|'')*'?|\"[^\"]*\"?|`[^`]*`?|--[^\n]*|/\*|[\w.]+|\S")
_GROWING: Final = frozenset({
    "array_repeat", "array_resize", "generate_series", "list_repeat", "list_resize", "lpad", "range", "regexp_replace",
    "repeat", "replace", "rpad", "space",
})  # fmt: skip
"""Functions whose result may be many times what they are given: a few words of a stranger's would take gigabytes."""
_UNKNOWN_COLUMN = re.compile(r"No field named ([^\s.,]+)\. ?(Did you mean '[^']+'\?)?")
_UNEXPECTED = re.compile(r"found: (.+?)\)*$")
_PREFIXES: Final = (
    "Invalid user input: ", "Schema error: ", "Error during planning: ", "Error parsing function: "
)  # fmt: skip


@dataclass
class _Level:
    """Inside of a bracket."""

    tokens: int = 0
    """Since the last AND, OR or comma."""
    betweens: int = 0
    """How many ANDs belong to a BETWEEN."""


def check(condition: str, plan: Callable[[str], object], columns: Sequence[str]) -> str:
    """The condition in brackets, ready to be joined to others.

    The parser beneath stops at the first word that it cannot use and leaves out the rest: in brackets it must read all.

    Args:
        plan: raises what the table has against a condition.
        columns: what the table has.

    Raises:
        InputError: it cannot be understood; the message says where.
    """
    if not condition.strip():
        raise InputError("The condition (--where) is empty.")
    if len(condition) > MAX_LENGTH:
        raise InputError(f"The condition (--where) has {len(condition):,} characters; {MAX_LENGTH:,} are the most.")
    if (end := _closing_too_much(condition)) is not None:
        raise InputError(f"The condition {condition!r} closes a bracket that it did not open, at character {end + 1}.")
    if too_much := _too_much(condition):
        raise InputError(f"The condition (--where) cannot be used: {too_much}.")
    whole = f"({condition}\n)"  # on a line of its own, or a comment would end it too
    try:
        plan(whole)
    except Exception as e:  # whatever kind: the words are what tells
        problem = _problem(e, condition, plan)
        raise InputError(
            f"The condition {condition!r} cannot be used: {problem}. The columns are {', '.join(columns)}."
        ) from e
    return whole


def _problem(error: Exception, condition: str, plan: Callable[[str], object]) -> str:
    words = " ".join(str(error).split(", /")[0].split())
    if unknown := _UNKNOWN_COLUMN.search(words):
        name, hint = unknown.groups()
        return f"there is no column {name} (character {condition.find(name) + 1})" + (
            f"; {hint}" if hint else ""
        ).rstrip("?")
    if "sql parser error" in words and (unexpected := _UNEXPECTED.search(words)):
        word = unexpected.group(1)
        for place in (found.start() for found in re.finditer(re.escape(word), condition)):
            if condition[:place].strip() and _plans(condition[:place], plan):
                return f"nothing can follow {condition[:place].strip()!r} like {word!r}, at character {place + 1}"
        return (
            "it ends too early"
            if word in ("EOF", ")")
            else f"{word!r} (character {condition.find(word) + 1}) was not expected"
        )
    if "Unterminated string literal" in words:
        return "a quote is not closed"
    if "does not return a boolean" in words or "common argument type for logical" in words:
        return "it is neither true nor false of a picture"
    for prefix in _PREFIXES:
        words = words.removeprefix(prefix)
    return words.rstrip(".?")


def _plans(condition: str, plan: Callable[[str], object]) -> bool:
    try:
        plan(f"({condition}\n)")
    except Exception:
        return False
    return True


def _too_much(condition: str) -> str | None:
    """What in it could take the process's memory, its stack, or minutes."""
    levels, before = [_Level()], ""
    for found in _TOKEN.finditer(condition):
        token = found.group().lower()
        if token.startswith("--"):
            continue
        if token == "/*":
            return "comments between /* and */ are not at hand"
        if token == "(" and before.strip('"`') in _GROWING:
            return f"the function {before} is not at hand"
        if token in ("(", "["):
            levels.append(_Level())
            if len(levels) > MAX_DEPTH:
                return f"there are more than {MAX_DEPTH} brackets in each other"
        elif token in (")", "]"):
            levels = levels[:-1] or [_Level()]
        elif token in (",", "or") or (token == "and" and not levels[-1].betweens):
            levels[-1].tokens = 0
        else:
            levels[-1].tokens += 1
            levels[-1].betweens += {"between": 1, "and": -1}.get(token, 0)
            if levels[-1].tokens > MAX_TOKENS:
                return f"one of its parts, between AND, OR and commas, has more than {MAX_TOKENS} words and signs"
        before = token
    return None


def _closing_too_much(condition: str) -> int | None:
    """Where a bracket closes that was not opened, outside of quotes and comments."""
    depth = 0
    for token in _TOKEN.finditer(condition):
        depth += {"(": 1, ")": -1}.get(token.group(), 0)
        if depth < 0:
            return token.start()
    return None
