"""Archives for tests: zip, tar and Parquet files of the pictures given."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def make_zip(path: Path, files: Mapping[str, bytes], *, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)  # of 1980, as reproducible archives are
    return path


def make_tar(path: Path, files: Mapping[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, BytesIO(data))
    return path


def make_parquet(path: Path, pictures: Sequence[bytes | None], *, rows_per_group: int = 2, **columns: Any) -> Path:
    """In Hugging Face's form."""
    cells = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(pictures)]
    table = pa.table({"image": pa.array(cells, IMAGE), **columns})
    features = {"image": {"_type": "Image"}, **{name: {"_type": "Audio"} for name in columns}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path
