"""H.264 in MP4: plays in every browser.

Quality 0..10 is constant rate factor 36..16 (8 -> 20). Sizes are not changed. Even sizes are stored
as yuv420p; an odd width or height does not allow that, so those files are yuv444p, which fewer
players can play. Colours are converted to BT.709 and tagged so, since players would guess by size
otherwise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from batchgen.media import ffmpeg
from batchgen.media.pieces import box, take
from batchgen.regular import open_regular

EXTENSION = ".mp4"
LONGEST_TAG = 100_000  # bytes: it is an argument of the encoder, and Linux takes 128 KiB
_COMMENT = (b"moov", b"udta", b"meta", b"ilst", b"\xa9cmt", b"data")  # boxes that lead to it
THREADS = 2  # the bytes depend on it: x264 divides its work by the number of threads


def write(frames: np.ndarray, path: Path, *, fps: float, quality: int, note: str = "") -> None:
    """Encode uint8 (F, H, W, 3); OSError if the encoder fails."""
    _, height, width, _ = frames.shape
    pixels = "yuv420p" if height % 2 == 0 and width % 2 == 0 else "yuv444p"
    scale = "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int+bitexact"
    tags = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]
    codec = ["-c:v", "libx264", "-crf", str(36 - 2 * quality), "-threads", str(THREADS)]
    texts = [*ffmpeg.BITEXACT, *(["-metadata", f"comment={note}"] if note else [])]
    output = ["-vf", scale, "-pix_fmt", pixels, *codec, *tags, *texts, "-f", "mp4"]
    ffmpeg.encode(frames, path, fps=fps, output=output)


def read(path: Path) -> np.ndarray:
    """Decode all frames, uint8 (F, H, W, 3); OSError for a torn file."""
    if _length_by_boxes(path) != path.stat().st_size:  # decoders accept a short last box
        raise OSError(f"{path}: the boxes of the MP4 do not fill the file, it is torn")
    return ffmpeg.decode(path)


def carries(note: str) -> bool:
    """Up to what one argument of the encoder takes."""
    return len(note.encode()) <= LONGEST_TAG


def read_note(path: Path) -> str:
    """The tag `comment`."""
    with open_regular(path) as file:
        end = file.seek(0, 2)
        file.seek(4)
        if take(file, 4) != b"ftyp":
            raise OSError("is no MP4")
        file.seek(0)
        size = box(file, _COMMENT, end)
        return "" if size < 8 else take(file, size)[8:].decode()  # behind its type and language


def _length_by_boxes(path: Path) -> int:
    """Offset at which the last top-level box ends, by its own header."""
    end, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while end < size:
            file.seek(end)
            head = file.read(16)
            length = int.from_bytes(head[:4])
            if length == 1:  # then 64 bits after the name hold the length
                length = int.from_bytes(head[8:16])
            if length < 8:
                return -1
            end += length
    return end
