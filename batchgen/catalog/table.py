"""Catalog rows as Arrow tables: a part of the plan joined with the commits that count for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchgen.catalog.columns import (
    ALIAS_ZERO,
    COMMIT_PATHS,
    OUTCOME,
    REQUEST,
    ROWS,
    SCORE,
    default_of,
)
from batchgen.config.judges import columns_of
from batchgen.ledger.intent import intents, read_intent, submission_numbers
from batchgen.ledger.reading.commits import commit_column, metric_column, parse_commits
from batchgen.ledger.reading.scan import CommitIndex
from batchgen.ledger.reading.winners import Winners
from batchgen.paths import RunPaths
from batchgen.request import FIELDS
from batchgen.runfile import RunFile

CARRY, JUDGE = "carry.", "judge."
_TAKEN = {*ROWS.names, "run"}  # `open_runs` adds `run`
REQUESTED = "requested_"  # prefix of the geometry asked for; null in the plan where it was kept


def judged_by(run: RunPaths, header: RunFile) -> tuple[str, ...]:
    """Columns of all judges that the run has or had, but for the one that is always there."""
    configs = [intent.config for intent in intents(run, submission_numbers(run))]
    return tuple(name for name in columns_of([*configs, header.config]) if name != SCORE)


def catalog_schema(plan: pa.Schema, judged: Sequence[str] = ()) -> pa.Schema:
    """`ROWS`, the carried columns of the plan and those of judges (`judged_by`), under their own
    name, or with the prefix `carry.` or `judge.` if that name is taken."""
    fields = [*ROWS, *(field.with_name(target) for field, target in _extra_columns(plan))]
    taken = {*_TAKEN, *(field.name for field in fields)}
    names = [JUDGE + name if name in taken else name for name in judged]
    return pa.schema([*fields, *(pa.field(name, pa.float64()) for name in names)])


@dataclass(frozen=True, slots=True, eq=False)
class PlanPart:
    """Some rows of the plan and the commits that count for them."""

    plan: pa.Table
    lines: np.ndarray  # places of the commits in the index, ascending
    journals: np.ndarray  # of each of `lines`: its journal's place in the index
    commits: pa.Table  # schema COMMIT, one row for each of `lines`
    place: pa.Array  # place of each plan row in `commits`; null where nothing is committed
    alias: pa.Array  # bool


def join(plan: pa.Table, found: Winners) -> PlanPart:
    """Fetch the commits that count for some rows of the plan (for an alias: those of its
    original)."""
    rows = plan["row_index"].to_numpy() - found.plan.first
    line = found.line[found.plan.original[rows]]
    unique, place = np.unique(line, return_inverse=True)
    pending = int(len(unique) > 0 and unique[0] < 0)  # -1 sorts first
    lines = unique[pending:]
    return PlanPart(
        plan=plan,
        lines=lines,
        journals=found.index.journal[lines],
        commits=parse_commits(found.index, lines),
        place=pa.array(place - pending, mask=line < 0),
        alias=pa.array(found.plan.original[rows] != rows),
    )


def layouts_of(run: RunPaths, index: CommitIndex) -> pa.Array:
    """The layout of each journal in the index, in short; empty if none was recorded."""
    numbers = [facts.journal.attempt.submission for facts in index.journals]
    found = {number: read_intent(run, number) for number in sorted({*numbers})}
    layouts = {number: intent.layout if intent else None for number, intent in found.items()}
    return pa.array([str(layouts[number] or "") for number in numbers], pa.large_string())


def catalog_rows(
    part: PlanPart, plan_id: str, layouts: pa.Array | None = None, judged: Sequence[str] = ()
) -> pa.Table:
    """The catalog of a part of the plan, in the plan's order and in `catalog_schema`. `layouts` are
    those of the journals in the index, if the column is wanted."""
    schema = catalog_schema(part.plan.schema, judged)
    said = outcome_rows(part, schema, plan_id, layouts, judged)
    columns = {field.name: _planned_column(part.plan, field) for field in REQUEST}
    columns |= {name: part.plan[field.name] for field, name in _extra_columns(part.plan.schema)}
    columns |= dict(zip(said.column_names, said.columns, strict=True))
    return pa.table([columns[name] for name in schema.names], schema=schema)


def outcome_rows(
    part: PlanPart,
    schema: pa.Schema,
    plan_id: str,
    layouts: pa.Array | None = None,
    judged: Sequence[str] = (),
) -> pa.Table:
    """The columns of `catalog_rows` (whose schema is given) that come not from the plan alone. Of
    the part's plan only row_index and seed are looked at."""
    used = commit_column(part.commits, "seed").take(part.place)  # where a judge had it drawn again
    columns = [pc.coalesce(used, _planned_column(part.plan, schema.field("seed")))]
    columns += [_outcome_column(part, field, plan_id, layouts) for field in OUTCOME]
    columns += [metric_column(part.commits, name).take(part.place) for name in judged]
    names = ["seed", *(field.name for field in OUTCOME), *schema.names[len(schema) - len(judged) :]]
    return pa.table(columns, schema=pa.schema([schema.field(name) for name in names]))


