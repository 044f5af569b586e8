"""Cells of a table or values of JSON as a manifest stores them, gathered row by row."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from batchgen.errors import ManifestError
from batchgen.planning.manifests.columns import REQUEST_COLUMNS
from batchgen.planning.manifests.problems import Problems
from batchgen.request import Kind

STORED: dict[Kind, pa.DataType] = {
    "text": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "image": pa.string(),
    "lora": pa.string(),
}
NOUNS: dict[Kind, str] = {
    "text": "text",
    "integer": "an integer",
    "number": "a number",
    "image": "a path",
    "lora": "path@strength",
}
_PIECE_ROWS = 65536
_PIECE_CHARACTERS = 2**26  # Arrow's strings hold 2 GiB in one piece
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_INT64 = range(-(2**63), 2**63)
# cells of columns that are no request's: what pandas would make of them, but `007` is a name
_WHOLE_CELLS = r"^-?(0|[1-9][0-9]{0,17})$"
_NUMBER_CELLS = r"^-?(0|[1-9][0-9]{0,14})(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?$"
_TRUTH_CELLS = r"^(true|false|True|False|TRUE|FALSE)$"


class IllegalValue(Exception):
    """A value that a column does not take; the text is the reason."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """What was read: a table, and where its rows stand in the file."""

    path: Path
    table: pa.Table
    place: Callable[[int], str]  # a row as a message names it


class Gathered:
    """A table on its way in; kept as Arrow in pieces, so that many rows fit in memory. Illegal
    values are counted, and listed when all is read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = array("q")
        self._names: dict[str, None] = {}
        self._rows: list[Mapping[str, object]] = []
        self._characters = 0
        self._pieces: list[pa.Table] = []
        self._problems = Problems()

    def add(self, line: int, row: Mapping[str, object]) -> None:
        """The next row, its values as `cell_value` or `json_value` gave them."""
        self._lines.append(line)
        self._names.update(dict.fromkeys(row))
        self._rows.append(row)
        self._characters += sum(len(v) for v in row.values() if isinstance(v, str))
        if len(self._rows) >= _PIECE_ROWS or self._characters >= _PIECE_CHARACTERS:
            self._flush()

    def reject(self, column: str, value: object, reason: str) -> None:
        """Note that the row that comes next has an illegal value."""
        self._problems.add([len(self._lines)], column, [value], reason)

    def finish(self) -> SourceFile:
        """All rows; raises ManifestError listing the illegal values."""
        self._flush()
        lines = self._lines

        def place(row: int) -> str:
            return f"line {lines[row]}"

        self._problems.raise_if_any(self._path, place)
        table = pa.concat_tables(self._pieces, promote_options="permissive")
        return SourceFile(self._path, table, place)

    def _flush(self) -> None:
        first = len(self._lines) - len(self._rows)
        names = self._names or {"prompt": None}  # rows that say nothing are rows
        columns = {name: self._column(name, first) for name in names}
        self._pieces.append(pa.table(columns))
        self._rows, self._characters = [], 0

    def _column(self, name: str, first: int) -> pa.Array:
        values = [row.get(name) for row in self._rows]
        kind = STORED[REQUEST_COLUMNS[name]] if name in REQUEST_COLUMNS else None
        try:
            return pa.array(values, kind)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            bad = _first_misfit(values, kind)
            reason = "cannot be stored beside the values above it"
            if isinstance(value := values[bad], str) and re.search("[\ud800-\udfff]", value):
                reason = "is not text: it holds one half of a pair of surrogates"
            self._problems.add([first + bad], name, [value], reason)
            return pa.nulls(len(values))


def _first_misfit(values: Sequence[object], kind: pa.DataType | None) -> int:
    """The first value with which the ones up to it are no column any more."""
    good, bad = 0, len(values)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            pa.array(values[:middle], kind)
            good = middle
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            bad = middle
    return bad - 1


# ------------------------------------------------------------------------------------------ values
def check_name(path: Path, line: int, name: str) -> None:
    """Raise ManifestError for a column that is a request column in other letters: it would be
    taken for a column of the user's own."""
    plain = re.sub(r"[\s-]+", "_", name.strip().lower())
    if name not in REQUEST_COLUMNS and plain in REQUEST_COLUMNS:
        raise ManifestError(f"{path}, line {line}: column {name!r} is written {plain!r}")


def cell_value(column: str, text: str) -> object:
    """The value of a cell: null where it is empty, whole floats as integers. IllegalValue if the
    column takes no such text; text of other columns is kept."""
    if text == "":
        return None
    kind = REQUEST_COLUMNS.get(column, "text")
    if kind in ("text", "image", "lora"):
        return text
    number = text.strip()
    if not number:
        return None
    if not _NUMBER.fullmatch(number):
        comma = " with a decimal point" if "," in number else ""
        raise IllegalValue(f"legal: {NOUNS[kind]}{comma}")
    return float(number) if kind == "number" else _whole(Decimal(number))


def json_value(column: str, value: object) -> object:
    """The value of a request column in JSON. IllegalValue if the column takes no such value."""
    kind = REQUEST_COLUMNS[column]
    if value is None:
        return None
    if kind == "lora" and isinstance(value, list):
        return _joined(value)
    if kind in ("text", "image", "lora"):
        if not isinstance(value, str):
            raise IllegalValue("legal: text in quotes")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise IllegalValue(f"legal: {NOUNS[kind]} without quotes")
    if kind == "number":
        return _finite(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise IllegalValue("legal: an integer")
    return value if isinstance(value, int) and value in _INT64 else _whole(Decimal(value))


def _joined(values: list[object]) -> str:
    """A list of LoRA files as one text."""
    texts = [value for value in values if isinstance(value, str) and "," not in value]
    if len(texts) != len(values):
        raise IllegalValue("legal: text in quotes, or a list of texts without a comma")
    return ",".join(texts)


def _whole(number: Decimal) -> int:
    if number != number.to_integral_value():
        raise IllegalValue("legal: an integer")
    if int(number) not in _INT64:
        raise IllegalValue("legal: an integer of 64 bits")
    return int(number)


def _finite(value: float) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise IllegalValue("legal: a number that is finite")
    return number


def guessed(table: pa.Table) -> pa.Table:
    """A table of text with the columns that are no request's in the type that all their cells
    have: integers, numbers, true and false; else text."""
    for position, name in enumerate(table.schema.names):
        if name not in REQUEST_COLUMNS:
            table = table.set_column(position, name, _guess(table[name]))
    return table


def _guess(column: pa.ChunkedArray) -> pa.ChunkedArray:
    present = column.drop_null()
    if len(present) == 0 or not pa.types.is_string(column.type):
        return column
    patterns = (
        (_WHOLE_CELLS, pa.int64()),
        (_NUMBER_CELLS, pa.float64()),
        (_TRUTH_CELLS, pa.bool_()),
    )
    for pattern, kind in patterns:
        if pc.all(pc.match_substring_regex(present, pattern)).as_py():
            return column.cast(kind)
    return column
