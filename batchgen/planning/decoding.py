"""The plan of a run that decodes the latents of another: that run's rows, as they would have been
planned for the media that are wanted now. So their keys, and what their files say, are those of
rows that were drawn and decoded in one run.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchgen.config.schema import JobConfig
from batchgen.errors import ConfigError, RunStateError
from batchgen.families.family import family_spec
from batchgen.planfile import PLAN_COLUMNS, open_parquet, plan_schema, reading
from batchgen.planning.digests import checkpoint_digest
from batchgen.planning.identity import KeyContext, context_of, row_keys
from batchgen.planning.manifests.defaults import CLIP_FORMAT, SINGLE_FRAME_FORMATS, STILL_FORMAT
from batchgen.planning.pricing.cost import cost_of
from batchgen.planning.store import (
    ROW_GROUP,
    WRITER_OPTIONS,
    BucketForecast,
    Plan,
    header_metadata,
    publish_plan,
    read_plan,
    regrouped,
    requests_of,
)
from batchgen.progress import tell
from batchgen.request import FIELDS, Bucket, Request

_OF_DECODING = "system.vae.tiled"  # of what is in the keys, what decides nothing before the latents


def make_decoding_plan(job: JobConfig, out: Path, source: Path, latents: Sequence[str]) -> Plan:
    """Plan to `out` (by rename) the decoding of rows of the plan `source`. `latents`: of each of
    its rows where they are (`media.stored`); a row where the text is empty is left out.

    Raises RunStateError where the rows were drawn with another checkpoint or under settings that
    are not the job's, ConfigError for a format that does not hold the rows' frames.
    """
    drawn = read_plan(source)
    checkpoint = checkpoint_digest(job.model, drawn.key_context.hash_mode)
    context = context_of(job, checkpoint)
    _refuse_others(drawn, context, job)
    rows = _Rows(job, source, context, latents)
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with pq.ParquetWriter(draft, rows.schema, **WRITER_OPTIONS) as writer:
            for table in regrouped(rows.tables()):
                writer.write_table(table, row_group_size=ROW_GROUP)
            plan = Plan(
                path=out,
                plan_id=rows.plan_id.hexdigest(),
                rows=rows.count,
                unique_rows=rows.drawn.total(),
                buckets=rows.forecasts(),
                key_context=context,
                cost_s_total=sum(forecast.cost_s for forecast in rows.forecasts()),
                manifest=drawn.manifest,
                manifest_digest=drawn.manifest_digest,
                checkpoint=checkpoint.files,
            )
            writer.add_key_value_metadata(header_metadata(plan))
        publish_plan(draft, out)
    finally:
        draft.unlink(missing_ok=True)
    return plan


def _refuse_others(drawn: Plan, now: KeyContext, job: JobConfig) -> None:
    others = [name for name in drawn.key_context.differences(now) if name != _OF_DECODING]
    if others:
        raise RunStateError(
            f"{', '.join(others)} changed since the latents were drawn "
            f"(model.weights is {job.model.weights}): pictures come from what drew the latents"
        )


class _Rows:
    """The rows on their way from one plan into the other."""

    def __init__(
        self, job: JobConfig, source: Path, context: KeyContext, latents: Sequence[str]
    ) -> None:
        self._job, self._source, self._context, self._latents = job, source, context, latents
        self._costs = cost_of(job)
        self._seconds: dict[Bucket, float] = {}
        self.count = 0
        self.drawn: Counter[Bucket] = Counter()  # rows that are no aliases
        self.plan_id = hashlib.sha256()
        carried = [field for field in plan_schema(source) if field.name not in PLAN_COLUMNS.names]
        self.schema = pa.schema([*PLAN_COLUMNS, *carried])

    def tables(self) -> Iterator[pa.Table]:
        """The rows that have latents, renumbered."""
        first = 0
        with reading(self._source):
            for batch in open_parquet(self._source).iter_batches(batch_size=ROW_GROUP):
                latents = self._latents[first : first + len(batch)]
                here = np.flatnonzero([*map(bool, latents)]).tolist()
                stored = pa.Table.from_batches([batch]).take(pa.array(here, pa.int64()))
                if len(stored):
                    yield self._table(stored, [latents[place] for place in here])
                first += len(batch)
                tell("plan", len(batch), len(self._latents))

    def forecasts(self) -> tuple[BucketForecast, ...]:
        """Sums by bucket, dearest first."""
        family, model = family_spec(self._job.model.family), self._job.model
        found = [
            BucketForecast(
                bucket=bucket,
                rows=rows,
                tokens=family.tokens(model, bucket),
                evaluations=0,
                denoise_s=0.0,
                encode_s=0.0,
                decode_s=rows * self._decode_s(bucket),
            )
            for bucket, rows in self.drawn.items()
        ]
        return tuple(sorted(found, key=lambda forecast: -forecast.cost_s))

    def _decode_s(self, bucket: Bucket) -> float:
        if bucket not in self._seconds:
            self._seconds[bucket] = self._costs.bucket(bucket).decode
        return self._seconds[bucket]

    def _table(self, stored: pa.Table, latents: Sequence[str]) -> pa.Table:
        aliases = pc.is_valid(stored["alias_of"]).to_pylist()
        rows = [*zip(requests_of(stored), latents, aliases, strict=True)]
        requests = [self._planned(self.count + n, *row) for n, row in enumerate(rows)]
        keys = row_keys(self._context, requests)
        requests = [replace(r, row_key=key) for r, key in zip(requests, keys, strict=True)]
        self.count += len(requests)
        self.plan_id.update(b"".join(map(bytes.fromhex, keys)))
        columns = []
        for field in self.schema:
            if field.name in FIELDS:
                values = [getattr(request, field.name) for request in requests]
                columns.append(pa.array(values, field.type))
            elif field.name in stored.column_names:
                columns.append(stored[field.name].cast(field.type))
            else:  # the source is older than the column
                columns.append(pa.nulls(len(stored), field.type))
        return pa.table(columns, schema=self.schema)

    def _planned(self, index: int, request: Request, latents: str, is_alias: bool) -> Request:
        """The row as it is planned now, but for its key."""
        output, bucket = self._job.output, request.bucket
        self.drawn[bucket] += not is_alias
        return replace(
            request,
            row_index=index,
            format=self._format(request),
            quality=output.quality,
            embed_metadata=int(output.embed_metadata),
            latents=latents,
            steps_expected=0.0,
            cost_s=0.0 if is_alias else self._decode_s(bucket),
        )

    def _format(self, request: Request) -> str:
        wanted, frames = self._job.output.format, request.num_frames
        if wanted == "auto":
            return STILL_FORMAT if frames == 1 else CLIP_FORMAT
        if wanted in SINGLE_FRAME_FORMATS and frames > 1:
            raise ConfigError(
                f"output.format: {wanted} holds one frame, but row {request.row_id!r} has "
                f"{frames}; legal: auto, or output.format=frames"
            )
        return wanted
