"""Prompts made of other columns (`{style} photo of {object}`) and of lists (`__animal__`)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pyarrow as pa

from batchgen.errors import ManifestError, closest, reason_of

_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_WILDCARD = re.compile(r"__([A-Za-z0-9][\w./-]*?)__")


def from_template(table: pa.Table, template: str) -> pa.Array:
    """The prompt of each row: `{name}` is that column's value, `{{` and `}}` are braces. An empty
    cell gives an empty text. ManifestError for a column that is not there, and where prompts that
    are there would be lost."""
    names = table.schema.names
    pieces = _pieces(template, names)
    if "prompt" in names and ("prompt", False) not in pieces:
        raise ManifestError("--template: the source has prompts, and {prompt} is not in it")
    columns = {name: table[name].to_pylist() for name, literal in pieces if not literal}
    prompts = [
        "".join(text if literal else _shown(columns[text][row]) for text, literal in pieces)
        for row in range(len(table))
    ]
    return pa.array(prompts, pa.string())


def with_wildcards(prompts: Sequence[str | None], folder: Path) -> pa.Array:
    """Each `__name__` in a prompt becomes a line of `folder/name.txt`. Which one depends on the
    row's number and the place in the prompt alone, so that a manifest is built twice the same.
    ManifestError for a list that is not there or is empty."""

    @cache
    def lines(name: str) -> tuple[str, ...]:
        return _lines(folder, name)

    def filled(row: int, prompt: str) -> str:
        def chosen(match: re.Match[str]) -> str:
            choices = lines(match[1])
            seed = hashlib.sha256(f"{row}\0{match.start()}\0{match[1]}".encode()).digest()
            return choices[int.from_bytes(seed[:8], "big") % len(choices)]

        return _WILDCARD.sub(chosen, prompt)

    return pa.array([p if p is None else filled(i, p) for i, p in enumerate(prompts)], pa.string())


def _pieces(template: str, names: Sequence[str]) -> list[tuple[str, bool]]:
    """Literal texts (True) and names of columns (False), in order."""
    pieces, end = list[tuple[str, bool]](), 0
    for part in _PART.finditer(template):
        pieces.append((template[end : part.start()], True))
        end = part.end()
        if part[0] in ("{{", "}}"):
            pieces.append((part[0][0], True))
        elif part[1] in names:
            pieces.append((part[1], False))
        elif part[1] is None:
            raise ManifestError(
                f"--template: a single {part[0]!r}; write {part[0] * 2} for a brace"
            )
        else:
            legal = ", ".join(names)
            near = closest(part[1], names)
            raise ManifestError(f"--template: no column {part[1]!r}; there are {legal}{near}")
    return [*pieces, (template[end:], True)]


def _shown(value: object) -> str:
    return "" if value is None else str(value)


def _lines(folder: Path, name: str) -> tuple[str, ...]:
    """The lines of a list, without those that are empty or begin with #."""
    path = folder / f"{name}.txt"
    try:
        texts = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        there = sorted(
            p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.txt")
        )
        why = reason_of(error) if isinstance(error, OSError) else f"{path}: is not UTF-8"
        raise ManifestError(f"__{name}__: {why}{closest(name, there)}") from None
    choices = tuple(text for text in texts if text and not text.startswith("#"))
    if not choices:
        raise ManifestError(f"__{name}__: {path} has no line to choose from")
    return choices
