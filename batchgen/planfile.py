"""plan.parquet: compared with the run's header, and read so that damage never passes for a plan.

`submit`, `resume`, `retry`, `collect` and `verify` compare every byte with the sha256 in run.json
before they act (a second or two for the 1 GB of ten million rows). A rank, of which there may be
thousands, checks size and plan id, and the check sum of every page that it reads, and computes the
key of every row again before the row is drawn (`worker.source`). In runs older than the digest only
the plan id is compared.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.errors import RunStateError, StorageError
from batchgen.paths import RunPaths
from batchgen.regular import digest_regular
from batchgen.request import REQUEST_FIELDS, Field
from batchgen.runfile import RunFile, read_header

_BIG = 2**31  # more than 32 bits hold


def stored_type(field: Field) -> pa.DataType:
    """Arrow type of a field in a plan."""
    if field.kind == "number":
        return pa.float64()
    if field.kind in ("text", "lora"):
        return pa.large_string() if field.column.prose else pa.string()
    if field.kind == "image":
        return pa.string()
    bounds = field.column.range
    return pa.int32() if bounds and bounds.high and bounds.high < _BIG else pa.int64()


# All columns of a plan, without the carried ones.
PLAN_COLUMNS = pa.schema(
    [
        *((field.name, stored_type(field)) for field in REQUEST_FIELDS),
        ("alias_of", pa.string()),  # row_id of the row that is rendered for this one; null: itself
        ("bucket", pa.string()),
        ("requested_width", pa.int32()),  # null where the geometry was used as requested
        ("requested_height", pa.int32()),
        ("requested_num_frames", pa.int32()),
    ]
)
HEADER = b"batchgen"  # key of the plan's own header in the file's metadata
# What readers of Parquet, and of JSON in it, raise for changed bytes.
_DAMAGE = (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError)


@contextmanager
def reading(path: Path, what: str = "plan") -> Iterator[None]:
    """Turns any error while `path` is read into a RunStateError that names it, or into StorageError
    if the file only cannot be read at this moment."""
    try:
        yield
    except FileNotFoundError:
        raise RunStateError(f"{path}: no {what}") from None
    except UnicodeEncodeError:
        raise RunStateError(
            f"{path}: no name in UTF-8, which Parquet files need to be opened; rename the folder"
        ) from None
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno == errno.ESTALE:
            raise StorageError(f"{path} cannot be read: {error}") from error
        raise RunStateError(f"{path}: damaged {what}: {_in_words(error)}") from error


def open_parquet(path: Path) -> pq.ParquetFile:
    """An open file that verifies the check sums of its pages; call it inside `reading`. Files stay
    open, since a worker asks for a few rows many times; a replaced file is opened again."""
    stat = path.stat()
    return _opened(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)


def own_parquet(path: Path) -> pq.ParquetFile:
    """The same for one reader alone, to go through many rows: no two threads may read from one
    open file at once. Its footer, which is long in a large plan, is not parsed again. It is neither
    mapped nor read ahead: what was read would stay in memory, 40 bytes a row."""
    metadata = open_parquet(path).metadata
    return pq.ParquetFile(
        path, metadata=metadata, page_checksum_verification=True, pre_buffer=False
    )


@lru_cache(maxsize=2)
def _opened(path: Path, mtime_ns: int, size: int, inode: int) -> pq.ParquetFile:
    return pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)


def read_table(path: Path, columns: list[str], filters: list[Any] | None = None) -> pa.Table:
    """Columns of the rows that `filters` select. Verifies check sums; errors are those of
    `reading`."""
    return pq.read_table(path, columns=columns, filters=filters, page_checksum_verification=True)


def plan_header(path: Path) -> dict[str, Any]:
    """The plan's own header; empty if the Parquet file is no plan."""
    with reading(path):
        metadata = open_parquet(path).metadata.metadata or {}
        header: dict[str, Any] = json.loads(metadata.get(HEADER, b"{}"))
        return dict(header)


def plan_schema(path: Path) -> pa.Schema:
    """The columns of a plan."""
    with reading(path):
        return open_parquet(path).schema_arrow


def check_plan(run: RunPaths, header: RunFile, *, whole: bool = True) -> None:
    """RunStateError unless plan.parquet is the one that `header` was written for. With
    `whole=False` only size and id are compared."""
    difference = _difference(run.plan, header, whole)
    if not difference:
        return
    if is_next_plan(run):
        way = "a change of settings was cut off: `batchgen resume` brings the two together"
    else:
        way = "put the file back from a copy, or start a new run"
    raise RunStateError(f"{run.plan} is not the plan of this run: {difference}; {way}")


def is_next_plan(run: RunPaths) -> bool:
    """Whether a replan was cut off between installing its plan and its run.json."""
    try:
        new = read_header(run.next_run_json)
        return new is not None and not _difference(run.plan, new, whole=True)
    except RunStateError:
        return False


def _difference(path: Path, header: RunFile, whole: bool) -> str:
    """Why the plan is not the one that `header` was written for; empty if it is."""
    if header.plan_bytes:
        with reading(path):
            if (size := path.stat().st_size) != header.plan_bytes:
                return f"it has {size} bytes, planned were {header.plan_bytes}"
            if whole:
                digest, _ = digest_regular(path)
                same = digest == header.plan_sha256
                return "" if same else f"its sha256 is {digest}, planned was {header.plan_sha256}"
    found = plan_header(path).get("plan_id")
    return "" if found == header.plan_id else f"its id is {found}, planned was {header.plan_id}"


def _in_words(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
