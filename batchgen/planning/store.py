"""plan.parquet as it lies on disk: its columns, and reading requests, costs and keys from it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchgen.caches.pilots import DRAWN, Choice, Judged, Pilot
from batchgen.errors import RunStateError
from batchgen.loras import LoraFile
from batchgen.planfile import (
    HEADER,
    PLAN_COLUMNS,
    open_parquet,
    own_parquet,
    plan_header,
    reading,
)
from batchgen.planning.identity import KeyContext
from batchgen.request import REQUEST_FIELDS, Bucket, Request

SCHEMA_VERSION = 1
ROW_GROUP = 4096  # rows; a worker reads whole groups to find its few rows
_FEW_ROWS = 64
CARRY = "carry."
_DISTINCT = ("row_index", "row_id", "row_key", "prompt", "seed")  # no use in a dictionary
WRITER_OPTIONS = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": [name for name in PLAN_COLUMNS.names if name not in _DISTINCT],
    "write_page_checksum": True,
}


@dataclass(frozen=True, slots=True)
class BucketForecast:
    """What the rows of one shape cost together."""

    bucket: Bucket
    rows: int  # rendered: aliases are not counted
    tokens: int  # video tokens of one item of a forward
    evaluations: int  # forwards of one item, over all rows, steps and branches, as expected
    denoise_s: float
    encode_s: float
    decode_s: float
    # of the solver, over all rows, without those that caches skip; 0 in a plan older than this
    steps: int = 0
    evaluations_total: int = 0  # without caches; 0 in a plan that is older than this
    audits: int = 0  # rows that are drawn without their cache too, for which seconds are counted
    audit_evaluations: int = 0  # of these drawings; not in `evaluations`
    caches: tuple[str, ...] = ()  # strategies of these rows, by name
    illustrated: int = 0  # rows that are given images, for which seconds are counted
    most_steps: int = 0  # of the solver, of any row; 0 in a plan that is older than this

    @property
    def cost_s(self) -> float:
        """Device seconds of the whole bucket."""
        return self.denoise_s + self.encode_s + self.decode_s


@dataclass(frozen=True, slots=True)
class CacheForecast:
    """What rows with the same cache settings save together."""

    strategy: str
    ratio: float
    num_steps: int
    guidance_scale: float
    rows: int  # rendered: aliases are not counted
    fitted: int  # of these, those with coefficients
    share: float  # of the evaluations without a cache, as expected
    published: int = 0  # of `fitted`, those whose coefficients others have published

    def __str__(self) -> str:
        return (
            f"{self.strategy} {self.ratio:g}, {self.num_steps} steps, guidance "
            f"{self.guidance_scale:g}"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """A written plan."""

    path: Path
    plan_id: str
    rows: int
    unique_rows: int
    buckets: tuple[BucketForecast, ...]
    key_context: KeyContext
    cost_s_total: float
    manifest: str
    manifest_digest: str
    checkpoint: dict[str, str] = field(default_factory=dict)  # digest of each file of the weights
    caches: tuple[CacheForecast, ...] = ()
    cache_refused: dict[str, int] = field(default_factory=dict)  # rows drawn without, by strategy
    cache_tables: tuple[str, ...] = ()  # digests of the coefficients that rows use
    pilots: tuple[Pilot, ...] = ()  # to be drawn before the other rows are planned anew
    choices: tuple[Choice, ...] = ()  # ratios that `min_psnr_db` found
    loras: dict[str, LoraFile] = field(default_factory=dict)  # of its rows, by `Lora.name`

    @property
    def aliases(self) -> int:
        return self.rows - self.unique_rows


@dataclass(frozen=True, slots=True)
class PlanCosts:
    """Predicted cost of every row, in row order."""

    cost_s: np.ndarray  # float64
    is_alias: np.ndarray  # bool


def regrouped(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of a multiple of ROW_GROUP rows (but the last): row groups of equal
    size tell a reader where a row is, however small the parts of the manifest are."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        rows = sum(len(t) for t in held)
        if rows >= ROW_GROUP:
            whole = pa.concat_tables(held)
            full = rows // ROW_GROUP * ROW_GROUP
            yield whole.slice(0, full)
            held = [whole.slice(full)] if full < rows else []
    if held:
        yield pa.concat_tables(held)


def publish_plan(draft: Path, out: Path) -> None:
    """Put a written plan in its place, durably."""
    with open(draft, "rb") as file:
        os.fsync(file.fileno())
    os.replace(draft, out)


def plan_schema(carried: Sequence[tuple[str, pa.DataType]]) -> pa.Schema:
    """Columns of a plan; carried manifest columns follow under `carry.<name>`."""
    return pa.schema([*PLAN_COLUMNS, *(pa.field(CARRY + n, kind) for n, kind in carried)])


def header_metadata(plan: Plan) -> dict[bytes, bytes]:
    """The plan's header as Parquet key-value metadata."""
    header = asdict(plan) | {"schema": SCHEMA_VERSION, "key_context": plan.key_context.to_json()}
    del header["path"]
    return {HEADER: json.dumps(header).encode()}


