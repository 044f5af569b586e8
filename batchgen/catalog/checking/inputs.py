"""Are the images that rows are drawn from as they were when the run was planned?"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow.compute as pc

from batchgen.catalog.checking.findings import Finding
from batchgen.ledger.upkeep.pieces import pieces
from batchgen.paths import RunPaths
from batchgen.planfile import plan_schema
from batchgen.regular import digest_regular
from batchgen.request import REQUEST_FIELDS

GROUP_ROWS = 50_000


def damaged_inputs(run: RunPaths) -> Iterator[Finding]:
    """A finding for each image in `inputs/` that is missing or changed, of the first row that is
    drawn from it. No repair helps: the file has to come back."""
    for digest, row_id in _images(run).items():
        path = run.input(digest)
        reason = _damage(run, digest)
        if reason:
            name = path.relative_to(run.root).as_posix()
            yield Finding("input", name, f"{reason} (row {row_id}); put the file back")


def _images(run: RunPaths) -> dict[str, str]:
    """Digest of each image of the plan -> the first row that has it."""
    stored = plan_schema(run.plan).names
    names = [f.name for f in REQUEST_FIELDS if f.kind == "image" and f.name in stored]
    found: dict[str, str] = {}
    for table in pieces([run.plan], GROUP_ROWS, ["row_id", *names]) if names else ():
        for name in names:
            given = table.filter(pc.is_valid(table[name]))
            for digest, row_id in zip(
                given[name].to_pylist(), given["row_id"].to_pylist(), strict=True
            ):
                found.setdefault(digest, row_id)
    return found


def _damage(run: RunPaths, digest: str) -> str:
    try:
        now, _ = digest_regular(run.input(digest))
    except FileNotFoundError:
        return "does not exist"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "" if now == digest else f"sha256 {now}, planned was {digest}"
