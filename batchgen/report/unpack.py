"""A page cannot look into a tar: the media of the sheet that are in one are put beside the page."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from batchgen.durable import make_folder, remove, write_bytes_atomic
from batchgen.media.stored import IN, MediaPlace
from batchgen.paths import RunPaths
from batchgen.report.data import Sheet

log = logging.getLogger(__name__)
MOST_BYTES = 256 * 2**20  # of all together; rows beyond are shown without their media


def unpacked(run: RunPaths, sheet: Sheet, places: Mapping[str, MediaPlace]) -> Sheet:
    """The sheet with paths that a page can open; `places`: of its rows that are in a tar, by path.
    What an earlier page had there and this one has not is deleted."""
    if not places and not run.report_media.exists():
        return sheet
    paths = dict(_unpack(run, {p: places[p] for p in sheet.media if p in places}))
    kept = {run.root / path for path in paths.values()}
    for file in [*run.report_media.iterdir()] if run.report_media.exists() else ():
        if file not in kept:
            remove(file)
    return replace(sheet, media=tuple(paths.get(p, "" if IN in p else p) for p in sheet.media))


def _unpack(run: RunPaths, places: Mapping[str, MediaPlace]) -> Iterator[tuple[str, Any]]:
    """(path of a member, path of the file beside the page) of what could be unpacked."""
    left = MOST_BYTES
    make_folder(run.report_media, run.root)
    for path, place in places.items():
        file = run.report_media / place.name
        left -= place.size
        if left < 0:
            log.warning("the report shows %d MiB of media from tars, not all", MOST_BYTES // 2**20)
            return
        try:
            if not (file.is_file() and file.stat().st_size == place.size):
                write_bytes_atomic(file, place.read(run.root))
        except (OSError, ValueError) as error:
            log.warning("%s is not in the report: %s", path, error)
            continue
        yield path, file.relative_to(run.root).as_posix()
