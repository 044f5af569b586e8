"""A folder of images with their captions: `x.png` and `x.txt` are one row."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from batchgen.errors import ManifestError
from batchgen.planning.manifests.building.textfile import check_utf8
from batchgen.planning.manifests.cells import SourceFile
from batchgen.planning.manifests.problems import SHOWN

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
CAPTION = ".txt"
_NOT_IN_AN_ID = re.compile(r"[^A-Za-z0-9._-]+")


def holds_pictures(folder: Path) -> bool:
    """Whether it is a folder of images, and none of Parquet parts; one may describe the images."""
    parts = (path for path in folder.rglob("*") if path.name != "metadata.parquet")
    suffixes = {path.suffix.lower() for path in parts}
    return ".parquet" not in suffixes and not suffixes.isdisjoint(IMAGES)


def read_pictures(folder: Path) -> SourceFile:
    """A row for each image, in the order of their paths, which become its ids. ManifestError
    listing images without a caption, captions without an image, and images of one name."""
    pairs = _pairs(folder)
    if problems := list(_problems(pairs)):
        shown = "\n".join(f"  {line}" for line in problems[:SHOWN])
        more = f" (the first {SHOWN} are shown)" if len(problems) > SHOWN else ""
        raise ManifestError(f"{folder}: {len(problems)} files without a pair{more}\n{shown}")
    images = [images[0] for images, _ in pairs.values()]
    ids = ids_of([stem.relative_to(folder).as_posix() for stem in pairs])
    columns = {
        "prompt": [_caption(stem) for stem in pairs],
        "image": [image.relative_to(folder).as_posix() for image in images],
    }
    if ids:
        columns["row_id"] = ids
    kinds = pa.schema([(name, pa.string()) for name in columns])
    table = pa.table(columns, kinds)
    return SourceFile(folder, table, lambda row: str(images[row].relative_to(folder)))


def ids_of(paths: Sequence[str]) -> list[str]:
    """Row ids of these paths without endings; none where they would not be different or are too
    long: then rows are numbered."""
    ids = [_NOT_IN_AN_ID.sub("-", path) for path in paths]
    return ids if len(set(ids)) == len(ids) and max(map(len, ids)) <= 128 else []


_Pairs = dict[Path, tuple[list[Path], bool]]  # path without its ending -> images, is there a text


def _pairs(folder: Path) -> _Pairs:
    images, captions = defaultdict[Path, list[Path]](list), set[Path]()
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
        if hidden or not path.is_file():
            continue
        if path.suffix.lower() in IMAGES:
            images[path.with_suffix("")].append(path)
        elif path.suffix.lower() == CAPTION:
            captions.add(path.with_suffix(""))
    return {stem: (images[stem], stem in captions) for stem in sorted({*images, *captions})}


def _problems(pairs: _Pairs) -> Iterator[str]:
    for stem, (images, captioned) in pairs.items():
        if not images:
            yield f"{stem}{CAPTION}: a caption without an image"
        elif not captioned:
            yield f"{images[0]}: an image without its caption {stem.name}{CAPTION}"
        elif len(images) > 1:
            yield f"{images[1]}: has the caption of {images[0].name}"


def _caption(stem: Path) -> str:
    path = Path(f"{stem}{CAPTION}")
    check_utf8(path)
    return path.read_text(encoding="utf-8-sig").strip()
