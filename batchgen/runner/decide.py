"""What to do once a submission has ended: which rows to submit again, and under which settings."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

import numpy as np

from batchgen.ledger.attempts import rows_of
from batchgen.ledger.blame import read_blame
from batchgen.ledger.intent import Intent, last_render
from batchgen.ledger.status import AttemptStatus, read_status
from batchgen.ledger.winners import missing_rows
from batchgen.paths import RunPaths
from batchgen.runner.executors import ONE_MACHINE
from batchgen.runner.jobs import last_submission
from batchgen.runner.submit import Settings

log = logging.getLogger(__name__)
PROGRESS = 0.1  # a submission that finishes a smaller share of its rows uses up an attempt


@dataclass(frozen=True, slots=True, eq=False)
class Move:
    """A submission to make."""

    rows: np.ndarray  # row_index
    settings: Settings


def next_move(run: RunPaths) -> Move | None:
    """What to submit after the latest submission; None when nothing is left, somebody cancelled it,
    all its ranks met the same error at once, or `max_attempts` of them in a row came to little.

    Only rows of that submission are taken: those without a verdict, and those that failed on a host
    where nothing succeeded. Such hosts are excluded from here on.
    """
    intent = last_render(run)
    if intent is None or run.cancelled(intent.number).exists():
        return None
    blame = read_blame(run, all_gone=True)
    left = np.union1d(missing_rows(run).pending, blame.rows_failed_on(blame.bad_hosts))
    left = np.intersect1d(left, rows_of(run, intent.number))
    if len(left) == 0:
        return None
    config = json.loads(intent.config)
    attempt = intent.attempt + (len(left) > (1 - PROGRESS) * intent.rows)
    if why := _reason_to_stop(run, intent, attempt, config["slurm"]):
        log.warning("%d rows are left: %s", len(left), why)
        return None
    settings = Settings(
        resolved=config,
        overrides=list(intent.overrides),
        last=last_submission(run),
        attempt=attempt,
        excluded={**intent.excluded, **blame.bad_hosts},
    )
    return Move(left, settings)


def _reason_to_stop(run: RunPaths, intent: Intent, attempt: int, slurm: dict[str, object]) -> str:
    """Why another submission would be in vain or is not wanted; empty if it is."""
    most = int(str(slurm["max_attempts"]))
    if most == 1:
        return "slurm.max_attempts is 1"
    if attempt > most:
        return f"{most} submissions in a row finished hardly any"
    ranks = [a for a in read_status(run).attempts if a.attempt.submission == intent.number]
    if slurm["executor"] in ONE_MACHINE and any(rank.ended == "terminated" for rank in ranks):
        return "somebody ended the ranks"
    if ranks and len({rank.error for rank in ranks}) == 1 and all(map(_fell_at_once, ranks)):
        return f"every rank met the same error: {ranks[0].error}"
    return ""


def _fell_at_once(rank: AttemptStatus) -> bool:
    return bool(rank.error) and rank.commits == 0
