"""Text files that people bring: UTF-8, or refused with the line and what they probably are."""

from __future__ import annotations

import codecs
import shlex
from pathlib import Path

from batchgen.errors import ManifestError

_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_AROUND = 20  # bytes shown on both sides of a byte that is not UTF-8


def check_utf8(path: Path) -> None:
    """Raise ManifestError naming line, byte and probable encoding of a file that is not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                _check_wide(path, line)
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise ManifestError(_narrow(path, number, line, error.start)) from None


def _check_wide(path: Path, line: bytes) -> None:
    """UTF-16 and UTF-32, by their mark or by the zero bytes between letters."""
    name = next((name for mark, name in _MARKS.items() if line.startswith(mark)), None)
    if name is None and _every_other(line[1::2]):
        name = "UTF-16LE"
    if name is None and _every_other(line[::2]):
        name = "UTF-16BE"
    if name:
        raise ManifestError(f"{path}, line 1: is {name}, not UTF-8; {_convert(path, name)}")


def _every_other(half: bytes) -> bool:
    """Whether the bytes at odd or even places are zero where a line begins, as of Latin letters."""
    return half.startswith(b"\0") and half[:_AROUND].count(0) > len(half[:_AROUND]) // 2


def _narrow(path: Path, number: int, line: bytes, start: int) -> str:
    around = line[max(0, start - _AROUND) : start + _AROUND].decode("cp1252", "replace").strip()
    return (
        f"{path}, line {number}: byte 0x{line[start]:02x} is not UTF-8; in Windows-1252 (Latin-1) "
        f"it reads {around!r}; if that is right, {_convert(path, 'WINDOWS-1252')}"
    )


def _convert(path: Path, name: str) -> str:
    new = path.with_name(f"utf8-{path.name}")
    return (
        f"convert it: iconv -f {name} -t UTF-8 {shlex.quote(str(path))} > {shlex.quote(str(new))}"
    )
