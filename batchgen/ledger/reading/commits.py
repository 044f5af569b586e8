"""Commit lines as Arrow tables: their schema, and the function that parses them."""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from batchgen.ledger.reading.scan import CommitIndex, fetch_lines

TEXT = pa.large_string()  # the 32-bit offsets of pa.string() overflow at 2 GiB of prompts
STAGES = (
    "queue",
    "encode",
    "denoise",
    "decode",
    "d2h",
    "write",
    "judge",
)  # StageSeconds
AUDIT = "psnr ssim busy seconds steps"  # of records.Audit


def columns(kind: pa.DataType, names: str, nullable: bool = False) -> list[pa.Field]:
    """Fields of one type, their names separated by spaces."""
    return [pa.field(name, kind, nullable=nullable) for name in names.split()]


# a commit line as JSON, in the nesting of records.Commit; any part may be null
_METRIC = columns(TEXT, "column text", nullable=True)
_MEDIA = [
    *columns(TEXT, "path sha256 frames_sha256", nullable=True),
    *columns(pa.int64(), "bytes offset", nullable=True),
    *columns(pa.int32(), "num_frames", nullable=True),
]
STATS = [
    pa.field("stages", pa.struct(columns(pa.float64(), " ".join(STAGES), nullable=True))),
    pa.field("audit", pa.struct(columns(pa.float64(), AUDIT, nullable=True))),
    *columns(pa.int32(), "steps_total steps_restored prompt_tokens", nullable=True),
    *columns(pa.int32(), "negative_prompt_tokens cache_restarts", nullable=True),
    *columns(pa.int64(), "cache_bytes", nullable=True),
    *columns(pa.float64(), "steps_computed_cond steps_computed_uncond", nullable=True),
    *columns(pa.float64(), "steps_computed step_p50_s step_p95_s", nullable=True),
    *columns(pa.float64(), "batch_size_mean peak_mem_gib host_rss_gib", nullable=True),
    *columns(pa.bool_(), "prompt_truncated negative_prompt_truncated", nullable=True),
    *columns(TEXT, "determinism attention_kernel device memory_rung", nullable=True),
]
COMMIT = pa.schema(
    [
        *columns(pa.int64(), "row_index", nullable=True),
        *columns(TEXT, "status row_key attempt host error_type error traceback", nullable=True),
        *columns(pa.int32(), "shard tries", nullable=True),
        *columns(pa.float64(), "started ended", nullable=True),
        *columns(pa.float64(), "score", nullable=True),  # of versions before `metrics`
        *columns(pa.int64(), "seed", nullable=True),
        *columns(TEXT, "judge_notes", nullable=True),
        pa.field("metrics", pa.list_(pa.struct(_METRIC))),
        pa.field("media", pa.struct(_MEDIA)),
        pa.field("stats", pa.struct(STATS)),
    ]
)


def parse_commits(index: CommitIndex, lines: np.ndarray) -> pa.Table:
    """The commit lines at places `lines` of the index, in that order, in the schema `COMMIT`."""
    if not len(lines):
        return COMMIT.empty_table()
    raw = fetch_lines(index, lines)
    longest = max(map(len, raw))
    parse = pj.ParseOptions(explicit_schema=COMMIT, unexpected_field_behavior="ignore")
    read = pj.ReadOptions(block_size=max(1 << 22, 2 * longest))
    table = pj.read_json(pa.BufferReader(b"".join(raw)), read, parse)
    return table.combine_chunks()


def commit_column(commits: pa.Table, path: str) -> pa.Array:
    """A column of `parse_commits` by its dotted path; null where a part of the path is null."""
    name, *inner = path.split(".")
    column = commits[name].chunk(0)  # the only one
    return functools.reduce(lambda array, part: pc.struct_field(array, part), inner, column)


def metric_column(commits: pa.Table, name: str) -> pa.Array:
    """The numbers of a judge's column in `parse_commits` (float64); null where a row has none."""
    lists = commits["metrics"].chunk(0)
    found = pc.list_flatten(lists)
    mine = pc.equal(pc.struct_field(found, "column"), name)
    rows = pc.list_parent_indices(lists).filter(mine).to_numpy()
    numbers = np.zeros(len(commits))
    absent = np.ones(len(commits), bool)
    numbers[rows] = pc.struct_field(found, "text").filter(mine).cast(pa.float64()).to_numpy()
    absent[rows] = False
    numbers = pa.array(numbers, mask=absent)
    return pc.coalesce(numbers, commits["score"].chunk(0)) if name == "score" else numbers
