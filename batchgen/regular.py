"""Reads files of a run folder, and refuses pipes and devices that have their names: opening one
could wait for ever."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from batchgen.errors import RunStateError


class NotRegular(OSError):
    """A pipe, a device or a folder, where a file was expected."""


class Damaged(RunStateError):
    """A file of a run is not as it was written."""


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading. NotRegular if it is not a regular file; other OSErrors as from
    `open`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise NotRegular(errno.EINVAL, "is not a regular file", str(path)) from error
        raise
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.fdopen(descriptor, "rb")
        raise NotRegular(errno.EINVAL, "is not a regular file", str(path))
    except OSError:
        os.close(descriptor)
        raise


def digest_regular(path: Path) -> tuple[str, int]:
    """sha256 (hex) and bytes of a regular file; OSError as from `open_regular`."""
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256")
        return digest.hexdigest(), file.tell()


def read_control(path: Path) -> dict[str, Any] | None:
    """The JSON object in a small file of a run folder; None if there is no such file. RunStateError
    with path and reason if it cannot be read or is damaged."""
    try:
        with open_regular(path) as file:
            found = json.loads(file.read())
    except FileNotFoundError:
        return None
    except NotRegular:
        raise damaged(path, "it is not a file") from None
    except OSError as error:
        raise RunStateError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise damaged(path, str(error) or "it is too large") from None
    if not isinstance(found, dict):
        raise damaged(path, f"it holds {type(found).__name__}, not an object")
    return found


def damaged(path: Path, reason: str) -> Damaged:
    """The error for a file whose content is wrong."""
    return Damaged(f"{path} is damaged: {reason}")
