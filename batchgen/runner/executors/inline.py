"""Runs tasks in this process, one after the other: for debugging, and where no process may be
started."""

from __future__ import annotations

from collections.abc import Sequence

from batchgen.config.schema import SlurmConfig
from batchgen.ledger.status import live_attempts
from batchgen.paths import RunPaths
from batchgen.runner.executors import Job
from batchgen.runner.task import run_task

POLL_S = 0.25
NEEDS_DRIVER = True


def launch(
    run: RunPaths, submission: int, shards: int, slurm: SlurmConfig, patience_s: float = 0.0
) -> list[Job]:
    """Render every shard here; returns when all tasks have ended."""
    for task in range(shards):
        run_task(str(run.root), submission, task)
    return []


def is_alive(run: RunPaths, submission: int, jobs: Sequence[Job]) -> bool:
    return bool(live_attempts(run))


def drain(run: RunPaths, submission: int, jobs: Sequence[Job]) -> None:
    return None


def kill(run: RunPaths, submission: int, jobs: Sequence[Job]) -> None:
    return None
