"""A submission: what is missing, cut for the nodes at hand and started."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from batchgen.config.build import build
from batchgen.config.schema import JobConfig
from batchgen.ledger.attempts import SubmissionInfo, SubmissionRows, begin_submission
from batchgen.ledger.winners import missing_rows
from batchgen.paths import RunPaths
from batchgen.planning.plan import read_costs
from batchgen.planning.shards import cut_shards
from batchgen.runfile import read_run
from batchgen.runner.executors import Job, executor_for
from batchgen.runner.jobs import last_submission, refuse_if_alive, write_jobs

START_UP_S = 20.0  # imports and weights; a shard should be many times longer


@dataclass(frozen=True, slots=True)
class Replan:
    """A plan that waits for the submission's lock to be installed."""

    plan: Path
    install: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a submission runs under: the resolved configuration and the overrides that made it.

    `last` is the latest submission that was there when they were checked (None: look again);
    `replan` is installed with the submission.
    """

    resolved: dict[str, Any]
    overrides: list[str]
    last: int | None = None
    replan: Replan | None = None


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
    alive, or when another process has begun one since the settings were checked.
    """
    header = read_run(run)
    settings = settings or Settings(header.config, header.overrides)
    last = last_submission(run) if settings.last is None else settings.last
    config = build(JobConfig, settings.resolved)
    executor = executor_for(config.slurm)
    refuse_if_alive(run)
    plan = settings.replan.plan if settings.replan else run.plan
    wanted = missing_rows(run, plan).all if rows is None else rows
    if len(wanted) == 0 and settings.replan is None:
        return None
    shards = _cut(plan, wanted, config)
    info = SubmissionInfo(config=json.dumps(settings.resolved), overrides=tuple(settings.overrides))
    install = settings.replan.install if settings.replan else _nothing
    number = begin_submission(run, shards, info, last=last, under_lock=install)
    count = int(shards.shard.max(initial=-1)) + 1
    jobs = executor.launch(run, number, count, config.slurm)
    write_jobs(run, number, jobs)
    return Submission(run, number, len(wanted), count, tuple(jobs))


def _nothing() -> None:
    return


def _cut(plan: Path, rows: np.ndarray, config: JobConfig) -> SubmissionRows:
    """Shards of about equal predicted cost, the longest rows of each first; one machine is one."""
    costs = read_costs(plan).cost_s[rows]
    shard = cut_shards(
        costs,
        shards=1 if config.slurm.executor in ("inline", "local") else None,
        slots=config.slurm.nodes,  # all ranks of a node work on one shard
        start_up_s=START_UP_S * config.slurm.ranks_per_node,
    )
    order = np.empty(len(rows), np.int64)
    order[np.argsort(-costs, kind="stable")] = np.arange(len(rows))
    return SubmissionRows(rows, shard, order)
