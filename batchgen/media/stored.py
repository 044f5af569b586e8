"""Published media where they lie: a file or folder, or a member of a tar."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchgen.regular import open_regular

IN = "::"  # in the path of a member: `media/00000-s1t0r0p0.tar::row-001-s1t0r0p0.png`


def file_of(path: str) -> str:
    """The file that a path of media is in: itself, unless that of a member."""
    return path.partition(IN)[0]


@dataclass(frozen=True, slots=True)
class MediaPlace:
    """The media of one row, as its commit tells."""

    path: str  # relative to the run
    sha256: str
    size: int  # bytes
    offset: int = 0  # where a member begins in its tar

    def __str__(self) -> str:
        return f"{self.sha256} {self.size} {self.offset} {self.path}"

    @classmethod
    def parse(cls, text: str) -> MediaPlace:
        """The inverse of `str`; ValueError for another text."""
        digest, size, offset, path = text.split(" ", 3)
        return cls(path, digest, int(size), int(offset))

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> MediaPlace:
        """Of a row of a catalog, which may be older than tars."""
        offset = int(row.get("media_offset") or 0)
        return cls(row["media_path"], row["media_sha256"], int(row["media_bytes"]), offset)

    @property
    def is_member(self) -> bool:
        return IN in self.path

    @property
    def file(self) -> str:
        """The file that holds them, relative to the run."""
        return file_of(self.path)

    @property
    def name(self) -> str:
        """Their own name, with the extension of their format."""
        return Path(self.path.partition(IN)[2] or self.path).name

    def read(self, root: Path) -> bytes:
        """The bytes of a file or member; ValueError unless they are those that were published,
        OSError if they cannot be read."""
        with open_regular(root / self.file) as file:
            file.seek(self.offset)
            data = file.read(self.size if self.is_member else -1)
        digest = hashlib.sha256(data).hexdigest()
        if len(data) != self.size:
            raise ValueError(f"{len(data)} bytes, published were {self.size}")
        if digest != self.sha256:
            raise ValueError(f"sha256 {digest}, published was {self.sha256}")
        return data


@contextmanager
def as_file(path: Path) -> Iterator[Path]:
    """A path of media as one that can be opened: of a member, `FILE.tar::MEMBER`, a copy that is
    there meanwhile. ValueError if the tar has no such member, OSError if it cannot be read."""
    tar, inside, name = str(path).partition(IN)
    if not inside:
        yield path
        return
    try:
        with (
            open_regular(Path(tar)) as file,
            tarfile.open(fileobj=file, mode="r:") as archive,
        ):
            found = archive.extractfile(name)
            data = b"" if found is None else found.read()
    except KeyError:
        raise ValueError(f"has no member {name!r}") from None
    except tarfile.TarError as error:
        raise ValueError(f"cannot be read as a tar: {error}") from error
    with tempfile.TemporaryDirectory(prefix="batchgen-") as folder:
        copy = Path(folder) / Path(name).name
        copy.write_bytes(data)
        yield copy