def read_plan(path: Path) -> Plan:
    """The header of a plan; raises RunStateError when the file is none of this version."""
    header = plan_header(path)
    if header.get("schema") != SCHEMA_VERSION:
        raise RunStateError(f"{path}: plan schema {header.get('schema')}, not {SCHEMA_VERSION}")
    with reading(path):
        buckets = tuple(map(_bucket, header.pop("buckets")))
        return Plan(
            path=path,
            buckets=buckets,
            caches=tuple(CacheForecast(**stored) for stored in header.pop("caches", ())),
            cache_tables=tuple(header.pop("cache_tables", ())),
            pilots=tuple(map(_pilot, header.pop("pilots", ()))),
            choices=tuple(map(_choice, header.pop("choices", ()))),
            loras=_loras(header.pop("loras", {})),
            key_context=KeyContext.from_json(header.pop("key_context")),
            **{name: value for name, value in header.items() if name != "schema"},
        )


def _bucket(stored: dict[str, Any]) -> BucketForecast:
    made = {"bucket": Bucket(**stored["bucket"]), "caches": tuple(stored.get("caches", ()))}
    return BucketForecast(**{**stored, **made})


def _pilot(stored: dict[str, Any]) -> Pilot:
    lists = {name: tuple(stored[name]) for name in ("rows", "ratios", "guidance")}
    return Pilot(**{**stored, **lists})


def _choice(stored: dict[str, Any]) -> Choice:
    return Choice(**{**stored, "judged": tuple(Judged(**each) for each in stored["judged"])})


