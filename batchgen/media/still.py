"""Pictures through Pillow: what the formats that it writes share."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from PIL.ExifTags import IFD, Base

NAME = b"Exif\0\0"  # in front of the TIFF header in JPEG, and in some WebP
_UNICODE = b"UNICODE\0"  # how a user comment says that UTF-16 follows (EXIF 2.32, 4.6.5)


def only_frame(frames: np.ndarray, name: str) -> np.ndarray:
    """The one frame, uint8 (H, W, 3); ValueError if there are more."""
    if len(frames) != 1:
        raise ValueError(f"format {name} holds one frame, not {len(frames)}")
    frame: np.ndarray = frames[0]
    return frame


def read_still(path: Path, kind: str) -> np.ndarray:
    """Decode one picture of Pillow format `kind` to uint8 (1, H, W, 3); OSError if it is torn."""
    with Image.open(path, formats=[kind]) as image:
        return np.asarray(image.convert("RGB"))[None]


def comment(text: str) -> Image.Exif:
    """EXIF whose user comment is `text`; without text an empty one, which is not stored."""
    exif = Image.Exif()
    if text:
        exif.get_ifd(IFD.Exif)[Base.UserComment] = _UNICODE + text.encode("utf-16-be")
    return exif


def comment_bytes(text: str) -> int:
    """Length of the EXIF with this comment, from its TIFF header on: 44 bytes of directories, and
    two or more of UTF-16 a character."""
    return 44 + len(_UNICODE) + len(text.encode("utf-16-be"))


def comment_in(exif: bytes) -> str:
    """The user comment in EXIF, with or without the name in front of its TIFF header; empty if
    there is none of ours.

    Two directories are looked up and no more, where Pillow would copy what every entry points at:
    a file can hold 65,535 that point at the same 16 MiB. OSError if it is torn."""
    exif = exif.removeprefix(NAME)
    order: Literal["big", "little"] = "big" if exif[:2] == b"MM" else "little"
    start = _number(exif, 4, order)
    entry = _entry(exif, start, IFD.Exif, order)
    inner = _entry(exif, _number(exif, entry + 8, order), Base.UserComment, order) if entry else 0
    if not inner:
        return ""
    size, place = _number(exif, inner + 4, order), _number(exif, inner + 8, order)
    stored = exif[place : place + size]
    if len(stored) < size:
        raise OSError("its EXIF ends early, it is torn")
    if not stored.startswith(_UNICODE):  # another's comment
        return ""
    return stored.removeprefix(_UNICODE).decode("utf-16-be")


def _entry(exif: bytes, start: int, tag: int, order: Literal["big", "little"]) -> int:
    """Where the entry of a tag is (tag, type, count, value: 12 bytes; TIFF 6.0, 2); 0: nowhere."""
    count = int.from_bytes(exif[start : start + 2], order)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        if exif[at : at + 2] == tag.to_bytes(2, order):
            return at
    return 0


def _number(exif: bytes, at: int, order: Literal["big", "little"]) -> int:
    if len(exif) < at + 4:
        raise OSError("its EXIF ends early, it is torn")
    return int.from_bytes(exif[at : at + 4], order)
