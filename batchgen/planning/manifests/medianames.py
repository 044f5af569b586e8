"""Names of a manifest's media files, from a template over what each row is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pyarrow as pa

from batchgen.planning.manifests.building.template import Template
from batchgen.planning.manifests.problems import Problems
from batchgen.planning.manifests.rowids import Aliases
from batchgen.planning.manifests.rows import ResolvedRows


class MediaNames:
    """The names of a whole manifest's files: each is there once, and not empty."""

    def __init__(self, template: Template | None, problems: Problems, rows: int) -> None:
        """`template`: None where files have the names of their rows. `rows`: of the manifest."""
        self._template, self._problems = template, problems
        self._known = Aliases(rows if template else 0)

    def add(self, rows: ResolvedRows, seeds: Sequence[int], is_alias: Sequence[bool]) -> pa.Array:
        """Names of the next rows; null where it is the row id, and of rows without a file."""
        if self._template is None:
            return pa.nulls(len(rows), pa.string())
        texts = [rows.column(name).to_pylist() for name in ("row_id", "tags", "prompt")]
        names: list[str | None] = []
        for at, (row_id, tag, prompt) in enumerate(zip(*texts, strict=True)):
            row = rows.first_row + at
            values = {"row_id": row_id, "seed": seeds[at], "index": row, "tag": tag}
            name = None if is_alias[at] else self._template.fill({**values, "prompt": prompt})
            names.append(name)
        self._check(rows.first_row, names)
        return pa.array(names, pa.string())

    def _check(self, first_row: int, names: Sequence[str | None]) -> None:
        """Report names that earlier rows have, and those that are none."""
        texts = [f"/{row}" if name is None else name for row, name in enumerate(names, first_row)]
        digests = [hashlib.sha256(text.encode()).digest() for text in texts]
        firsts = self._known.originals(first_row, digests).tolist()
        for row, (name, first) in enumerate(zip(names, firsts, strict=True), first_row):
            if name is not None and not name.strip("."):
                self._problems.add([row], "output.name", [name], "is no file name; add {row_id}")
            elif first != row:
                reason = f"row {first} has it already; add {{row_id}} or {{index}}"
                self._problems.add([row], "output.name", [name], reason)
