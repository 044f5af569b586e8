"""A submission: what is missing, cut for the nodes at hand and started."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from batchgen.config.build import build
from batchgen.config.schema import JobConfig
from batchgen.errors import RunStateError
from batchgen.ledger.attempts import SubmissionInfo, SubmissionRows, begin_submission
from batchgen.ledger.intent import last_intent, submission_numbers
from batchgen.ledger.status import live_attempts
from batchgen.ledger.winners import missing_rows
from batchgen.media.durable import write_json
from batchgen.paths import RunPaths
from batchgen.planning.plan import read_costs
from batchgen.planning.shards import cut_shards
from batchgen.processes import ProcessId
from batchgen.runfile import read_run
from batchgen.runner.executors import Job, executor_named

START_UP_S = 20.0  # imports and weights; a shard should be many times longer


@dataclass(frozen=True, slots=True)
class Settings:
    """What a submission runs under: the resolved configuration and the overrides that made it."""

    resolved: dict[str, Any]
    overrides: list[str]


@dataclass(frozen=True, slots=True)
class Submission:
    """One submission as started."""

    run: RunPaths
    number: int
    rows: int
    shards: int
    jobs: tuple[Job, ...]


def submit(
    run: RunPaths, settings: Settings | None = None, rows: np.ndarray | None = None
) -> Submission | None:
    """Start `rows` of `run` (default: all without a published result); None when there are none.

    `settings` default to the run's own. Raises RunStateError when a submission of this run is
    alive, or when another process is beginning one at this moment.
    """
    header = read_run(run)
    settings = settings or Settings(header.config, header.overrides)
    config = build(JobConfig, settings.resolved)
    executor = executor_named(config.slurm.executor)
    refuse_if_alive(run)
    wanted = missing_rows(run).all if rows is None else rows
    if len(wanted) == 0:
        return None
    rows_to_render = _cut(run, wanted, config)
    info = SubmissionInfo(config=json.dumps(settings.resolved), overrides=tuple(settings.overrides))
    number = begin_submission(run, rows_to_render, info)
    shards = int(rows_to_render.shard.max()) + 1
    jobs = executor.launch(run, number, shards, config.slurm)
    write_json(run.jobs(number), {"jobs": [asdict(job) for job in jobs]})
    return Submission(run, number, len(wanted), shards, tuple(jobs))


def _cut(run: RunPaths, rows: np.ndarray, config: JobConfig) -> SubmissionRows:
    """Shards of about equal predicted cost, the longest rows of each first; one machine is one."""
    costs = read_costs(run.plan).cost_s[rows]
    shard = cut_shards(
        costs,
        shards=1 if config.slurm.executor in ("inline", "local") else None,
        slots=config.slurm.nodes,  # all ranks of a node work on one shard
        start_up_s=START_UP_S * config.slurm.ranks_per_node,
    )
    order = np.empty(len(rows), np.int64)
    order[np.argsort(-costs, kind="stable")] = np.arange(len(rows))
    return SubmissionRows(rows, shard, order)


def jobs_of(run: RunPaths, number: int) -> list[Job]:
    """The started jobs of a submission; none when it was cut off before they were written."""
    try:
        written = json.loads(run.jobs(number).read_text())["jobs"]
    except FileNotFoundError:
        return []
    jobs = [Job(**fields) for fields in written]
    return [replace(j, process=ProcessId(**j.process)) if j.process else j for j in jobs]  # type: ignore[arg-type]


def is_alive(run: RunPaths, number: int) -> bool:
    """Whether submission `number` may still commit rows: a job, a rank, or its maker is at work."""
    if any(executor_named(job.executor).is_alive(job) for job in jobs_of(run, number)):
        return True
    if live_attempts(run):
        return True
    intent = last_intent(run)
    if intent is None or run.jobs(intent.number).exists():
        return False
    return intent.made_by != ProcessId.current() and bool(intent.made_by.alive())


def refuse_if_alive(run: RunPaths) -> None:
    """Raise RunStateError while the latest submission is at work: two would render rows twice."""
    number = (submission_numbers(run) or [0])[-1]
    if number and is_alive(run, number):
        raise RunStateError(
            f"submission {number} of {run.root.name} is at work; wait for it, or end it with "
            f"`batchgen cancel {run.root.name}`"
        )
