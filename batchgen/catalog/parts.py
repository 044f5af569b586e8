"""The parts of a catalog, each made on its own. A part in which nothing has changed since a collect
published it stays as it is; where some rows have changed, the others come from the published part;
else all rows are made from plan and journals. All three give the same rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.catalog.accounts import Seconds
from batchgen.catalog.fidelity import COLUMNS
from batchgen.catalog.kept_rows import KeptPart, RowLines
from batchgen.catalog.source import COLLECT_KEY, PARTS_KEY
from batchgen.catalog.table import (
    PlanPart,
    catalog_rows,
    catalog_schema,
    join,
    layouts_of,
    mended_rows,
    outcome_rows,
)
from batchgen.catalog.totals import Totals
from batchgen.ledger.reading.bands import Bands
from batchgen.ledger.reading.kept_scan import scan_and_keep
from batchgen.ledger.reading.winners import Winners
from batchgen.ledger.upkeep.extent import EXTENT_KEY
from batchgen.paths import RunPaths
from batchgen.planfile import own_parquet, plan_schema, reading
from batchgen.regular import digest_regular, open_regular
from batchgen.request import FIELDS
from batchgen.runfile import RunFile

PART_ROWS = 65_536  # of the plan: part k always holds the same ones
GROUP_ROWS = 8_192  # rows in memory at a time, for each of WORKERS
WORKERS = 2  # parts that are made at once
_REPEATED = (
    *(n for n, field in FIELDS.items() if field.kind == "text" and n not in ("row_id", "row_key")),
    *("status", "attempt", "host", "device", "plan_id"),
    *("determinism", "attention_kernel", "layout", "error_type"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """A part as it is to be published, or stands already."""

    number: int
    rows: int
    collect: str  # number of the collect that wrote it
    written: bool
    totals: Totals
    lines: np.ndarray  # of the index, that its rows (but for aliases) are made from
    seconds: Seconds  # of these


@dataclass(frozen=True, slots=True, eq=False)
class _Published:
    """A part as it stands, with what is known of it."""

    kept: KeptPart
    file: pq.ParquetFile
    changed: np.ndarray  # bool, one a row

    @property
    def metadata(self) -> dict[bytes, bytes]:
        return dict(self.file.schema_arrow.metadata)


def bands_of(run: RunPaths) -> Bands:
    """The ledger in bands of whole parts; errors are those of `Bands`."""
    return Bands(run, partial(scan_and_keep, run), PART_ROWS)


def part_name(number: int) -> str:
    return f"part-{number:05d}.parquet"


class PartMaker:
    """Makes the parts of one collect, those of a band of rows."""

    def __init__(
        self,
        run: RunPaths,
        header: RunFile,
        found: Winners,
        metadata: Mapping[bytes, bytes],
        judged: tuple[str, ...],
        folders: tuple[Path, Path],
    ) -> None:
        """The band begins and, unless it is the last one, ends between two parts. `metadata` is
        that of the first part, with COLLECT_KEY. `folders`: of new parts, and of what is kept of
        them."""
        self._run, self._found, self._judged = run, found, judged
        self._plan_id, self._plan = header.plan_id, header.plan_sha256
        self._metadata = dict(metadata)
        self._folder, self._kept_folder = folders
        self._layouts = layouts_of(run, found.index)
        tags = [facts.journal.attempt.tag for facts in found.index.journals]
        names = zip(tags, self._layouts.to_pylist(), strict=True)
        self._journals = {f"{tag} {layout}": place for place, (tag, layout) in enumerate(names)}
        with reading(run.plan):
            self._planned = own_parquet(run.plan).metadata
            groups = range(self._planned.num_row_groups)
            sizes = [self._planned.row_group(group).num_rows for group in groups]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._plan_columns = plan_schema(run.plan)
        self._schema = catalog_schema(self._plan_columns, judged)

    def make(self, others: Mapping[int, str]) -> Iterator[Made]:
        """The parts. That of the first rows comes last, since it lists the collects that all are
        of: it takes those of `others`, parts of other bands by their numbers, from there."""
        begin, rows = self._found.plan.first, self._found.plan.own
        numbers = range(begin // PART_ROWS, max(1, -(-(begin + rows) // PART_ROWS)))
        collects = dict(others)
        with ThreadPoolExecutor(WORKERS) as pool:
            try:
                for made in pool.map(self._part, numbers[not begin :]):
                    collects[made.number] = made.collect
                    yield made
            finally:
                pool.shutdown(cancel_futures=True)
        if not begin:
            yield self._part(0, [collects[number] for number in sorted(collects)])

    def _part(self, number: int, others: Iterable[str] = ()) -> Made:
        first, plan = number * PART_ROWS, self._found.plan
        begin = first - plan.first
        original = plan.original[begin : min(begin + PART_ROWS, plan.own)]
        line = self._found.line[original]
        own = (original == np.arange(begin, begin + len(line))) & (line >= 0)
        lines = RowLines.of(self._found, line)
        known = self._published(number, first, lines)
        if known is not None and not known.changed.any():
            collect = known.kept.collect
            if known.metadata == self._metadata_of(number, collect, others):
                totals, seconds = _totals_of(known), known.kept.seconds
                return Made(number, len(line), collect, False, totals, line[own], _at(seconds, own))
        if known is not None and 2 * int(known.changed.sum()) > len(line):
            known = None
        collect = self._metadata[COLLECT_KEY].decode()
        metadata = self._metadata_of(number, collect, others)
        totals, seconds = self._write(number, first, own, known, metadata)
        self._keep(number, collect, first, lines, seconds, totals)
        return Made(number, len(line), collect, True, totals, line[own], _at(seconds, own))

    def _metadata_of(self, number: int, collect: str, others: Iterable[str]) -> dict[bytes, bytes]:
        """Of a part of that collect: only the first speaks of the whole catalog."""
        metadata = self._metadata | {COLLECT_KEY: collect.encode()}
        if number:
            del metadata[EXTENT_KEY]
            return metadata
        return metadata | {PARTS_KEY: json.dumps([collect, *others]).encode()}

    def _published(self, number: int, first: int, lines: RowLines) -> _Published | None:
        """None unless the part that stands was made of the same rows of the same plan, is as it was
        written, and has the columns that it would have now."""
        name = part_name(number)
        kept = KeptPart.read(self._run.kept_rows(name)) if self._plan else None
        if kept is None or (kept.plan, kept.first) != (self._plan, first):
            return None
        if self._run.catalog_rows.is_symlink():  # a folder of its own takes its place
            return None
        if len(kept.lines.crc) != len(lines.crc):
            return None
        with suppress(OSError), open_regular(self._run.catalog_rows / name) as opened:
            data = opened.read()
            if hashlib.sha256(data).hexdigest() == kept.digest:
                file = pq.ParquetFile(pa.BufferReader(data))
                if file.schema_arrow.equals(self._schema) and _is_grouped(file):
                    changed = ~kept.among(self._journals).equals(lines)
                    return _Published(kept, file, changed)
        return None

    def _write(
        self,
        number: int,
        first: int,
        own: np.ndarray,
        known: _Published | None,
        metadata: dict[bytes, bytes],
    ) -> tuple[Totals, Seconds]:
        totals, seconds = Totals(), Seconds(*np.zeros((2, len(own))))
        schema = self._schema.with_metadata(metadata)
        with _part_writer(self._folder / part_name(number), schema) as writer:
            for begin in range(0, len(own), GROUP_ROWS):
                group = slice(begin, min(begin + GROUP_ROWS, len(own)))
                if known is None:
                    table, took = self._fresh(first, group, own)
                else:
                    table, took = self._mended(first, group, own, known)
                seconds.busy[group], seconds.write[group] = took.busy, took.write
                writer.write_table(table.replace_schema_metadata(schema.metadata))
                totals.add(table)
        return totals, seconds

    def _fresh(self, first: int, group: slice, own: np.ndarray) -> tuple[pa.Table, Seconds]:
        """Rows of a group from plan and journals, and their seconds."""
        part = join(self._plan_rows(first + group.start, first + group.stop), self._found)
        table = catalog_rows(part, self._plan_id, self._layouts, self._judged)
        return table, _seconds_of(part, own[group])

    def _mended(
        self, first: int, group: slice, own: np.ndarray, known: _Published
    ) -> tuple[pa.Table, Seconds]:
        """Rows of a group: as published, but for those that have changed."""
        changed, seconds = known.changed[group], _at(known.kept.seconds, group)
        table = known.file.read_row_group(group.start // GROUP_ROWS)
        if changed.any():
            plan = self._plan_rows(first + group.start, first + group.stop, ["row_index", "seed"])
            part = join(plan.filter(pa.array(changed)), self._found)
            new = outcome_rows(part, self._schema, self._plan_id, self._layouts, self._judged)
            table = mended_rows(table, changed, new)
            took = _seconds_of(part, own[group][changed])
            seconds.busy[changed], seconds.write[changed] = took.busy, took.write
        return table, seconds

    def _plan_rows(self, begin: int, end: int, columns: list[str] | None = None) -> pa.Table:
        """Rows of the plan, or columns of theirs, from the row groups that hold them."""
        groups = np.searchsorted(self._starts, [begin, end - 1], side="right") - 1
        with reading(self._run.plan):
            file = pq.ParquetFile(
                self._run.plan, metadata=self._planned, page_checksum_verification=True
            )
            table = file.read_row_groups([*range(groups[0], groups[1] + 1)], columns)
            rows = table.slice(begin - int(self._starts[groups[0]]), end - begin)
            if len(rows) != end - begin:
                raise ValueError(f"no rows {begin} to {end}")
        return rows.combine_chunks()

    def _keep(
        self,
        number: int,
        collect: str,
        first: int,
        lines: RowLines,
        seconds: Seconds,
        totals: Totals,
    ) -> None:
        """Note beside the new part what it was made from."""
        if not self._plan:
            return
        digest, _ = digest_regular(self._folder / part_name(number))
        names = tuple(self._journals)
        used, places = np.unique(lines.journal, return_inverse=True)
        none = int(len(used) > 0 and used[0] < 0)  # -1 sorts first
        journal = (places - none).astype(np.int32)
        kept = KeptPart(
            collect=collect,
            digest=digest,
            plan=self._plan,
            first=first,
            journals=tuple(names[place] for place in used[none:].tolist()),
            lines=RowLines(journal, lines.offset, lines.crc),
            seconds=seconds,
            totals=totals.to_json(),
        )
        with suppress(OSError):  # the next collect is slower, and that is all
            kept.write(self._kept_folder / self._run.kept_rows(part_name(number)).name)


def _totals_of(known: _Published) -> Totals:
    """Those of a part that stays, without a look at more of it than its audited rows."""
    totals = Totals.from_json(known.kept.totals)
    if known.kept.totals["audited"]:
        totals.audited.add(known.file.read(columns=COLUMNS))
    return totals


def _is_grouped(file: pq.ParquetFile) -> bool:
    """Whether each row group but the last has GROUP_ROWS."""
    rows, last = file.metadata.num_rows, file.num_row_groups - 1
    sizes = [file.metadata.row_group(group).num_rows for group in range(last)]
    return rows <= GROUP_ROWS * (last + 1) and {*sizes} <= {GROUP_ROWS}


def _seconds_of(part: PlanPart, own: np.ndarray) -> Seconds:
    """Of each row of a part; 0 unless it is its `own` line that it is made from."""
    place = part.place.fill_null(0).to_numpy()[own]
    took, seconds = Seconds.of(part.commits), Seconds(*np.zeros((2, len(own))))
    seconds.busy[own], seconds.write[own] = took.busy[place], took.write[place]
    return seconds


def _at(seconds: Seconds, places: np.ndarray | slice) -> Seconds:
    return Seconds(seconds.busy[places], seconds.write[places])


def _part_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    repeated = [name for name in _REPEATED if name in schema.names]
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=repeated,
        write_page_checksum=True,
    )
