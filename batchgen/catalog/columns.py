"""The catalog's columns: one explicit schema, so that every part of every run has the same types.

Numbers are not null, except where the column says so: pandas would read an int64 with nulls as
float64 and lose large seeds. Rows without a commit hold 0, 0.0 or "", and `status` says so. Strings
are not null either, except what a row left out (`tags`) or does not have (`alias_of`).
"""

from __future__ import annotations

from dataclasses import fields

import pyarrow as pa

from batchgen.ledger.reading.commits import STAGES, STATS, TEXT, columns
from batchgen.planfile import PLAN_COLUMNS, stored_type
from batchgen.records import EngineCounters, Layout
from batchgen.request import FIELDS


def _of_request(name: str) -> pa.Field:
    """A field of the table, or a column that planning adds, as the catalog keeps it."""
    field = FIELDS.get(name)
    kind = PLAN_COLUMNS.field(name).type if field is None else stored_type(field)
    nullable = name == "alias_of" or (field is not None and field.nullable)
    return pa.field(name, TEXT if pa.types.is_string(kind) else kind, nullable=nullable)


# from the plan, as resolved before rendering
REQUEST = [
    _of_request(name)
    for name in dict.fromkeys([*PLAN_COLUMNS.names, *FIELDS])
    if name not in FIELDS or FIELDS[name].column.catalog
]
# from the row's commit line
OUTCOME = [
    *columns(TEXT, "status"),
    *columns(TEXT, "media_path media_sha256"),
    *columns(pa.int64(), "media_bytes media_offset"),
    *columns(TEXT, "frames_sha256"),
    *columns(pa.int32(), "media_frames"),
    *columns(pa.float64(), "score", nullable=True),  # of the judge that has a column of this name
    *columns(TEXT, "judge_notes"),
    *columns(pa.float64(), "psnr ssim", nullable=True),  # null where the row was not audited
    *columns(TEXT, "attempt"),
    *columns(pa.int32(), "shard tries"),
    *columns(TEXT, "host device"),
    *columns(pa.float64(), "started ended"),  # unix seconds
    *columns(pa.float64(), "queue_s encode_s denoise_s decode_s d2h_s write_s judge_s latency_s"),
    *columns(pa.float64(), "step_p50_s step_p95_s"),
    *columns(pa.int32(), "steps_total"),
    *columns(pa.float64(), "steps_computed steps_computed_cond steps_computed_uncond"),
    *columns(pa.int64(), "cache_bytes"),
    *columns(pa.int32(), "cache_restarts"),
    *columns(pa.float64(), "batch_size_mean"),
    *columns(pa.float64(), "audit_s audit_steps"),  # spent on the same row without its cache
    *columns(pa.float64(), "peak_mem_gib", nullable=True),  # memory of the device; null on a CPU
    *columns(pa.float64(), "host_rss_gib"),
    *columns(pa.int32(), "steps_restored prompt_tokens"),
    *columns(pa.bool_(), "prompt_truncated"),
    *columns(pa.int32(), "negative_prompt_tokens"),
    *columns(pa.bool_(), "negative_prompt_truncated"),
    *columns(TEXT, "determinism attention_kernel layout memory_rung"),
    *columns(TEXT, "error_type error traceback"),
    *columns(TEXT, "plan_id"),
]
ROWS = pa.schema([*REQUEST, *OUTCOME])
SCORE = "score"  # the one column of a judge that is always there: the report looks at it

# catalog column -> path inside a commit line, where they differ
COMMIT_PATHS = {
    **{f"media_{name}": f"media.{name}" for name in ("path", "sha256", "bytes", "offset")},
    "frames_sha256": "media.frames_sha256",
    "media_frames": "media.num_frames",
    **{f"{name}_s": f"stats.stages.{name}" for name in STAGES},
    **{f.name: f"stats.{f.name}" for f in STATS if not pa.types.is_struct(f.type)},
    "psnr": "stats.audit.psnr",
    "ssim": "stats.audit.ssim",
    "audit_s": "stats.audit.seconds",
    "audit_steps": "stats.audit.steps",
}
# device time was spent once, on the rendered row, so an alias has 0
ALIAS_ZERO = (*(f"{name}_s" for name in (*STAGES, "latency", "audit")), "audit_steps")

LAYOUT_PREFIX = "layout_"
_NUMBERS: dict[object, pa.DataType] = {"int": pa.int32(), "float": pa.float64()}
LAYOUT = [
    *columns(TEXT, "layout"),  # in short
    *(
        pa.field(LAYOUT_PREFIX + f.name, _NUMBERS.get(f.type, TEXT), nullable=False)
        for f in fields(Layout)
        if f.name != "fits"  # what does not is refused
    ),
]
COUNTERS = fields(EngineCounters)
_COUNTED: dict[type, pa.DataType] = {
    int: pa.int64(),
    float: pa.float64(),
    str: TEXT,
    type(None): pa.float64(),  # measured on some devices only
}
RUNS = pa.schema(
    [
        *columns(TEXT, "run attempt"),
        *columns(pa.int32(), "submission task restart replica rank world_size"),
        *columns(TEXT, "host job_id device"),
        *columns(pa.int32(), "devices"),
        *columns(pa.float64(), "started ended wall_s load_s compile_s warmup_s other_s move_s"),
        *columns(pa.float64(), "busy_s idle_s useful_s retried_s fenced_s saved_s lost_s tail_s"),
        *columns(pa.float64(), "encode_s denoise_s shared_decode_s write_s"),
        *columns(pa.int64(), "rows_ok rows_failed rows_wasted rows_saved rows_lost"),
        *(
            pa.field(c.name, _COUNTED[type(c.default)], nullable=c.default is None)
            for c in COUNTERS
        ),
        *LAYOUT,
        *columns(TEXT, "exit_reason error"),
        *columns(TEXT, "versions config overrides"),  # JSON
    ]
)


def default_of(kind: pa.DataType) -> object:
    """The value of a column that is never null, where there is nothing to record."""
    if pa.types.is_large_string(kind):
        return ""
    if pa.types.is_boolean(kind):
        return False
    return 0.0 if pa.types.is_floating(kind) else 0
