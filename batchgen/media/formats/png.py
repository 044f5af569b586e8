"""PNG: one frame, lossless; quality does not apply."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from batchgen.media.still import only_frame, read_still

EXTENSION = ".png"


def write(frames: np.ndarray, path: Path, *, fps: int, quality: int) -> None:
    """Encode uint8 (1, H, W, 3); ValueError for more than one frame."""
    Image.fromarray(only_frame(frames, "png")).save(path, format="PNG", compress_level=6)


def read(path: Path) -> np.ndarray:
    """uint8 (1, H, W, 3); OSError for a torn file."""
    return read_still(path, "PNG")
