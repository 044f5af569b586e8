"""What was found out about files, by path and stamp, in the user's cache.

A file is read again when its size, times or inode are others. A home without room for a cache only
costs time.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

MOST = 200_000  # entries kept in a file, of 200 bytes each


class StampCache:
    """Texts by file, stamp and kind, in one JSON file."""

    def __init__(self, name: str) -> None:
        root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        self.file = Path(root) / "batchgen" / name
        self.changed = False
        self.entries: dict[str, Any] = {}
        with suppress(OSError, ValueError, RecursionError):  # none, or a damaged one: made again
            stored = json.loads(self.file.read_text(encoding="utf-8"))
            self.entries = stored if isinstance(stored, dict) else {}

    def get(self, key: str) -> str | None:
        """What is known under a key of `key_of`."""
        found = self.entries.get(key)
        return None if found is None else str(found)

    def put(self, key: str, found: str) -> None:
        self.entries[key] = found
        self.changed = True

    def save(self) -> None:
        """Write back what is new."""
        if not self.changed or not self.file.is_absolute():  # a user without a home
            return
        draft = self.file.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            newest = dict(islice(reversed(self.entries.items()), MOST))
            draft.write_text(json.dumps(dict(reversed(newest.items()))), encoding="utf-8")
            os.replace(draft, self.file)
        self.changed = False


def key_of(file: Path, kind: str) -> str:
    """What a file as it stands is known by; raises OSError where there is none."""
    return f"{os.path.realpath(file)} {' '.join(map(str, stamp(file)))} {kind}"


def stamp(file: Path) -> tuple[int, int, int, int]:
    """Size, times and inode."""
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
