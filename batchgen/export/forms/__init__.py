"""Forms of an export: one module each, found by its file name; `_` in it is `-` in --to."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from batchgen.errors import UsageError, closest


@dataclass(frozen=True, slots=True)
class Item:
    """One row with its media file."""

    values: dict[str, Any]  # columns of the catalog that say how the row was made; never None
    media: Path  # a file

    @property
    def key(self) -> str:
        """A name of the row without a dot, in the order of the rows."""
        return f"{self.values['row_index']:09d}"


class Form(Protocol):
    """What each module in this folder has."""

    def write(self, number: int, items: Sequence[Item], folder: Path) -> None:
        """Make the files of part `number` in an empty folder, under their final relative names."""


def names() -> list[str]:
    """Legal values of --to, sorted."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Form:
    """The module of a form; UsageError if there is no such module."""
    legal = names()
    if name not in legal:
        raise UsageError(f"--to: {name!r} is not one of {', '.join(legal)}{closest(name, legal)}")
    return cast(Form, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))
