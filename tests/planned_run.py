"""Ranks as processes, without a runner: a planned run, a submission, and who works on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import rank_process
import warm
from cli_calls import write_manifest
from waiting import wait_for

from batchgen.config.build import to_mapping
from batchgen.config.composing.compose import Composed, compose_job
from batchgen.ledger.counts import read_counters
from batchgen.ledger.events import Event, decode_line
from batchgen.ledger.submissions import SubmissionInfo, SubmissionRows, begin_submission
from batchgen.paths import RunPaths
from batchgen.records import Attempt, Commit, RankInfo
from batchgen.request import Request
from batchgen.runner.create import create_run

JOB = """\
defaults: [base, {{model: "{model}"}}, _self_]
manifest: {manifest}
system: {{determinism: strict}}
output: {{root_dir: {root}}}
"""

# Environment of a rank that tells all the time how far it is, as others do every few seconds.
BEATING = {rank_process.BEAT_S: "0.05"}


@dataclass(frozen=True)
class PlannedRun:
    """One run and its ranks."""

    run: RunPaths
    config: dict[str, Any]  # resolved

    def begin(self, rows: Sequence[int], alone: Sequence[int] = ()) -> int:
        """A submission of one shard; `alone` are its suspects."""
        everything = np.array([*rows, *alone], np.int64)
        shards = SubmissionRows(
            everything,
            np.zeros(len(everything), np.int32),
            np.arange(len(everything)),
            np.isin(everything, np.array(alone, np.int64)),
        )
        return begin_submission(self.run, shards, SubmissionInfo(config=self.config))

    def start(
        self, submission: int, env: dict[str, str] | None = None, **rank: Any
    ) -> warm.Process | subprocess.Popen[str]:
        """One rank; `rank` changes RankInfo(0, 1, 0, 0, 0, "node1")."""
        info = asdict(RankInfo(0, 1, 0, 0, 0, "node1")) | rank
        argv = [str(self.run.root), str(submission), json.dumps(info)]
        if env and "PYTHONPATH" in env:  # it is about what is imported
            return subprocess.Popen(
                [sys.executable, rank_process.__file__, *argv],
                env={**os.environ, "OMP_NUM_THREADS": "1", **env},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        return warm.start("rank_process", argv, env or {})

    def work(self, submission: int, env: dict[str, str] | None = None, **rank: Any) -> int:
        """One rank to its end; its exit status."""
        with self.start(submission, env, **rank) as process:
            try:
                process.communicate(timeout=120)
            finally:
                process.kill()
        return process.returncode

    def events(self, submission: int, restart: int = 0, replica: int = 0) -> list[Event]:
        path = self.run.journal(Attempt(submission, 0, restart, replica))
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [decode_line(line) for line in lines if line.endswith(b"\n")]

    def of(self, kind: type[Any], submission: int, restart: int = 0, replica: int = 0) -> list[Any]:
        return [e for e in self.events(submission, restart, replica) if isinstance(e, kind)]

    def wait_for_steps(self, submission: int, restart: int = 0, busy_s: float = 0.1) -> None:
        """Wait until a rank that was started with `BEATING` is so far in a row."""
        path = self.run.counters(Attempt(submission, 0, restart, 0))
        wait_for(lambda: (c := read_counters(path)) and c.open_rows and c.spent.open > busy_s)

    def frames(self, submission: int, restart: int = 0, replica: int = 0) -> dict[int, str]:
        """row_index -> digest of the frames, of the ok rows."""
        commits = self.of(Commit, submission, restart, replica)
        return {c.row_index: c.media.frames_sha256 for c in commits if c.media is not None}

    def wait_for(self, what: Callable[[], object], timeout_s: float = 60.0) -> None:
        wait_for(what, timeout_s)


def row(index: int, num_steps: int = 10, **changes: Any) -> Request:
    """A row of the null model."""
    values: dict[str, Any] = {
        "row_index": index, "row_id": f"row-{index}", "row_key": "k", "prompt": "p",
        "negative_prompt": "", "seed": index, "width": 16, "height": 16, "num_frames": 1, "fps": 8,
        "num_steps": num_steps, "guidance_scale": 1.0, "guidance_scale_2": None, "solver": "unipc",
        "sigma_shift": 3.0, "format": "png", "quality": 8, "cost_s": num_steps * 0.01,
    }  # fmt: skip
    return Request(**(values | changes))


def plan_run(
    folder: Path, steps: Sequence[int], *overrides: str, model: str = "null-engine"
) -> PlannedRun:
    """A run with one row per entry of `steps`; rows of the null model take 10 ms a step."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"row_id": f"row-{i}", "prompt": f"a red circle {i}", "seed": i, "num_steps": count}
        for i, count in enumerate(steps)
    ]
    manifest = write_manifest(folder / "manifest.parquet", rows)
    composed = _composed(model, *overrides)
    output = replace(composed.config.output, root_dir=str(folder / "outputs"))
    config = replace(composed.config, manifest=str(manifest), output=output)
    composed = replace(composed, config=config, resolved=to_mapping(config))
    return PlannedRun(create_run(composed), composed.resolved)


@cache
def _composed(model: str, *overrides: str) -> Composed:
    """A job that is the same for many runs but for its paths."""
    with TemporaryDirectory() as folder:
        job = Path(folder, "job.yaml")
        job.write_text(JOB.format(model=model, manifest="rows.parquet", root="outputs"))
        return compose_job(job, overrides)
