"""PNG: one frame, lossless; quality does not apply."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from batchgen.media.still import only_frame, read_still

EXTENSION = ".png"
KEYWORD = "batchgen"  # of the text chunk
_END = b"\0\0\0\0IEND\xaeB`\x82"


def write(frames: np.ndarray, path: Path, *, fps: float, quality: int, note: str = "") -> None:
    """Encode uint8 (1, H, W, 3); ValueError for more than one frame."""
    texts = PngInfo()
    if note:
        texts.add_itxt(KEYWORD, note)
    image = Image.fromarray(only_frame(frames, "png"))
    image.save(path, format="PNG", compress_level=6, pnginfo=texts)


def read(path: Path) -> np.ndarray:
    """uint8 (1, H, W, 3); OSError for a torn file."""
    with path.open("rb") as file:
        if not file.read().endswith(_END):  # Pillow does not check for it
            raise OSError(f"{path}: the end of the PNG is missing, the file is torn")
    return read_still(path, "PNG")


def read_note(path: Path) -> str:
    """The text chunk `batchgen`."""
    with Image.open(path, formats=["PNG"]) as image:
        return str(image.info.get(KEYWORD, ""))
