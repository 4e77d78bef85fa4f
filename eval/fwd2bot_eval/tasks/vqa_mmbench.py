"""MMBench: multiple choice in a TSV file that holds its pictures in base64."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv

from fwd2bot_eval.runs import PictureFile
from fwd2bot_eval.tasks.files import text_of
from fwd2bot_eval.tasks.options import TaskOptions
from fwd2bot_eval.tasks.vqa_base import Choice, ChoiceTask, Source, as_said, question_of
from fwd2bot_index.decoding import MAX_FILE_BYTES
from fwd2bot_index.errors import ImageError, InputError

LETTERS: Final = ("A", "B", "C", "D")
_BLOCK_BYTES: Final = 2**26
"""A row must fit in; a few of them are in memory at once."""
_COPIES_FROM: Final = 10**6
_NEEDED: Final = ("index", "question", "A", "B", "answer", "category")
_LONGEST_INDEX: Final = 12
"""Of digits; no picture is as short in base64."""
_OPTIONAL: Final = ("hint", "C", "D")


class MMBench(ChoiceTask):
    """MMBench (Liu et al. 2024, arXiv 2307.06281): multiple choice about twenty abilities.

    ``--data`` is a TSV file of the benchmark with its answers (a dev split), or a folder with a single one: ``index``,
    ``question``, ``hint``, ``A`` to ``D``, ``answer``, ``category`` and ``image``.

    The texts of the options are scored, not their letters, so that the order of the options plays no part; rows that
    only rotate it (a million, or some, more than the index of their question) are left out. By category.

    Files as VLMEvalKit publishes them have each picture once: in other rows ``image`` is the index of the row that has
    it. The file is read for those first, and they are what is in memory.

    Raises:
        InputError: the file is missing, or a row is malformed.
    """

    name = "mmbench"
    NOTES = (
        "Not MMBench's own protocol: there the model picks a letter, and must do so in every rotation of the options "
        "(circular evaluation, which is not built). Here it is the likeliest text.",
    )

    def __init__(self, options: TaskOptions) -> None:
        if options.split is not None:
            raise InputError(f"--split {options.split}: name the TSV file of the split as --data.")
        path = _tsv(options.data)

        def read(pictures: bool) -> Iterator[tuple[PictureFile, list[Choice]]]:
            given, seen = 0, set[int]()
            shared = _shared_pictures(path) if pictures else {}
            for where, row in _rows(path, [*_NEEDED, "image"] if pictures else _NEEDED, optional=_OPTIONAL):
                if options.limit is not None and given >= options.limit:
                    return
                index = text_of(row, "index", where)
                if not index.isdecimal():
                    raise InputError(f"{where} has the index {index!r}, which is no number.")
                if int(index) >= _COPIES_FROM and int(index) % _COPIES_FROM in seen:
                    continue
                seen.add(int(index))
                given += 1
                picture = _picture(row.get("image"), where, shared)
                yield picture, [_question(row, where, index, picture.key)]

        super().__init__(options, Source(files=[path], read=read))


def _tsv(data: Path) -> Path:
    files = [data] if data.is_file() else sorted(data.glob("*.tsv"))
    if not files:
        raise InputError(f"{data} has no TSV file. MMBench is on github.com/open-compass/MMBench: take a dev split.")
    if len(files) > 1:
        raise InputError(f"{data} has {files[0].name} and {files[1].name}: name one as --data.")
    return files[0]


def _shared_pictures(path: Path) -> dict[str, str]:
    """By index: the base64 of the pictures that other rows name by it."""
    wanted = {row["image"] for _, row in _rows(path, ["image"]) if _is_index(row["image"])}
    if not wanted:
        return {}
    rows = (row for _, row in _rows(path, ["index", "image"]))
    return {row["index"]: row["image"] for row in rows if row["index"] in wanted and not _is_index(row["image"])}


def _is_index(cell: str | None) -> bool:
    return cell is not None and cell.isdecimal() and len(cell) <= _LONGEST_INDEX


def _rows(path: Path, needed: Sequence[str], *, optional: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where a row is, from 1 below the header, and its texts by column."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            header = file.readline().rstrip("\r\n").split("\t")
        if missing := [c for c in (*_NEEDED, "image") if c not in header]:
            raise InputError(f"{path} has no column {missing[0]!r}.")
        columns = [*needed, *(c for c in optional if c in header)]
        reader = pyarrow.csv.open_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(delimiter="\t", newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()), include_columns=columns
            ),
        )
        number = 0
        for batch in reader:
            for i in range(batch.num_rows):
                number += 1
                yield f"{path}, row {number}", {name: batch.column(name)[i].as_py() for name in columns}
    except (OSError, UnicodeDecodeError, pa.ArrowException) as e:
        raise InputError(f"{path} cannot be read as TSV: {str(e).splitlines()[0]}") from e


def _picture(cell: str | None, where: str, shared: Mapping[str, str]) -> PictureFile:
    """Its key is its content: questions about the same picture may have it once each."""
    text = shared.get(cell, cell) if cell is not None else ""

    def read() -> bytes:
        if _is_index(text):
            raise ImageError(f"its image column names row {text}, which has no picture")
        if len(text) > (MAX_FILE_BYTES + 2) // 3 * 4:
            raise ImageError(f"its base64 is longer than of {MAX_FILE_BYTES} bytes, the limit")
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as e:
            raise ImageError(f"its image column is no base64 ({e})") from e

    key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return PictureFile(key=key, where=where, read=read)


def _question(row: Mapping[str, Any], where: str, index: str, cluster: str) -> Choice:
    options = {letter: as_said(row[letter]) for letter in LETTERS if (row.get(letter) or "").strip()}
    if len(options) < 2:
        raise InputError(f"{where} has fewer than two options.")
    answer = text_of(row, "answer", where).strip()
    if answer not in options:
        raise InputError(f"{where} has the answer {answer!r}, which is none of {', '.join(options)}.")
    hint = " ".join((row.get("hint") or "").split())
    question = question_of(row, "question", where)
    return Choice(
        id=index,
        category=text_of(row, "category", where),
        rows=(),
        cluster=cluster,
        question=f"{hint}\n{question}" if hint else question,
        expected=options[answer],
        options=tuple(options.values()),
        right=list(options).index(answer),
    )
