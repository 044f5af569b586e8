"""Folders that `datasets` loads (imagefolder, videofolder): media files beside a metadata.jsonl
that names them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from batchgen.export.forms import Item


def write(number: int, items: Sequence[Item], folder: Path) -> None:
    """`part-00000/<row_id>.png ...` and `part-00000/metadata.jsonl`."""
    part = folder / f"part-{number:05d}"
    part.mkdir()
    with (part / "metadata.jsonl").open("w", encoding="utf-8") as lines:
        for item in items:
            name = f"{item.values['row_id']}{item.media.suffix}"
            shutil.copyfile(item.media, part / name)
            line = {"file_name": name, **item.values}
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
