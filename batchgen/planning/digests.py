"""Digests of checkpoint files: what weights and tokenizer a row is drawn with.

`sampled` reads each file's safetensors header, its size and evenly spaced samples of its content:
seconds for any checkpoint. `full` reads every byte. For planning, digests are kept in the user's
cache folder under path, size, times and inode; ranks read the files.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from batchgen.config.checkpoints.checkpoint import INDEX, check_checkpoint, loaded_files
from batchgen.config.checkpoints.component import config_file, read_json
from batchgen.config.schema import ModelSpec
from batchgen.errors import ConfigError, WeightsError
from batchgen.families.components import components_of
from batchgen.families.dims import in_key, stored_dims
from batchgen.planning.stamped import StampCache, key_of, stamp

HashMode = Literal["sampled", "full"]
Stamps = list[tuple[str, int, int, int, int]]
_SAMPLES = 64
_SAMPLE_BYTES = 64 * 1024
# Written by the tools that save a checkpoint; they say nothing about its pixels.
_PROVENANCE_KEYS = ("transformers_version", "torch_dtype", "dtype", "architectures")


@dataclass(frozen=True, slots=True)
class CheckpointDigest:
    """What the files of a checkpoint hold."""

    weights: str  # over every file but the tokenizer's, with how they were read
    tokenizer: str
    files: dict[str, str]  # each file, named below the checkpoint's folder


def checkpoint_digest(
    model: ModelSpec,
    mode: str = "sampled",
    *,
    fresh: bool = False,
    read: Callable[[], object] = lambda: None,
) -> CheckpointDigest:
    """Digests of the files that the model is loaded from, and of no others.

    `fresh`: from the files, whatever the cache says; `read` is told of each. Random weights are
    identified by the dimensions that they are drawn for. Raises WeightsError for a checkpoint that
    cannot be loaded, naming folder or file.
    """
    if mode not in ("sampled", "full"):
        raise ConfigError(f"--hash-weights: {mode!r} is not one of sampled, full")
    folder = model.weights_folder
    if folder is None:
        dimensions = in_key(model.dims).values()
        drawn = _sha(json.dumps([model.family, *dimensions], sort_keys=True).encode())
        return CheckpointDigest(f"random:{drawn}", "random", {})
    cache = _DigestCache()
    weights, tokenizer = hashlib.sha256(mode.encode()), hashlib.sha256()
    found = {}
    components = components_of(model)
    tokenizers = {part.name for part in components if part.kind == "tokenizer"}
    for part, files in check_checkpoint(model).items():
        for number, file in enumerate(files):
            name = _name(model, folder, part, number, file)
            found[name] = _digest(file, mode, None if fresh else cache)
            read()
            if part in tokenizers:  # a second one is told from the first by its folder
                label = file.name if part == "tokenizer" else name
                tokenizer.update(f"{label} {found[name]}\n".encode())
            else:
                weights.update(f"{name} {found[name]}\n".encode())
    weights.update(_undescribed(model, folder))
    cache.save()
    return CheckpointDigest(f"{mode}:{weights.hexdigest()}", tokenizer.hexdigest(), found)


def _name(model: ModelSpec, folder: Path, part: str, number: int, file: Path) -> str:
    """What a file is called in digests: wherever a file of `model.files` lies, it is the same."""
    if part in model.files and file.suffix == ".safetensors":
        return f"model.files.{part}" + (f".{number}" if number else "")
    return file.relative_to(folder).as_posix()


def _undescribed(model: ModelSpec, folder: Path) -> bytes:
    """The dimensions of components from files of their own for which no config.json stands in."""
    dims = {
        part.name: stored_dims(getattr(model.dims, part.dims))
        for part in components_of(model)
        if part.name in model.files and not config_file(folder, part).is_file()
    }
    return json.dumps(dims, sort_keys=True).encode() if dims else b""


def _digest(file: Path, mode: str, cache: _DigestCache | None) -> str:
    try:
        if file.name.endswith("config.json") or file.name == INDEX:
            return _config_digest(file)
        if file.suffix != ".safetensors":
            return _sha(file.read_bytes())
        return cache.digest(file, mode) if cache else _file_digest(file, mode)
    except OSError as error:
        raise WeightsError(f"{file}: cannot be read: {error.strerror}") from error


def whole_digest(file: Path, *, fresh: bool = False) -> str:
    """sha256 (hex) over every byte of a safetensors file beside the checkpoint's; `fresh` as there.
    Raises OSError, or WeightsError for one that is cut off."""
    cache = None if fresh else _DigestCache()
    if cache is None:
        return _file_digest(file, "full")
    digest = cache.digest(file, "full")
    cache.save()
    return digest


def stamps(model: ModelSpec) -> Stamps:
    """Name, size, times and inode of every file that the model is loaded from: the same as long as
    nobody writes or replaces one."""
    folder = model.weights_folder
    if folder is None:
        return []
    files = [file for some in loaded_files(model, folder).values() for file in some]
    return [(str(file), *stamp(file)) for file in files]


def _config_digest(file: Path) -> str:
    """Digest of a JSON file without the lines that only tell which tool wrote it."""
    content = {
        key: value
        for key, value in read_json(file).items()
        if key == "_class_name" or not (key.startswith("_") or key in _PROVENANCE_KEYS)
    }
    return _sha(json.dumps(content, sort_keys=True).encode())


def _file_digest(file: Path, mode: str) -> str:
    """sha256 of one safetensors file, whole or sampled; raises WeightsError when it is cut off."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        start = stream.read(8)
        header = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + header > size:
            raise WeightsError(f"{file}: not a safetensors file, or cut off")
        if mode == "full":
            stream.seek(0)
            return hashlib.file_digest(stream, "sha256").hexdigest()
        total = hashlib.sha256(f"{size} ".encode() + stream.read(header))
        body = size - 8 - header
        if body <= _SAMPLES * _SAMPLE_BYTES:
            total.update(stream.read())
            return total.hexdigest()
        for i in range(_SAMPLES):
            stream.seek(8 + header + (body - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
            total.update(stream.read(_SAMPLE_BYTES))
        return total.hexdigest()


class _DigestCache(StampCache):
    """Digests of safetensors files; the mode is their kind."""

    def __init__(self) -> None:
        super().__init__("digests.json")

    def digest(self, file: Path, mode: str) -> str:
        key = key_of(file, mode)
        found = self.get(key)
        if found is None:
            found = _file_digest(file, mode)
            self.put(key, found)
        return found


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
