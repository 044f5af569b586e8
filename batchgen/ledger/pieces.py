"""Parquet files read in pieces of equal length, whatever their row groups are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.errors import RunStateError


def parts_of(folder: Path) -> list[Path]:
    """The Parquet parts of a published folder, in order; none without a folder. RunStateError for
    what is no folder, or no file where a part should be."""
    if not folder.exists() and not folder.is_symlink():
        return []
    if not folder.is_dir():
        raise RunStateError(f"{folder} is not a folder; collect again")
    parts = sorted(folder.glob("*.parquet"))
    if strange := next((part for part in parts if not part.is_file()), None):
        raise RunStateError(f"{strange} is not a regular file")
    return parts


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
