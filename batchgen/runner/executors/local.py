"""Runs the ranks of one node as processes of this machine, by submitit's local executor."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import submitit

from batchgen.config.schema import SlurmConfig
from batchgen.ledger.status import live_attempts
from batchgen.paths import RunPaths
from batchgen.processes import ProcessId, children_of
from batchgen.runner.executors import Job
from batchgen.runner.task import run_task

POLL_S = 0.25
NEEDS_DRIVER = True


def launch(
    run: RunPaths, submission: int, shards: int, slurm: SlurmConfig, patience_s: float = 0.0
) -> list[Job]:
    """Start `ranks_per_node` processes per shard. They outlive this process and its terminal."""
    run.logs.mkdir(exist_ok=True)
    executor = submitit.LocalExecutor(folder=run.submission(submission) / "submitit")
    executor.update_parameters(
        tasks_per_node=slurm.ranks_per_node,
        gpus_per_node=slurm.gpus_per_node,
        timeout_min=slurm.timeout_min,
        setup=list(slurm.setup),
    )
    log = run.logs / f"controller-{submission:04d}.log"
    with _environment(slurm.cpus_per_rank), _terminal_ignored(), _output_to(log):
        started = [
            executor.submit(run_task, str(run.root), submission, task) for task in range(shards)
        ]
    return [
        Job("local", job.job_id, task, ProcessId.of(int(job.job_id)))
        for task, job in enumerate(started)
    ]


@contextmanager
def _environment(cpus_per_rank: int) -> Iterator[None]:
    """Gives the ranks as many threads as the profile gives them CPUs."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(cpus_per_rank)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


@contextmanager
def _terminal_ignored() -> Iterator[None]:
    """Lets children ignore the terminal's hang-up and Ctrl-C (ignored signals are inherited): the
    first must not end a submitted run, and Ctrl-C drains it by SIGTERM."""
    before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGHUP, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Lets children write to `log`, so that a reader of this process's output does not wait for
    them to end."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (0, 1, 2)]
    nothing, file = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT)
    try:
        for source, number in ((nothing, 0), (file, 1), (file, 2)):
            os.dup2(source, number)
        yield
    finally:
        for number, copy in enumerate(kept):
            os.dup2(copy, number)
        for descriptor in (*kept, nothing, file):
            os.close(descriptor)


def is_alive(run: RunPaths, submission: int, jobs: Sequence[Job]) -> bool:
    """Whether a controller is alive, or a rank whose controller is gone."""
    return any(process.alive() for process in _controllers(jobs)) or bool(live_attempts(run))


def drain(run: RunPaths, submission: int, jobs: Sequence[Job]) -> None:
    """SIGTERM to the controllers, which pass it on, and to ranks whose controller is gone."""
    for process in (*_controllers(jobs), *_ranks(run)):
        _signal(process, signal.SIGTERM)


def kill(run: RunPaths, submission: int, jobs: Sequence[Job]) -> None:
    controllers = _controllers(jobs)
    children = [child for process in controllers for child in children_of(process)]
    for process in (*controllers, *children, *_ranks(run)):
        _signal(process, signal.SIGKILL)


def _controllers(jobs: Sequence[Job]) -> list[ProcessId]:
    return [job.process for job in jobs if job.process is not None]


def _ranks(run: RunPaths) -> list[ProcessId]:
    return [attempt.process for attempt in live_attempts(run)]


def _signal(process: ProcessId, number: signal.Signals) -> None:
    if process.alive():
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
