"""Submissions: finds what is missing, cuts it into shards for the nodes and starts them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from batchgen.config.build import build
from batchgen.config.schema import ONE_MACHINE, JobConfig, ParallelConfig, SlurmConfig
from batchgen.errors import RunStateError
from batchgen.failpoints import failpoint
from batchgen.ledger.blame.rows import Blame, read_blame
from batchgen.ledger.intent import refuse_lost_intent
from batchgen.ledger.reading.left import missing_of, survey
from batchgen.ledger.reading.winners import Winners
from batchgen.ledger.submissions import SubmissionInfo, SubmissionRows, begin_submission
from batchgen.ledger.upkeep.losses import refuse_losses
from batchgen.ledger.upkeep.repair import quarantine_rows
from batchgen.notices import Notices, notices_of
from batchgen.paths import RunPaths, as_typed
from batchgen.planfile import check_plan
from batchgen.planning.calibrate import measured_start_up
from batchgen.planning.pricing.cost import start_up_seconds
from batchgen.planning.pricing.forecast import most_shard_seconds
from batchgen.planning.pricing.layout import resolve_layout
from batchgen.planning.pricing.shards import cut_shards, longest_first, places
from batchgen.planning.pricing.work import read_work
from batchgen.planning.store import costs_of, piloting, read_pilots, sets_of
from batchgen.records import Layout
from batchgen.runfile import RunFile, read_run
from batchgen.runner.create import write_configuration
from batchgen.runner.executors import Job, executor_for
from batchgen.runner.jobs import last_submission, refuse_if_alive, write_jobs
from batchgen.scheduler.commands import SchedulerError, hosts_in, nodes, patiently, usable_nodes
from batchgen.scheduler.options import check_folder

NOBODY = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Replan:
    """A new plan, to be installed while the submission holds its lock."""

    plan: Path
    install: Callable[[], None]
    changed: tuple[str, ...]  # names of the settings, or files of the weights, that changed


@dataclass(frozen=True, slots=True)
class Settings:
    """What a submission runs under: the resolved configuration, and the overrides that made it.

    `last` is the latest submission that existed when the settings were checked (None: look again).
    `replan` is installed with the submission. `attempt` (place in a row of submissions without
    progress, from 1) and `excluded` (host -> reason) are given by a steward.
    """

    resolved: dict[str, Any]
    overrides: list[str]
    last: int | None = None
    replan: Replan | None = None
    attempt: int = 1
    excluded: dict[str, str] = field(default_factory=dict)

    @property
    def executor(self) -> str:
        return str(self.resolved["slurm"]["executor"])

    def install(self) -> None:
        """Put the new plan in place, if there is one; called under the submission's lock."""
        if self.replan is not None:
            self.replan.install()

    def info(self, layout: Layout | None) -> SubmissionInfo:
        """What is recorded of the settings with the submission."""
        return SubmissionInfo(
            config=self.resolved,
            layout=layout,
            overrides=tuple(self.overrides),
            attempt=self.attempt,
            excluded=self.excluded,
        )


@dataclass(frozen=True, slots=True)
class Submission:
    """A submission that was started."""

    run: RunPaths
    number: int
    rows: int
    shards: int
    jobs: tuple[Job, ...]
    pilot: bool = False  # the other rows wait for what it finds


def submit(
    run: RunPaths,
    settings: Settings | None = None,
    rows: np.ndarray | None = None,
    *,
    patience_s: float = 0.0,
) -> Submission | None:
    """Start `rows` of `run` (default: all without a published result); None if there are none.

    Convicted rows are not started but recorded as quarantined, and suspects run alone. `settings`
    default to the run's own; `patience_s` is how long a scheduler may refuse before SchedulerError
    is raised. RunStateError if a submission of this run is at work, or another process has begun
    one since the settings were checked; ConfigError if the rows do not fit the profile's device.
    """
    header = read_run(run)
    refuse_lost_intent(run)
    settings = settings or Settings(header.config, header.overrides)
    if settings.last is None:
        settings = replace(settings, last=last_submission(run))
    config = _checked_config(run, settings)
    patiently(lambda: refuse_if_alive(run), patience_s)
    with notices_of(run) as before:
        before.submission_ended()  # if nobody was left to tell it
    with Notices(run, config.output.on_event) as notices:
        return _submit(run, header, settings, config, rows, patience_s, notices)


