"""Latents as they leave the last step, in one safetensors file: `batchgen decode` makes them into
pictures later. Quality does not apply.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize

from batchgen.media.pieces import LONGEST_NOTE, take
from batchgen.regular import open_regular

EXTENSION = ".safetensors"
TENSOR = "latents"
KEYWORD = "batchgen"  # of the note among the file's texts
# NumPy has no bfloat16: uint16 stands for its bits.
_STORED = {"float32": "F32", "float16": "F16", "uint16": "BF16", "uint8": "U8"}
_READ = {name: np.dtype(kind) for kind, name in _STORED.items()}
_REST = 1000  # bytes of a header beside its note, at most
_ALIGNED = 8  # bytes: where the tensor of a safetensors file begins


def write(frames: np.ndarray, path: Path, *, fps: float, quality: int, note: str = "") -> None:
    """Write latents (1, ...) in float32, float16 or, as uint16, the bits of bfloat16; the file says
    how fast their frames are to be shown."""
    data = np.ascontiguousarray(frames).tobytes()
    tensor = {
        "dtype": _STORED[str(frames.dtype)],
        "shape": list(frames.shape),
        "data_offsets": [0, len(data)],
    }
    texts = {"fps": f"{fps:g}"} | ({KEYWORD: note} if note else {})
    # the library writes texts in any order, and equal rows have equal files
    header = json.dumps({"__metadata__": texts, TENSOR: tensor}).encode()
    header += b" " * (-len(header) % _ALIGNED)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def read(path: Path) -> np.ndarray:
    """What was written; ValueError for a torn file or other tensors."""
    return parse(path.read_bytes(), str(path))


def parse(data: bytes, name: str) -> np.ndarray:
    """The array in a file's bytes; ValueError, calling the file `name`, if they hold no latents."""
    try:
        found = dict(deserialize(data))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ValueError(f"{name}: {error}") from error
    if set(found) != {TENSOR} or found[TENSOR]["dtype"] not in _READ:
        raise ValueError(f"{name}: holds {sorted(found)}, not latents")
    stored = found[TENSOR]
    return np.frombuffer(stored["data"], _READ[stored["dtype"]]).reshape(stored["shape"])


def as_float32(latents: np.ndarray) -> np.ndarray:
    """The same values in float32, which holds all of them."""
    if latents.dtype == np.uint16:
        return (latents.astype(np.uint32) << 16).view(np.float32)
    return latents.astype(np.float32)


def carries(note: str) -> bool:
    """With the rest of the header, up to what `take` reads."""
    return len(json.dumps(note)) + _REST <= LONGEST_NOTE


def read_note(path: Path) -> str:
    """The text `batchgen` beside the tensor."""
    with open_regular(path) as file:
        size: int = struct.unpack("<Q", take(file, 8))[0]
        header = json.loads(take(file, size))
    try:
        return str(header.get("__metadata__", {}).get(KEYWORD, ""))
    except AttributeError:
        raise ValueError("is no safetensors file") from None
