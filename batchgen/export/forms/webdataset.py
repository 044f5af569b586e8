"""Tar files for streaming: of each row the media file, its prompt (.txt) and its values (.json)."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

from batchgen.export.forms import Item


def write(number: int, items: Sequence[Item], folder: Path) -> None:
    """`part-00000.tar`; equal rows give equal bytes: members have no owner and no time."""
    with tarfile.open(folder / f"part-{number:05d}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for item in items:
            values = json.dumps(item.values, ensure_ascii=False).encode()
            _add(tar, f"{item.key}{item.media.suffix}", item.media.read_bytes())
            _add(tar, f"{item.key}.txt", item.values["prompt"].encode())
            _add(tar, f"{item.key}.json", values)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