def _submit(
    run: RunPaths,
    header: RunFile,
    settings: Settings,
    config: JobConfig,
    rows: np.ndarray | None,
    patience_s: float,
    notices: Notices,
) -> Submission | None:
    last, plan = settings.last, _checked_plan(run, header, settings)
    found = survey(run, plan)
    wanted = _missing(run, found) if rows is None else np.unique(rows)
    if pilot := bool(pilots := read_pilots(plan)):
        wanted, config = np.intersect1d(wanted, piloting(pilots)), on_one_rank(config)
    blame = read_blame(run, found, all_gone=True)
    verdicts = [v for v in blame.convicted if v.row_index in wanted]
    if verdicts:
        wanted = np.setdiff1d(wanted, [v.row_index for v in verdicts])
    work = read_work(plan, wanted, config.model, config.system.cache.audit_every)
    layout = resolve_layout(config, work) if work else None
    if verdicts:
        last = quarantine_rows(run, verdicts, last=last, tell=notices.row_failed)
    if len(wanted) == 0 and settings.replan is None:
        if pilot:
            raise RunStateError(_no_pilot(run))
        return None
    shards = cut(plan, wanted, config, layout, blame.suspects, together=pilot)
    info = replace(settings.info(layout), pilot=pilot)
    number = begin_submission(
        run, shards, info, last=last, found=found, under_lock=settings.install
    )
    failpoint("submit.after_intent")
    write_configuration(run, read_run(run), settings.resolved, settings.overrides)
    count = int(shards.shard.max(initial=-1)) + 1
    slurm = without_hosts(config.slurm, settings.excluded)
    notices.started(number, len(wanted), count)
    jobs = _launch(run, number, count, slurm, blame, patience_s)
    return Submission(run, number, len(wanted), count, tuple(jobs), pilot)


def _no_pilot(run: RunPaths) -> str:
    return (
        f"{run.root}: the rows of its pilot come first, and none of them is to be drawn now: start "
        f"them with `batchgen resume {as_typed(run.root)}`; if they cannot be drawn, go on without "
        "a pilot: system.cache.calibrate=false system.cache.min_psnr_db=null"
    )


def on_one_rank(config: JobConfig) -> JobConfig:
    """The same job on one rank: a pilot's rows are drawn in step with each other, by one replica
    that nobody shares a forward with."""
    alone = ParallelConfig(dp=1, cfg=1, ulysses=1, ring=1)
    return replace(
        config,
        slurm=replace(config.slurm, nodes=1, ranks_per_node=1),
        system=replace(config.system, parallel=alone),
    )


def _checked_config(run: RunPaths, settings: Settings) -> JobConfig:
    """The configuration; ConfigError for a profile whose keys do not go together."""
    config = build(JobConfig, settings.resolved)
    executor_for(config.slurm)
    check_folder(config.slurm.executor, run.root)
    return config


def _checked_plan(run: RunPaths, header: RunFile, settings: Settings) -> Path:
    """The plan to cut shards from: the run's, checked, or the one that will replace it."""
    if settings.replan is not None:
        return settings.replan.plan
    check_plan(run, header)
    return run.plan


def _missing(run: RunPaths, found: Winners) -> np.ndarray:
    """row_index of the rows to render. RunStateError if the ledger has lost something."""
    refuse_losses(run, found)
    return missing_of(found).all


