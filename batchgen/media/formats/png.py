"""PNG: one frame, lossless; quality does not apply."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from batchgen.media.pieces import LONGEST_NOTE, chunks, take
from batchgen.media.still import only_frame, read_still
from batchgen.regular import open_regular

EXTENSION = ".png"
KEYWORD = "batchgen"  # of the text chunk
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# of the chunk: keyword, not compressed, no language, keyword not translated (PNG 1.2, 4.2.3.3)
_PREFIX = KEYWORD.encode() + b"\0" + b"\0\0" + b"\0" + b"\0"
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


def carries(note: str) -> bool:
    """Up to what readers of PNG take: Pillow refuses pictures with more than 64 MiB of text."""
    return len(note.encode()) + len(_PREFIX) <= LONGEST_NOTE


def read_note(path: Path) -> str:
    """The text chunk `batchgen`, which is in front of the picture's data; one that is compressed is
    another's, and is not unpacked."""
    with open_regular(path) as file:
        if take(file, len(_SIGNATURE)) != _SIGNATURE:
            raise OSError("is no PNG")
        for name, size in chunks(file, name_first=False):
            if name in (b"IDAT", b"IEND"):
                return ""
            if name == b"iTXt" and size >= len(_PREFIX) and take(file, len(_PREFIX)) == _PREFIX:
                return take(file, size - len(_PREFIX)).decode()
    raise OSError("ends early, it is torn")
