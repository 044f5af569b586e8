"""Digests of checkpoint files: what weights and tokenizer a row is drawn with.

`sampled` reads each file's safetensors header, its size and evenly spaced samples of its content:
seconds for any checkpoint. `full` reads every byte. Digests are kept in the user's cache folder
under path, size and modification time.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from batchgen.config.checkpoint import config_file
from batchgen.config.schema import ModelSpec
from batchgen.errors import ConfigError, WeightsError, closest
from batchgen.families.family import Component, family_spec

if TYPE_CHECKING:
    from hashlib import _Hash

HashMode = Literal["sampled", "full"]
_SAMPLES = 64
_SAMPLE_BYTES = 64 * 1024
# Written by the tools that save a checkpoint; they say nothing about its pixels.
_PROVENANCE_KEYS = ("transformers_version", "torch_dtype", "dtype", "architectures")


def weights_digest(model: ModelSpec, mode: str = "sampled") -> str:
    """Digest over every safetensors file and configuration of the model's components.

    Random weights are identified by the dimensions that they are drawn for. Raises WeightsError
    naming the folder or file that is missing.
    """
    if mode not in ("sampled", "full"):
        raise ConfigError(f"--hash-weights: {mode!r} is not one of sampled, full")
    folder = model.weights_folder
    if folder is None:
        dimensions = asdict(model.dims).values()
        return "random:" + _sha(json.dumps([model.family, *dimensions], sort_keys=True).encode())
    if not folder.is_dir():
        near = closest(model.weights.rpartition("/")[2], ("random", "embedded"))
        raise WeightsError(f"model.weights: no folder {folder}{near}; legal: a folder, or random")
    cache = _DigestCache()
    total = hashlib.sha256(mode.encode())
    components = family_spec(model.family).COMPONENTS
    for component in components:
        for file in _component_files(folder, component, components):
            name = file.relative_to(folder).as_posix()
            content = _config_digest(file) if file.suffix == ".json" else cache.digest(file, mode)
            total.update(f"{name} {content}\n".encode())
    cache.save()
    return f"{mode}:{total.hexdigest()}"


def tokenizer_digest(model: ModelSpec) -> str:
    """Digest over the files of the tokenizer's folder, whole; raises WeightsError when missing."""
    if model.weights_folder is None:
        return "random"
    total = hashlib.sha256()
    for component in family_spec(model.family).COMPONENTS:
        if component.kind == "tokenizer":
            _add_tokenizer(total, model.weights_folder / component.name)
    return total.hexdigest()


def _add_tokenizer(total: _Hash, folder: Path) -> None:
    files = sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []
    if not files:
        raise WeightsError(f"{folder}: no tokenizer files")
    for file in files:
        content = (
            _config_digest(file) if file.name.endswith("config.json") else _sha(file.read_bytes())
        )
        total.update(f"{file.name} {content}\n".encode())


def _component_files(
    checkpoint: Path, component: Component, components: Sequence[Component]
) -> list[Path]:
    """The safetensors files of a component and its config.json, in order of their names; of a
    scheduler its configuration; a tokenizer has a digest of its own."""
    folder = checkpoint / component.name
    if component.kind == "tokenizer":
        return []
    if not folder.is_dir():
        layout = ", ".join(f"{part.name}/" for part in components)
        raise WeightsError(
            f"{folder}: no such folder; a checkpoint in diffusers layout has {layout}"
        )
    config = config_file(checkpoint, component)
    if component.kind == "scheduler":
        return [config]
    tensors = sorted(folder.glob("*.safetensors"))
    if not tensors:
        others = [p for ending in ("bin", "pth", "pt", "ckpt") for p in folder.glob(f"*.{ending}")]
        found = f"; {others[0].name} must be converted first: `batchgen weights convert SRC DST`"
        raise WeightsError(f"{folder}: no .safetensors file{found if others else ''}")
    return [*tensors, *([config] if config.is_file() else [])]


def _config_digest(file: Path) -> str:
    """Digest of a JSON file without the lines that only tell which tool wrote it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{file}: is not JSON: {error}") from error
    if isinstance(content, dict):
        content = {
            key: value
            for key, value in content.items()
            if not key.startswith("_") and key not in _PROVENANCE_KEYS
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


class _DigestCache:
    """Digests by path, size, modification time and mode, in one JSON file of the user's cache."""

    def __init__(self) -> None:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.file = Path(root) / "batchgen" / "digests.json"
        self.changed = False
        self.entries: dict[str, Any] = {}
        with suppress(OSError, ValueError):  # no cache, or a damaged one: it is made again
            stored = json.loads(self.file.read_text(encoding="utf-8"))
            self.entries = stored if isinstance(stored, dict) else {}

    def digest(self, file: Path, mode: str) -> str:
        stat = file.stat()
        key = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns} {mode}"
        if key not in self.entries:
            self.entries[key] = _file_digest(file, mode)
            self.changed = True
        return str(self.entries[key])

    def save(self) -> None:
        """Write back what is new; a home without room for a cache only costs time next time."""
        if not self.changed:
            return
        draft = self.file.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(self.entries), encoding="utf-8")
            os.replace(draft, self.file)


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
