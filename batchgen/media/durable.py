"""Files that are whole or absent: temporary name, fsync, rename, fsync of the folder.

A media file is published by its journal line alone (`ledger.journal`); what this module promises is
that whoever reads that line finds the whole file. Names carry the attempt, so that no attempt can
touch another's file. fsync of a folder is best effort: some network filesystems do not have it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from batchgen.errors import MediaError
from batchgen.failpoints import failpoint
from batchgen.media import formats
from batchgen.paths import RunPaths, media_fan_out
from batchgen.records import Attempt, Media, Rendered
from batchgen.regular import digest_regular, open_regular

if TYPE_CHECKING:
    import numpy as np

_ROW_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TEMPORARY = re.compile(r".+\.tmp(\.[a-z0-9]+)?")
_CHUNK = 1 << 20


def write_media(rendered: Rendered, run: RunPaths, attempt: Attempt, total_rows: int) -> Media:
    """Encode a row's frames and make the file durable under its final name.

    `total_rows` is the number of rows of the plan: it alone chooses the folders inside `media/`.
    Raises MediaError (a row's error, the shard goes on) if the file cannot be encoded or written;
    then nothing is left under the temporary or the final name.
    """
    request = rendered.request
    final = media_path(run, request.row_id, request.row_index, request.format, attempt, total_rows)
    temporary = final.with_name(f"{final.stem}.tmp{final.suffix}")
    try:
        make_folder(final.parent, run.root)
        failpoint("media.before_write")
        _encode(rendered, temporary)
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


def media_path(
    run: RunPaths, row_id: str, row_index: int, format_name: str, attempt: Attempt, total_rows: int
) -> Path:
    """Where an attempt keeps a row's media: always inside `run.media` (MediaError otherwise)."""
    if _ROW_ID.fullmatch(row_id) is None:
        raise MediaError(f"row_id {row_id!r} cannot be a file name: use [A-Za-z0-9._-]{{1,128}}")
    extension = formats.get(format_name).EXTENSION
    folder = run.media / media_fan_out(row_index, total_rows)
    return folder / f"{row_id}-{attempt.tag}{extension}"


def is_temporary(name: str) -> bool:
    """Whether a file name under `media/` is one that a crash left behind before its rename."""
    return _TEMPORARY.fullmatch(name) is not None


def digest_frames(frames: np.ndarray) -> str:
    """sha256 of the uint8 values in C order: the evidence of pixels, whatever the format."""
    return hashlib.sha256(frames.tobytes()).hexdigest()


def digest_file(path: Path) -> tuple[str, int]:
    """sha256 and bytes of a file; of a folder: sha256 over its sorted lines `name sha256`, and the
    sum of the bytes. OSError for what is neither, and for a folder inside a folder."""
    if not path.is_dir():
        return digest_regular(path)
    entries = [(file.name, *digest_regular(file)) for file in sorted(path.iterdir())]
    lines = "".join(f"{name} {digest}\n" for name, digest, _ in entries)
    return hashlib.sha256(lines.encode()).hexdigest(), sum(size for _, _, size in entries)


def remove(path: Path) -> None:
    """Delete a media file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, durably: readers see the old file or the new one. OSError if the
    folder cannot be written; then the old file is untouched."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # not of a file that nobody has seen
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: object) -> None:
    """`write_bytes_atomic` of `value` as indented JSON with a trailing newline."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes_atomic(path, text.encode() + b"\n")


def make_folder(path: Path, root: Path) -> None:
    """Make a folder below `root` and those between, so that they are there after a power cut.
    FileNotFoundError if `root` is not there: a run folder that went away is never made again."""
    root.stat()
    missing = [f for f in (path, *path.parents) if f.is_relative_to(root) and not f.exists()]
    for folder in reversed(missing):
        if folder != root:
            folder.mkdir(exist_ok=True)
            sync_folder(folder.parent)


def sync(path: Path) -> None:
    """fsync a file, or a folder with all its files."""
    if path.is_dir():
        for file in path.iterdir():
            sync(file)
        sync_folder(path)
        return
    with open_regular(path) as opened:
        os.fsync(opened.fileno())


def sync_folder(path: Path) -> None:
    """Make renames inside `path` durable where the filesystem can."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _encode(rendered: Rendered, path: Path) -> None:
    request = rendered.request
    remove(path)
    module = formats.get(request.format)
    module.write(rendered.frames, path, fps=request.fps, quality=request.quality)


def _publish(temporary: Path, final: Path) -> None:
    if temporary.is_dir():
        remove(final)  # of this same attempt: a folder cannot be renamed over one with files
    temporary.replace(final)
