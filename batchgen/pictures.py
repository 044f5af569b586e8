"""Pictures that rows are given: what passes for one, and how it becomes pixels.

As diffusers' `load_image` does: turned as its EXIF says and converted to RGB, so that alpha is
dropped and CMYK converted without a profile. What has more than one frame, more than 8 bits a
sample or too many pixels is refused.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from batchgen.errors import ConfigError, RunStateError
from batchgen.regular import NotRegular, open_regular

if TYPE_CHECKING:
    from PIL import Image

Read = Callable[[str], "Image.Image"]  # an image of a run, by its digest
MAX_BYTES = 256 * 1024**2  # of a file
MAX_PIXELS = 89_478_485  # where Pillow begins to warn of bombs
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_TWO_VIEWS = "MPO"  # JPEG of a phone, with a preview behind the picture
_DEEP = ("I", "F")  # begin the names of modes with 16 or 32 bits a sample
_opening = threading.Lock()  # filters of warnings belong to the whole process


class NoPicture(ValueError):
    """These bytes are no picture to draw from; the text is the reason."""


def read_bytes(path: Path) -> bytes:
    """The bytes of a picture's file; NoPicture if there are none to be had."""
    try:
        with open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise NoPicture("there is no such file") from None
    except NotRegular:
        raise NoPicture("is not a regular file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NoPicture(f"cannot be read: {reason}") from error
    if len(data) > MAX_BYTES:
        raise NoPicture(f"has more than {MAX_BYTES} bytes")
    return data


def decode(data: bytes) -> Image.Image:
    """The picture in a file's bytes, in RGB; NoPicture if it is none, or damaged, or refused."""
    from PIL import ImageOps

    if not data:
        raise NoPicture("is empty")
    picture = _opened(data)
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != _TWO_VIEWS:
        raise NoPicture(f"has {frames} frames; legal: a picture with one")
    if picture.mode.startswith(_DEEP):
        raise NoPicture(f"has samples of mode {picture.mode}; legal: 8 bits")
    try:
        picture.load()
        return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise NoPicture(f"is cut off or damaged: {error}") from error


def _opened(data: bytes) -> Image.Image:
    """Its header is read, its pixels are not."""
    from PIL import Image, UnidentifiedImageError

    try:
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise NoPicture(f"is no image; legal: {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise NoPicture(f"has more than {MAX_PIXELS} pixels") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise NoPicture(f"is damaged: {error}") from error


def stored(path: Path, digest: str) -> Image.Image:
    """The picture in a run's `inputs/`; RunStateError unless it is the one that was planned."""
    import hashlib

    try:
        data = read_bytes(path)
    except NoPicture as error:
        raise RunStateError(f"{path}: {error}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise RunStateError(f"{path}: is damaged: its sha256 is {found}, planned was {digest}")
    return decode(data)


def no_images(digest: str) -> Image.Image:
    """The `Read` of who belongs to no run."""
    raise ConfigError(f"image {digest}: there is no run that it is kept in")
