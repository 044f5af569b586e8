"""LoRA files of rows: how a row names them, and how a request does.

A row says `path@strength`, several with a comma between them or as a list; in the plan the path is
the file's sha256. Of a model with two experts `transformer:path` and `transformer_2:path` say which
one a file is for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MOST_STRENGTH = 100.0
EXPERTS = ("transformer", "transformer_2")
RULE = f"legal: path@strength, a number of -{MOST_STRENGTH:g} .. {MOST_STRENGTH:g} but not 0"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)


class NoLora(ValueError):
    """This is no LoRA to draw with; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Lora:
    """One of a set."""

    file: str  # as a row names it, or its sha256 (hex)
    strength: float = 1.0
    expert: str = ""  # the component it is for; empty: its own keys say so

    def __str__(self) -> str:
        return f"{self.name}@{self.strength!r}"

    @property
    def name(self) -> str:
        """Of the adapter, whatever its strength."""
        return f"{self.expert}{':' if self.expert else ''}{self.file}"


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A file that a plan's rows draw with. It stays where it is, as the model's weights do."""

    path: str  # absolute
    sha256: str  # hex
    values: int  # numbers in it


NO_LORAS: Mapping[str, Path] = {}


def parse(given: str | Sequence[str | None]) -> tuple[Lora, ...]:
    """The set that a row gives, in its order, nothing of an empty text; NoLora if it is none. Of a
    list each entry is one file, of a text each part between commas."""
    if not given:
        return ()
    parts = given.split(",") if isinstance(given, str) else given
    return tuple(map(_one, parts))


def written(loras: Sequence[Lora]) -> str:
    """The inverse of `parse`, for files without a comma in their names."""
    return ",".join(map(str, loras))


def _one(given: object) -> Lora:
    text = given.strip() if isinstance(given, str) else ""
    path, at, strength = text.rpartition("@")
    if not at:
        path, strength = text, "1"
    if not _NUMBER.fullmatch(strength) or not 0 < abs(float(strength)) <= MOST_STRENGTH:
        raise NoLora(f"{strength!r} is no strength; {RULE}")
    expert, colon, rest = path.partition(":")
    if not colon or expert not in EXPERTS:
        expert, rest = "", path
    if not rest or "\0" in rest:
        raise NoLora(f"{text!r} names no file; {RULE}")
    return Lora(rest, float(strength), expert)
