"""Frames to a file and back through the ffmpeg binary that comes with imageio-ffmpeg.

The binary is called directly, because the library's writer ignores its exit status: if the disk
fills up while the last bytes are written, a torn file would count as good.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np

# with one version of the encoder and a fixed thread count, equal frames give equal bytes
BITEXACT = ("-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1")
_STORAGE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_TELEVISION = (24, 30, 48, 60, 120, 240)  # frame rates that television plays a thousandth slower
_PPM_HEADER = re.compile(rb"P6\n(\d+) (\d+)\n255\n")


def encode(frames: np.ndarray, path: Path, *, fps: float, output: Sequence[str]) -> None:
    """Encode uint8 (F, H, W, 3) with the ffmpeg output options `output`. OSError with the encoder's
    message if it fails; its `errno` is set if the message is about a full or read-only disk."""
    _, height, width, _ = frames.shape
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", rate(fps)]
    data = np.ascontiguousarray(frames).reshape(-1).data
    _run([*source, "-i", "-", *output, str(path)], data, path)


def rate(fps: float) -> str:
    """A frame rate as ffmpeg's option value, a fraction if it is not whole: 23.976 and similar
    television rates become 24000/1001."""
    nearest = round(fps * 1.001)
    if nearest in _TELEVISION and abs(fps - nearest / 1.001) < 0.005:
        return f"{nearest * 1000}/1001"
    return str(Fraction(fps).limit_denominator(1001))


def decode(path: Path) -> np.ndarray:
    """All frames of a video file, uint8 (F, H, W, 3); OSError if it is not whole."""
    strict = ["-xerror", "-err_detect", "explode", "-threads", "1"]
    target = ["-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-fps_mode", "passthrough"]
    scale = ["-vf", "scale=flags=accurate_rnd+full_chroma_int+bitexact"]
    data = _run([*strict, "-i", str(path), *scale, *target, "-"], None, path)
    return _split_ppm(data, path)


def _run(arguments: Sequence[str], data: memoryview | None, path: Path) -> bytes:
    program = imageio_ffmpeg.get_ffmpeg_exe()
    command = [program, "-hide_banner", "-loglevel", "error", "-nostdin", "-y", *arguments]
    if data is None:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    else:
        done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        for number in _STORAGE_ERRNOS:
            if os.strerror(number) in said:
                raise OSError(number, os.strerror(number), str(path))
        raise OSError(f"{path}: ffmpeg ended with {done.returncode}: {said[-600:]}")
    return done.stdout


def _split_ppm(data: bytes, path: Path) -> np.ndarray:
    match = _PPM_HEADER.match(data)
    if match is None:
        raise OSError(f"{path}: holds no frames")
    width, height = int(match[1]), int(match[2])
    size = match.end() + width * height * 3
    if len(data) % size:
        raise OSError(f"{path}: frames of different sizes")
    flat = np.frombuffer(data, np.uint8).reshape(-1, size)
    return flat[:, match.end() :].reshape(-1, height, width, 3).copy()
