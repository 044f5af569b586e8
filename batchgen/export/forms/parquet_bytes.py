"""Parquet with the media inside: a struct of bytes and path, as `datasets` stores images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.export.forms import Item

ROWS_OF_A_GROUP = 100  # a reader holds the media of one group


def write(number: int, items: Sequence[Item], folder: Path) -> None:
    """`part-00000.parquet`: the values, and `media`."""
    names = list(dict.fromkeys(name for item in items for name in item.values))
    columns = {name: pa.array([item.values.get(name) for item in items]) for name in names}
    media = [{"bytes": item.media.read_bytes(), "path": item.media.name} for item in items]
    kind = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])
    table = pa.table({**columns, "media": pa.array(media, kind)})
    pq.write_table(table, folder / f"part-{number:05d}.parquet", row_group_size=ROWS_OF_A_GROUP)
