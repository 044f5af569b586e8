"""Reading a manifest: a Parquet file or a folder of Parquet files, columns checked before rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from batchgen.config.build import home_of
from batchgen.errors import ManifestError, closest
from batchgen.planning.manifests.columns import (
    LEGAL_TYPES,
    REQUEST_COLUMNS,
    common_type,
    first_misfit,
    is_legal,
    plain,
)
from batchgen.planning.manifests.parts import ManifestPart, open_parts
from batchgen.planning.manifests.problems import row_place

_PANDAS_INDEX = "__index_level_"  # what pandas calls an index without a name


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest that opens: its parts in the order of their names."""

    path: Path
    parts: tuple[ManifestPart, ...]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def columns(self) -> list[str]:
        """Names of the columns of all parts, in order of appearance."""
        return list(dict.fromkeys(name for part in self.parts for name in part.schema.names))

    def where(self, row: int) -> tuple[Path, int]:
        """The file that holds a row, and the row's number in it."""
        for part in self.parts:
            if row < part.rows:
                return part.path, row
            row -= part.rows
        raise IndexError("a row behind the last part")

    def place(self, row: int) -> str:
        """A row as messages name it: below a folder with its file and its number in there."""
        file, number = self.where(row)
        if file == self.path:
            return row_place(row)
        return f"{file.relative_to(self.path)}, {row_place(number)}"

    def column_type(self, name: str) -> pa.DataType:
        """The Arrow type that holds a column of all parts. Raises ManifestError if none does."""
        found = seen = pa.null()
        for part in self.parts:
            if name not in part.schema.names:
                continue
            given = part.schema.field(name).type
            both = common_type(found, given)
            if both is None:
                raise ManifestError(
                    f"{part.path}: carried column {name!r} has type {given}, but {seen} elsewhere"
                )
            seen = given if pa.types.is_null(found) else seen
            found = both
        return found

    def extra_column(self, batch: pa.RecordBatch, first_row: int, field: pa.Field) -> pa.Array:
        """A column to carry or copy, of the rows from `first_row` on; nulls where their part
        lacks it. Raises ManifestError naming the first row whose value is no `field.type`."""
        name, wanted = field.name, field.type
        if name not in batch.schema.names:
            return pa.nulls(len(batch), wanted)
        column = batch.column(name)
        try:
            return plain(column, wanted)
        except pa.ArrowInvalid as error:
            row = first_row + first_misfit(column, wanted)
            reason = str(error).splitlines()[0].rstrip(".")
            raise ManifestError(
                f"{self.path}: {self.place(row)}: column {name!r} does not fit {wanted}, "
                f"the type that all its values have in common: {reason}"
            ) from None

    def digest(self) -> str:
        """sha256 over the bytes of all parts in order, and what their folders' names say."""
        total = hashlib.sha256()
        for part in self.parts:
            with open(part.path, "rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
            if part.fixed:
                fixed = {name: value.as_py() for name, value in part.fixed}
                total.update(json.dumps(fixed, sort_keys=True).encode())
        return total.hexdigest()

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Record batches with those of `columns` that the part has; rows in manifest order.

        Raises ManifestError when the data of a part cannot be decoded.
        """
        for part in self.parts:
            yield from part.batches(columns)


def open_manifest(path: Path) -> Manifest:
    """Open a Parquet file, or every part below a folder in the order of their names.

    Raises ManifestError for what `open_parts` refuses and for a manifest without rows.
    """
    manifest = Manifest(path, open_parts(path))
    if manifest.rows == 0:
        raise ManifestError(f"{path}: the manifest has no rows")
    return manifest


def check_columns(manifest: Manifest, carry_columns: Sequence[str] = ()) -> None:
    """Raise ManifestError for a missing, doubled or wrongly typed column, and for all columns that
    nobody reads."""
    unread: dict[str, ManifestPart] = {}
    for part in manifest.parts:
        _check_names(part)
        for name in part.schema.names:
            if name in REQUEST_COLUMNS:
                _check_type(part, name)
            elif name not in carry_columns:
                unread.setdefault(name, part)
    if unread:
        raise ManifestError(_unread(unread, len(manifest.parts)))
    for name in carry_columns:
        if name not in manifest.columns:
            near = closest(name, manifest.columns)
            raise ManifestError(f"{manifest.path}: carry_columns names {name!r}, not there{near}")
        manifest.column_type(name)


def pandas_index_note(names: Sequence[str]) -> str:
    """What to do about the index of a pandas frame among column names; empty if there is none."""
    found = [name for name in names if name.startswith(_PANDAS_INDEX)]
    if not found:
        return ""
    return f"{found[0]} is the index of a pandas frame: write it with to_parquet(..., index=False)"


def _check_names(part: ManifestPart) -> None:
    names = part.schema.names
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ManifestError(f"{part.path}: column {doubled[0]!r} appears more than once")
    if "prompt" not in names:
        near = closest("prompt", names) or closest("prompt", [name.lower() for name in names])
        listed = ", ".join(names) or "none"
        raise ManifestError(f"{part.path}: no column 'prompt'{near}; columns: {listed}")


def _check_type(part: ManifestPart, name: str) -> None:
    kind, given = REQUEST_COLUMNS[name], part.schema.field(name).type
    if not is_legal(kind, given):
        raise ManifestError(
            f"{part.path}: column {name!r} has type {given}; legal: {LEGAL_TYPES[kind]}"
        )


def _unread(unread: dict[str, ManifestPart], parts: int) -> str:
    """One line for one column, a list for several."""
    if len(unread) == 1:
        [(name, part)] = unread.items()
        listed = "" if home_of(name) else _OR_LISTED
        return f"{part.path}: column {name!r} is read by nobody{_advice(name)}{listed}"
    lines = [
        f"  {name!r}{f' in {part.path}' if parts > 1 else ''}{_advice(name)}"
        for name, part in unread.items()
    ]
    head = f"{next(iter(unread.values())).path}: {len(unread)} columns are read by nobody"
    listed = f"carry_columns=[{','.join(unread)}] would carry them into the catalog"
    return "\n".join([head, *lines, f"  {listed}; request columns: {', '.join(REQUEST_COLUMNS)}"])


_OR_LISTED = (
    f"; list it in carry_columns to carry it into the catalog, or use one of: "
    f"{', '.join(REQUEST_COLUMNS)}"
)


def _advice(name: str) -> str:
    if index := pandas_index_note([name]):
        return f"; {index}"
    home = home_of(name)
    if home is not None:
        return f"; {name} is not set per row: set {home} in the job"
    return closest(name, REQUEST_COLUMNS) or closest(name.strip().lower(), REQUEST_COLUMNS)
