"""What a checkpoint folder says beside its index: numbers of weights, and sizes of pictures."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from batchgen.config.checkpoints.component import component_files, read_json
from batchgen.errors import WeightsError
from batchgen.families.family import Component

_DENOISERS = ("transformer", "unet")
_LEVELS = ("block_out_channels", "encoder_block_out_channels")  # of an autoencoder
_HEADER = 100 * 1024**2  # bytes; a longer one is no safetensors file


def count_weights(folder: Path, parts: Iterable[Component], variant: str | None) -> dict[str, int]:
    """Number of weights of each component that has any, from the headers of its files.

    Raises WeightsError for files that are missing, pickled or no safetensors."""
    models = (part for part in parts if part.kind == "model")
    return {part.name: _count(component_files(folder, part, variant)) for part in models}


def _count(files: Iterable[Path]) -> int:
    return sum(_weights_in(file) for file in files if file.suffix == ".safetensors")


def _weights_in(file: Path) -> int:
    try:
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(size)) if size <= _HEADER else None
        assert isinstance(header, dict)
        return sum(prod(one["shape"]) for name, one in header.items() if name != "__metadata__")
    except OSError as error:
        raise WeightsError(f"{file}: cannot be read: {error.strerror}") from error
    except (struct.error, ValueError, AssertionError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{file}: cannot be read as safetensors (not one, or cut off)"
        ) from error


def picture_sizes(folder: Path) -> dict[str, int]:
    """`side` and `grid` in pixels, as far as configurations tell: latent cells of the denoiser's
    picture, pixels of a cell of the autoencoder."""
    vae = _config(folder / "vae")
    levels = next((vae[name] for name in _LEVELS if isinstance(vae.get(name), list)), None)
    if levels is None:
        return {}
    grid = 2 ** (len(levels) - 1)
    cells = [_config(folder / name).get("sample_size") for name in _DENOISERS]
    side = next((cell for cell in cells if isinstance(cell, int) and cell > 0), None)
    return {"grid": grid} if side is None else {"grid": grid, "side": side * grid}


def _config(home: Path) -> Mapping[str, Any]:
    file = home / "config.json"
    return read_json(file) if file.is_file() else {}
