"""In this process, one task after the other: for debugging, and where nothing may be started."""

from __future__ import annotations

from batchgen.config.schema import SlurmConfig
from batchgen.paths import RunPaths
from batchgen.runner.executors import Job
from batchgen.runner.task import run_task


def launch(run: RunPaths, submission: int, shards: int, slurm: SlurmConfig) -> list[Job]:
    """Render every shard here; returns when all have ended."""
    for task in range(shards):
        run_task(str(run.root), submission, task)
    return []


def is_alive(job: Job) -> bool:
    return False


def cancel(jobs: list[Job]) -> None:
    return None
