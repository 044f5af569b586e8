"""Parquet with the media inside: a struct of bytes and path, as `datasets` stores images."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.export.forms import Part

ROWS_OF_A_GROUP = 100  # a reader holds the media of one group
_KIND = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])


def write(part: Part, folder: Path) -> None:
    """`part-00000.parquet`: the values in the types of the catalog, and `media`."""
    media = [{"bytes": file.read_bytes(), "path": file.name} for file in part.media]
    table = part.without("media".__eq__).append_column("media", pa.array(media, _KIND))
    pq.write_table(table, folder / f"{part.name}.parquet", row_group_size=ROWS_OF_A_GROUP)
