"""Reads Parquet files in pieces of equal length, whatever their row groups are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.errors import RunStateError
from batchgen.planfile import reading


def numbers_of(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The numbers, or bool, of a column without nulls. Arrow's own `to_numpy` imports pandas, which
    takes longer than a scan of a small run."""
    if pa.types.is_boolean(column.type):
        return numbers_of(column.cast(pa.uint8())).view(bool)
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if array.null_count:
        raise ValueError(f"{array.null_count} of {len(array)} numbers are null")
    return np.from_dlpack(array)


def parts_of(folder: Path) -> list[Path]:
    """The Parquet parts of a published folder, in order; none if there is no folder. RunStateError
    if the folder is not one, or a part is not a file."""
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
    """Tables of exactly `rows` rows (the last may be shorter) over all files in order.
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
