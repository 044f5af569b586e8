"""A folder as `datasets` loads it (imagefolder): images beside a metadata.csv, .jsonl or .parquet
whose column `file_name` names them; folders such as train/ and test/ are splits."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path, PurePosixPath

import pyarrow as pa

from batchgen.errors import ManifestError
from batchgen.planning.manifests.building.from_csv import read_csv
from batchgen.planning.manifests.building.from_json import read_json_lines
from batchgen.planning.manifests.building.from_pictures import ids_of
from batchgen.planning.manifests.building.textfile import check_utf8
from batchgen.planning.manifests.cells import SourceFile
from batchgen.planning.manifests.columns import is_text
from batchgen.planning.manifests.problems import Problems

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE, SPLIT = "file_name", "split"
CAPTIONS = ("text", "caption")  # what data sets call a prompt, where none is named so
_IMAGES = ("image", "last_image")
_BETWEEN = r"[-._ 0-9]"  # what may stand around the name of a split (datasets.data_files)
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def metadata_of(folder: Path) -> list[Path]:
    """The metadata files below a folder, in the order of their paths; hidden ones are none."""
    found = [path for name in METADATA for path in folder.rglob(name)]
    hidden = (".", "__")
    return sorted(
        path
        for path in found
        if not any(part.startswith(hidden) for part in path.relative_to(folder).parts)
    )


def read_metadata(folder: Path, files: Sequence[Path], parquet: _Reader) -> SourceFile:
    """The rows of these metadata files: `file_name` becomes `image`, a `text` or `caption` the
    prompt where no column has that name, `split` says the split where folders are some. Images that
    no row names are left out. `parquet` reads a Parquet file. ManifestError naming file, line and
    value."""
    if len(endings := {path.suffix for path in files}) > 1:
        shown = ", ".join(sorted(endings))
        raise ManifestError(f"{folder}: metadata files of several kinds ({shown}); keep one kind")
    readers: dict[str, _Reader] = {".csv": read_csv, ".jsonl": read_json_lines}
    splits = _splits_of(folder, files)
    sources = []
    for file, split in zip(files, splits, strict=True):
        if file.suffix in readers:
            check_utf8(file)
        source = readers.get(file.suffix, parquet)(file)
        sources.append(_as_rows(folder, source, split))
    try:
        table = pa.concat_tables([s.table for s in sources], promote_options="permissive")
    except (pa.ArrowException, TypeError) as error:
        raise ManifestError(f"{folder}: metadata files disagree on a column: {error}") from None
    if "row_id" not in table.schema.names:
        stems = [PurePosixPath(path).with_suffix("").as_posix() for path in _paths(table)]
        if ids := ids_of(stems):
            table = table.append_column("row_id", pa.array(ids, pa.string()))
    return SourceFile(folder, table, _placed(folder, sources))


_Reader = Callable[[Path], SourceFile]


def _paths(table: pa.Table) -> list[str]:
    found: list[str] = table["image"].to_pylist()
    return found


def _as_rows(folder: Path, source: SourceFile, split: str | None) -> SourceFile:
    """The table with columns of a manifest, images by their path from `folder`."""
    names = list(source.table.schema.names)
    if FILE not in names:
        raise ManifestError(f"{source.path}: no column {FILE!r}; it has {', '.join(names)}")
    renamed = [_name_of(name, names) for name in names]
    for name in renamed:
        if renamed.count(name) > 1:
            both = [old for old, new in zip(names, renamed, strict=True) if new == name]
            raise ManifestError(f"{source.path}: {' and '.join(both)} are both the {name} of a row")
    table = source.table.rename_columns(renamed)
    for name in _IMAGES:
        if name in renamed:
            table = _from_folder(folder, replace(source, table=table), name)
    if split is not None and SPLIT not in renamed:
        table = table.append_column(SPLIT, pa.array([split] * len(table), pa.string()))
    return replace(source, table=table)


def _name_of(name: str, names: Sequence[str]) -> str:
    if name == FILE:
        return "image"
    if name.endswith(f"_{FILE}") and name.removesuffix(f"_{FILE}") in _IMAGES:
        return name.removesuffix(f"_{FILE}")
    first = next((caption for caption in CAPTIONS if caption in names), None)
    return "prompt" if name == first and "prompt" not in names else name


def _from_folder(folder: Path, source: SourceFile, name: str) -> pa.Table:
    """A column of paths from the metadata file's folder as paths from `folder`. As for `datasets`
    they lead to files below it; ManifestError naming those that do not."""
    column = source.table[name]
    if not is_text(column.type) and not pa.types.is_null(column.type):
        raise ManifestError(f"{source.path}: {FILE}: is {column.type}; legal: text")
    home, problems, paths = source.path.parent.relative_to(folder), Problems(), []
    for row, path in enumerate(column.to_pylist()):
        if path is not None and (path.startswith("/") or ".." in path.split("/") or "://" in path):
            problems.add([row], FILE, [path], "legal: a path below the metadata file's folder")
        elif path is None and name == "image":
            problems.add([row], FILE, [path], "every row of a folder of images names one")
        paths.append(None if path is None else (home / path).as_posix())
    problems.raise_if_any(source.path, source.place)
    at = source.table.schema.get_field_index(name)
    return source.table.set_column(at, name, pa.array(paths, pa.string()))


# ------------------------------------------------------------------------------------------ splits
def _splits_of(folder: Path, files: Sequence[Path]) -> list[str | None]:
    """The split of each metadata file by the names of the folders that it is in; None for all where
    no folder is named like a split. ManifestError where only some are, or one is in two: `datasets`
    would read these not at all, or twice."""
    found = [_split_names(file.parent.relative_to(folder)) for file in files]
    if not any(found):
        return [None] * len(files)
    for file, names in zip(files, found, strict=True):
        if len(names) != 1:
            which = f"in those of {' and '.join(names)}" if names else "in none of them"
            raise ManifestError(
                f"{file}: there are folders of splits, and this is {which}; name another folder"
            )
    return [names[0] for names in found]


def _split_names(path: Path) -> list[str]:
    return [
        split
        for split, words in _SPLITS.items()
        if any(_is_split(part, words) for part in path.parts)
    ]


def _is_split(name: str, words: Sequence[str]) -> bool:
    """Whether the name has one of these words, alone or set off."""
    pattern = rf"(.*{_BETWEEN})?({'|'.join(words)})({_BETWEEN}.*)?"
    return re.fullmatch(pattern, name) is not None


def _placed(folder: Path, sources: Sequence[SourceFile]) -> Callable[[int], str]:
    """Names a row by its file and its place there."""
    starts = list(accumulate((len(s.table) for s in sources), initial=0))

    def place(row: int) -> str:
        at = bisect_right(starts, row) - 1
        source = sources[at]
        return f"{source.path.relative_to(folder)}, {source.place(row - starts[at])}"

    return place
