"""Collect a run: plan + journals -> `catalog/rows/`, `catalog/runs.parquet`, `time_stats.csv`.

Works at any time and from any state: what is not finished is `pending`. The plan is streamed, so
memory does not grow with the rows.

How a reader never meets a torn catalog: part k always holds the same rows of the plan (PART_ROWS
of them), so a run has the same file names at every collect. All parts are written and synced in a
hidden folder first. The first time that folder is renamed to `catalog/rows`; later each part is
renamed over its predecessor. A reader sees every row exactly once at any moment; one who lists and
opens several parts across those few renames may get some parts of the collect before. Parts carry
the number of their collect, and `open_runs` reads again when they differ. (Swapping folders would
not be better: whoever listed the old one would open files of the new one, or none.)
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchgen.errors import StorageError
from batchgen.ledger.accounts import Spent, attempt_table, load_seconds
from batchgen.ledger.extent import EXTENT_KEY, Extent
from batchgen.ledger.losses import refuse_losses
from batchgen.ledger.pieces import pieces
from batchgen.ledger.scan import STATUS_CODES
from batchgen.ledger.table import catalog_rows, catalog_schema, join
from batchgen.ledger.timers import Timers
from batchgen.ledger.winners import Winners, winners
from batchgen.media.durable import sync, sync_folder, write_bytes_atomic
from batchgen.paths import RunPaths
from batchgen.planfile import check_plan, plan_schema
from batchgen.runfile import RunFile, read_run

PART_ROWS = 250_000
GROUP_ROWS = 50_000  # rows in memory at a time
LEFTOVER_S = 3600.0  # a hidden folder this old is of a collect that died
COLLECT_KEY = b"batchgen.collect"
_REPEATED = (
    *("status", "solver", "format", "cache_strategy", "attempt", "host", "device", "plan_id"),
    *("determinism", "attention_kernel", "negative_prompt", "error_type", "tags", "prompt"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogSummary:
    """What a collect found; counts are manifest rows."""

    path: Path  # the folder of parts
    rows: int
    ok: int
    failed: int
    quarantined: int
    pending: int
    wasted: int  # commits that were refused because their attempt had been fenced off
    parts: int
    seconds: float


@dataclass(slots=True)
class _Totals:
    spent: Spent
    status: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATUS_CODES, 0))
    timers: Timers = field(default_factory=Timers)

    def add(self, table: pa.Table) -> None:
        """Catalog rows."""
        for entry in pc.value_counts(table["status"].combine_chunks()).to_pylist():
            self.status[entry["values"]] += entry["counts"]
        self.timers.add(table)


def collect(run: RunPaths, progress: Callable[[int], None] | None = None) -> CatalogSummary:
    """Write the catalog of a run. `progress` gets the number of rows of each piece written.

    RunStateError if the plan is not the run's, or the ledger has lost what the catalog before was
    made from; StorageError if the folder cannot be written (the
    catalog before stays as it was).
    """
    began = time.perf_counter()
    header, extent = read_run(run), Extent.of(run)  # before the journals, which may go on growing
    check_plan(run, header)
    found = winners(run)
    refuse_losses(run, found)
    totals = _Totals(Spent(found.index))
    temporary = run.catalog_rows.with_name(f".rows-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        _sweep(temporary.parent)
        metadata = _metadata(header, extent)
        parts = _write_parts(run, found, metadata, temporary, totals, progress)
        accounts = attempt_table(run, found, totals.spent, header)
        totals.timers.add_loads(load_seconds(found.index))
        _publish(temporary, run.catalog_rows)
        write_bytes_atomic(run.catalog_runs, _parquet_bytes(accounts))
        if header.config.get("output", {}).get("enable_timer_dump", True):
            write_bytes_atomic(run.time_stats, totals.timers.csv(time.time()).encode())
    except OSError as error:
        raise StorageError(f"{run.root}: the catalog cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            shutil.rmtree(temporary, ignore_errors=True)
    return CatalogSummary(
        path=run.catalog_rows,
        rows=len(found.status),
        ok=totals.status["ok"],
        failed=totals.status["failed"],
        quarantined=totals.status["quarantined"],
        pending=totals.status["pending"],
        wasted=int((~found.index.accepted).sum()),
        parts=parts,
        seconds=time.perf_counter() - began,
    )


def snapshot_table(run: RunPaths) -> pa.Table:
    """The catalog as it would be collected now, in memory: for a look at a run in progress."""
    header = read_run(run)
    check_plan(run, header)
    found = winners(run)
    tables = [
        catalog_rows(join(plan, found), header.plan_id) for plan in pieces([run.plan], GROUP_ROWS)
    ]
    empty = catalog_schema(plan_schema(run.plan)).empty_table()
    return pa.concat_tables(tables) if tables else empty


def _metadata(header: RunFile, extent: Extent) -> dict[bytes, bytes]:
    values = {
        b"batchgen.plan_id": header.plan_id,
        b"batchgen.config": json.dumps(header.config),
        b"batchgen.overrides": json.dumps(header.overrides),
        b"batchgen.versions": json.dumps(header.versions),
        COLLECT_KEY: uuid.uuid4().hex,
    }
    encoded = {key: value.encode() for key, value in values.items()}
    return {**encoded, EXTENT_KEY: extent.encode()}


def _write_parts(
    run: RunPaths,
    found: Winners,
    metadata: dict[bytes, bytes],
    folder: Path,
    totals: _Totals,
    progress: Callable[[int], None] | None,
) -> int:
    """Stream the plan into parts; returns their number. An empty plan makes one empty part."""
    schema = catalog_schema(plan_schema(run.plan)).with_metadata(metadata)
    plan_id = metadata[b"batchgen.plan_id"].decode()
    writer = _part_writer(folder, 0, schema)
    parts, rows = 1, 0
    try:
        for plan in pieces([run.plan], GROUP_ROWS):
            if rows == PART_ROWS:
                writer.close()
                writer = _part_writer(folder, parts, schema)
                parts, rows = parts + 1, 0
            part = join(plan, found)
            table = catalog_rows(part, plan_id)
            writer.write_table(table.replace_schema_metadata(schema.metadata))
            totals.add(table)
            totals.spent.add(part.lines, part.commits)
            rows += len(table)
            if progress is not None:
                progress(len(table))
    finally:
        writer.close()
    return parts


def _part_writer(folder: Path, number: int, schema: pa.Schema) -> pq.ParquetWriter:
    repeated = [name for name in _REPEATED if name in schema.names]
    return pq.ParquetWriter(
        folder / f"part-{number:05d}.parquet",
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=repeated,
    )


def _sweep(folder: Path) -> None:
    for path in folder.glob(".rows-*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFTOVER_S:
                shutil.rmtree(path)


def _publish(temporary: Path, target: Path) -> None:
    sync(temporary)
    try:
        temporary.replace(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        names = sorted(part.name for part in temporary.iterdir())
        for name in names:
            (temporary / name).replace(target / name)
        for old in target.glob("part-*.parquet"):
            if old.name not in names:  # of a version that cut the plan into more parts
                old.unlink()
        sync_folder(target)
    sync_folder(target.parent)


def _parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())
