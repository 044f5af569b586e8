"""Run folders with a synthetic plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lab import Lab, make_request

from batchgen.durable import write_json
from batchgen.ledger import submissions as attempts
from batchgen.paths import RunPaths
from batchgen.regular import digest_regular
from batchgen.request import Request
from batchgen.runfile import RunFile


def write_plan(
    run: RunPaths,
    requests: Sequence[Request],
    aliases: Mapping[int, int],
    extra: Mapping[str, Sequence[object]],
) -> None:
    """plan.parquet with every Request field, alias_of, bucket, tags and `extra` columns."""
    names = [field.name for field in fields(Request)]
    columns: dict[str, object] = {n: [getattr(r, n) for r in requests] for n in names}
    columns["guidance_scale_2"] = pa.array(columns["guidance_scale_2"], pa.float64())
    ids = [requests[aliases[n]].row_id if n in aliases else None for n in range(len(requests))]
    columns["alias_of"] = pa.array(ids, pa.string())
    columns["bucket"] = [str(request.bucket) for request in requests]
    columns["tags"] = pa.array([None] * len(requests), pa.string())
    columns |= extra
    run.root.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), run.plan, row_group_size=1000)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-begun submissions are given up soon."""
    monkeypatch.setattr(attempts, "HALF_BEGUN_S", 0.3)


@pytest.fixture
def make_lab(tmp_path: Path) -> Callable[..., Lab]:
    """Factory: `make_lab(rows, aliases={row: original}, extra={column: values}, root=...)`."""

    def make(
        rows: int = 4,
        aliases: Mapping[int, int] | None = None,
        extra: Mapping[str, Sequence[object]] | None = None,
        root: Path = tmp_path / "demo-1",
        format_name: str = "png",
    ) -> Lab:
        aliases = aliases or {}
        requests = [make_request(row, format_name) for row in range(rows)]
        for row, original in aliases.items():
            same = requests[original]
            requests[row] = replace(same, row_index=row, row_id=requests[row].row_id)
        run = RunPaths(root)
        write_plan(run, requests, aliases, extra or {})
        header = RunFile(
            name=root.name,
            tag="",
            created=time.time(),
            rows=rows,
            unique_rows=rows - len(aliases),
            plan_id="plan-" + root.name,
            plan_sha256=digest_regular(run.plan)[0],
            plan_bytes=run.plan.stat().st_size,
            manifest="/nowhere/manifest.parquet",
            manifest_digest="0" * 64,
            key_context={},
            config={"name": root.name, "seed": 3},
            overrides=["seed=3"],
            versions={"torch": "2.13.0"},
        )
        write_json(run.run_json, header.to_json())
        return Lab(run, requests)

    return make
