"""Forms of an export: one module each, found by its file name; `_` in it is `-` in --to."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import pyarrow as pa

from batchgen.errors import UsageError, closest


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows with their media files."""

    number: int
    rows: pa.Table  # columns of the catalog that say how rows were made; one schema in all parts
    media: tuple[Path, ...]  # of each row: a file

    @property
    def name(self) -> str:
        return f"part-{self.number:05d}"

    @property
    def values(self) -> list[dict[str, Any]]:
        """The rows, one after the other."""
        found: list[dict[str, Any]] = self.rows.to_pylist()
        return found

    @property
    def keys(self) -> list[str]:
        """A name of each row, in their order. It is of digits alone: readers take ids such as
        `test-1` or `.a` for a split or for a hidden file."""
        return [f"{index:09d}" for index in self.rows["row_index"].to_pylist()]

    def without(self, is_taken: Callable[[str], bool]) -> pa.Table:
        """The rows, where columns whose names the form has another use for are renamed."""
        names: list[str] = []
        for name in self.rows.schema.names:
            while is_taken(name) or name in names:
                name += "_of_row"
            names.append(name)
        return self.rows.rename_columns(names)


class Form(Protocol):
    """What each module in this folder has."""

    def write(self, part: Part, folder: Path) -> None:
        """Make the files of a part in an empty folder, under their final relative names: the part's
        name with an ending, or whatever in a folder of that name."""


def names() -> list[str]:
    """Legal values of --to, sorted."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Form:
    """The module of a form; UsageError if there is no such module."""
    legal = names()
    if name not in legal:
        raise UsageError(f"--to: {name!r} is not one of {', '.join(legal)}{closest(name, legal)}")
    return cast(Form, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))
