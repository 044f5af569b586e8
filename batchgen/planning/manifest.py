"""Reading a manifest: a Parquet file or a folder of Parquet files, columns checked before rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.config.build import home_of
from batchgen.errors import ManifestError, closest
from batchgen.planning.columns import LEGAL_TYPES, REQUEST_COLUMNS, is_legal

BATCH_ROWS = 32768
_BATCH_BYTES = 256 * 2**20  # a batch of very long prompts has fewer rows


@dataclass(frozen=True, slots=True)
class Part:
    """One Parquet file of a manifest."""

    path: Path
    schema: pa.Schema
    rows: int
    batch_rows: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest that opens: its parts in the order of their names."""

    path: Path
    parts: tuple[Part, ...]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def columns(self) -> list[str]:
        """Names of the columns of all parts, in order of appearance."""
        return list(dict.fromkeys(name for part in self.parts for name in part.schema.names))

    def column_type(self, name: str) -> pa.DataType:
        """Arrow type of a column in the first part that has it with a type of its own."""
        types = [part.schema.field(name).type for part in self.parts if name in part.schema.names]
        return next((t for t in types if not pa.types.is_null(t)), pa.null())

    def digest(self) -> str:
        """sha256 over the bytes of all parts in order."""
        total = hashlib.sha256()
        for part in self.parts:
            with open(part.path, "rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Record batches with those of `columns` that the part has; rows in manifest order.

        Raises ManifestError when the data of a part cannot be decoded.
        """
        for part in self.parts:
            present = [name for name in columns if name in part.schema.names]
            try:
                with pq.ParquetFile(part.path) as file:
                    yield from file.iter_batches(batch_size=part.batch_rows, columns=present)
            except (pa.ArrowException, OSError) as error:
                raise ManifestError(f"{part.path}: damaged Parquet data: {_line(error)}") from error


def open_manifest(path: Path) -> Manifest:
    """Open a Parquet file, or every `*.parquet` file below a folder in the order of their names.

    Raises ManifestError for a missing path, a folder without parts, a file that is not Parquet or
    is cut off, and a manifest without rows.
    """
    if not path.exists():
        raise ManifestError(f"{path}: no such manifest{_near(path)}")
    files = _parts_below(path) if path.is_dir() else [path]
    if not files:
        raise ManifestError(f"{path}: a folder without any .parquet file")
    manifest = Manifest(path, tuple(_open_part(file) for file in files))
    if manifest.rows == 0:
        raise ManifestError(f"{path}: the manifest has no rows")
    return manifest


def check_columns(manifest: Manifest, carry_columns: Sequence[str] = ()) -> None:
    """Raise ManifestError for a missing, unknown, doubled or wrongly typed column."""
    for part in manifest.parts:
        names = part.schema.names
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ManifestError(f"{part.path}: column {doubled[0]!r} appears more than once")
        if "prompt" not in names:
            near = closest("prompt", names)
            listed = ", ".join(names) or "none"
            raise ManifestError(f"{part.path}: no column 'prompt'{near}; columns: {listed}")
        for name in names:
            _check_column(part, name, carry_columns)
    for name in carry_columns:
        if name not in manifest.columns:
            near = closest(name, manifest.columns)
            raise ManifestError(f"{manifest.path}: carry_columns names {name!r}, not there{near}")
        _check_carried(manifest, name)


def _check_column(part: Part, name: str, carry_columns: Sequence[str]) -> None:
    if name in REQUEST_COLUMNS:
        kind, given = REQUEST_COLUMNS[name], part.schema.field(name).type
        if not is_legal(kind, given):
            raise ManifestError(
                f"{part.path}: column {name!r} has type {given}; legal: {LEGAL_TYPES[kind]}"
            )
    elif name not in carry_columns:
        raise ManifestError(f"{part.path}: column {name!r} is read by nobody{_advice(name)}")


def _advice(name: str) -> str:
    near, home = closest(name, REQUEST_COLUMNS), home_of(name)
    if home is not None:
        return f"; {name} is not set per row: set {home} in the job"
    listed = ", ".join(REQUEST_COLUMNS)
    return f"{near}; list it in carry_columns to carry it into the catalog, or use one of: {listed}"


def _check_carried(manifest: Manifest, name: str) -> None:
    """A carried column has one type in all parts (a part may hold nulls only)."""
    wanted = manifest.column_type(name)
    for part in manifest.parts:
        given = part.schema.field(name).type if name in part.schema.names else wanted
        if given != wanted and not pa.types.is_null(given):
            raise ManifestError(
                f"{part.path}: carried column {name!r} has type {given}, but {wanted} elsewhere"
            )


def _parts_below(folder: Path) -> list[Path]:
    """Parquet files below a folder; names starting with `.` or `_` are not data, by custom."""
    found = []
    for path in sorted(folder.rglob("*.parquet")):
        inside = path.relative_to(folder).parts
        if path.is_file() and not any(name.startswith((".", "_")) for name in inside):
            found.append(path)
    return found


def _open_part(path: Path) -> Part:
    try:
        with pq.ParquetFile(path) as file:
            schema, meta = file.schema_arrow, file.metadata
            groups = [meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)]
            rows = meta.num_rows
    except (pa.ArrowException, OSError) as error:
        if path.stat().st_size == 0:
            raise ManifestError(f"{path}: the file is empty") from error
        raise ManifestError(
            f"{path}: not a Parquet file, or cut off ({_line(error)}); make a manifest from .txt, "
            ".csv or .jsonl with `batchgen manifest build SOURCE OUT.parquet`"
        ) from error
    per_row = max(1, sum(groups) // max(1, rows))
    return Part(path, schema, rows, max(16, min(BATCH_ROWS, _BATCH_BYTES // per_row)))


def _near(path: Path) -> str:
    folder = path.parent
    return closest(str(path), [str(p) for p in folder.iterdir()]) if folder.is_dir() else ""


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].partition(". ")[0].rstrip(".")
