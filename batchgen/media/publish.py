"""Writes a row's media file: encoded and durable under its final name, or not there at all.

Only its journal line publishes it (`ledger.journal`); this module makes sure that whoever reads
that line finds the whole file. Names contain the attempt, so no attempt can touch another's file.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from batchgen.durable import digest_file, make_folder, remove, sync, sync_folder
from batchgen.errors import MediaError
from batchgen.failpoints import failpoint
from batchgen.media import formats
from batchgen.paths import RunPaths, media_fan_out
from batchgen.records import Attempt, Media, Rendered
from batchgen.request import Request

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TEMPORARY = re.compile(r".+\.tmp(\.[a-z0-9]+)?")


def write_media(
    rendered: Rendered, run: RunPaths, attempt: Attempt, total_rows: int, note: str = ""
) -> Media:
    """Encode a row's frames and make the file durable under its final name.

    `note` is text that the file carries; one that it has no room for is left out, and the log says
    so: nobody's prompt is too long to be drawn. `total_rows` is the number of rows of the plan; the
    folders inside `media/` depend on it alone.
    MediaError if the file cannot be encoded or written: the row fails, the shard goes on, and
    nothing is left under the temporary or final name.
    """
    request = rendered.request
    final = media_path(run, request, attempt, total_rows)
    temporary = final.with_name(f"{final.stem}.tmp{final.suffix}")
    try:
        make_folder(final.parent, run.root)
        failpoint("media.before_write")
        encode(rendered, temporary, note)
        failpoint("media.after_write")
        sync(temporary)
        digest, size = digest_file(temporary)
        failpoint("media.before_rename")
        _publish(temporary, final)
        failpoint("media.after_rename")
        sync_folder(final.parent)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            remove(temporary)
        raise MediaError(f"row {request.row_id!r}: {final} cannot be written: {error}") from error
    return Media(
        path=final.relative_to(run.root).as_posix(),
        sha256=digest,
        bytes=size,
        frames_sha256=digest_frames(rendered.frames),
        num_frames=len(rendered.frames),
    )


def media_path(run: RunPaths, request: Request, attempt: Attempt, total_rows: int) -> Path:
    """Where an attempt puts a row's media: always inside `run.media` (else MediaError)."""
    folder = run.media / media_fan_out(request.row_index, total_rows)
    return folder / media_name(request, attempt)


def media_name(request: Request, attempt: Attempt) -> str:
    """The file name that an attempt gives a row's media; MediaError if it cannot be one."""
    name = request.row_id if request.media_name is None else request.media_name
    if _NAME.fullmatch(name) is None:
        raise MediaError(f"{name!r} cannot be a file name: use [A-Za-z0-9._-]{{1,128}}")
    return f"{name}-{attempt.tag}{formats.get(request.format).EXTENSION}"


def is_temporary(name: str) -> bool:
    """Whether a file name under `media/` is that of a file not yet renamed, as a crash leaves
    it."""
    return _TEMPORARY.fullmatch(name) is not None


def digest_frames(frames: np.ndarray) -> str:
    """sha256 of the values in C order: evidence of the pixels, whatever the format."""
    return hashlib.sha256(frames.tobytes()).hexdigest()


def encode(rendered: Rendered, path: Path, note: str) -> None:
    """Write a row's frames to `path`, replacing what is there; nothing is durable yet."""
    request = rendered.request
    remove(path)
    module = formats.get(request.format)
    if not module.carries(note):
        log.warning(
            "row %s: its request, %d characters, does not fit into a %s file, which goes without",
            request.row_id, len(note), request.format,
        )  # fmt: skip
        note = ""
    module.write(rendered.frames, path, fps=request.fps, quality=request.quality, note=note)


def _publish(temporary: Path, final: Path) -> None:
    if temporary.is_dir():
        remove(final)  # from this same attempt: a folder cannot be renamed over one that has files
    temporary.replace(final)
