"""Media of many rows in few files: each attempt appends to tars of its own.

A member is whole and durable before its row's journal line names the tar, the member and the byte
where it begins. What a death leaves behind the last such member is named by no line; a tar is never
opened for writing again. Anything that reads tar reads these.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from batchgen.durable import make_folder, sync_folder
from batchgen.errors import MediaError
from batchgen.failpoints import failpoint, is_armed
from batchgen.media.publish import digest_frames, encode, media_name
from batchgen.media.stored import IN
from batchgen.paths import RunPaths
from batchgen.records import Attempt, Media, Rendered

TORN = "tar.torn"
END = bytes(2 * tarfile.BLOCKSIZE)  # of an archive


class TarPack:
    """The tars of one attempt, in order: `media/00000-s1t0r0p0.tar`, `00001-...`. Called from one
    thread."""

    def __init__(self, run: RunPaths, attempt: Attempt, limit: int, scratch: Path) -> None:
        """`limit`: bytes at which a tar is long enough; `scratch`: a folder for files that are
        being encoded."""
        self._run, self._attempt, self._limit, self._scratch = run, attempt, limit, scratch
        self._file: FileIO | None = None
        self._number = -1  # of the tar
        self._length = 0  # of what is durable in it

    def write(self, rendered: Rendered, note: str = "") -> Media:
        """Encode a row's frames and append them, durably. MediaError if that cannot be done: the
        row fails, and nothing names what may be left of it."""
        name = media_name(rendered.request, self._attempt)
        draft = self._scratch / name
        try:
            try:
                failpoint("media.before_write")
                encode(rendered, draft, note)
                data = draft.read_bytes()
            finally:
                draft.unlink(missing_ok=True)
            path, offset = self._append(name, data)
        except (OSError, ValueError) as error:
            row = rendered.request.row_id
            raise MediaError(f"row {row!r}: {name} cannot be packed: {error}") from error
        return Media(
            path=f"{path.relative_to(self._run.root).as_posix()}{IN}{name}",
            sha256=hashlib.sha256(data).hexdigest(),
            bytes=len(data),
            frames_sha256=digest_frames(rendered.frames),
            num_frames=len(rendered.frames),
            offset=offset,
        )

    def close(self) -> None:
        """End the last tar as tars end; one that was not ended can be read all the same."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.write(END)
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None

    # ---------------------------------------------------------------------------------- the tars
    def _append(self, name: str, data: bytes) -> tuple[Path, int]:
        """The tar, and where the data begin in it."""
        if self._file is None or self._length >= self._limit:
            self._open_next()
        assert self._file is not None
        header = _header(name, len(data))
        begin, fresh = self._length, self._length == 0
        try:
            failpoint("tar.before_append")
            self._write(header + data + bytes(-len(data) % tarfile.BLOCKSIZE))
            failpoint("tar.after_append")
            os.fsync(self._file.fileno())
            failpoint("tar.after_sync")
            if fresh:
                sync_folder(self._path.parent)
        except OSError:
            self._give_up()
            raise
        self._length = self._file.tell()
        return self._path, begin + len(header)

    @property
    def _path(self) -> Path:
        return self._run.media / f"{self._number:05d}-{self._attempt.tag}.tar"

    def _open_next(self) -> None:
        self.close()
        make_folder(self._run.media, self._run.root)
        self._number += 1
        self._file, self._length = self._path.open("xb", buffering=0), 0

    def _write(self, block: bytes) -> None:
        assert self._file is not None
        half = len(block) // 2 if is_armed(TORN) else 0
        for part in (block[:half], block[half:]):
            while part:
                part = part[self._file.write(part) :]
            failpoint(TORN)

    def _give_up(self) -> None:
        """What the disk holds of the member is unknown now: the next one begins another tar."""
        assert self._file is not None
        with contextlib.suppress(OSError):
            self._file.truncate(self._length)
        with contextlib.suppress(OSError):
            self._file.close()
        if self._length == 0:
            self._path.unlink(missing_ok=True)
        self._file = None


@contextmanager
def packing(run: RunPaths, attempt: Attempt, mib: float) -> Iterator[TarPack]:
    """The tars of an attempt, of about so many MiB each."""
    with tempfile.TemporaryDirectory(prefix="batchgen-pack-") as scratch:
        pack = TarPack(run, attempt, int(mib * 2**20), Path(scratch))
        try:
            yield pack
        finally:
            pack.close()


def _header(name: str, size: int) -> bytes:
    """Of a member without owner and time."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.PAX_FORMAT)
