"""What a media file says about itself: the request, the model and the row's key, as JSON.

Nothing about row_id, attempt or time, so that equal rows have equal files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from batchgen.errors import MediaError
from batchgen.request import MANIFEST, REQUEST_FIELDS, Field, Request

FORMAT = "batchgen request 1"


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
    """The inverse of `note_of`; MediaError if it is not such a note."""
    try:
        stored = json.loads(text)
        if stored["format"] != FORMAT:
            raise MediaError(f"its metadata are of the format {stored['format']!r}, not {FORMAT!r}")
        origin = Origin(str(stored["family"]), str(stored["weights"]))
        return Note(dict(stored["request"]), origin, str(stored["row_key"]))
    except (ValueError, KeyError, TypeError) as error:
        raise MediaError(f"its metadata are not those of a rendered row: {error!r}") from error


def _belongs(field: Field, request: Request) -> bool:
    """What decides the row, where it is not at its default; that there is a note goes without
    saying."""
    stated = field.column.key != "no" and field.name != "embed_metadata"
    return stated and getattr(request, field.name) != field.default
