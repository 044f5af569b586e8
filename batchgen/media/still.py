"""Pictures through Pillow: what the formats that it writes share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from PIL.ExifTags import IFD, Base

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


def comment_in(image: Image.Image) -> str:
    """The user comment of a picture's EXIF; empty if there is none."""
    stored = image.getexif().get_ifd(IFD.Exif).get(Base.UserComment, b"")
    return bytes(stored).removeprefix(_UNICODE).decode("utf-16-be")
