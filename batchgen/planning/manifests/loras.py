"""LoRA files of rows on their way in: found, looked into, hashed; they stay where they are."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import prod
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchgen.errors import closest, reason_of
from batchgen.loras import Lora, LoraFile, NoLora, parse, written
from batchgen.planning.digests import whole_digest

Given = str | Sequence[str | None] | None  # a text, a list of texts, or nothing
# Raises NoLora for a file that the job's model cannot be drawn with, as the expert says.
Judge = Callable[[Path, str], object]
_MOST_HEADER = 100 * 1024**2  # bytes, as safetensors itself allows
_DIGEST = re.compile("[0-9a-f]{64}")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True)
class TakenLoras:
    """What became of a row's set: as the request has it, or why it is none."""

    text: str | None = None
    reason: str = ""


class LoraIntake:
    """Takes LoRA files in, each once."""

    def __init__(self, folder: Path, judge: Judge) -> None:
        """`folder`: what paths are relative to."""
        self._folder, self._judge = folder, judge
        self._sets: dict[str | tuple[str | None, ...], TakenLoras] = {}
        self._files: dict[tuple[Path, str], str] = {}  # path and expert -> digest
        self.found: dict[str, LoraFile] = {}  # by `Lora.name`

    def take(self, given: Given) -> TakenLoras:
        """What became of a set; nothing stays nothing."""
        if given is None:
            return TakenLoras()
        key = given if isinstance(given, str) else tuple(given)
        if key not in self._sets:
            self._sets[key] = self._taken(given)
        return self._sets[key]

    def _taken(self, given: str | Sequence[str | None]) -> TakenLoras:
        try:
            found = [self._known(lora) for lora in parse(given)]
            for lora, other in combinations(found, 2):
                same = lora.expert == other.expert or not (lora.expert and other.expert)
                if lora.file == other.file and same:
                    raise NoLora(f"{self.found[lora.name].path} is in it twice")
            return TakenLoras(written(found))
        except NoLora as error:
            return TakenLoras(reason=str(error))

    def _known(self, lora: Lora) -> Lora:
        """The same with its digest in place of the path."""
        path = (self._folder / lora.file).absolute()
        key = path, lora.expert
        if key not in self._files:
            try:
                values = _values(lora.file, path)
                self._judge(path, lora.expert)
                digest = whole_digest(path)
            except NoLora as error:
                raise NoLora(f"{path}: {error}") from error
            except OSError as error:
                raise NoLora(f"{path}: cannot be read: {reason_of(error)}") from error
            self._files[key] = digest
            known = replace(lora, file=digest)
            self.found.setdefault(known.name, LoraFile(str(path), digest, values))
        return replace(lora, file=self._files[key])


def any_lora(path: Path, expert: str) -> None:
    """The judge where no model is known."""


def given_loras(column: pa.Array) -> list[Given]:
    """The sets of a column of texts, or of lists of texts."""
    values: list[Any] = column.to_pylist()
    return values


def shown_set(given: Given) -> str | None:
    """A set as messages name it."""
    if given is None or isinstance(given, str):
        return given
    return ",".join("null" if part is None else part for part in given)


def _values(given: str, path: Path) -> int:
    """How many numbers are in a file; NoLora unless it is safetensors with factors of a LoRA."""
    if "://" in given:
        raise NoLora("is not the path of a file; LoRA files are not fetched")
    if path.is_dir():
        raise NoLora("is a folder; name the file in it")
    if not path.exists() and _DIGEST.fullmatch(given):
        raise NoLora("is the sha256 of a file, as catalogs and media tell it; give its path")
    if not path.exists():
        near = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise NoLora(f"there is no such file{closest(path.name, near)}")
    if path.suffix in _PICKLED:
        raise NoLora("is pickled; legal: .safetensors, which `batchgen weights convert` makes")
    if path.suffix != ".safetensors" or not path.is_file():
        raise NoLora("is no file of safetensors; legal: .safetensors")
    tensors = _header(path)
    if not any("lora" in name.lower() for name in tensors):
        shown = ", ".join([*tensors][:3])
        raise NoLora(f"holds no LoRA, but {shown or 'nothing'}")
    return sum(prod(tensor["shape"]) for tensor in tensors.values())


def _header(path: Path) -> dict[str, Any]:
    """Name of each tensor -> what the file says about it."""
    with open(path, "rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        text = file.read(size) if 0 < size <= _MOST_HEADER else b""
    try:
        header: dict[str, Any] = json.loads(text)
        header.pop("__metadata__", None)
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        whole = path.stat().st_size == 8 + size + end
    except (ValueError, LookupError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise NoLora("is not a safetensors file, or cut off")
    return header
