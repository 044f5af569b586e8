"""Making a manifest from a list of prompts, a table or JSON lines, with seeds and sweeps."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchgen.errors import ManifestError, closest
from batchgen.loras import parse, written
from batchgen.planning.manifests.cells import STORED, IllegalValue, cell_value
from batchgen.planning.manifests.check import check_table
from batchgen.planning.manifests.columns import REQUEST_COLUMNS, is_text
from batchgen.planning.manifests.filled import from_template, with_wildcards
from batchgen.planning.manifests.source import read_source
from batchgen.request import MAX_SEED

_NOT_IN_AN_ID = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Built:
    """A manifest as written."""

    path: Path
    rows: int
    columns: tuple[str, ...]
    source_rows: int


def build_manifest(
    source: Path,
    out: Path,
    *,
    seeds: int | None = None,
    sweeps: Mapping[str, str] | None = None,
    template: str | None = None,
    wildcards: Path | None = None,
) -> Built:
    """Write a Parquet manifest from `source` (.txt, .csv, .tsv, .jsonl, Parquet).

    `seeds`: every row that many times, with the seeds 0, 1, ... `sweeps`: column -> values with
    commas; every row once for each combination. Given row ids get a suffix, so that they stay
    unique; without ids a row's number is its id. `template` and `wildcards` make prompts (see
    `filled`), after rows were multiplied. Raises ManifestError; what is written passes
    `manifest check`.
    """
    _check_name(out)
    read = read_source(source)
    table = read.table
    if len(table) == 0:
        raise ManifestError(f"{source}: no rows")
    variations = _variations(table, seeds, sweeps or {})
    expanded = _expanded(table, variations)
    times = len(expanded) // len(table)
    if template is not None:
        expanded = _put(expanded, "prompt", from_template(expanded, template))
    if wildcards is not None and "prompt" in expanded.schema.names:
        chosen = with_wildcards(expanded["prompt"].to_pylist(), wildcards)
        expanded = _put(expanded, "prompt", chosen)
    home = source if source.is_dir() else source.parent
    check_table(source, expanded, lambda row: read.place(row // times), home)
    if out.exists() and source.exists() and out.samefile(source):
        raise ManifestError(f"{out}: is the source; write to another file")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise ManifestError(f"{out}: would become a part of the source {source}; write elsewhere")
    _write(files_from(expanded, home.resolve(), out.parent.resolve()), out)
    return Built(out, len(expanded), tuple(expanded.schema.names), len(table))


def write_rows(rows: Sequence[Mapping[str, object]], source: Path, out: Path) -> None:
    """Write a Parquet manifest of these rows, of columns by name; ManifestError naming `source`
    where one is illegal."""
    _check_name(out)
    table = pa.Table.from_pylist([dict(row) for row in rows])
    check_table(source, table, lambda row: f"row {row}", out.parent)
    _write(table, out)


def _check_name(out: Path) -> None:
    if out.suffix.lower() != ".parquet":
        raise ManifestError(f"{out}: a manifest is Parquet; give it a name that ends in .parquet")


def _write(table: pa.Table, out: Path) -> None:
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, draft, compression="zstd")
        os.replace(draft, out)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ManifestError(f"{out}: cannot be written: {error.strerror or error}") from error


# --------------------------------------------------------------------------------------- variation
@dataclass(frozen=True, slots=True)
class _Variation:
    """A column that takes several values for every row of the source."""

    column: str
    values: pa.Array
    suffixes: tuple[str, ...]  # appended to a given row_id


def _variations(table: pa.Table, seeds: int | None, sweeps: Mapping[str, str]) -> list[_Variation]:
    found = [_sweep(column, text) for column, text in sweeps.items()]
    if seeds is not None:
        if not 1 <= seeds <= MAX_SEED:
            raise ManifestError(f"--seeds: {seeds} is out of range; legal: >= 1")
        suffixes = tuple(f"-seed{i}" for i in range(seeds))
        found.append(_Variation("seed", pa.array(range(seeds), pa.int64()), suffixes))
    columns = [v.column for v in found]
    for column in columns:
        if columns.count(column) > 1:
            raise ManifestError(f"{column}: is varied twice; use --seeds or a sweep over seed")
        if column in table.schema.names and table[column].null_count < len(table):
            raise ManifestError(f"{column}: the source sets this column, so it cannot be varied")
    return found


def _sweep(column: str, text: str) -> _Variation:
    legal = [name for name in REQUEST_COLUMNS if name not in ("prompt", "row_id")]
    if column not in legal:
        listed, near = ", ".join(legal), closest(column, legal)
        raise ManifestError(f"{column}: no column that can be varied{near}; legal: {listed}")
    words = [word.strip() for word in text.split(",") if word.strip()]
    kind = REQUEST_COLUMNS[column]
    if not words:
        raise ManifestError(f"{column}: no values; write {column}=a,b")
    try:
        values = pa.array([cell_value(column, word) for word in words], STORED[kind])
    except IllegalValue:
        noun = "integers" if kind == "integer" else "numbers"  # any cell is text, or a path
        raise ManifestError(f"{column}: {text!r} are not {noun} with commas between") from None
    short = tuple(f"-{column}{_NOT_IN_AN_ID.sub('-', word)}" for word in words)
    return _Variation(column, values, short)


def _expanded(table: pa.Table, variations: Sequence[_Variation]) -> pa.Table:
    """Every row of `table` once for each combination of the variations; the last varies fastest."""
    combinations = list(itertools.product(*(range(len(v.values)) for v in variations)))
    if not variations:
        return table
    rows, times = len(table), len(combinations)
    expanded = table.take(pa.array(np.repeat(np.arange(rows), times)))
    for position, variation in enumerate(variations):
        picks = np.tile([combination[position] for combination in combinations], rows)
        expanded = _put(expanded, variation.column, variation.values.take(pa.array(picks)))
    if "row_id" in table.schema.names:
        ends = [
            "".join(v.suffixes[i] for v, i in zip(variations, c, strict=True)) for c in combinations
        ]
        suffix = pa.array(ends).take(pa.array(np.tile(np.arange(times), rows)))
        ids = pc.binary_join_element_wise(expanded["row_id"].cast(pa.string()), suffix, "")
        expanded = _put(expanded, "row_id", ids)
    return expanded


def files_from(table: pa.Table, home: Path, new: Path) -> pa.Table:
    """The table with paths of images and LoRA files, which are relative to `home`, made relative to
    `new`."""

    def moved(path: str) -> str:
        return path if os.path.isabs(path) else os.path.relpath(home / path, new)

    def moved_set(given: str | Sequence[str]) -> str:
        return written([replace(lora, file=moved(lora.file)) for lora in parse(given)])

    for name in table.schema.names:
        kind, given = REQUEST_COLUMNS.get(name), table.schema.field(name).type
        if kind == "lora" or (kind == "image" and is_text(given)):
            change = moved_set if kind == "lora" else moved
            cells = [None if cell is None else change(cell) for cell in table[name].to_pylist()]
            table = _put(table, name, pa.array(cells, pa.string()))
    return table


def _put(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    if name in table.schema.names:
        return table.set_column(table.schema.get_field_index(name), name, values)
    return table.append_column(name, values)
