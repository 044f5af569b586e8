"""What a report is made from: a catalog that is up to date, read in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchgen.catalog.collect import collect
from batchgen.ledger.fidelity import Fidelity, read_fidelity
from batchgen.ledger.status import RunStatus, read_status
from batchgen.ledger.upkeep.extent import Extent
from batchgen.ledger.upkeep.losses import collected
from batchgen.ledger.upkeep.pieces import parts_of, pieces
from batchgen.paths import RunPaths
from batchgen.planfile import reading
from batchgen.progress import tell
from batchgen.records import ranks_named
from batchgen.runfile import RunFile, read_run

PIECE_ROWS = 50_000  # in memory at a time
COLUMNS = (
    "row_index", "row_id", "alias_of", "status", "prompt", "tags", "bucket", "seed",
    "width", "height", "num_frames", "fps", "num_steps", "cost_s", "media_path",
    "media_sha256", "media_bytes", "media_offset",
    "score", "psnr", "ssim", "cache_strategy", "cache_ratio", "steps_total", "steps_computed",
    "steps_restored",
    "encode_s", "denoise_s", "decode_s", "started", "ended", "attempt", "host", "layout",
    "device", "memory_rung",
    "error_type", "error", "traceback",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Source:
    """A run at one moment."""

    run: RunPaths
    header: RunFile
    status: RunStatus
    attempts: pa.Table  # schema `catalog.columns.RUNS`
    fidelity: tuple[Fidelity, ...]

    @classmethod
    def of(cls, run: RunPaths) -> Source:
        """The run as it is now; collects it first if its ledger has grown since the last time, or
        if an older version did. RunStateError and StorageError as `collect` raises them."""
        if not _has_columns(run) or Extent.of(run).exceeds(collected(run)):
            collect(run)
        with reading(run.catalog_runs, "catalog of attempts"):
            attempts = pq.read_table(run.catalog_runs)
        return cls(run, read_run(run), read_status(run), attempts, read_fidelity(run))

    @property
    def devices(self) -> list[str]:
        """Names of the devices that attempts had."""
        return sorted({*self.attempts["device"].to_pylist()} - {""})

    def pieces(self) -> Iterator[pa.Table]:
        """The catalog in the plan's order, with the columns `COLUMNS` and those of `_measured`."""
        for table in pieces(parts_of(self.run.catalog_rows), PIECE_ROWS, COLUMNS):
            yield _measured(table)
            tell("report", len(table), self.header.rows)


def _has_columns(run: RunPaths) -> bool:
    """Whether there is a catalog with all that a page is made of."""
    parts = parts_of(run.catalog_rows)
    with reading(run.catalog_rows, "catalog"):
        return bool(parts) and {*COLUMNS}.issubset(pq.read_schema(parts[0]).names)


def _measured(rows: pa.Table) -> pa.Table:
    """Adds `seconds` (of devices, that the row took: encoding, denoising and decoding, times the
    ranks that drew it together), `own` (whether the row is ok and was rendered itself) and `whole`
    (whether that was one attempt's work)."""
    layouts = rows["layout"].combine_chunks().dictionary_encode()
    ranks = pa.array([ranks_named(name) for name in layouts.dictionary.to_pylist()], pa.float64())
    busy = pc.add(pc.add(rows["encode_s"], rows["denoise_s"]), rows["decode_s"])
    seconds = pc.multiply(busy, ranks.take(layouts.indices))
    alias = pc.fill_null(pc.not_equal(rows["alias_of"], ""), False)
    own = pc.and_not(pc.equal(rows["status"], "ok"), alias)
    whole = pc.and_(own, pc.equal(pc.fill_null(rows["steps_restored"], 0), 0))
    rows = rows.append_column("seconds", seconds).append_column("own", own)
    return rows.append_column("whole", whole)
