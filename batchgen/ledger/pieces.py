"""Parquet files read in pieces of equal length, whatever their row groups are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def pieces(
    files: Sequence[Path], rows: int, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Tables of exactly `rows` rows (the last may be shorter), over all files in their order."""
    held: list[pa.RecordBatch] = []
    count = 0
    for path in files:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=rows, columns=columns):
            held.append(batch)
            count += len(batch)
            while count >= rows:
                table = pa.Table.from_batches(held)
                yield table.slice(0, rows).combine_chunks()
                held = table.slice(rows).to_batches()
                count -= rows
    if count:
        yield pa.Table.from_batches(held).combine_chunks()
