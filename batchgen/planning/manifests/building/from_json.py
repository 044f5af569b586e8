"""JSON lines: one object a line, its keys are columns. Lines of a request batch in the form of the
OpenAI batch API have the columns inside their `body`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from batchgen.errors import ManifestError
from batchgen.planning.manifests.cells import (
    Gathered,
    IllegalValue,
    SourceFile,
    check_name,
    json_value,
)
from batchgen.planning.manifests.columns import REQUEST_COLUMNS
from batchgen.planning.manifests.problems import shorten


def read_json_lines(path: Path) -> SourceFile:
    """Every line is a row. Raises ManifestError naming line, column and value."""
    gathered, kinds = Gathered(path), dict[str, tuple[str, int]]()
    known: set[str] = set(REQUEST_COLUMNS)
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            row = _object(path, line, text.rstrip())
            if row.keys() >= _BATCH:
                row = _of_batch(f"{path}, line {line}", row)
            for name in row.keys() - known:
                check_name(path, line, name)
                known.add(name)
            gathered.add(line, {n: _value(gathered, kinds, line, n, v) for n, v in row.items()})
    source = gathered.finish()
    never = [
        name
        for name in source.table.schema.names
        if name in REQUEST_COLUMNS and source.table[name].null_count == len(source.table)
    ]
    return replace(source, table=source.table.drop_columns(never))


_BATCH = {"custom_id", "body"}
# Of a batch's request what says nothing about the picture, or what the job decides.
_UNHEARD = (
    "model",
    "user",
    "n",
    "size",
    "response_format",
    "output_format",
    "moderation",
    "stream",
)


def _of_batch(where: str, line: Mapping[str, object]) -> Mapping[str, object]:
    """The row that a line of a request batch asks for: its `custom_id` is the row id, `size` gives
    width and height, and other keys of the body are columns."""
    body = line["body"]
    if not isinstance(body, dict):
        raise ManifestError(f"{where}: body: {shorten(body)} is not an object {{...}}")
    if body.get("n", 1) not in (1, None):
        raise ManifestError(
            f"{where}: body.n is {body['n']}; a row is one picture: leave n out, and use --seeds"
        )
    row = {name: value for name, value in body.items() if name not in _UNHEARD}
    size = body.get("size")
    if size not in (None, "auto"):
        sides = re.fullmatch(r"(\d{1,6})x(\d{1,6})", str(size))
        if sides is None:
            raise ManifestError(f"{where}: body.size is {shorten(size)}; write it as 1024x1024")
        row |= {"width": int(sides[1]), "height": int(sides[2])}
    return {"row_id": line["custom_id"], **row}


def _value(
    gathered: Gathered, kinds: dict[str, tuple[str, int]], line: int, name: str, value: object
) -> object:
    """The value to store; null where it is illegal, which is noted."""
    try:
        return (
            json_value(name, value) if name in REQUEST_COLUMNS else _own(kinds, line, name, value)
        )
    except IllegalValue as error:
        gathered.reject(name, value, str(error))
        return None


def _own(kinds: dict[str, tuple[str, int]], line: int, name: str, value: object) -> object:
    """The value of a column that is no request's: it keeps the kind of the first one."""
    if value is None:
        return None
    kind = _kind(value)
    first, since = kinds.setdefault(name, (kind, line))
    if kind != first:
        raise IllegalValue(f"is {kind}, but line {since} has {first}; a column has one kind")
    return value


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list) else "an object"


def _object(path: Path, line: int, text: str) -> Mapping[str, object]:
    """The object of a line."""
    where = f"{path}, line {line}"
    if line == 1 and text.lstrip().startswith("["):
        raise ManifestError(
            f"{where}: a JSON array; JSON lines have one object a line: jq -c '.[]' makes them"
        )
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{where}: {_syntax(line, text, error)}") from None
    except RecursionError:
        raise ManifestError(f"{where}: nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits, a key twice
        raise ManifestError(f"{where}: {error}") from None
    if not isinstance(value, dict):
        raise ManifestError(f"{where}: {shorten(value)} is not an object {{...}}")
    return value


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object whose keys are all different."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"column {doubled!r} appears more than once")
    return found


def _syntax(line: int, text: str, error: json.JSONDecodeError) -> str:
    rest = text[error.pos :].strip()
    if error.msg == "Extra data" and rest == ",":
        return "a comma after the object; objects of JSON lines stand alone on their lines"
    if error.msg == "Extra data" and rest.startswith("{"):
        return f"a second object at character {error.pos + 1}; JSON lines have one object a line"
    if text.strip() in ("{", "[") and line == 1:
        return "an object over several lines; JSON lines have one object a line: jq -c . makes them"
    shown = shorten(text[max(0, error.pos - 20) : error.pos + 20].strip())
    what = error.msg.lower().removesuffix(" at")
    return f"not JSON: {what} at character {error.pos + 1}, near {shown}"
