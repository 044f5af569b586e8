"""JPEG: one frame; quality 0..10 is JPEG quality 45..95, colour at full resolution from 8 on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from batchgen.media.pieces import take
from batchgen.media.still import NAME, comment, comment_bytes, comment_in, only_frame, read_still
from batchgen.regular import open_regular

EXTENSION = ".jpg"
_APP1 = b"\xff\xe1"
_BEHIND = (b"\xff\xda", b"\xff\xd9")  # the scan, or the end: no segments follow
_LONGEST_EXIF = 65_535 - 2 - len(NAME)  # bytes behind the length and the name


def write(frames: np.ndarray, path: Path, *, fps: float, quality: int, note: str = "") -> None:
    """Encode uint8 (1, H, W, 3); ValueError for more than one frame."""
    subsampling = 0 if quality >= 8 else 2
    image = Image.fromarray(only_frame(frames, "jpeg"))
    exif = comment(note)
    image.save(path, format="JPEG", quality=45 + 5 * quality, subsampling=subsampling, exif=exif)


def read(path: Path) -> np.ndarray:
    """uint8 (1, H, W, 3); OSError for a torn file."""
    return read_still(path, "JPEG")


def carries(note: str) -> bool:
    """Up to 64 KiB: EXIF is one segment, whose length has two bytes."""
    return comment_bytes(note) <= _LONGEST_EXIF


def read_note(path: Path) -> str:
    """The user comment of its EXIF, which is in a segment in front of the scan (ISO/IEC 10918-1,
    B.1)."""
    with open_regular(path) as file:
        if take(file, 2) != b"\xff\xd8":
            raise OSError("is no JPEG")
        while (marker := take(file, 2)) not in _BEHIND:
            if marker[0] != 0xFF:
                raise OSError("holds no segment where one should be, it is torn")
            size = int.from_bytes(take(file, 2)) - 2
            end = file.tell() + size
            if marker == _APP1 and size >= len(NAME) and take(file, len(NAME)) == NAME:
                return comment_in(take(file, size - len(NAME)))
            file.seek(max(end, file.tell()))
    return ""
