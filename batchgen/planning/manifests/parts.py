"""The files of a manifest: found as pandas and pyarrow find them, or refused by name.

Below a folder every file is a part, whatever its ending, and folders named `key=value` are a column
(Hive's custom). Names that begin with `.` or `_` are passed over, as every reader does.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.errors import ManifestError, closest
from batchgen.planning.manifests.cells import IllegalValue, cell_value
from batchgen.planning.manifests.columns import CANONICAL, REQUEST_COLUMNS

BATCH_ROWS = 32768
_BATCH_BYTES = 256 * 2**20  # a batch of very long prompts has fewer rows
_MAGIC = b"PAR1"
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class ManifestPart:
    """One Parquet file of a manifest."""

    path: Path
    schema: pa.Schema  # with the columns that folder names set
    rows: int
    batch_rows: int
    fixed: tuple[tuple[str, pa.Scalar], ...] = ()  # column -> value, from folder names

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Record batches with those of `columns` that the part has.

        Raises ManifestError when the data cannot be decoded.
        """
        fixed = dict(self.fixed)
        stored = [n for n in columns if n in self.schema.names and n not in fixed]
        added = [name for name in columns if name in fixed]
        try:
            # what is read ahead would stay in memory until all is read
            with pq.ParquetFile(self.path, pre_buffer=False) as file:
                for batch in file.iter_batches(batch_size=self.batch_rows, columns=stored):
                    for name in added:
                        batch = batch.append_column(name, pa.repeat(fixed[name], len(batch)))
                    yield batch
        except (pa.ArrowException, OSError) as error:
            reason = _system(error) or f"damaged Parquet data: {_line(error)}"
            raise ManifestError(f"{self.path}: {reason}") from error


def open_parts(path: Path) -> tuple[ManifestPart, ...]:
    """Open a Parquet file, or every file below a folder in the order of their names.

    Raises ManifestError for a missing path, a folder without parts, a link that leads nowhere, a
    file that is not Parquet or is cut off.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ManifestError(f"{path}: no such manifest{_near(path)}") from None
    _check_file(path)
    if not path.is_dir():
        return (_open_part(path, {}),)
    files = _files_below(path)
    if not files:
        raise ManifestError(f"{path}: a folder without any .parquet file")
    keys = [_folder_keys(file.relative_to(path).parts[:-1], file) for file in files]
    kinds = {name: _kind(name, keys) for name in dict.fromkeys(n for k in keys for n in k)}
    parts = []
    for file, values in zip(files, keys, strict=True):
        fixed = {name: _value(file, name, text, kinds[name]) for name, text in values.items()}
        parts.append(_open_part(file, fixed))
    return tuple(parts)


# ------------------------------------------------------------------------------------------- files
def _files_below(folder: Path) -> list[Path]:
    """Every file below a folder that is data; linked folders are followed."""

    def refuse(error: OSError) -> None:
        raise ManifestError(f"{error.filename}: cannot be read: {error.strerror}")

    found = []
    for here, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        # `_date=2024` is a column of Hive's, although its name begins with an underscore
        folders[:] = [f for f in folders if not f.startswith(".") and (f[0] != "_" or "=" in f)]
        for name in folders:
            _check_no_circle(Path(here, name))
        found += [Path(here, name) for name in files if not name.startswith((".", "_"))]
    for file in found:
        _check_file(file)
        if file.stat().st_size and file.suffix.lower() != ".parquet" and not _is_parquet(file):
            raise ManifestError(
                f"{file}: not a Parquet file, but among the parts of {folder}; move it away, or "
                "let its name begin with _ (such files are passed over)"
            )
    return sorted(found)


def _check_no_circle(folder: Path) -> None:
    """Raise ManifestError for a linked folder that leads back to one above it."""
    if not folder.is_symlink():
        return
    real = folder.resolve()
    if any(above.resolve() == real for above in folder.absolute().parents):
        raise ManifestError(f"{folder}: a link to a folder above it, {real}")


def _check_file(path: Path) -> None:
    """Raise ManifestError for what is neither a file nor a folder."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            reason = (
                "which leads back to itself" if error.errno == errno.ELOOP else "which is not there"
            )
            raise ManifestError(f"{path}: a link to {os.readlink(path)}, {reason}") from error
        raise ManifestError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ManifestError(
            f"{path}: neither a file nor a folder; Parquet is read from its end, so it cannot come "
            "through a pipe"
        )


def _is_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}") from error


def _open_part(path: Path, fixed: dict[str, pa.Scalar]) -> ManifestPart:
    try:
        with pq.ParquetFile(path) as file:
            schema, meta = file.schema_arrow, file.metadata
            groups = [meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)]
            rows = meta.num_rows
    except (pa.ArrowException, OSError) as error:
        if path.stat().st_size == 0:
            raise ManifestError(f"{path}: the file is empty") from error
        if reason := _system(error):
            raise ManifestError(f"{path}: {reason}") from error
        raise ManifestError(
            f"{path}: not a Parquet file, or cut off ({_line(error)}); make a manifest from .txt, "
            ".csv or .jsonl with `batchgen manifest build SOURCE OUT.parquet`"
        ) from error
    for name, value in fixed.items():
        if name in schema.names:
            raise ManifestError(
                f"{path}: column {name!r} is in the file and in its folder's name; keep one"
            )
        schema = schema.append(pa.field(name, value.type))
    per_row = max(1, sum(groups) // max(1, rows))
    size = max(16, min(BATCH_ROWS, _BATCH_BYTES // per_row))
    return ManifestPart(path, schema, rows, size, tuple(fixed.items()))


# ------------------------------------------------------------------------------------ folder names
def _folder_keys(folders: Sequence[str], file: Path) -> dict[str, str | None]:
    """Columns that folder names set, as text; null under Hive's name for it."""
    keys: dict[str, str | None] = {}
    for folder in folders:
        name, separator, text = folder.partition("=")
        if not separator:
            continue
        name = unquote(name)
        if name in keys:
            raise ManifestError(f"{file}: column {name!r} is set twice by its folders' names")
        keys[name] = None if text == _HIVE_NULL else unquote(text)
    return keys


def _kind(name: str, keys: Sequence[dict[str, str | None]]) -> pa.DataType:
    """The type of a column of folder names: a request column's own; else integers where every
    value is one (but `007`, which is a name), else text."""
    if name in REQUEST_COLUMNS:
        return CANONICAL[REQUEST_COLUMNS[name]]
    texts = [text for values in keys if (text := values.get(name)) is not None]
    whole = bool(texts) and all(_WHOLE.fullmatch(text) for text in texts)
    return pa.int64() if whole else pa.large_string()


def _value(file: Path, name: str, text: str | None, kind: pa.DataType) -> pa.Scalar:
    if text is None or name not in REQUEST_COLUMNS:
        return pa.scalar(text, pa.large_string()).cast(kind)
    try:
        return pa.scalar(cell_value(name, text), kind)
    except IllegalValue as error:
        raise ManifestError(f"{file}: the folder's name sets {name} = {text!r}; {error}") from None


def _near(path: Path) -> str:
    try:
        return closest(str(path), [str(p) for p in path.parent.iterdir()])
    except OSError:
        return ""


def _system(error: Exception) -> str:
    """What the system says about a file; empty where it is Arrow that cannot make sense of it."""
    number = error.errno if isinstance(error, OSError) else None
    return f"cannot be read: {os.strerror(number)}" if number else ""


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].partition(". ")[0].rstrip(".")
