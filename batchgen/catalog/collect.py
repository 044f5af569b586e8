"""Collect a run: plan + journals -> `catalog/rows/`, `catalog/runs.parquet`, `time_stats.csv`.

A run can be collected at any time: what is not finished is `pending`. The plan is streamed, and
what the ledger knows of lines is in memory for one band of rows at a time, so that memory does not
go with the rows.

A reader never meets a torn catalog. Part k always holds the same rows of the plan, so every collect
has the same file names. New parts are first written and synced in a hidden folder. The first
collect renames that folder to `catalog/rows`; a later one writes only parts in which something has
changed (`parts`), and renames each over its predecessor. So a reader sees every row exactly once,
but one that opens several parts during those renames may get some of the earlier collect. The first
part lists the collects that the parts are of, and `open_runs` reads again when they differ
(`source.are_together`). (Swapping folders would be no better: who had listed the old one would open
files of the new one, or none.)

One collect publishes at a time (`turns`), and only if the plan has not changed, the published
catalog is not newer and the parts that stay are still there; else it starts again.
"""

from __future__ import annotations

import errno
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.catalog.accounts import Seconds, Spent, attempt_table, load_seconds
from batchgen.catalog.drafts import Drafts
from batchgen.catalog.parts import GROUP_ROWS, Made, PartMaker, bands_of, part_name
from batchgen.catalog.source import COLLECT_KEY, RunSource
from batchgen.catalog.table import catalog_rows, catalog_schema, join, judged_by, layouts_of
from batchgen.catalog.totals import Totals
from batchgen.catalog.turns import Overtaken, Turn, turn_of
from batchgen.durable import sync, sync_folder, write_bytes_atomic
from batchgen.errors import RunStateError, StorageError
from batchgen.failpoints import failpoint
from batchgen.ledger.fidelity import Fidelity, write_fidelity
from batchgen.ledger.reading.bands import Bands
from batchgen.ledger.reading.scan import JournalFacts
from batchgen.ledger.reading.winners import Winners, winners
from batchgen.ledger.upkeep.extent import EXTENT_KEY, Extent
from batchgen.ledger.upkeep.leftovers import sweep
from batchgen.ledger.upkeep.losses import (
    collected,
    may_come_s,
    ok_in_catalog,
    refuse_gone,
    refuse_losses,
)
from batchgen.ledger.upkeep.pieces import pieces
from batchgen.paths import RunPaths, as_typed
from batchgen.planfile import check_plan, plan_schema
from batchgen.progress import tell
from batchgen.runfile import RunFile
from batchgen.words import Tabled

TRIES = 20  # a collect starts again after a replan, or when a newer catalog was published
TURNS = ".turns"  # folder beside the parts
_NONE = np.zeros(0)


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
    with _of_one_plan(run, source):
        check_plan(run, header)
    drafts = Drafts(run.catalog_rows)
    try:
        with _of_one_plan(run, source), bands_of(run) as bands:
            refuse_losses(run)
            drafts.make(run)
            sweep(run)
            parts, spent = _make_parts(run, source, bands, drafts)
        journals = bands.journals
        accounts = _parquet_bytes(attempt_table(run, journals, spent, header))
        totals = _joined(parts)
        totals.timers.add_loads(load_seconds(journals))
        sync(drafts.parts)
        _sync_journals(journals)
        with turn_of(run.catalog_rows.with_name(TURNS)) as turn:
            _refuse_older(run, source)
            _refuse_changed(run, parts)
            _publish(drafts.parts, run.catalog_rows, len(parts), turn)
            _clear(run.catalog_runs, run.catalog_fidelity, run.time_stats)
            write_bytes_atomic(run.catalog_runs, accounts)
            write_fidelity(run, totals.audited.summary())
            if header.config.get("output", {}).get("enable_timer_dump", True):
                write_bytes_atomic(run.time_stats, totals.timers.csv(time.time()).encode())
            drafts.keep(run)
    except OSError as error:
        raise StorageError(f"{run.root}: the catalog cannot be written: {error}") from error
    finally:
        drafts.remove()
    return CatalogSummary(
        path=run.catalog_rows,
        rows=bands.rows,
        ok=totals.status["ok"],
        failed=totals.status["failed"],
        quarantined=totals.status["quarantined"],
        pending=totals.status["pending"],
        wasted=int(spent.wasted.sum()),
        parts=len(parts),
        seconds=time.perf_counter() - began,
        fidelity=totals.audited.summary(),
    )


