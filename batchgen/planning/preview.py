"""A preview of a job: a few of its rows, spread over sizes and tags, at fewer steps."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchgen.config.schema import JobConfig
from batchgen.durable import write_bytes_atomic
from batchgen.errors import ConfigError
from batchgen.planning.manifests.building.build import files_from
from batchgen.planning.manifests.manifest import open_manifest
from batchgen.planning.plan import make_plan

PART_OF_STEPS, FEWEST_STEPS = 3, 4  # a third of each row's steps, but not fewer than four


def preview_manifest(job: JobConfig, count: int) -> Path:
    """Write a manifest of `count` rows of the job's (or all, if there are not so many) below
    `output.root_dir`; equal previews have one file. Their ids and seeds are those of the whole run.

    Raises what planning the whole job raises, and ConfigError for a count below 1.
    """
    if count < 1:
        raise ConfigError(f"--preview: {count} is not above 0")
    with tempfile.TemporaryDirectory(prefix="batchgen-preview-") as scratch:
        out = Path(scratch) / "plan.parquet"
        make_plan(job, out)
        columns = ["row_id", "seed", "num_steps", "bucket", "tags", "alias_of"]
        plan = pq.read_table(out, columns=columns)
    chosen = spread(plan, count)
    folder = Path(job.output.root_dir).absolute() / "previews"
    manifest = Path(job.manifest)
    home = manifest if manifest.is_dir() else manifest.parent
    table = files_from(_rows_of(job, chosen, plan.take(chosen)), home, folder)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    name = f"{hashlib.sha256(data).hexdigest()[:12]}.parquet"
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(path, data)
    return path


def spread(plan: pa.Table, count: int) -> list[int]:
    """Rows in order: as many of each size and tag as of the others, evenly apart."""
    groups: dict[tuple[str, str | None], list[int]] = {}
    keys = zip(plan["bucket"].to_pylist(), plan["tags"].to_pylist(), strict=True)
    drawn = pc.is_null(plan["alias_of"]).to_pylist()
    for row, (key, is_drawn) in enumerate(zip(keys, drawn, strict=True)):
        if is_drawn:
            groups.setdefault(key, []).append(row)
    share = 1
    while sum(min(share, len(rows)) for rows in groups.values()) < min(count, sum(drawn)):
        share += 1
    rounds = zip_longest(*(_apart(rows, share) for rows in groups.values()))
    ordered = [row for turn in rounds for row in turn if row is not None]
    return sorted(ordered[:count])


def _apart(rows: Sequence[int], count: int) -> list[int]:
    """At most `count` of the rows, evenly apart, the first among them."""
    count = min(count, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]


def _rows_of(job: JobConfig, chosen: Sequence[int], planned: pa.Table) -> pa.Table:
    """The chosen rows of the job's manifest, with their resolved ids and seeds, and fewer steps."""
    manifest = open_manifest(Path(job.manifest))
    names = [n for n in manifest.columns if n not in ("row_id", "seed", "num_steps")]
    parts, first = [], 0
    for batch in manifest.batches(names):
        here = [row - first for row in chosen if first <= row < first + len(batch)]
        parts.append(pa.Table.from_batches([batch.take(pa.array(here, pa.int64()))]))
        first += len(batch)
    steps = [
        min(whole, max(FEWEST_STEPS, -(-whole // PART_OF_STEPS)))
        for whole in planned["num_steps"].to_pylist()
    ]
    table = pa.concat_tables(parts, promote_options="permissive")
    own = {"row_id": planned["row_id"], "seed": planned["seed"], "num_steps": pa.array(steps)}
    for name, column in own.items():
        table = table.append_column(name, column)
    return table
