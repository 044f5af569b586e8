"""Files that are whole or absent: temporary name, fsync, rename, fsync of the folder.

fsync of a folder is best effort: some network filesystems do not have it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from batchgen.regular import digest_regular, open_regular


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, durably: readers see the old file or the new one. OSError if the
    folder cannot be written; the old file is then unchanged."""
    with open_atomic(path) as file:
        file.write(data)


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """The same for what is written piece by piece; nothing is left of it where that fails."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        # It names the target, not the temporary file.
        raise OSError(error.errno, error.strerror, str(path)) from error
    sync_folder(path.parent)


def write_json(path: Path, value: object) -> None:
    """`write_bytes_atomic` of `value` as indented JSON with a trailing newline."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes_atomic(path, text.encode() + b"\n")


def make_folder(path: Path, root: Path) -> None:
    """Make a folder below `root` and those between, durably. FileNotFoundError if `root` does not
    exist: a run folder that went away is never made again."""
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


def digest_file(path: Path) -> tuple[str, int]:
    """sha256 and bytes of a file; for a folder, the sha256 over its sorted lines `name sha256`, and
    the sum of the bytes. OSError for anything else, and for a folder inside a folder."""
    if not path.is_dir():
        return digest_regular(path)
    entries = [(file.name, *digest_regular(file)) for file in sorted(path.iterdir())]
    lines = "".join(f"{name} {digest}\n" for name, digest, _ in entries)
    return hashlib.sha256(lines.encode()).hexdigest(), sum(size for _, _, size in entries)


def remove(path: Path) -> None:
    """Delete a media file or folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