def snapshot_table(run: RunPaths) -> pa.Table:
    """The catalog as a collect would write it now, in memory."""
    for _ in range(TRIES):
        with suppress(_Outdated):
            source = RunSource.of(run)
            with _of_one_plan(run, source):
                check_plan(run, source.header)
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


@contextmanager
def _of_one_plan(run: RunPaths, source: RunSource) -> Iterator[None]:
    """_Outdated in place of a RunStateError, if the plan has been replaced."""
    try:
        yield
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


def _make_parts(
    run: RunPaths, source: RunSource, bands: Bands, drafts: Drafts
) -> tuple[list[Made], Spent]:
    """In order, and what was spent. The first band comes last, since its first part does."""
    header, said = source.header, ok_in_catalog(run)
    metadata, judged = _metadata(header, source.extent), judged_by(run, header)
    parts: dict[int, Made] = {}
    spent = Spent(len(bands.journals))

    def make(found: Winners) -> None:
        refuse_gone(run, found, said)
        folders = (drafts.parts, drafts.kept)
        maker = PartMaker(run, header, found, metadata, judged, folders)
        for part in maker.make({number: made.collect for number, made in parts.items()}):
            spent.add(found.index, part.lines, part.seconds)
            nothing = Seconds(_NONE, _NONE)  # their memory
            parts[part.number] = replace(part, lines=_NONE, seconds=nothing)
            tell("collect", part.rows, bands.rows)
        spent.add_rest(found)

    for band in reversed(range(bands.count)):
        make(bands.winners(band))  # which is gone before there is another
    return [parts[number] for number in sorted(parts)], spent


def _joined(parts: Sequence[Made]) -> Totals:
    totals = Totals()
    for part in parts:
        totals.join(part.totals)
    return totals


def _sync_journals(journals: Sequence[JournalFacts]) -> None:
    """Sync the journals, so that what the catalog was made from survives a power cut. Only some
    lines were synced by their ranks; earlier journals were synced by the intent, ended ones by
    their last line."""
    for facts in journals:
        if facts.journal.limit is None and facts.end is None:
            sync(facts.journal.path)


def _refuse_older(run: RunPaths, source: RunSource) -> None:
    """_Outdated if the plan was replaced, or if the published catalog was made from more."""
    if not source.is_current(run) or source.extent.is_before(collected(run)):
        raise _Outdated


def _refuse_changed(run: RunPaths, parts: Sequence[Made]) -> None:
    """_Outdated if a part that is to stay is another by now."""
    for part in parts:
        if not part.written:
            path = run.catalog_rows / part_name(part.number)
            try:
                metadata = pq.read_schema(path).metadata or {}
            except (OSError, pa.ArrowException):
                raise _Outdated from None
            if metadata.get(COLLECT_KEY, b"").decode() != part.collect:
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


def _publish(drafts: Path, target: Path, parts: int, turn: Turn) -> None:
    names = sorted(part.name for part in drafts.iterdir())
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        _set_aside(target, "folder")
    try:
        if len(names) == parts:
            drafts.replace(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    if drafts.exists():
        for name in names:
            failpoint("collect.before_part")
            turn.check()
            _clear(target / name)
            (drafts / name).replace(target / name)
        every = {part_name(number) for number in range(parts)}
        for old in target.glob("part-*.parquet"):
            if old.name not in every:  # from a version that cut the plan into more parts
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
