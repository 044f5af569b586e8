"""submitit's local executor: the ranks of one node as processes of this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import submitit

from batchgen.config.schema import SlurmConfig
from batchgen.paths import RunPaths
from batchgen.processes import ProcessId
from batchgen.runner.executors import Job
from batchgen.runner.task import run_task


def launch(run: RunPaths, submission: int, shards: int, slurm: SlurmConfig) -> list[Job]:
    """Start `ranks_per_node` processes per shard; they outlive this one."""
    executor = submitit.LocalExecutor(folder=run.submission(submission) / "submitit")
    executor.update_parameters(
        tasks_per_node=slurm.ranks_per_node,
        gpus_per_node=slurm.gpus_per_node,
        timeout_min=slurm.timeout_min,
        setup=list(slurm.setup),
    )
    with _detached(slurm.cpus_per_rank):
        started = [
            executor.submit(run_task, str(run.root), submission, task) for task in range(shards)
        ]
    return [
        Job("local", job.job_id, task, ProcessId.of(int(job.job_id)))
        for task, job in enumerate(started)
    ]


@contextmanager
def _detached(cpus_per_rank: int) -> Iterator[None]:
    """Children ignore the terminal's hang-up and Ctrl-C (ignored signals are inherited): the first
    must not end a submitted run, and the second drains it by SIGTERM instead of killing it."""
    threads = os.environ.get("OMP_NUM_THREADS")
    before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGHUP, signal.SIGINT)}
    os.environ["OMP_NUM_THREADS"] = str(cpus_per_rank)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads


def is_alive(job: Job) -> bool:
    return job.process is not None and bool(job.process.alive())


def cancel(jobs: list[Job]) -> None:
    """SIGTERM to the controller, which hands it on to its ranks: they drain."""
    for job in jobs:
        if job.process is not None and job.process.alive():
            os.kill(job.process.pid, signal.SIGTERM)