def read_requests(path: Path, row_indices: Sequence[int] | None = None) -> list[Request]:
    """The requests of the rows wanted, in that order (None: all rows in manifest order).

    Only the row groups that hold them are read. Raises RunStateError for an unknown row, or for a
    plan whose rows are not in their places.
    """
    names = [field.name for field in REQUEST_FIELDS]
    with reading(path):
        file = open_parquet(path)
        _check_names(file.schema_arrow.names)
        if row_indices is None:
            return requests_of(file.read(columns=names))
        wanted, rows = np.asarray(row_indices, np.int64), file.metadata.num_rows
        if unknown := wanted[(wanted < 0) | (wanted >= rows)].tolist():
            raise RunStateError(f"{path} has {rows} rows; asked for {unknown[0]}")
        found: dict[int, Request] = {}
        for group in np.unique(wanted // ROW_GROUP).tolist():
            inside = np.unique(wanted[wanted // ROW_GROUP == group])
            table = file.read_row_group(group, columns=names, use_threads=False)
            picked = _picked(table, inside - group * ROW_GROUP)
            found |= {request.row_index: request for request in picked}
        return [found[row] for row in wanted.tolist()]


def read_costs(path: Path) -> PlanCosts:
    """Predicted seconds of all rows. The plan is read piece by piece: it takes no memory beside
    them."""
    with reading(path):
        rows = own_parquet(path).metadata.num_rows
        costs = PlanCosts(np.zeros(rows), np.zeros(rows, bool))
        for first, batch in _pieces(path, ["cost_s", "alias_of"]):
            piece = slice(first, first + len(batch))
            costs.cost_s[piece] = batch["cost_s"].to_numpy()
            costs.is_alias[piece] = batch["alias_of"].is_valid().to_numpy(zero_copy_only=False)
        return costs


def costs_of(path: Path, rows: np.ndarray) -> np.ndarray:
    """Predicted seconds of some rows (float64), by ascending row_index."""
    costs = np.zeros(len(rows))
    with reading(path):
        for first, batch in _pieces(path, ["cost_s"]):
            mine = slice(*np.searchsorted(rows, [first, first + len(batch)]).tolist())
            costs[mine] = batch["cost_s"].to_numpy()[rows[mine] - first]
    return costs


def _pieces(path: Path, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Some columns piece by piece, each with the row that it begins with; call it inside
    `reading`."""
    first = 0
    for batch in own_parquet(path).iter_batches(columns=columns):
        yield first, batch
        first += len(batch)


def read_keys(path: Path) -> np.ndarray:
    """Row keys of all rows, in row order (array of str)."""
    with reading(path):
        keys: np.ndarray = open_parquet(path).read(columns=["row_key"])["row_key"].to_numpy()
        return keys


def drawn_rows(path: Path) -> tuple[int, ...]:
    """row_index of the rows that are or were a pilot's."""
    with reading(path):
        file = open_parquet(path)
        if "cache_refused" not in file.schema_arrow.names:
            return ()  # the plan is older than pilots
        told = file.read(columns=["cache_refused"])["cache_refused"]
        drawn = pc.equal(told, DRAWN).to_numpy()
    return tuple(np.flatnonzero(drawn).tolist())


def read_loras(path: Path) -> dict[str, LoraFile]:
    """The LoRA files of a plan, by `Lora.name`; none in a plan older than they are."""
    stored = plan_header(path).get("loras", {})
    with reading(path):
        return _loras(stored)


def sets_of(path: Path, rows: np.ndarray) -> np.ndarray | None:
    """A number (int32) for the set of LoRA files of some rows, by ascending row_index: equal for
    equal sets, lower for those that come first in the plan. None if no row has any."""
    if not read_loras(path):
        return None
    sets, numbers = np.zeros(len(rows), np.int32), dict[str, int]()
    with reading(path):
        for first, batch in _pieces(path, ["lora"]):
            coded = batch["lora"].dictionary_encode()
            known = [numbers.setdefault(one, len(numbers)) for one in coded.dictionary.to_pylist()]
            mine = slice(*np.searchsorted(rows, [first, first + len(batch)]).tolist())
            sets[mine] = np.array(known, np.int32)[np.asarray(coded.indices)][rows[mine] - first]
    return sets


def _loras(stored: dict[str, Any]) -> dict[str, LoraFile]:
    return {name: LoraFile(**one) for name, one in stored.items()}


def read_pilots(path: Path) -> tuple[Pilot, ...]:
    """The pilots that a plan waits for; none in a plan older than they are."""
    stored = plan_header(path).get("pilots", ())
    with reading(path):
        return tuple(map(_pilot, stored))


def piloting(pilots: Sequence[Pilot]) -> np.ndarray:
    """row_index of the rows that are drawn before all others, in order."""
    return np.array(sorted({row for pilot in pilots for row in pilot.rows}), np.int64)


def row_indices(path: Path) -> dict[str, int]:
    """Row id -> index of the row that is rendered for it."""
    with reading(path):
        table = open_parquet(path).read(columns=["row_id", "alias_of"])
        ids, aliases = table["row_id"].to_pylist(), table["alias_of"].to_pylist()
        own = {row_id: index for index, row_id in enumerate(ids)}
        return {row_id: own[alias or row_id] for row_id, alias in zip(ids, aliases, strict=True)}


def _check_names(names: Sequence[str]) -> None:
    """ValueError if a field is missing though the plan is not older: its name is damaged."""
    missing = [field.name for field in REQUEST_FIELDS if field.name not in names]
    unknown = [n for n in names if n not in PLAN_COLUMNS.names and not n.startswith(CARRY)]
    if missing and unknown:
        raise ValueError(f"there is no column {missing[0]!r}, but {unknown[0]!r}")


def _picked(table: pa.Table, positions: np.ndarray) -> list[Request]:
    """Requests at some positions; slices are cheaper than a gather of all columns for a few."""
    if len(positions) > _FEW_ROWS:
        return requests_of(table.take(pa.array(positions)))
    return [requests_of(table.slice(position, 1))[0] for position in positions.tolist()]


def requests_of(table: pa.Table) -> list[Request]:
    """The requests of rows of a plan."""
    names = [field.name for field in REQUEST_FIELDS]
    columns = [
        table[field.name].to_pylist()
        if field.name in table.column_names
        else [field.default] * len(table)  # the plan is older than the field
        for field in REQUEST_FIELDS
    ]
    rows = zip(*columns, strict=True)
    return [Request(**dict(zip(names, row, strict=True))) for row in rows]
