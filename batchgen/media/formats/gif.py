"""Animated GIF with one palette for each clip; quality 0..10 gives 56..256 colours.

Made by ffmpeg, because Pillow merges equal neighbouring frames into one. GIF counts time in
hundredths of a second, so other frame rates are met only on average.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from batchgen.media import ffmpeg
from batchgen.media.pieces import LONGEST_NOTE, blocks, take
from batchgen.regular import open_regular

EXTENSION = ".gif"
_PALETTE_PIXELS = 200_000  # enough to choose 256 colours; all pixels would take half a minute
_TRAILER = b"\x3b"
_COMMENT = b"\x21\xfe"
_HEADER = 13  # bytes, with the description of the screen


def write(frames: np.ndarray, path: Path, *, fps: float, quality: int, note: str = "") -> None:
    """Encode uint8 (F, H, W, 3); OSError if the encoder fails."""
    colours = 56 + 20 * quality
    step = math.ceil(math.sqrt(frames.size / 3 / _PALETTE_PIXELS))
    sample = f"scale=ceil(iw/{step}):ceil(ih/{step}):flags=neighbor"
    palette = f"[a]{sample},palettegen=max_colors={colours}:reserve_transparent=1[p]"
    filters = f"split[a][b];{palette};[b][p]paletteuse=dither=bayer:bayer_scale=3"
    output = ["-filter_complex", filters, "-threads", "1", *ffmpeg.BITEXACT, "-loop", "0"]
    ffmpeg.encode(frames, path, fps=fps, output=[*output, "-f", "gif"])
    if note:
        _add_comment(path, note.encode())


def read(path: Path) -> np.ndarray:
    """Decode all frames, uint8 (F, H, W, 3); OSError for a torn file."""
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 1))
        if file.read(1) != _TRAILER:  # decoders read a cut file as a shorter clip
            raise OSError(f"{path}: the GIF trailer is missing, the file is torn")
    return ffmpeg.decode(path)


def carries(note: str) -> bool:
    """Blocks follow each other without end."""
    return len(note.encode()) <= LONGEST_NOTE


def read_note(path: Path) -> str:
    """The comment in front of the first frame."""
    with open_regular(path) as file:
        header = take(file, _HEADER)
        if not header.startswith(b"GIF8"):
            raise OSError("is no GIF")
        file.seek(_colours_end(header))
        return blocks(file).decode() if file.read(2) == _COMMENT else ""


def _add_comment(path: Path, text: bytes) -> None:
    """A comment extension (GIF89a, 24), which is blocks of up to 255 bytes and an empty one, behind
    the header and the colours that all frames share."""
    pieces = [text[at : at + 255] for at in range(0, len(text), 255)]
    extension = _COMMENT + b"".join(bytes([len(b)]) + b for b in pieces) + b"\0"
    data = path.read_bytes()
    at = _colours_end(data[:_HEADER])
    path.write_bytes(data[:at] + extension + data[at:])


def _colours_end(header: bytes) -> int:
    """Offset behind the colours that all frames share."""
    return _HEADER + (3 * 2 ** ((header[10] & 7) + 1) if header[10] & 0x80 else 0)
