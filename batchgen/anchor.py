"""Tells whether a run folder is still the one that was opened, and whether it is a copy of another.

A path is only a name: the folder can be moved, deleted, unmounted or replaced while a process works
in it. Its inode cannot be reused by another folder while a descriptor of it is open.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from batchgen.errors import StorageError
from batchgen.paths import RunPaths


def is_same(path: Path, descriptor: int) -> bool:
    """Whether a path still leads to what is open. OSError if the path cannot be read, for another
    reason than that nothing is there."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    opened = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)


class Anchor:
    """A run folder and its `media/`, held open from the moment when a process begins to work
    there."""

    def __init__(self, run: RunPaths) -> None:
        """StorageError if the run folder cannot be opened. A `media/` in another place (a mount, a
        link) is held as soon as it exists."""
        self._held: dict[Path, int] = {}
        try:
            self._hold(run.root)
            if run.media.is_dir():
                self._hold(run.media)
        except OSError as error:
            self.close()
            raise StorageError(f"{run.root}: the run folder cannot be opened: {error}") from error

    def check(self) -> None:
        """StorageError unless both folders are those that were opened."""
        if path := self._strayed(patient=False):
            raise StorageError(gone(path))

    def is_lost(self) -> bool:
        """Whether `check` would fail; False if the storage does not answer now."""
        return self._strayed(patient=True) is not None

    def close(self) -> None:
        """Close the descriptors; safe to call twice."""
        while self._held:
            os.close(self._held.popitem()[1])

    def _hold(self, path: Path) -> None:
        self._held[path] = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _strayed(self, patient: bool) -> Path | None:
        for path, descriptor in self._held.items():
            try:
                if not is_same(path, descriptor):
                    return path
            except OSError as error:
                if not patient:
                    raise StorageError(f"{path} cannot be looked at: {error}") from error
        return None


def gone(path: Path) -> str:
    """The message about a folder or file of a run that is not the one that was opened."""
    return (
        f"{path}: the run folder is not the one that was opened: it, or a folder in it, was moved, "
        "deleted, unmounted or replaced; what is committed is where it went, and `batchgen resume` "
        "goes on there"
    )


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run folder was when work on it began: copies of the folder do not own that work."""

    root: str = ""  # as resolved; empty: not recorded
    inode: int = 0

    @classmethod
    def of(cls, run: RunPaths) -> Place:
        return cls(str(run.root.resolve()), run.root.stat().st_ino)

    def is_of(self, run: RunPaths) -> bool:
        """Whether `run` is this folder or took its place: also if it was moved, is seen under
        another path, or nothing was recorded. A copy is another folder elsewhere."""
        if not self.root:
            return True
        with suppress(OSError):
            here = Place.of(run)
            return self.root == here.root or self.inode == here.inode
        return True
