"""Exports the finished rows of a run in parts. A part is complete when its record is at the
destination; who is interrupted goes on with the first part that has none."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from batchgen.catalog.columns import OUTCOME
from batchgen.durable import digest_file
from batchgen.errors import RunStateError, UsageError
from batchgen.export import forms
from batchgen.export.forms import Part
from batchgen.export.place import Place, Stored
from batchgen.media.stored import MediaPlace
from batchgen.paths import RunPaths

RECORDS = ".batchgen"  # folder of the records: loaders of datasets overlook it
HEADER = f"{RECORDS}/export.json"
"""What the destination holds: run and form."""
WRITTEN_AS = 2
"""Raised when a form writes the same rows in another way: so that parts are written again."""
_OURS = re.compile(r"(part-\d{5,}(\.tar|\.parquet|/[^/]+)|\.batchgen/part-\d{5,}\.json)(\.tmp)?")


# How a row went on its way says nothing about what it is.
_KEPT = {"media_path", "media_sha256", "media_bytes", "frames_sha256", "score", "psnr", "ssim"}
_OK = ds.field("status") == "ok"
_LEFT_OUT = {field.name for field in OUTCOME} - _KEPT


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export did."""

    rows: int
    parts: int
    kept: int  # parts that were there
    bytes: int


def export(run: RunPaths, form: str, destination: str, part_mib: float) -> Exported:
    """Copy every ok row of the run's catalog to `destination` (a folder or URI) in the form `form`,
    in parts of about `part_mib` MiB of media.

    Parts that are complete are kept. What an earlier export left beside them, cut in another way or
    of rows that are no more, is deleted before anything is written: a reader would take both.
    Raises UsageError where the destination holds something else, RunStateError where the catalog is
    missing or a media file is not the one that was published, StorageError where nothing can be
    written.
    """
    module, place = forms.get(form), Place.open(destination)
    rows = _rows(run)
    offsets = _offsets(run)
    cuts = _cut(rows, part_mib * 2**20)
    parts = [rows.slice(start, stop - start) for start, stop in cuts]
    with tempfile.TemporaryDirectory(prefix="batchgen-export-") as scratch:
        _claim(place, {"run": run.root.name, "form": form}, destination, Path(scratch))
        digests = [_digest(part) for part in parts]
        stored = [_stored(place, number, digest) for number, digest in enumerate(digests)]
        _delete_others(place, stored)
        kept = sum(files is not None for files in stored)
        size = sum(file.bytes for files in stored for file in files or ())
        for number, part in enumerate(parts):
            if stored[number] is None:
                folder, members = Path(scratch) / f"{number}", Path(scratch) / "members"
                folder.mkdir()
                members.mkdir()
                places = zip(part.to_pylist(), offsets[slice(*cuts[number])], strict=True)
                media = tuple(_medium(run, *place, members) for place in places)
                module.write(Part(number, part, media), folder)
                files = _put(place, folder)
                shutil.rmtree(folder)
                shutil.rmtree(members)
                record = {"rows": digests[number], "files": [asdict(file) for file in files]}
                place.put_json(_record(number), record, Path(scratch))
                size += sum(file.bytes for file in files)
    return Exported(len(rows), len(parts), kept, size)


# ------------------------------------------------------------------------------------------ rows
def _rows(run: RunPaths) -> pa.Table:
    """The ok rows, in the order of the manifest."""
    if not run.catalog_rows.exists():
        raise RunStateError(f"{run.root}: there is no catalog yet: `batchgen collect` writes it")
    catalog = ds.dataset(run.catalog_rows)
    names = [name for name in catalog.schema.names if name not in _LEFT_OUT]
    table = catalog.to_table(columns=names, filter=_OK).sort_by("row_index")
    if len(table) == 0:
        raise RunStateError(f"{run.root}: no row is ok, there is nothing to export")
    return table.replace_schema_metadata(None)


