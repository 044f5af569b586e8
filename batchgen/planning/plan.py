"""Making a plan: one pass over the manifest, in bounded memory, into `plan.parquet`.

The plan is the contract that workers and the catalog read; nobody reads the manifest again. Rows
whose keys are equal are rendered once: the first is, the others name it in `alias_of`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchgen.caches.pilots import Pilot
from batchgen.config.schema import JobConfig
from batchgen.paths import RunPaths
from batchgen.planning.caching import NO_RUN, CacheSums, Earlier, wants_pilots
from batchgen.planning.digests import checkpoint_digest
from batchgen.planning.identity import (
    KeyContext,
    KeyHasher,
    context_of,
    derived_seeds,
    rate_in_key,
    settings_of,
)
from batchgen.planning.manifests.columns import REQUEST_COLUMNS
from batchgen.planning.manifests.defaults import Defaults, job_defaults
from batchgen.planning.manifests.images import Intake
from batchgen.planning.manifests.loras import Judge, any_lora
from batchgen.planning.manifests.manifest import Manifest, check_columns, open_manifest
from batchgen.planning.manifests.medianames import MediaNames
from batchgen.planning.manifests.problems import Problems
from batchgen.planning.manifests.rowids import Aliases, RowIds
from batchgen.planning.manifests.rows import ResolvedRows, resolve_rows
from batchgen.planning.pilots import find_pilots
from batchgen.planning.pricing.cost import UNMEASURED, FactorTable, cost_of
from batchgen.planning.pricing.costsums import CostSums
from batchgen.planning.store import (
    CARRY,
    ROW_GROUP,
    WRITER_OPTIONS,
    BucketForecast,
    Plan,
    PlanCosts,
    header_metadata,
    plan_schema,
    publish_plan,
    read_costs,
    read_keys,
    read_plan,
    read_requests,
    regrouped,
    row_indices,
)
from batchgen.progress import tell
from batchgen.request import FIELDS, Field

__all__ = [
    "BucketForecast",
    "Plan",
    "PlanCosts",
    "make_plan",
    "read_costs",
    "read_keys",
    "read_plan",
    "read_requests",
    "row_indices",
]


def make_plan(
    job: JobConfig,
    out: Path,
    *,
    hash_weights: str = "sampled",
    factors: FactorTable = UNMEASURED,
    context: KeyContext | None = None,
    earlier: Earlier = NO_RUN,
    check: Callable[[Plan], object] = lambda plan: None,
    keep: RunPaths | None = None,
    judge: Judge = any_lora,
) -> Plan:
    """Check the manifest, resolve every row and write the plan to `out` (by rename).

    `hash_weights`: sampled or full. `factors` scale the predicted costs by what was measured.
    `context`: of the keys, where it is known already; then the checkpoint is not read. `earlier`:
    what the run that is planned anew brings along. `check` is shown the plan before it is at `out`.
    `keep`: the run that keeps the rows' images; `judge` looks into LoRA files. Raises ManifestError
    listing the illegal rows, ConfigError or WeightsError, and what `check` raises; then nothing is
    left at `out`.
    """
    defaults = job_defaults(job)
    manifest = open_manifest(Path(job.manifest))
    check_columns(manifest, job.carry_columns)
    files: dict[str, str] = {}
    if context is None:
        checkpoint = checkpoint_digest(job.model, hash_weights)
        context, files = context_of(job, checkpoint), checkpoint.files
    intake = Intake.of(manifest.path, keep, judge)
    costs = cost_of(job, factors)
    pilots: tuple[Pilot, ...] = ()
    if wants_pilots(job) and not earlier.fitted:
        pilots = find_pilots(job, context.weights, manifest, defaults, costs, earlier, intake)
        more = (row for pilot in pilots for row in pilot.rows)
        earlier = replace(earlier, drawn=tuple(sorted({*earlier.drawn, *more})))
    caches = CacheSums(job, context.weights, earlier)
    hasher, sums = KeyHasher(context), CostSums(costs)
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with closing(RowIds(out.parent)) as ids:
            rows = _Rows(manifest, defaults, hasher, sums, caches, intake, ids)
            header = partial(rows.plan, out, job.manifest, context, files, pilots)
            plan = _write(rows, draft, job.carry_columns, header)
        caches.check_floor()
        check(plan)
        publish_plan(draft, out)
    finally:
        draft.unlink(missing_ok=True)
    return plan


def _write(rows: _Rows, draft: Path, carried: Sequence[str], header: Callable[[], Plan]) -> Plan:
    """All rows, and the header, which is known once they are through."""
    schema = plan_schema([(name, rows.manifest.column_type(name)) for name in carried])
    with pq.ParquetWriter(draft, schema, **WRITER_OPTIONS) as writer:
        for table in regrouped(rows.tables(schema)):
            writer.write_table(table, row_group_size=ROW_GROUP)
        plan = header()
        writer.add_key_value_metadata(header_metadata(plan))
    return plan


class _Rows:
    """The rows of a manifest on their way into the plan, batch by batch."""

    def __init__(
        self,
        manifest: Manifest,
        defaults: Defaults,
        hasher: KeyHasher,
        costs: CostSums,
        caches: CacheSums,
        intake: Intake,
        ids: RowIds,
    ) -> None:
        self.intake = intake
        self.manifest = manifest
        self.defaults = defaults
        self.hasher = hasher
        self.costs = costs
        self.caches = caches
        self.problems = Problems()
        self.ids = ids
        self.aliases = Aliases(manifest.rows)
        self.names = MediaNames(defaults.name, self.problems, manifest.rows)
        self._plan_hash = hashlib.sha256()
        self._drawn_as: dict[int, int] = {}  # row of a pilot -> the row that is drawn for it

    @property
    def plan_id(self) -> str:
        """sha256 over the keys of all rows so far."""
        return self._plan_hash.hexdigest()

    def plan(
        self,
        out: Path,
        manifest: str,
        context: KeyContext,
        checkpoint: dict[str, str],
        pilots: Sequence[Pilot],
    ) -> Plan:
        """What the header says, once all rows are through; `manifest` is the path in the job."""
        forecasts = self.costs.forecasts()
        return Plan(
            path=out,
            plan_id=self.plan_id,
            rows=self.ids.rows,
            unique_rows=self.aliases.unique,
            buckets=forecasts,
            key_context=context,
            checkpoint=checkpoint,
            cost_s_total=sum(forecast.cost_s for forecast in forecasts),
            manifest=manifest,
            manifest_digest=self.manifest.digest(),
            caches=self.caches.forecasts(),
            cache_refused=dict(self.caches.refused),
            cache_tables=tuple(sorted(self.caches.tables)),
            choices=self.caches.found_ratios(),
            loras=dict(self.intake.loras.found),
            pilots=tuple(map(self._as_drawn, pilots)),
        )

    def _as_drawn(self, pilot: Pilot) -> Pilot:
        """The pilot, of rows that are drawn: one may be an alias of a row without a cache."""
        return replace(pilot, rows=tuple(dict.fromkeys(self._drawn_as[row] for row in pilot.rows)))

    def tables(self, schema: pa.Schema) -> Iterator[pa.Table]:
        """The plan's rows. Behind the first illegal row all are only checked; when all is
        read, raises ManifestError listing the illegal rows."""
        manifest, known = self.manifest, set(self.manifest.columns)
        wanted = [*REQUEST_COLUMNS, *(f.name.removeprefix(CARRY) for f in schema if _is_carried(f))]
        for batch in manifest.batches([name for name in wanted if name in known]):
            rows = resolve_rows(batch, self.ids.rows, self.defaults, self.problems, self.intake)
            self.ids.add(rows.column("row_id"))
            if not self.problems.count:
                yield self._table(rows, batch, schema)
            else:
                self.caches.look_up(rows, self.problems)
            tell("plan", len(batch), manifest.rows)
        if "row_id" in known:
            self.ids.report_duplicates(self.problems, manifest.place)
        self.problems.raise_if_any(manifest.path, manifest.place)

    def _table(self, rows: ResolvedRows, batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
        n = len(rows)
        cached = self.caches.look_up(rows, self.problems)
        if cached is not None:
            rows = rows.with_columns(cached.columns())
        seeds = _all_seeds(rows, self.defaults.job_seed)
        texts = _utf8_slices(rows.column("prompt"))
        settings = settings_of(lambda field: _in_key(rows, field))
        digests = self.hasher.keys(settings, seeds.tolist(), texts)
        originals = self.aliases.originals(rows.first_row, digests)
        index = np.arange(rows.first_row, rows.first_row + n)
        is_alias = originals != index
        for row in self.caches.drawn_among(rows):
            self._drawn_as[row] = int(originals[row - rows.first_row])
        audits = self.caches.audits(cached, digests) & ~is_alias
        cost_s, expected, bucket = self.costs.add(rows, is_alias, cached, audits)
        if cached is not None:
            self.caches.count(cached, rows.column("cache_refused"), ~is_alias)
        names = self.names.add(rows, seeds.tolist(), is_alias.tolist())
        packed = b"".join(digests)
        self._plan_hash.update(packed)
        columns = dict(zip(rows.columns.schema.names, rows.columns.columns, strict=True)) | {
            "row_index": pa.array(index),
            "row_key": _hex_strings(packed, n),
            "alias_of": self._alias_names(originals, is_alias),
            "seed": pa.array(seeds),
            "cost_s": pa.array(cost_s),
            "steps_expected": pa.array(expected),
            "bucket": bucket,
            "media_name": names,
        }
        arrays = []
        for field in schema:
            if _is_carried(field):
                carried = field.with_name(field.name.removeprefix(CARRY))
                arrays.append(self.manifest.extra_column(batch, rows.first_row, carried))
            else:
                arrays.append(_stored(columns.get(field.name), field, n))
        return pa.Table.from_arrays(arrays, schema=schema)

    def _alias_names(self, originals: np.ndarray, is_alias: np.ndarray) -> pa.Array:
        names: list[str | None] = [None] * len(originals)
        for position in np.flatnonzero(is_alias).tolist():
            names[position] = self.ids.of(int(originals[position]))
        return pa.array(names, pa.string())


# ---------------------------------------------------------------------------------- arrays of rows
def _in_key(rows: ResolvedRows, field: Field) -> list[object]:
    """A field of all rows as it enters their keys. Of equal texts there is one object."""
    if field.name not in rows.columns.schema.names:
        return []  # no row sets it
    column = rows.column(field.name)
    if field.kind in ("text", "image", "lora"):
        coded = column.dictionary_encode(null_encoding="encode")
        texts: list[object] = coded.dictionary.to_pylist()
        return [texts[code] for code in coded.indices.to_pylist()]
    values = column.to_pylist()
    return [rate_in_key(rate) for rate in values] if field.name == "fps" else values


def _stored(column: pa.Array | None, field: pa.Field, rows: int) -> pa.Array:
    """A column of the plan; the field's default where no row sets it."""
    if column is None:
        return pa.repeat(pa.scalar(FIELDS[field.name].default, field.type), rows)
    return column.cast(field.type)


def _all_seeds(rows: ResolvedRows, job_seed: int) -> np.ndarray:
    """Every row's seed: its own, or derived from its id."""
    given, ids = rows.column("seed"), rows.column("row_id")
    seeds = np.array(pc.fill_null(given, 0), np.int64)
    missing = np.flatnonzero(given.is_null().to_numpy(zero_copy_only=False))
    if len(missing):
        seeds[missing] = derived_seeds(job_seed, ids.take(pa.array(missing)).to_pylist())
    return seeds


def _utf8_slices(texts: pa.Array) -> Iterator[memoryview]:
    """The UTF-8 bytes of each text of a large_string array, without a copy."""
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1].tolist()
    view = memoryview(data) if data is not None else memoryview(b"")
    return (view[start:end] for start, end in pairwise(ends))


def _hex_strings(packed: bytes, rows: int) -> pa.Array:
    """One 64-character string per 32-byte digest, made as one buffer."""
    offsets = np.arange(rows + 1, dtype=np.int32) * 64
    buffers = [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(packed.hex().encode())]
    return pa.Array.from_buffers(pa.string(), rows, buffers)


def _is_carried(field: pa.Field) -> bool:
    return bool(field.name.startswith(CARRY))