def mended_rows(old: pa.Table, is_new: np.ndarray, new: pa.Table) -> pa.Table:
    """Rows of a published catalog with `new`, of `outcome_rows`, in the places where `is_new`
    (bool, one a row): other columns are as they were."""
    mask = pa.array(is_new)
    columns = [
        pc.replace_with_mask(_in_one(old[name]), mask, _in_one(new[name]))
        if name in new.column_names
        else old[name]
        for name in old.column_names
    ]
    return pa.table(columns, schema=old.schema)


def _extra_columns(plan: pa.Schema) -> list[tuple[pa.Field, str]]:
    """(carried column of the plan, its name in the catalog)."""
    carried = [field for field in plan if field.name.startswith(CARRY)]
    names = [field.name.removeprefix(CARRY) for field in carried]
    return [
        (field, field.name if name in _TAKEN else name)
        for field, name in zip(carried, names, strict=True)
    ]


def _planned_column(plan: pa.Table, field: pa.Field) -> pa.Array:
    known = FIELDS[field.name].default if field.name in FIELDS else None
    default = default_of(field.type) if known in (None, MISSING) else known
    used = field.name.removeprefix(REQUESTED)
    if used != field.name:
        default = _in_one(plan[used]).cast(field.type)
        if field.name not in plan.column_names:
            return default
    if field.name not in plan.column_names:
        return _constant(default, plan.num_rows, field.type)
    column = _in_one(plan[field.name]).cast(field.type)
    return column if field.nullable else column.fill_null(default)


def _outcome_column(
    part: PlanPart, field: pa.Field, plan_id: str, layouts: pa.Array | None
) -> pa.Array:
    commits = part.commits
    if field.name == "plan_id":
        return _constant(plan_id, len(part.place), field.type)
    if field.name == "layout":
        if layouts is None:
            return _constant("", len(part.place), field.type)
        column = layouts.take(pa.array(part.journals))
    elif field.name == "latency_s":
        column = pc.subtract(commit_column(commits, "ended"), commit_column(commits, "started"))
    elif field.name == SCORE:
        column = metric_column(commits, SCORE)
    else:
        column = commit_column(commits, COMMIT_PATHS.get(field.name, field.name))
    column = column.take(part.place)
    if field.name in ALIAS_ZERO:
        column = pc.if_else(part.alias, 0.0, column)
    default = "pending" if field.name == "status" else default_of(field.type)
    return column if field.nullable else column.fill_null(default)


def _in_one(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array; `combine_chunks` copies even the only one."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _constant(value: object, rows: int, kind: pa.DataType) -> pa.Array:
    return pa.repeat(pa.scalar(value, kind), rows)