def _cut(rows: pa.Table, limit: float) -> list[tuple[int, int]]:
    """First and last row (exclusive) of each part: as many whole rows as fit, one at least."""
    sizes = rows["media_bytes"].to_pylist()
    parts, start, total = [], 0, 0
    for number, size in enumerate(sizes):
        if number > start and total + size > limit:
            parts.append((start, number))
            start, total = number, 0
        total += size
    return [*parts, (start, len(sizes))]


def _offsets(run: RunPaths) -> list[int]:
    """Of each of `_rows`, where its media begin in a tar."""
    catalog = ds.dataset(run.catalog_rows)
    if "media_offset" not in catalog.schema.names:  # it is older than tars
        return [0] * catalog.count_rows(filter=_OK)
    columns = ["row_index", "media_offset"]
    table = catalog.to_table(columns=columns, filter=_OK).sort_by("row_index")
    offsets: list[int] = table["media_offset"].to_pylist()
    return offsets


def _medium(run: RunPaths, values: dict[str, Any], offset: int, members: Path) -> Path:
    """The media file of a row, which is the one that was published; a member of a tar is copied
    into the folder `members`."""
    stored = MediaPlace.of_row({**values, "media_offset": offset})
    media = run.root / stored.path
    if stored.is_member:
        path = members / stored.name
        try:
            path.write_bytes(stored.read(run.root))
        except (OSError, ValueError) as error:
            what = f"row {values['row_id']!r}: {media}: {error}; see `verify`"
            raise RunStateError(what) from error
        return path
    if media.is_dir():
        raise UsageError(
            f"row {values['row_id']!r}: {media} is a folder of frames; an export takes one file a "
            "row: mp4, gif, png, jpeg, webp or npy"
        )
    if not media.exists() or digest_file(media)[0] != values["media_sha256"]:
        raise RunStateError(
            f"row {values['row_id']!r}: {media} is not the file that was published; see `verify`"
        )
    return media


def _digest(rows: pa.Table) -> str:
    """sha256 (hex) of all that is written of these rows: values and types, media by their own."""
    found = hashlib.sha256(f"{WRITTEN_AS}\0{rows.schema}".encode())
    for row in rows.to_pylist():
        found.update(f"{row!r}\n".encode())
    return found.hexdigest()


# ------------------------------------------------------------------------------------ destination
def _claim(place: Place, header: dict[str, str], destination: str, scratch: Path) -> None:
    """Mark the destination as that of this export; UsageError if it is another's."""
    there = place.get_json(HEADER)
    if there is None:
        if others := sorted(place.listed()):
            raise UsageError(f"DST {destination}: is not empty: it holds {', '.join(others[:5])}")
        place.put_json(HEADER, header, scratch)
    elif there != header:
        held = there if isinstance(there, dict) else {}
        raise UsageError(
            f"DST {destination}: holds run {held.get('run')} as {held.get('form')}; export run "
            f"{header['run']} as {header['form']} to another place"
        )


def _record(number: int) -> str:
    return f"{RECORDS}/part-{number:05d}.json"


def _stored(place: Place, number: int, digest: str) -> list[Stored] | None:
    """Files of a part that is complete and of these rows."""
    record = place.get_json(_record(number))
    if not isinstance(record, dict) or record.get("rows") != digest:
        return None
    try:
        files = [Stored(**file) for file in record["files"]]
    except (KeyError, TypeError):
        return None
    return files if all(map(place.holds, files)) else None


def _delete_others(place: Place, stored: Sequence[list[Stored] | None]) -> None:
    """Delete what has the name of a part and belongs to none that is complete. Records go first:
    they speak of files."""
    wanted = {file.path for files in stored for file in files or ()}
    wanted |= {_record(number) for number, files in enumerate(stored) if files is not None}
    others = [name for name in place.walk() if _OURS.fullmatch(name) and name not in wanted]
    for name in sorted(others, key=lambda name: (not name.startswith(RECORDS), name)):
        place.remove(name)


def _put(place: Place, folder: Path) -> list[Stored]:
    return [place.put(file, file.relative_to(folder).as_posix()) for file in _files(folder)]


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.is_file())
