"""Real runs: the command line in this process or as one, a manifest of small rows, the embedded
model."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import warm

from batchgen import catalog
from batchgen.paths import RunPaths

JOB = """\
defaults: [base, {{model: tiny-wan}}, _self_]
manifest: {manifest}
carry_columns: []
row_defaults: {{width: 32, height: 32, num_frames: 5, num_steps: 2}}
system: {{determinism: strict}}
output: {{root_dir: {root}}}
slurm: {{executor: inline}}
"""


# One row after the other, each long enough that a command can come in between.
SLOW_ROWS = ("system.batch.max_rows_in_flight=1", "row_defaults.num_steps=60")
# Rows without a model, of 10 ms a step; none under `AT_ONCE` in the environment.
NULL = "model=null-engine"
AT_ONCE = {"BATCHGEN_NULL_SLOW": "*=0"}


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.out.strip().splitlines()[-1])
        return parsed

    @property
    def run(self) -> RunPaths:
        return RunPaths(Path(self.json["run"]))


@dataclass(frozen=True)
class JobFolder:
    """A working folder with a job file and a manifest."""

    folder: Path
    job: Path
    root: Path

    def row_ids(self) -> str:
        """All rows of the manifest, as `--rows` takes them."""
        return ",".join(pq.read_table(self.folder / "manifest.parquet")["row_id"].to_pylist())

    def start(self, *argv: str, env: dict[str, str] | None = None) -> warm.Process:
        """Start a command without waiting."""
        return warm.start("batchgen", argv, env or {}, self.folder)

    def call(self, *argv: str, env: dict[str, str] | None = None) -> Done:
        """Run a command to its end."""
        process = self.start(*argv, env=env)
        out, err = process.communicate(timeout=280)
        return Done(process.wait(), out, err)

    def call_anew(self, *argv: str) -> Done:
        """The same in an interpreter that begins with the command."""
        argv = (sys.executable, "-m", "batchgen", *argv)
        done = subprocess.run(argv, cwd=self.folder, capture_output=True, text=True, timeout=280)
        return Done(done.returncode, done.stdout, done.stderr)

    def run(self, *overrides: str, env: dict[str, str] | None = None) -> Done:
        return self.call("run", str(self.job), *overrides, "--json", env=env)

    def here(self, *argv: str) -> Done:
        """Run a command in this process, which has imported everything already; not one that
        leaves processes behind (`slurm.executor=local`)."""
        from batchgen.cli.main import main

        out, err = io.StringIO(), io.StringIO()
        with chdir(self.folder), redirect_stdout(out), redirect_stderr(err):
            code = main(argv)
        return Done(code, out.getvalue(), err.getvalue())

    def run_here(self, *overrides: str) -> Done:
        return self.here("run", str(self.job), *overrides, "--json")


def write_manifest(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    names = dict.fromkeys(name for row in rows for name in row)  # not the first row's alone
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)
    return path


def make_job_folder(folder: Path, rows: int | Sequence[dict[str, Any]]) -> JobFolder:
    """A working folder for a manifest of `rows` (or that many small ones)."""
    if isinstance(rows, int):
        colours = ("red", "blue", "green")
        rows = [
            {"row_id": f"row-{i:03d}", "prompt": f"a {colours[i % 3]} circle", "seed": i}
            for i in range(rows)
        ]
    manifest = write_manifest(folder / "manifest.parquet", rows)
    job, root = folder / "job.yaml", folder / "outputs"
    job.write_text(JOB.format(manifest=manifest, root=root))
    return JobFolder(folder, job, root)


def rows_of(run: RunPaths) -> pd.DataFrame:
    """The catalog, in manifest order."""
    return catalog.open_runs(run.root).sort_values("row_id").reset_index(drop=True)


RECORD = ("row_id", "row_key", "seed", "prompt", "status", "frames_sha256", "media_sha256")


def recorded(run: RunPaths) -> set[tuple[Any, ...]]:
    """What must not depend on how a run went, of all rows; fails when a row is there twice."""
    frame = rows_of(run)
    assert frame.row_id.is_unique
    return set(frame[[*RECORD]].itertuples(index=False, name=None))


def published(run: RunPaths) -> dict[str, tuple[str, str]]:
    """row_id -> (media sha256, frames sha256) of the ok rows; fails when a row is there twice."""
    frame = rows_of(run)
    assert frame.row_id.is_unique
    ok = frame[frame.status == "ok"]
    return {r.row_id: (r.media_sha256, r.frames_sha256) for r in ok.itertuples()}
