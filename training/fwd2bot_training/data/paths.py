"""From the path of a source, as a recipe has it, to files."""

from __future__ import annotations

import glob
import re
from collections.abc import Collection
from pathlib import Path

from fwd2bot_index.errors import InputError
from fwd2bot_training.config import SourceConfig

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def resolve(source: SourceConfig, path: str, root: Path | None) -> Path:
    """``path`` where it is absolute, else below ``root``.

    Raises:
        InputError: it is relative and there is no root.
    """
    if Path(path).is_absolute():
        return Path(path)
    if root is None:
        raise InputError(f"The source {source.name!r} needs --data, the folder in which {path} lies.")
    return root / path


def find_files(source: SourceConfig, root: Path | None, *, suffixes: Collection[str]) -> list[Path]:
    """The files of ``source.path``: a file, a folder (its files with these suffixes), or a pattern with ``*``, ``**``
    and braces (``{0000..0099}``, ``{a,b}``). In the order of their names.

    Raises:
        InputError: there is none.
    """
    whole = resolve(source, source.path, root)
    found: list[Path] = []
    for pattern in [str(whole)] if whole.exists() else expand_braces(str(whole)):
        paths = (
            [Path(pattern)] if Path(pattern).exists() else [Path(p) for p in sorted(glob.glob(pattern, recursive=True))]
        )
        if not paths:
            raise InputError(f"The source {source.name!r}: there is nothing at {pattern}.")
        found += paths
    files: list[Path] = []
    for path in found:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix in suffixes and p.is_file())
            if not inside:
                raise InputError(f"The source {source.name!r}: {path} holds no {' or '.join(sorted(suffixes))} file.")
            files += inside
        else:
            files.append(path)
    return files


def expand_braces(pattern: str) -> list[str]:
    """As a shell does: ``a{1..3}`` and ``a{x,y}``; numbers keep their leading zeros.

    >>> expand_braces("shard-{08..10}.tar")
    ['shard-08.tar', 'shard-09.tar', 'shard-10.tar']
    """
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    if numbers := _RANGE.fullmatch(braces[1]):
        first, last = numbers.groups()
        inner = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    else:
        inner = braces[1].split(",")
    return [e for i in inner for e in expand_braces(pattern[: braces.start()] + i + pattern[braces.end() :])]
