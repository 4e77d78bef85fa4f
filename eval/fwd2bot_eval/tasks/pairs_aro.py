"""ARO: who does what to whom, and which of two things has which attribute."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np

from fwd2bot_eval.results import Summary, Table
from fwd2bot_eval.runs import PictureFile, Records
from fwd2bot_eval.tasks.files import file_name, json_rows, need_files, require_pictures, text_of, texts_of
from fwd2bot_eval.tasks.options import TaskOptions
from fwd2bot_eval.tasks.pairs_captions import CaptionItem, CaptionTask
from fwd2bot_eval.tasks.pairs_scoring import mean_shares, scorers_in, shares, wins_of
from fwd2bot_index.decoding import MAX_PIXELS, decode_image, read_file
from fwd2bot_index.errors import ImageError, InputError

SYMMETRIC: Final = frozenset({"around", "beside", "by", "near", "next to", "of", "on the side of", "with"})
"""Relations of VG-Relation whose false caption may be true as well: its authors leave them out of their scores
(mertyg/vision-language-models-are-bows, issue 37)."""
MIN_ITEMS: Final = 25
"""Of a relation, or of a pair of attributes, for ARO's mean over them: one with a few is won or lost by chance
(issue 8 of the same)."""


class Aro(CaptionTask):
    """VG-Relation and VG-Attribution of ARO (Yuksekgonul et al. 2023, arXiv 2210.01936): subject and object, or two
    attributes, change places.

    ``DIR`` holds ``visual_genome_relation.json``, ``visual_genome_attribution.json`` and their photos under
    ``images/``. The picture is the box that the row names, as in the benchmark's own loader; where a box reaches over
    the photo's edge, the rest is black there and here. An index of whole photos does not hold these pictures.

    The published scores are means over relations (without the symmetric ones) and over pairs of attributes, of those
    with at least 25 items. (The notebook that reproduces the paper keeps a few rarer relations, by a list of names.)
    COCO-Order and Flickr30k-Order are not read: they are no published files, the benchmark's code makes them up by
    shuffling with a part-of-speech tagger.

    Raises:
        InputError: a file is missing or a row is malformed, or pictures are missing without ``allow_missing``.
    """

    name = "aro"

    RELATION: Final = "VG-Relation"
    ATTRIBUTION: Final = "VG-Attribution"

    def __init__(self, options: TaskOptions) -> None:
        source = "ARO's files: see github.com/mertyg/vision-language-models-are-bows."
        files = need_files(options, ["visual_genome_relation.json", "visual_genome_attribution.json"], source)
        folder = options.data / "images"
        entries = []
        for category, path in zip((self.RELATION, self.ATTRIBUTION), files, strict=True):
            for where, key, row in json_rows(path, options.limit):
                name = file_name(row, "image_path", where)
                box = _box(row, where)
                if category == self.RELATION:
                    label = text_of(row, "relation_name", where)
                else:
                    label = " / ".join(texts_of(row, "attributes", where))
                item = CaptionItem(
                    id=f"{category}/{key}",
                    category=category,
                    rows=(),
                    photo=name,
                    true=(text_of(row, "true_caption", where),),
                    false=text_of(row, "false_caption", where),
                    label=label,
                )
                entries.append((_part(folder / name, name, box, where), item))
        photos = [folder / photo for photo in dict.fromkeys(item.photo for _, item in entries)]
        require_pictures(
            photos,
            allow_missing=options.allow_missing,
            source=f"They are Visual Genome photos: unzip vgr_vga_images.zip to {options.data}. {source}",
        )
        super().__init__(options, files, entries, photos=photos)

    def summarise(self, records: Records) -> Summary:
        columns = scorers_in(records)
        won, clusters = wins_of(records, columns), records.clusters
        category = np.array(records.categories)
        labels: list[str] = records.column("label")
        rows = {}
        relations: list[str] = []
        for name, kinds in ((self.RELATION, "relations"), (self.ATTRIBUTION, "pairs of attributes")):
            inside = category == name
            counts = Counter(label for label, i in zip(labels, inside, strict=True) if i)
            kept = sorted(
                label
                for label, count in counts.items()
                if count >= MIN_ITEMS and not (name == self.RELATION and label in SYMMETRIC)
            )
            if name == self.RELATION:
                relations = kept
            own = [label if i else None for label, i in zip(labels, inside, strict=True)]
            rows[f"{name}, mean over {kinds}"] = mean_shares(won, clusters, own, kept)
            rows[f"{name}, all items"] = shares(won, clusters, inside)
        by_relation = {
            relation: shares(won, clusters, (category == self.RELATION) & (np.array(labels) == relation))
            for relation in relations
        }
        tables = [
            Table(
                title="ARO",
                row_header="part",
                columns=columns,
                rows=rows,
                chance=dict.fromkeys(rows, 0.5),
                explanation="Share of items whose true caption scores higher than the false one; a tie is a loss. The "
                f"means are over relations and pairs of attributes with at least {MIN_ITEMS} items, without the "
                f"symmetric relations ({', '.join(sorted(SYMMETRIC))}); the other rows count every item.",
            )
        ]
        if by_relation:
            tables.append(
                Table(
                    title="ARO VG-Relation",
                    row_header="relation",
                    columns=columns,
                    rows=by_relation,
                    chance=dict.fromkeys(by_relation, 0.5),
                )
            )
        return Summary(tables=tables, notes=self._notes(records))


Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels."""


def _box(row: Any, where: str) -> Box:
    sides = []
    for key in ("bbox_x", "bbox_y", "bbox_w", "bbox_h"):
        value = row.get(key) if isinstance(row, Mapping) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{where} has no number under {key!r}.")
        sides.append(value)
    x, y, width, height = sides
    box = round(x), round(y), round(x + width), round(y + height)
    if box[2] <= box[0] or box[3] <= box[1]:
        raise InputError(f"{where} has an empty box: bbox_w and bbox_h must be positive.")
    return box


def _part(path: Path, name: str, box: Box, where: str) -> PictureFile:
    """A box of a photo, cut out when its turn comes."""

    def read() -> bytes:
        if (box[2] - box[0]) * (box[3] - box[1]) > MAX_PIXELS:
            raise ImageError(f"its box {box} has more than {MAX_PIXELS} pixels")
        photo = decode_image(read_file(path)).image
        if box[0] >= photo.width or box[1] >= photo.height or box[2] <= 0 or box[3] <= 0:
            raise ImageError(f"its box {box} lies outside of its {photo.width} x {photo.height} pixels")
        buffer = BytesIO()
        photo.crop(box).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    return PictureFile(key=f"{name} {box}", where=f"{path} ({where})", read=read)
