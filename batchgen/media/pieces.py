"""Pieces of media files: the one with the note is found by its frame and read alone, without a
decoder. The file may be anybody's: no length in it is believed, and no more is read than a note."""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedReader

LONGEST_NOTE = 2**24  # bytes, in any format
_HEAD = 8  # bytes of a box's length and name


def take(file: BufferedReader, size: int) -> bytes:
    """The next `size` bytes. OSError if that is more than a note can have, or the file ends."""
    if size > LONGEST_NOTE:
        raise OSError(f"holds a text of {size} bytes; a note has at most {LONGEST_NOTE}")
    data = file.read(size)
    if len(data) < size:
        raise OSError("ends early, it is torn")
    return data


def chunks(file: BufferedReader, name_first: bool) -> Iterator[tuple[bytes, int]]:
    """Name and size of each chunk from here on, while the file stands at its first byte: of RIFF
    (name first, little endian, even) or PNG (length first, big endian, four bytes of checksum)."""
    while head := file.read(_HEAD):
        if len(head) < _HEAD:
            raise OSError("ends early, it is torn")
        if name_first:
            name, size = head[:4], int.from_bytes(head[4:], "little")
            end = file.tell() + size + size % 2
        else:
            name, size = head[4:], int.from_bytes(head[:4])
            end = file.tell() + size + 4
        yield name, size
        file.seek(end)


def box(file: BufferedReader, path: tuple[bytes, ...], end: int) -> int:
    """Go to the content of the MP4 box that these names lead to, from boxes that begin here and
    end at `end` (ISO/IEC 14496-12, 4.2). Its size; -1 if it is not there.

    OSError if a box is longer than the one that it is in."""
    at = file.tell()
    while at < end:
        file.seek(at)
        length, name = int.from_bytes(take(file, 4)), take(file, 4)
        if length == 1:
            length = int.from_bytes(take(file, 8))
        if length == 0:  # up to the end
            length = end - at
        if not file.tell() - at <= length <= end - at:
            raise OSError(f"holds a box of {length} bytes where {end - at} are left, it is torn")
        if name == path[0]:
            if name == b"meta":
                take(file, 4)  # version and flags
            inner = at + length
            return inner - file.tell() if len(path) == 1 else box(file, path[1:], inner)
        at += length
    return -1


def blocks(file: BufferedReader) -> bytes:
    """The blocks of a GIF extension up to the empty one, joined; OSError as from `take`."""
    found = bytearray()
    while size := take(file, 1)[0]:
        found += take(file, size)
        if len(found) > LONGEST_NOTE:
            raise OSError(f"holds a text of more than {LONGEST_NOTE} bytes")
    return bytes(found)
