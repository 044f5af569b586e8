"""What to do when a submission has ended: which rows to submit again, and under which settings."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from batchgen.config.schema import ONE_MACHINE
from batchgen.errors import KeysChanged, ReplicaFailed
from batchgen.ledger.blame.hosts import rows_rendered
from batchgen.ledger.blame.rows import read_blame
from batchgen.ledger.budget import budget_spent
from batchgen.ledger.intent import Intent, last_render, profile_of
from batchgen.ledger.reading.left import missing_rows
from batchgen.ledger.reading.scan import CommitIndex
from batchgen.ledger.reading.winners import winners
from batchgen.ledger.status import AttemptStatus, read_status
from batchgen.ledger.submissions import rows_of
from batchgen.paths import RunPaths
from batchgen.planning.plan import read_costs
from batchgen.runner.jobs import last_submission
from batchgen.runner.resume import replan_after_pilot
from batchgen.runner.submit import Settings
from batchgen.runner.tables import pilot_is_over

log = logging.getLogger(__name__)
PROGRESS = 0.1  # a submission that finishes a smaller share of its rows made no progress


@dataclass(frozen=True, slots=True, eq=False)
class Move:
    """The next submission to make."""

    rows: np.ndarray  # row_index
    settings: Settings


def next_move(run: RunPaths) -> Move | None:
    """What to submit after the latest submission. None if nothing is left, a person cancelled it,
    all its ranks met the same error at once, or `max_attempts` in a row made no progress.

    The rows are those that it did not commit, and those that failed on a bad host
    (`ledger.blame.hosts`), which is excluded from now on. The death of a row alone is progress:
    once convicted, the row no longer disturbs the others. But where replicas have never rendered a
    row and every one of them failed, rows would be convicted one by one for what is not theirs.
    """
    intent = last_render(run)
    if intent is None or run.cancelled(intent.number).exists():
        return None
    if spent := budget_spent(run, limit_of(intent)):
        log.warning("%s", spent)
        return None
    if pilot_is_over(run):
        return _after_pilot(run, intent)
    found = winners(run)
    blame = read_blame(run, found, all_gone=True)
    rows = rows_of(run, intent.number)
    left = np.setdiff1d(rows, _finished_since(found.index, intent.number))
    left = np.union1d(left, np.intersect1d(rows, blame.rows_failed_on(blame.bad_hosts)))
    if len(left) == 0:
        return None
    rendered = rows_rendered(found.index)
    closer = blame.has_evidence_from(intent.number)  # to a verdict
    closer = closer and not _replicas_never_work(run, intent, rendered)
    progress = closer or _is_progress(run, found.index, intent, left)
    settings = Settings(
        resolved=intent.config,
        overrides=list(intent.overrides),
        last=last_submission(run),
        attempt=1 if progress else intent.attempt + 1,
        excluded={**intent.excluded, **blame.bad_hosts},
    )
    settings = _without_lone_host(run, intent, settings, rendered)
    if why := _reason_to_stop(run, intent, settings):
        log.warning("%d rows are left: %s", len(left), why)
        return None
    return Move(left, settings)


def limit_of(intent: Intent) -> float | None:
    """Device hours that the run may spend; None: it was made without a limit, or before there was
    one."""
    limit: float | None = intent.config["system"].get("max_gpu_hours")
    return limit


def _after_pilot(run: RunPaths, intent: Intent) -> Move:
    """All that is left, planned with the pilot's tables. RunStateError or ManifestError if that
    cannot be."""
    replan = replan_after_pilot(run, intent.config)
    settings = Settings(
        resolved=intent.config,
        overrides=list(intent.overrides),
        last=last_submission(run),
        replan=replan,
        excluded=intent.excluded,
    )
    return Move(missing_rows(run, replan.plan).all, settings)


def _replicas_never_work(run: RunPaths, intent: Intent, rendered: Mapping[str, int]) -> bool:
    """Whether each replica of the submission failed, and none of the run has rendered any row."""
    ranks = _ranks(run, intent)
    failed = [rank for rank in ranks if rank.ended == ReplicaFailed.__name__]
    return bool(ranks) and len(failed) == len(ranks) and not rendered


def _finished_since(index: CommitIndex, submission: int) -> np.ndarray:
    """row_index of the rows committed by this submission or a later one."""
    lines = np.flatnonzero(index.accepted)
    return np.unique(index.row_index[lines[index.submission_of(lines) >= submission]])


def _is_progress(run: RunPaths, index: CommitIndex, intent: Intent, left: np.ndarray) -> bool:
    """Whether enough of the started rows were finished. Tasks without a journal do not count: a
    limit on jobs may have kept them out. Work saved inside rows longer than the wall time counts
    too, from a tenth of the rows' predicted cost on."""
    mine = [f for f in index.journals if f.journal.attempt.submission == intent.number]
    started = rows_of(run, intent.number, {f.journal.attempt.task for f in mine})
    done = len(started) - int(np.isin(started, left).sum())
    if done and done >= PROGRESS * len(started):
        return True
    saved_s = sum(seconds for facts in mine for seconds in facts.saved.values())
    if saved_s == 0:
        return False
    return saved_s >= PROGRESS * float(read_costs(run.plan).cost_s[started].sum())


def _reason_to_stop(run: RunPaths, intent: Intent, settings: Settings) -> str:
    """Why another submission would be useless or is not wanted; empty if it makes sense."""
    most = profile_of(run, intent).max_attempts
    if most == 1:
        return "slurm.max_attempts is 1"
    if settings.attempt > most:
        return f"{most} submissions in a row finished hardly any"
    ranks = _ranks(run, intent)
    if changed := [rank.error for rank in ranks if rank.ended == KeysChanged.__name__]:
        return changed[0]  # on every host, until a person decides
    if settings.executor in ONE_MACHINE and any(rank.ended == "terminated" for rank in ranks):
        return "somebody ended the ranks"
    judged = [rank for rank in ranks if rank.host not in settings.excluded]  # other rows move on
    if judged and len({rank.error for rank in judged}) == 1 and all(map(_fell_at_once, judged)):
        return f"every rank met the same error: {judged[0].error}"
    return ""


def _without_lone_host(
    run: RunPaths, intent: Intent, settings: Settings, rendered: Mapping[str, int]
) -> Settings:
    """Exclude the only host of a submission if all its ranks failed at once there and other hosts
    have rendered rows. Near the end a submission may be one shard."""
    ranks = _ranks(run, intent)
    hosts = {rank.host for rank in ranks}
    if len(hosts) != 1 or not all(map(_fell_at_once, ranks)) or not rendered.keys() - hosts:
        return settings
    (host,) = hosts
    why = f"all ranks of submission {intent.number} ended there at once: {ranks[0].error}"
    return replace(settings, excluded={**settings.excluded, host: why})


def _ranks(run: RunPaths, intent: Intent) -> list[AttemptStatus]:
    return [a for a in read_status(run).attempts if a.attempt.submission == intent.number]


def _fell_at_once(rank: AttemptStatus) -> bool:
    """By an error that may come again. One that another rank of the replica met, or its death, is
    judged like the death of a lone rank."""
    return bool(rank.error) and rank.commits == 0 and rank.ended != ReplicaFailed.__name__
