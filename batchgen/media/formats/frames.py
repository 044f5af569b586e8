"""A folder of numbered PNG files. Lossless, so quality does not apply; fps is in the catalog."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from batchgen.media.formats import png

EXTENSION = ".frames"


def write(frames: np.ndarray, path: Path, *, fps: float, quality: int, note: str = "") -> None:
    """Make the folder `path` with 00000.png, 00001.png, ..."""
    path.mkdir()
    for number, frame in enumerate(frames):
        png.write(frame[None], path / f"{number:05d}.png", fps=fps, quality=quality, note=note)


def read(path: Path) -> np.ndarray:
    """uint8 (F, H, W, 3); OSError if a frame is missing or torn, or another file is in the
    folder."""
    found = sorted(file.name for file in path.iterdir())
    if not found or found != [f"{number:05d}.png" for number in range(len(found))]:
        raise OSError(f"{path}: frames are missing or files do not belong: {found[:5]} ...")
    return np.concatenate([png.read(path / name) for name in found])


def carries(note: str) -> bool:
    """What a frame carries."""
    return png.carries(note)


def read_note(path: Path) -> str:
    """That of the first frame: all say the same."""
    return png.read_note(path / "00000.png")
