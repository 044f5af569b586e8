"""What became of a manifest since a run was planned from it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.config.schema import JobConfig
from batchgen.planning.caching import NO_RUN, Earlier
from batchgen.planning.identity import KeyContext
from batchgen.planning.manifests.manifest import open_manifest
from batchgen.planning.plan import make_plan
from batchgen.planning.store import CARRY, ROW_GROUP


@dataclass(frozen=True, slots=True)
class ManifestChanges:
    """Ids of the rows in which a manifest differs from a plan, in order."""

    rows: int  # of the manifest now
    added: tuple[str, ...]
    changed: tuple[str, ...]
    gone: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.gone)


def manifest_changes(
    job: JobConfig, context: KeyContext, plan: Path, digest: str, earlier: Earlier = NO_RUN
) -> ManifestChanges | None:
    """How the manifest of `job` differs from the one that `plan` was made from; None if its bytes
    (`digest`) are the same. Both are compared under the settings and the `context` of the plan, so
    that only the manifest counts. Raises ManifestError for what is no manifest now."""
    if open_manifest(Path(job.manifest)).digest() == digest:
        return None
    with tempfile.TemporaryDirectory(prefix="batchgen-plan-") as folder:
        out = Path(folder) / "plan.parquet"
        now = make_plan(job, out, context=context, earlier=earlier)
        before, after = _rows_that_differ(plan, now.path)
    return ManifestChanges(
        rows=now.rows,
        added=tuple(row_id for row_id in after if row_id not in before),
        changed=tuple(i for i, said in after.items() if i in before and before[i] != said),
        gone=tuple(row_id for row_id in before if row_id not in after),
    )


_Rows = dict[str, tuple[object, ...]]  # row id -> what the row says


def _rows_that_differ(plan: Path, other: Path) -> tuple[_Rows, _Rows]:
    """The rows of the stretches in which two plans differ. A manifest that only grew differs at
    its end, so that few are held."""
    before: _Rows = {}
    after: _Rows = {}
    for one, two in zip_longest(_stretches(plan), _stretches(other)):
        if one is None or two is None or not one.equals(two):
            before.update(_rows(one))
            after.update(_rows(two))
    return before, after


def _stretches(plan: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(plan, pre_buffer=False) as file:
        carried = [name for name in file.schema_arrow.names if name.startswith(CARRY)]
        columns = ["row_id", "row_key", "tags", *carried]
        yield from file.iter_batches(batch_size=ROW_GROUP, columns=columns)


def _rows(stretch: pa.RecordBatch | None) -> _Rows:
    if stretch is None:
        return {}
    ids, *said = (column.to_pylist() for column in stretch.columns)
    return dict(zip(ids, zip(*said, strict=True), strict=True))
