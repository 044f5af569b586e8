"""Parquet files read in pieces of equal length, whatever their row groups are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.planfile import reading


def pieces(
    files: Sequence[Path], rows: int, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Tables of exactly `rows` rows (the last may be shorter), over all files in their order.
    RunStateError naming a file that cannot be read."""
    held: list[pa.RecordBatch] = []
    count = 0
    for path in files:
        for batch in _batches(path, rows, columns):
            held.append(batch)
            count += len(batch)
            while count >= rows:
                table = pa.Table.from_batches(held)
                yield table.slice(0, rows).combine_chunks()
                held = table.slice(rows).to_batches()
                count -= rows
    if count:
        yield pa.Table.from_batches(held).combine_chunks()


def _batches(path: Path, rows: int, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    with reading(path, "Parquet file"):
        file = pq.ParquetFile(path, page_checksum_verification=True)
        yield from file.iter_batches(batch_size=rows, columns=columns)
