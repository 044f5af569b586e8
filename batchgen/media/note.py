"""What a media file says about itself: the request, the model and the row's key, as JSON.

Nothing about row_id, attempt or time, so that equal rows have equal files.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from dataclasses import dataclass
from typing import Any

from batchgen.errors import MediaError
from batchgen.request import FIELDS, MANIFEST, REQUEST_FIELDS, Field, Range, Request

FORMAT = "batchgen request 1"
_WORD = re.compile(r"[A-Za-z0-9+_-]{1,64}")
_HALVES = re.compile("[\ud800-\udfff]")  # of pairs of surrogates
_shown = reprlib.repr  # of any length


@dataclass(frozen=True, slots=True)
class Origin:
    """The model that draws: its family and the digest of its weights, as in the row keys."""

    family: str
    weights: str


@dataclass(frozen=True, slots=True)
class Note:
    """The note of one file: names of request fields -> values, beside those of the model."""

    values: dict[str, Any]
    origin: Origin
    row_key: str

    def row(self) -> dict[str, Any]:
        """Columns of a manifest row that asks for the same; what the job sets is not among them."""
        return {name: value for name, value in self.values.items() if name in MANIFEST}

    def overrides(self) -> list[str]:
        """What the job has to set for the same pixels in the same file, as `key=value`."""
        jobs = {f.name: f.column.set_by for f in REQUEST_FIELDS if "." in f.column.set_by}
        stated = [f"{key}={self.values[n]}" for n, key in jobs.items() if n in self.values]
        return [*stated, "output.embed_metadata=true"]


def note_of(request: Request, origin: Origin) -> str:
    """What is stored in the file of a row: JSON on one line, prompts readable as they are."""
    values = {f.name: getattr(request, f.name) for f in REQUEST_FIELDS if _belongs(f, request)}
    stored = {
        "format": FORMAT,
        "family": origin.family,
        "weights": origin.weights,
        "row_key": request.row_key,
        "request": values,
    }
    return json.dumps(stored, ensure_ascii=False, separators=(",", ":"))


def parse_note(text: str) -> Note:
    """The inverse of `note_of`; MediaError if it is not such a note. The text may be anybody's:
    what is returned has the types, the ranges and the names of request fields."""
    try:
        stored = json.loads(text)
        if (found := stored["format"]) != FORMAT:
            raise MediaError(f"its metadata are of the format {_shown(found)}, not {FORMAT!r}")
        model = [stored[name] for name in ("family", "weights", "row_key")]
        values = stored["request"]
        if not isinstance(values, dict) or not all(isinstance(value, str) for value in model):
            raise TypeError("request is an object; family, weights and row_key are text")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MediaError(f"its metadata are not those of a rendered row: {error!r}") from error
    for name, value in values.items():
        _check(name, value)
    family, weights, row_key = model
    return Note(values, Origin(family, weights), row_key)


def _check(name: str, value: Any) -> None:
    """MediaError unless a request may have this value."""
    field = FIELDS.get(name)
    if field is None:
        raise MediaError(f"its metadata hold {name!r}, which is no field of a request")
    if value is None and field.nullable:
        return
    kinds = {"integer": (int,), "number": (int, float)}.get(field.kind, (str,))
    fits = isinstance(value, kinds) and not isinstance(value, bool)
    if fits and isinstance(value, str):
        # JSON can write what no text holds. What becomes an override must be no more than a value.
        becomes_override = "." in field.column.set_by
        fits = not (_WORD.fullmatch(value) is None if becomes_override else _HALVES.search(value))
    elif fits:
        legal = field.column.range or Range()
        fits = abs(value) < math.inf and legal.holds(value)
    if not fits:
        raise MediaError(f"its metadata hold {name} = {_shown(value)}, which no request has")


def _belongs(field: Field, request: Request) -> bool:
    """What decides the row, where it is not at its default. That there is a note goes without
    saying; which judges it passed does not matter, since the seed is the one that was used."""
    stated = field.column.key != "no" and field.name not in ("embed_metadata", "judges")
    return stated and getattr(request, field.name) != field.default
