"""Collect a run: plan + journals -> `catalog/rows/`, `catalog/runs.parquet`, `time_stats.csv`.

A run can be collected at any time: what is not finished is `pending`. The plan is streamed, so
memory does not grow with the rows.

A reader never meets a torn catalog. Part k always holds the same PART_ROWS rows of the plan, so
every collect writes the same file names. All parts are first written and synced in a hidden folder.
The first collect renames that folder to `catalog/rows`; a later one renames each part over its
predecessor. So a reader sees every row exactly once, but one that opens several parts during those
renames may get some of the earlier collect. Parts carry the number of their collect, and
`open_runs` reads again when these differ. (Swapping folders would be no better: who had listed the
old one would open files of the new one, or none.)

One collect publishes at a time (`turns`), and only if the plan has not changed and the published
catalog is not newer; else it starts again.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchgen.catalog.accounts import Spent, attempt_table, load_seconds
from batchgen.catalog.fidelity import AuditedRows
from batchgen.catalog.source import COLLECT_KEY, RunSource
from batchgen.catalog.table import catalog_rows, catalog_schema, join, judged_by, layouts_of
from batchgen.catalog.timers import Timers
from batchgen.catalog.turns import Overtaken, Turn, turn_of
from batchgen.durable import make_folder, sync, sync_folder, write_bytes_atomic
from batchgen.errors import RunStateError, StorageError
from batchgen.failpoints import failpoint
from batchgen.ledger.fidelity import Fidelity, write_fidelity
from batchgen.ledger.kept_scan import keep
from batchgen.ledger.scan import STATUS_CODES
from batchgen.ledger.upkeep.extent import EXTENT_KEY, Extent
from batchgen.ledger.upkeep.leftovers import sweep
from batchgen.ledger.upkeep.losses import collected, may_come_s, refuse_losses
from batchgen.ledger.upkeep.pieces import pieces
from batchgen.ledger.winners import Winners, winners
from batchgen.paths import RunPaths, as_typed
from batchgen.planfile import check_plan, plan_schema
from batchgen.progress import tell
from batchgen.request import FIELDS
from batchgen.runfile import RunFile
from batchgen.words import Tabled

PART_ROWS = 250_000
GROUP_ROWS = 50_000  # rows in memory at a time
TRIES = 20  # a collect starts again after a replan, or when a newer catalog was published
TURNS = ".turns"  # folder beside the parts
_REPEATED = (
    *(n for n, field in FIELDS.items() if field.kind == "text" and n not in ("row_id", "row_key")),
    *("status", "attempt", "host", "device", "plan_id"),
    *("determinism", "attention_kernel", "layout", "error_type"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogSummary(Tabled):
    """What a collect found, counted in manifest rows."""

    path: Path  # folder of the parts
    rows: int
    ok: int
    failed: int
    quarantined: int
    pending: int
    wasted: int  # commits behind a fence
    parts: int
    seconds: float
    fidelity: tuple[Fidelity, ...]  # of the audited rows


class _Outdated(Exception):
    """Since this collect began to read, the plan was replaced or a newer catalog was published."""


@dataclass(slots=True)
class _Totals:
    spent: Spent
    status: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATUS_CODES, 0))
    timers: Timers = field(default_factory=Timers)
    audited: AuditedRows = field(default_factory=AuditedRows)

    def add(self, table: pa.Table) -> None:
        """Add rows of the catalog."""
        for entry in pc.value_counts(table["status"].combine_chunks()).to_pylist():
            self.status[entry["values"]] += entry["counts"]
        self.timers.add(table)
        self.audited.add(table)


def collect(run: RunPaths) -> CatalogSummary:
    """Write the catalog of a run.

    RunStateError if the plan is not the run's, or if the ledger has lost something that the
    published catalog was made from; StorageError if the folder cannot be written (the published
    catalog then stays as it was).
    """
    for _ in range(TRIES):
        with suppress(_Outdated, Overtaken):
            return _collect(run)
        _wait_for_all(run)
    raise RunStateError(f"{run.root}: the plan or the catalog changes all the time; collect later")


def _collect(run: RunPaths) -> CatalogSummary:
    began = time.perf_counter()
    source = RunSource.of(run)  # taken before the journals, which may go on growing
    header = source.header
    _check_plan(run, source)
    found = winners(run)
    refuse_losses(run, found)
    totals = _Totals(Spent(found.index))
    temporary = run.catalog_rows.with_name(f".rows-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        make_folder(temporary, run.root)
        sweep(run)
        metadata = _metadata(header, source.extent)
        judged = judged_by(run, header)
        parts = _write_parts(run, found, metadata, temporary, totals, judged)
        accounts = _parquet_bytes(attempt_table(run, found, totals.spent, header))
        totals.timers.add_loads(load_seconds(found.index))
        sync(temporary)
        _sync_journals(found)
        with turn_of(temporary.with_name(TURNS)) as turn:
            _refuse_older(run, source)
            _publish(temporary, run.catalog_rows, turn)
            _clear(run.catalog_runs, run.catalog_fidelity, run.time_stats)
            write_bytes_atomic(run.catalog_runs, accounts)
            write_fidelity(run, totals.audited.summary())
            if header.config.get("output", {}).get("enable_timer_dump", True):
                write_bytes_atomic(run.time_stats, totals.timers.csv(time.time()).encode())
    except OSError as error:
        raise StorageError(f"{run.root}: the catalog cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            shutil.rmtree(temporary, ignore_errors=True)
    with suppress(OSError):  # the next scan is slower, and that is all
        keep(run, found.index)
    return _summary(run, found, totals, parts, time.perf_counter() - began)


def _summary(
    run: RunPaths, found: Winners, totals: _Totals, parts: int, seconds: float
) -> CatalogSummary:
    return CatalogSummary(
        path=run.catalog_rows,
        rows=len(found.status),
        ok=totals.status["ok"],
        failed=totals.status["failed"],
        quarantined=totals.status["quarantined"],
        pending=totals.status["pending"],
        wasted=int((~found.index.accepted).sum()),
        parts=parts,
        seconds=seconds,
        fidelity=totals.audited.summary(),
    )


def snapshot_table(run: RunPaths) -> pa.Table:
    """The catalog as a collect would write it now, in memory."""
    for _ in range(TRIES):
        with suppress(_Outdated):
            source = RunSource.of(run)
            _check_plan(run, source)
            found = winners(run)
            plan_id, layouts = source.header.plan_id, layouts_of(run, found.index)
            judged = judged_by(run, source.header)
            tables = [
                catalog_rows(join(plan, found), plan_id, layouts, judged)
                for plan in pieces([run.plan], GROUP_ROWS)
            ]
            empty = catalog_schema(plan_schema(run.plan), judged).empty_table()
            if source.is_current(run):
                return pa.concat_tables(tables) if tables else empty
    raise RunStateError(f"{run.root}: the plan changes all the time; look later")


def _check_plan(run: RunPaths, source: RunSource) -> None:
    """RunStateError if the plan is damaged; _Outdated if it has been replaced."""
    try:
        check_plan(run, source.header)
    except RunStateError as error:
        if source.is_current(run):
            raise
        raise _Outdated from error


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
    judged: tuple[str, ...],
) -> int:
    """Stream the plan into parts; returns their number. An empty plan makes one empty part."""
    schema = catalog_schema(plan_schema(run.plan), judged).with_metadata(metadata)
    plan_id, layouts = metadata[b"batchgen.plan_id"].decode(), layouts_of(run, found.index)
    writer = _part_writer(folder, 0, schema)
    parts, rows = 1, 0
    try:
        for plan in pieces([run.plan], GROUP_ROWS):
            if rows == PART_ROWS:
                writer.close()
                writer = _part_writer(folder, parts, schema)
                parts, rows = parts + 1, 0
            part = join(plan, found)
            table = catalog_rows(part, plan_id, layouts, judged)
            writer.write_table(table.replace_schema_metadata(schema.metadata))
            totals.add(table)
            totals.spent.add(part.lines, part.commits)
            rows += len(table)
            tell("collect", len(table), len(found.status))
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


def _sync_journals(found: Winners) -> None:
    """Sync the journals, so that what the catalog was made from survives a power cut. Only some
    lines were synced by their ranks; earlier journals were synced by the intent, ended ones by
    their last line."""
    for facts in found.index.journals:
        if facts.journal.limit is None and facts.end is None:
            sync(facts.journal.path)


def _refuse_older(run: RunPaths, source: RunSource) -> None:
    """_Outdated if the plan was replaced, or if the published catalog was made from more."""
    if not source.is_current(run) or source.extent.is_before(collected(run)):
        raise _Outdated


def _wait_for_all(run: RunPaths) -> None:
    """Wait until this machine sees all that the published catalog was made from, since another may
    just have written it. RunStateError if it does not appear."""
    deadline = time.monotonic() + may_come_s(run)
    while (now := Extent.of(run)).is_before(stands := collected(run)):
        if time.monotonic() > deadline:
            raise RunStateError(
                f"{run.catalog_rows} was made from {stands} and the run folder has {now}: some of "
                "its ledger was lost, and the catalog stays as it is. Put it back from a copy, or "
                f"accept the loss: `batchgen verify {as_typed(run.root)} --repair`"
            )
        time.sleep(0.5)


def _publish(temporary: Path, target: Path, turn: Turn) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        _set_aside(target, "folder")
    try:
        temporary.replace(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        names = sorted(part.name for part in temporary.iterdir())
        for name in names:
            failpoint("collect.before_part")
            turn.check()
            _clear(target / name)
            (temporary / name).replace(target / name)
        for old in target.glob("part-*.parquet"):
            if old.name not in names:  # from a version that cut the plan into more parts
                old.unlink()
        sync_folder(target)
    sync_folder(target.parent)


def _clear(*files: Path) -> None:
    """Move away folders where files are to be written: no rename replaces a folder."""
    for path in files:
        if path.is_dir() and not path.is_symlink():
            _set_aside(path, "file")


def _set_aside(path: Path, wanted: str) -> None:
    """What is in the place of a file is not ours to delete."""
    path.rename(path.with_name(f"{path.name}.not-a-{wanted}-{uuid.uuid4().hex[:8]}"))


def _parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())
