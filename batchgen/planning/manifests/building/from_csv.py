"""Tables as spreadsheets and pandas write them: commas, semicolons, tabs; columns by header."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from batchgen.errors import ManifestError
from batchgen.planning.manifests.cells import (
    Gathered,
    IllegalValue,
    SourceFile,
    cell_value,
    check_name,
    guessed,
)

_DELIMITERS = (",", ";", "\t", "|")
_EXCEL_HINT = re.compile(r'"?sep=(.)"?\s*')  # a first line by which Excel is told the delimiter


def read_csv(path: Path) -> SourceFile:
    """Columns by their header; an empty cell is null. The delimiter is the one under which the
    header names `prompt`. Raises ManifestError naming line, column and value."""
    csv.field_size_limit(sys.maxsize)  # prompts may be long
    with path.open(encoding="utf-8-sig", newline="") as file:
        delimiter, before = _delimiter(path, file)
        records = _records(path, file, delimiter, before)
        line, names = next(records, (1, []))
        _check_header(path, line, names)
        gathered = Gathered(path)
        for line, cells in records:
            if len(cells) != len(names):
                raise ManifestError(_wrong_width(path, line, cells, names, delimiter))
            gathered.add(line, _row(gathered, names, cells))
    source = gathered.finish()
    return replace(source, table=guessed(source.table))


def _row(gathered: Gathered, names: list[str], cells: list[str]) -> dict[str, object]:
    row: dict[str, object] = {}
    for name, cell in zip(names, cells, strict=True):
        try:
            row[name] = cell_value(name, cell)
        except IllegalValue as error:
            row[name] = None
            gathered.reject(name, cell, str(error))
    return row


def _delimiter(path: Path, file: TextIO) -> tuple[str, int]:
    """The delimiter, and how many lines stand before the header; leaves the file at the header."""
    first = file.readline()
    if hint := _EXCEL_HINT.fullmatch(first):
        return hint[1], 1
    file.seek(0)
    if path.suffix.lower() == ".tsv":
        return "\t", 0
    for fits in (_names_prompt, _names_prompt_somehow):
        for delimiter in _DELIMITERS:
            if fits(next(csv.reader([first], delimiter=delimiter), [])):
                return delimiter, 0
    return ",", 0


def _names_prompt(names: list[str]) -> bool:
    return "prompt" in names


def _names_prompt_somehow(names: list[str]) -> bool:
    return "prompt" in [name.strip().lower() for name in names]


def _records(
    path: Path, file: TextIO, delimiter: str, before: int
) -> Iterator[tuple[int, list[str]]]:
    """(line where it begins, its cells) of every record; blank lines are none."""
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    line = before + 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = before + reader.line_num + 1
    except csv.Error as error:
        quote = (
            "; a quote that is opened here is never closed" if "end of data" in str(error) else ""
        )
        raise ManifestError(f"{path}, line {line}: not CSV: {error}{quote}") from None


def _check_header(path: Path, line: int, names: list[str]) -> None:
    if not names:
        raise ManifestError(f"{path}: the first line must name the columns")
    for position, name in enumerate(names, 1):
        if not name.strip():
            raise ManifestError(f"{path}, line {line}: column {position} has no name")
        if names.count(name) > 1:
            places = ", ".join(str(i) for i, other in enumerate(names, 1) if other == name)
            raise ManifestError(
                f"{path}, line {line}: column {name!r} appears more than once: as number {places}"
            )
        check_name(path, line, name)


def _wrong_width(path: Path, line: int, cells: list[str], names: list[str], delimiter: str) -> str:
    shown = "tab" if delimiter == "\t" else delimiter
    quote = f'; a cell that holds {shown} stands in "quotes"' if len(cells) > len(names) else ""
    return (
        f"{path}, line {line}: expected {len(names)} columns ({', '.join(names)}), got "
        f"{len(cells)}{quote}"
    )
