"""`manifest check`: all that is wrong with a manifest, with or without the job it is meant for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from batchgen.config.schema import JobConfig
from batchgen.planning.manifests.columns import REQUEST_COLUMNS
from batchgen.planning.manifests.defaults import Defaults, any_model, job_defaults
from batchgen.planning.manifests.images import Intake
from batchgen.planning.manifests.loras import Judge, any_lora
from batchgen.planning.manifests.manifest import (
    Manifest,
    check_columns,
    open_manifest,
    pandas_index_note,
)
from batchgen.planning.manifests.parts import BATCH_ROWS, ManifestPart
from batchgen.planning.manifests.problems import Problems, row_place
from batchgen.planning.manifests.rowids import RowIds
from batchgen.planning.manifests.rows import resolve_rows


@dataclass(frozen=True, slots=True)
class ManifestReport:
    """What a check found."""

    manifest: Manifest
    rows: int
    problems: Problems
    note: str  # what was not judged, for people


def check_manifest(
    path: Path, job: JobConfig | None = None, *, limit: int = 1000, judge: Judge = any_lora
) -> ManifestReport:
    """Check every row as planning does; `judge` looks into LoRA files. Without a job, extra columns
    are allowed and sizes are not judged. Raises ManifestError for what is not about single rows."""
    manifest = open_manifest(path)
    extra = [name for name in manifest.columns if name not in REQUEST_COLUMNS]
    defaults: Defaults = any_model() if job is None else job_defaults(job)
    check_columns(manifest, extra if job is None else job.carry_columns)
    problems = Problems(keep=limit)
    known = [name for name in REQUEST_COLUMNS if name in manifest.columns]
    intake = Intake.of(path, judge=judge)
    rows = _check_rows(manifest.batches(known), defaults, problems, intake, manifest.place)
    return ManifestReport(manifest, rows, problems, _note(job, extra))


def check_table(path: Path, table: pa.Table, place: Callable[[int], str], folder: Path) -> None:
    """Raise ManifestError if `check_manifest` would refuse these rows of `path`, once they are a
    manifest in `folder`; `place` names a row in messages."""
    part = ManifestPart(path, table.schema, len(table), BATCH_ROWS)
    check_columns(
        Manifest(path, (part,)), [n for n in table.schema.names if n not in REQUEST_COLUMNS]
    )
    known = [name for name in table.schema.names if name in REQUEST_COLUMNS]
    batches, problems = table.select(known).to_batches(max_chunksize=BATCH_ROWS), Problems()
    _check_rows(batches, any_model(), problems, Intake(folder), place)
    problems.raise_if_any(path, place)


def _check_rows(
    batches: Iterable[pa.RecordBatch],
    defaults: Defaults,
    problems: Problems,
    intake: Intake,
    place: Callable[[int], str] = row_place,
) -> int:
    """Note what is wrong with any row; returns how many there are."""
    given = False
    with closing(RowIds()) as ids:
        for batch in batches:
            ids.add(resolve_rows(batch, ids.rows, defaults, problems, intake).column("row_id"))
            given |= "row_id" in batch.schema.names
        if given:  # the others are numbers
            ids.report_duplicates(problems, place)
    return ids.rows


def _note(job: JobConfig | None, extra: list[str]) -> str:
    if job is not None:
        return f" for {job.model.name}"
    carried = f"; carry_columns must list {', '.join(extra)}" if extra else ""
    carried += f"; {index}" if (index := pandas_index_note(extra)) else ""
    return f" (sizes and frames depend on the model: add --job to check them{carried})"
