"""One NumPy array of the frames; quality does not apply, and there is no place for a note."""

from __future__ import annotations

from pathlib import Path

import numpy as np

EXTENSION = ".npy"


def write(frames: np.ndarray, path: Path, *, fps: float, quality: int, note: str = "") -> None:
    """Write uint8 (F, H, W, 3) in NumPy's format."""
    with path.open("wb") as file:
        np.lib.format.write_array(file, np.ascontiguousarray(frames), allow_pickle=False)


def read(path: Path) -> np.ndarray:
    """uint8 (F, H, W, 3), read without unpickling; ValueError for a torn file or another kind of
    array."""
    with path.open("rb") as file:
        frames: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise ValueError(f"{path}: bytes after the array")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"{path}: {frames.dtype} {frames.shape} is not a clip of uint8 RGB frames")
    return frames


def carries(note: str) -> bool:
    """No array does; nothing is lost that somebody could expect here."""
    return True


def read_note(path: Path) -> str:
    """Empty: an array carries no text."""
    return ""
