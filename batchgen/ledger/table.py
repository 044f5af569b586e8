"""Catalog rows as Arrow tables: a part of the plan joined with the commits that count for it."""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from batchgen.ledger.scan import CommitIndex, fetch_lines
from batchgen.ledger.schema import (
    ALIAS_ZERO,
    COMMIT,
    COMMIT_PATHS,
    OUTCOME,
    REQUEST,
    ROWS,
    default_of,
)
from batchgen.ledger.winners import Winners

CARRY = "carry."
EXTRA_PREFIXES = ("requested_",)  # of the plan: geometry as asked for, where it was adjusted
_CACHE_OFF = {"cache_strategy": "none"}


def catalog_schema(plan: pa.Schema) -> pa.Schema:
    """`ROWS` and the columns that the plan carries along: under their own name, or with the prefix
    `carry.` where that name is taken."""
    extra = [field.with_name(target) for field, target in _extra_columns(plan)]
    return pa.schema([*ROWS, *extra])


def catalog_rows(plan: pa.Table, found: Winners, plan_id: str) -> pa.Table:
    """The catalog of a part of the plan, in its order and in `catalog_schema`."""
    rows = plan["row_index"].to_numpy()
    line = found.line[found.plan.original[rows]]
    unique, place = np.unique(line, return_inverse=True)
    pending = int(len(unique) > 0 and unique[0] < 0)  # -1 sorts first
    commits = parse_commits(found.index, unique[pending:])
    place = pa.array(place - pending, mask=line < 0)
    alias = pa.array(found.plan.original[rows] != rows)
    columns = [_request_column(plan, field) for field in REQUEST]
    columns += [_outcome_column(commits, place, alias, field, plan_id) for field in OUTCOME]
    extra = [plan[field.name].combine_chunks() for field, _ in _extra_columns(plan.schema)]
    return pa.table([*columns, *extra], schema=catalog_schema(plan.schema))


def parse_commits(index: CommitIndex, lines: np.ndarray) -> pa.Table:
    """The commit lines at places `lines` of the index, in that order, in schema `COMMIT`."""
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
    column = commits[name].combine_chunks() if commits.num_rows else commits[name].chunk(0)
    return functools.reduce(lambda array, part: pc.struct_field(array, part), inner, column)


def _extra_columns(plan: pa.Schema) -> list[tuple[pa.Field, str]]:
    """(column of the plan, its name in the catalog)."""
    result = []
    for field in plan:
        if field.name.startswith(CARRY):
            name = field.name.removeprefix(CARRY)
            result.append((field, field.name if name in ROWS.names else name))
        elif field.name.startswith(EXTRA_PREFIXES):
            result.append((field, field.name))
    return result


def _request_column(plan: pa.Table, field: pa.Field) -> pa.Array:
    default = _CACHE_OFF.get(field.name, default_of(field.type))
    if field.name not in plan.column_names:
        return _constant(default, plan.num_rows, field.type)
    column = plan[field.name].combine_chunks().cast(field.type)
    return column if field.nullable else column.fill_null(default)


def _outcome_column(
    commits: pa.Table, place: pa.Array, alias: pa.Array, field: pa.Field, plan_id: str
) -> pa.Array:
    if field.name == "plan_id":
        return _constant(plan_id, len(place), field.type)
    if field.name == "latency_s":
        column = pc.subtract(commit_column(commits, "ended"), commit_column(commits, "started"))
    else:
        column = commit_column(commits, COMMIT_PATHS.get(field.name, field.name))
    default = "pending" if field.name == "status" else default_of(field.type)
    if not field.nullable:
        column = column.fill_null(default)
    column = column.take(place)
    if field.name in ALIAS_ZERO:
        column = pc.if_else(alias, 0.0, column)
    return column if field.nullable else column.fill_null(default)


def _constant(value: object, rows: int, kind: pa.DataType) -> pa.Array:
    return pa.repeat(pa.scalar(value, kind), rows)
