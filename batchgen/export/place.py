"""Where an export goes: a folder, or what `pyarrow.fs` opens by URI (s3://, gs://, hdfs://)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import ArrowException, fs

from batchgen.durable import digest_file
from batchgen.errors import StorageError, UsageError

_CHUNK = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Stored:
    """One file of an export, by its path below the destination."""

    path: str
    bytes: int
    sha256: str


class Place:
    """A folder on some filesystem. Files appear whole under their name or not at all."""

    def __init__(self, filesystem: Any, root: str) -> None:
        self._fs, self._root = filesystem, root.rstrip("/")

    @classmethod
    def open(cls, text: str) -> Place:
        """The place of a path or URI, which need not exist; UsageError if nobody can open it."""
        try:
            if "://" in text:
                return cls(*fs.FileSystem.from_uri(text))
            return cls(fs.LocalFileSystem(), str(Path(text).expanduser().absolute()))
        except (ArrowException, OSError, ValueError) as error:
            raise UsageError(f"DST {text!r} cannot be opened: {error}") from error

    def put(self, source: Path, name: str) -> Stored:
        """Copy a file here and read it back; StorageError unless it is the same."""
        digest, size = digest_file(source)
        target = self._path(name)
        local = self._fs.type_name == "local"
        draft = f"{target}.tmp" if local else target  # object stores show a file when it is closed
        try:
            if local:
                self._fs.create_dir(str(Path(target).parent), recursive=True)
            with source.open("rb") as file, self._fs.open_output_stream(draft) as stream:
                while chunk := file.read(_CHUNK):
                    stream.write(chunk)
            if self._digest(draft) != (digest, size):
                raise StorageError(f"{draft}: what was written is not what is read back")
            if local:
                self._fs.move(draft, target)
        except (ArrowException, OSError) as error:
            raise StorageError(f"{target} cannot be written: {error}") from error
        return Stored(name, size, digest)

    def put_json(self, name: str, value: Any, scratch: Path) -> None:
        """Store a small record, by way of a file in the folder `scratch`."""
        draft = scratch / "record.json"
        draft.write_text(json.dumps(value), encoding="utf-8")
        self.put(draft, name)
        draft.unlink()

    def get_json(self, name: str) -> Any:
        """A small record; None if it is not there or is none."""
        try:
            with self._fs.open_input_stream(self._path(name)) as stream:
                return json.loads(stream.read())
        except (OSError, ValueError):
            return None

    def holds(self, stored: Stored) -> bool:
        """Whether a file is there in its size."""
        info = self._fs.get_file_info(self._path(stored.path))
        return bool(info.type == fs.FileType.File and info.size == stored.bytes)

    def listed(self) -> Iterator[str]:
        """Names of what is here, one level deep."""
        for info in self._fs.get_file_info(fs.FileSelector(self._root, allow_not_found=True)):
            yield info.base_name

    def walk(self) -> Iterator[str]:
        """Paths of all files here, in folders too."""
        every = fs.FileSelector(self._root, allow_not_found=True, recursive=True)
        for info in self._fs.get_file_info(every):
            if info.type == fs.FileType.File:
                yield info.path.removeprefix(f"{self._root}/")

    def remove(self, name: str) -> None:
        """Delete a file, and its folder with the last one; StorageError where that is refused."""
        try:
            self._fs.delete_file(self._path(name))
        except (ArrowException, OSError) as error:
            raise StorageError(f"{self._path(name)} cannot be deleted: {error}") from error
        if self._fs.type_name == "local" and "/" in name:
            with suppress(OSError):  # it is not empty
                Path(self._path(name)).parent.rmdir()

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _digest(self, path: str) -> tuple[str, int]:
        found, size = hashlib.sha256(), 0
        with self._fs.open_input_stream(path) as stream:
            while chunk := stream.read(_CHUNK):
                found.update(chunk)
                size += len(chunk)
        return found.hexdigest(), size
