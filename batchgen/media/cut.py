"""Cuts a padded picture or clip to the size that was asked for."""

from __future__ import annotations

import numpy as np

from batchgen.request import Bucket


def cut_to(frames: np.ndarray, size: Bucket) -> np.ndarray:
    """The middle of each frame and the first frames of uint8 (frames, height, width, 3), in the
    size of `size`."""
    _, height, width, _ = frames.shape
    top, left = (height - size.height) // 2, (width - size.width) // 2
    cut = frames[: size.num_frames, top : top + size.height, left : left + size.width]
    return np.ascontiguousarray(cut)
