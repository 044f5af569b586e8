"""WebP, one frame or animated: quality 0..9 is lossy 40..94, 10 is lossless.

The encoder merges equal neighbouring frames into one with a longer duration. So the number of
frames and the frame rate are also stored in the file (XMP), and reading repeats the merged frames.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from batchgen.media.pieces import LONGEST_NOTE, chunks, take
from batchgen.media.still import comment, comment_bytes, comment_in
from batchgen.regular import open_regular

EXTENSION = ".webp"
_COUNT = re.compile(rb"batchgen num_frames=(\d+) fps=([0-9.]+)")


def write(frames: np.ndarray, path: Path, *, fps: float, quality: int, note: str = "") -> None:
    """Encode uint8 (F, H, W, 3)."""
    images = [Image.fromarray(frame) for frame in frames]
    ends = [round(1000 * (number + 1) / fps) for number in range(len(frames))]
    durations = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    shown = int(fps) if fps == int(fps) else fps
    count = f"batchgen num_frames={len(frames)} fps={shown}".encode()
    images[0].save(
        path,
        format="WEBP",
        save_all=len(images) > 1,
        append_images=images[1:],
        duration=durations,
        loop=0,
        lossless=quality == 10,
        quality=40 + 6 * quality,
        method=4,
        xmp=count,
        exif=comment(note),
    )


def read(path: Path) -> np.ndarray:
    """uint8 (F, H, W, 3); OSError or ValueError for a torn file."""
    with Image.open(path, formats=["WEBP"]) as image:
        count = _COUNT.search(image.info.get("xmp", b""))
        if count is None:
            raise ValueError(f"{path}: the number of frames is not noted in the file")
        num_frames, fps = int(count[1]), float(count[2])
        shown, ends = [], []
        elapsed = 0
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            shown.append(np.asarray(image.convert("RGB")))
            elapsed += int(image.info.get("duration", 0))
            ends.append(elapsed)
    starts = [round(1000 * number / fps) for number in range(num_frames)]
    places = np.minimum(np.searchsorted(ends, starts, side="right"), len(shown) - 1)
    return np.stack([shown[place] for place in places])


def carries(note: str) -> bool:
    """A chunk has room for any."""
    return comment_bytes(note) <= LONGEST_NOTE


def read_note(path: Path) -> str:
    """The user comment of its EXIF, a chunk of RIFF behind the picture's."""
    with open_regular(path) as file:
        header = take(file, 12)
        if header[:4] != b"RIFF" or header[8:] != b"WEBP":
            raise OSError("is no WebP")
        for name, size in chunks(file, name_first=True):
            if name == b"EXIF":
                return comment_in(take(file, size))
    return ""
