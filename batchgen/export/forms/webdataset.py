"""Tar files for streaming: of each row the media file, its prompt (.txt) and its values (.json)."""

from __future__ import annotations

import base64
import io
import json
import math
import tarfile
from pathlib import Path
from typing import Any

from batchgen.export.forms import Part


def write(part: Part, folder: Path) -> None:
    """`part-00000.tar`; equal rows give equal bytes: members have no owner and no time."""
    with tarfile.open(folder / f"{part.name}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for key, row, file in zip(part.keys, part.values, part.media, strict=True):
            given = {name: _plain(value) for name, value in row.items() if value is not None}
            _add(tar, f"{key}{file.suffix}", file.read_bytes())
            _add(tar, f"{key}.txt", row["prompt"].encode())
            _add(tar, f"{key}.json", json.dumps(given, ensure_ascii=False).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _plain(value: Any) -> Any:
    """A value of a carried column as JSON has it: bytes as base64, dates and decimals as text, NaN
    and infinity as null."""
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
