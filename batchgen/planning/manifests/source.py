"""Reading what a manifest is made from: prompts, a table, JSON lines, Parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from batchgen.errors import ManifestError, closest
from batchgen.planning.manifests.building.from_csv import read_csv
from batchgen.planning.manifests.building.from_json import read_json_lines
from batchgen.planning.manifests.building.from_metadata import metadata_of, read_metadata
from batchgen.planning.manifests.building.from_pictures import holds_pictures, read_pictures
from batchgen.planning.manifests.building.from_text import read_text
from batchgen.planning.manifests.building.textfile import check_utf8
from batchgen.planning.manifests.cells import SourceFile
from batchgen.planning.manifests.columns import REQUEST_COLUMNS
from batchgen.planning.manifests.manifest import check_columns, open_manifest

_READERS: dict[str, Callable[[Path], SourceFile]] = {
    ".txt": read_text,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": read_json_lines,
}
_PARQUET = (".parquet", ".parq", ".pq")
SOURCES = (*_READERS, ".parquet")


def read_source(path: Path) -> SourceFile:
    """The rows of a source file, or of a folder of Parquet parts or of images. Raises ManifestError
    naming line, column and value."""
    if not path.exists():
        near = closest(path.name, [p.name for p in path.parent.glob("*")])
        raise ManifestError(f"{path}: no such file{near}")
    suffix = path.suffix.lower()
    if path.is_dir() and holds_pictures(path):
        metadata = metadata_of(path)
        return read_metadata(path, metadata, _table_of) if metadata else read_pictures(path)
    if path.is_dir() or suffix in _PARQUET:
        return _read_parquet(path)
    if suffix not in _READERS:
        raise ManifestError(
            f"{path}: cannot read {path.suffix or 'a file without ending'!r}; legal: "
            f"{', '.join(SOURCES)}"
        )
    if not path.is_file():
        raise ManifestError(f"{path}: not a file")
    try:
        check_utf8(path)
        return _READERS[suffix](path)
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}") from error


def _read_parquet(path: Path) -> SourceFile:
    manifest = open_manifest(path)
    extra = [name for name in manifest.columns if name not in REQUEST_COLUMNS]
    check_columns(manifest, extra)
    return _table_of(path)


def _table_of(path: Path) -> SourceFile:
    """A Parquet file or folder of parts, whatever its columns are."""
    manifest = open_manifest(path)
    schema = pa.schema([(name, manifest.column_type(name)) for name in manifest.columns])

    def batches() -> Iterator[pa.RecordBatch]:
        done = 0
        for batch in manifest.batches(manifest.columns):
            columns = [manifest.extra_column(batch, done, field) for field in schema]
            yield pa.record_batch(columns, schema=schema)
            done += len(batch)

    return SourceFile(path, pa.Table.from_batches(batches(), schema), manifest.place)
