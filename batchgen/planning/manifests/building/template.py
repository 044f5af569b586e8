"""The template of media files' names (`output.name`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from batchgen.errors import ConfigError, closest

DEFAULT = "{row_id}"
FIELDS = ("row_id", "seed", "index", "tag", "prompt")
LONGEST = 128  # characters of a name; the attempt and the ending come behind it
LONGEST_SLUG = 60
_FIELD = re.compile(r"\{([^{}]*)\}")
_LITERAL = re.compile(r"[A-Za-z0-9._-]*")
_OTHERS = re.compile(r"[^A-Za-z0-9._]+")


@dataclass(frozen=True, slots=True)
class Template:
    """A checked template: texts and names of fields in turn, a text first and last."""

    parts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """ConfigError for a field that there is not, or a character that no file name has."""
        parts = _FIELD.split(text)
        for name in parts[1::2]:
            if name not in FIELDS:
                legal = ", ".join(f"{{{field}}}" for field in FIELDS)
                near = closest(name, FIELDS)
                raise ConfigError(f"output.name: {{{name}}} is not one of {legal}{near}")
        for literal in parts[::2]:
            rest = literal[_LITERAL.match(literal).end() :]  # type: ignore[union-attr]
            if rest:
                raise ConfigError(
                    f"output.name: {rest[0]!r} cannot be in a file name; legal besides fields in "
                    "braces: A-Z a-z 0-9 . _ -"
                )
        if len(parts) == 1:
            raise ConfigError(f"output.name: {text!r} is the same for every row; legal: {DEFAULT}")
        return cls(tuple(parts))

    def fill(self, values: Mapping[str, object]) -> str:
        """The name of a row whose fields have these values, of legal characters alone."""
        filled = [
            part if number % 2 == 0 else _shown(part, values[part])
            for number, part in enumerate(self.parts)
        ]
        return "".join(filled)[:LONGEST]


def _shown(field: str, value: object) -> str:
    if field == "index":
        return f"{value:08d}"
    if field == "row_id":
        return str(value)
    return slug("" if value is None else str(value))


def slug(text: str) -> str:
    """A text as part of a file name: small letters and digits with `-` between, cut at a word."""
    words = [word for word in _OTHERS.split(text.lower()) if word.strip(".")]
    while len("-".join(words)) > LONGEST_SLUG and len(words) > 1:
        words.pop()
    return "-".join(words)[:LONGEST_SLUG]
