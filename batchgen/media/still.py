"""Single pictures through Pillow: what the still formats (png, jpeg) share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


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
