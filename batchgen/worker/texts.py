"""Encoded texts in files of a run, for all its shards and attempts.

A file appears whole or not at all, whoever else writes it, and is read back only if its check sum
holds. What cannot be read or written is no error: the text is encoded.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import suppress
from pathlib import Path

from batchgen.durable import make_folder, write_bytes_atomic

log = logging.getLogger(__name__)
_SUM = 64  # characters of a check sum, in front of the content
_RECOUNT = 0.05  # of the bound that this process writes before it counts what others wrote


class TextFolder:
    """Texts by name, at most so many bytes (`batchgen.engine.contract.KeptTexts`)."""

    def __init__(self, root: Path, folder: Path, context: str, limit_bytes: int) -> None:
        """`root`: the run's folder, which is never made again; `context`: all that an encoding
        depends on beside its text and the device."""
        self.context = context
        self._root, self._folder, self._limit = root, folder, limit_bytes
        self._held: int | None = None  # bytes in the folder, as last counted
        self._written = 0  # since

    def get(self, name: str) -> bytes | None:
        """None if there is none that is whole."""
        with suppress(OSError):
            data = self._file(name).read_bytes()
            if data[:_SUM] == hashlib.sha256(data[_SUM:]).hexdigest().encode():
                return data[_SUM:]
        return None

    def put(self, name: str, data: bytes) -> None:
        """Keep it as long as there is room. Others write, too: what is there is counted anew now
        and then."""
        size = _SUM + len(data)
        if self._held is None or self._written > _RECOUNT * self._limit:
            self._held, self._written = _bytes_in(self._folder), 0
        if self._held + self._written + size > self._limit:
            return
        file = self._file(name)
        try:
            make_folder(file.parent, self._root)
            write_bytes_atomic(file, hashlib.sha256(data).hexdigest().encode() + data)
        except OSError as error:
            log.warning("an encoded text is not kept: %s", error)
        self._written += size

    def _file(self, name: str) -> Path:
        return self._folder / name[:2] / name


def _bytes_in(folder: Path) -> int:
    """Of all files, those of killed writers included."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # renamed meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total
