"""Folders that `datasets` loads (imagefolder, videofolder): media files beside a metadata.parquet
that names them.

Parquet, since of a metadata.jsonl the loader takes columns and types from some first lines: columns
that begin later, or with nulls, are lost or are an error."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.export.forms import Part


def write(part: Part, folder: Path) -> None:
    """`part-00000/<key>.png ...` and `part-00000/metadata.parquet`."""
    folder = folder / part.name
    folder.mkdir()
    names = [f"{key}{file.suffix}" for key, file in zip(part.keys, part.media, strict=True)]
    for name, file in zip(names, part.media, strict=True):
        shutil.copyfile(file, folder / name)
    table = part.without(_is_medium).add_column(0, "file_name", pa.array(names, pa.string()))
    pq.write_table(table, folder / "metadata.parquet")


def _is_medium(name: str) -> bool:
    """Whether the loader would take a column for a file, or put one in its place."""
    return name in ("image", "video", "audio", "file_name") or name.endswith(
        ("_file_name", "file_names")
    )
