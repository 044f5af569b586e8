"""Media formats: one module each, found by its file name.

Each module has `EXTENSION`, `write`, `read`, `carries` and `read_note` as in `MediaFormat`. Frames
are always uint8 of shape (frames, height, width, 3), RGB. Equal frames, settings and notes give
equal bytes.
`read` decodes the whole file and raises OSError or ValueError if it is torn or of another kind.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from batchgen.errors import ConfigError, closest

if TYPE_CHECKING:
    import numpy as np


class MediaFormat(Protocol):
    """What each module in this folder has."""

    EXTENSION: str  # with the dot

    def write(
        self, frames: np.ndarray, path: Path, *, fps: float, quality: int, note: str = ""
    ) -> None:
        """Encode to `path`, which does not exist yet; quality 0 (smallest) .. 10 (best); `note` is
        text that the file carries (`media.note`), where the format can; ask `carries` before."""

    def read(self, path: Path) -> np.ndarray:
        """All frames of the file."""

    def carries(self, note: str) -> bool:
        """Whether a file of this format has room for a note of this length."""

    def read_note(self, path: Path) -> str:
        """The text that it carries; empty if there is none. OSError or ValueError if the file is
        torn or of another kind. It may be anybody's: no more of it is read than a note."""


@cache  # a look at the folder takes longer than to decode a small picture
def names() -> tuple[str, ...]:
    """Legal values of `output.format` (apart from `auto`), sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def get(name: str) -> MediaFormat:
    """The module of format `name`; ConfigError if there is no such module."""
    legal = names()
    if name not in legal:
        raise ConfigError(
            f"output.format: {name!r} is not one of {', '.join(legal)}{closest(name, legal)}"
        )
    return cast(MediaFormat, importlib.import_module(f"{__name__}.{name}"))


def by_extension(extension: str) -> MediaFormat:
    """The format whose files end in `extension` (with the dot); ValueError if there is none."""
    for module in map(get, names()):
        if extension == module.EXTENSION:
            return module
    raise ValueError(f"no media format has the extension {extension!r}")
