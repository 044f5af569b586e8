"""The hidden folders of one collect: its parts until they are published, and what is kept of
them."""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from batchgen.durable import make_folder
from batchgen.paths import RunPaths


class Drafts:
    """Folders beside the catalog's rows."""

    def __init__(self, rows: Path) -> None:
        name = f".rows-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.parts = rows.with_name(name)
        self.kept = rows.with_name(f"{name}-kept")

    def make(self, run: RunPaths) -> None:
        """OSError if they cannot be made."""
        make_folder(self.parts, run.root)
        self.kept.mkdir()

    def keep(self, run: RunPaths) -> None:
        """Put what is kept of the new parts, which are published by now, in its place."""
        with suppress(OSError):  # the next collect is slower, and that is all
            for draft in self.kept.iterdir():
                target = run.kept_rows(draft.name)
                make_folder(target.parent, run.root)
                draft.replace(target)

    def remove(self) -> None:
        """Delete them."""
        for folder in (self.parts, self.kept):
            shutil.rmtree(folder, ignore_errors=True)
