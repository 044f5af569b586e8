"""JPEG: one frame; quality 0..10 is JPEG quality 45..95, colour at full resolution from 8 on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from batchgen.media.still import comment, comment_in, only_frame, read_still

EXTENSION = ".jpg"


def write(frames: np.ndarray, path: Path, *, fps: float, quality: int, note: str = "") -> None:
    """Encode uint8 (1, H, W, 3); ValueError for more than one frame."""
    subsampling = 0 if quality >= 8 else 2
    image = Image.fromarray(only_frame(frames, "jpeg"))
    exif = comment(note)
    image.save(path, format="JPEG", quality=45 + 5 * quality, subsampling=subsampling, exif=exif)


def read(path: Path) -> np.ndarray:
    """uint8 (1, H, W, 3); OSError for a torn file."""
    return read_still(path, "JPEG")


def read_note(path: Path) -> str:
    """The user comment of its EXIF."""
    with Image.open(path, formats=["JPEG"]) as image:
        return comment_in(image)
