"""What rows name beside the manifest, on its way in. Images: read, decoded once to see that they
can be, hashed and kept; LoRA files as `loras` says.

A file that passed before, in this run or another, is known by its path and stamp: planned anew, a
run that has its content does not read it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchgen.durable import write_bytes_atomic
from batchgen.paths import RunPaths
from batchgen.pictures import NoPicture, decode, read_bytes
from batchgen.planning.manifests.loras import Judge, LoraIntake, any_lora
from batchgen.planning.stamped import StampCache, key_of

_RULES = "image 1"  # raised when other pictures pass
Given = bytes | str | None  # the file itself, its path, or nothing


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of one image: its digest, or why it is none."""

    digest: str | None = None
    reason: str = ""


class Intake:
    """Takes images and LoRA files in, each file and each content once."""

    def __init__(self, folder: Path, keep: RunPaths | None = None, judge: Judge = any_lora) -> None:
        """`folder`: what paths are relative to; `keep`: the run that keeps images, if one does."""
        self.loras = LoraIntake(folder, judge)
        self._folder = folder
        self._keep = keep
        self._before: StampCache | None = None  # files that passed; read where rows name any
        self._files: dict[str, Taken] = {}
        self._good: set[str] = set()

    @classmethod
    def of(cls, manifest: Path, keep: RunPaths | None = None, judge: Judge = any_lora) -> Intake:
        """For the rows of a manifest, a file or a folder."""
        return cls(manifest if manifest.is_dir() else manifest.parent, keep, judge)

    def take(self, images: Sequence[Given]) -> list[Taken]:
        """What became of each."""
        new = [path for path in dict.fromkeys(i for i in images if isinstance(i, str))]
        new = [path for path in new if path not in self._files]
        if new and self._before is None:
            self._before = StampCache("images.json")
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # decoding holds no lock
            self._files.update(zip(new, pool.map(self._file, new), strict=True))
            taken = list(pool.map(self._one, images))
        if self._before is not None:
            self._before.save()
        return taken

    def _one(self, image: Given) -> Taken:
        if isinstance(image, str):
            return self._files[image]
        return Taken() if image is None else self._taken(lambda: image)

    def _file(self, path: str) -> Taken:
        if "://" in path:
            return Taken(reason="is not the path of a file; images are not fetched")
        whole = self._folder / path
        key = _key(whole)
        known = self._before.get(key) if self._before is not None else None
        if known is not None and (self._keep is None or self._keep.input(known).exists()):
            return Taken(known)
        taken = self._taken(lambda: read_bytes(whole), f"{whole} ")
        if self._before is not None and key and taken.digest is not None:
            self._before.put(key, taken.digest)
        return taken

    def _taken(self, read: Callable[[], bytes], place: str = "") -> Taken:
        try:
            return Taken(self._content(read()))
        except NoPicture as error:
            return Taken(reason=f"{place}{error}")

    def _content(self, data: bytes) -> str:
        """Its digest; what has not been seen yet is decoded and kept."""
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._good:
            decode(data)
            if self._keep is not None:
                self._store(self._keep.input(digest), data)
            self._good.add(digest)
        return digest

    @staticmethod
    def _store(path: Path, data: bytes) -> None:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes_atomic(path, data)


def _key(file: Path) -> str:
    """What a file that passes is known by; "" for none."""
    with suppress(OSError, ValueError):  # whoever reads it says why
        return key_of(file, _RULES)
    return ""


def given(column: pa.Array) -> list[Given]:
    """The images of a column of paths, of bytes, or of structs that hold either."""
    values: list[Any] = column.to_pylist()
    if not pa.types.is_struct(column.type):
        return values
    return [row and (row.get("bytes") or row.get("path")) for row in values]


def shown(image: Given) -> str | None:
    """An image as messages name it."""
    return f"<{len(image)} bytes>" if isinstance(image, bytes) else image