def write_verdicts(run: RunPaths) -> None:
    """Quarantine convicted rows that no submission takes up, so that the catalog says why. Not done
    while the run may be at work: that would fence it off, and it writes the verdicts itself."""
    last = last_submission(run)
    verdicts = read_blame(run, all_gone=True).convicted
    with suppress(RunStateError, SchedulerError):
        if verdicts:
            refuse_if_alive(run)
            with notices_of(run) as notices:
                quarantine_rows(run, verdicts, last=last, tell=notices.row_failed)


def without_hosts(slurm: SlurmConfig, hosts: Iterable[str]) -> SlurmConfig:
    """The profile with more hosts excluded, but only those that Slurm knows: it refuses a job that
    excludes an unknown one. The run may have been on a login node or another cluster before."""
    more = {*hosts}
    if more and slurm.executor not in ONE_MACHINE:
        with suppress(SchedulerError):
            more &= nodes()
    listed = [slurm.exclude] if slurm.exclude else []
    return replace(slurm, exclude=",".join([*listed, *sorted(more)]) or None)


def _launch(
    run: RunPaths, number: int, shards: int, slurm: SlurmConfig, blame: Blame, patience_s: float
) -> list[Job]:
    """Start the shards, if there are any (after a replan nothing may be left to render), and write
    down their jobs."""
    jobs: list[Job] = []
    if shards:
        jobs = _launch_elsewhere(run, number, shards, slurm, blame)
        jobs = jobs or executor_for(slurm).launch(run, number, shards, slurm, patience_s)
    failpoint("submit.after_launch")
    write_jobs(run, number, jobs)
    return jobs


def _launch_elsewhere(
    run: RunPaths, number: int, shards: int, slurm: SlurmConfig, blame: Blame
) -> list[Job]:
    """Launch without the hosts on which a suspect died alone: it must die on another host too to be
    convicted, since the host may be what kills. Empty if there is no such host, or no other is
    up."""
    suspects = set(blame.suspects.tolist())
    alone = [death for death in blame.deaths if death.alone and not death.signalled]
    hosts = {death.host for death in alone if not suspects.isdisjoint(death.rows)} - {""}
    if not hosts or slurm.executor in ONE_MACHINE:
        return []
    with suppress(SchedulerError):
        if usable_nodes(slurm.partition) - hosts - hosts_in(slurm.exclude or ""):
            return executor_for(slurm).launch(run, number, shards, without_hosts(slurm, hosts))
    return []


def cut(
    plan: Path,
    rows: np.ndarray,
    config: JobConfig,
    layout: Layout | None,
    suspects: np.ndarray = NOBODY,
    *,
    together: bool = False,
) -> SubmissionRows:
    """Cut rows, by ascending row_index, into shards by predicted cost, the longest first in each,
    and of equal cost those of one set of LoRA files behind each other, since these share forwards;
    `suspects` apart. One machine gets one shard, and so do rows that stay `together`. `layout` is
    None if there is nothing to cut."""
    slurm, groups, replicas, speed = config.slurm, 1, 1, 1.0
    if layout is not None:
        groups, replicas, speed = layout.groups, layout.replicas_together, layout.speed
    costs, alone = costs_of(plan, rows), np.zeros(len(rows), bool)
    costs /= speed
    alone[np.searchsorted(rows, suspects[np.isin(suspects, rows)])] = True
    costs[alone] *= replicas  # the others of the shard wait while a suspect runs
    whole = together or slurm.executor in ONE_MACHINE
    order = longest_first(costs)
    shard = cut_shards(
        costs,
        shards=1 if whole else None,
        slots=groups,
        start_up_s=start_up_seconds(config, None if whole else measured_start_up(config)),
        ranks=replicas,
        most_s=most_shard_seconds(slurm),
        order=order,
    )
    if (sets := sets_of(plan, rows)) is not None:
        order = longest_first(costs, sets)
    return SubmissionRows(rows, shard, places(order), alone=alone)
