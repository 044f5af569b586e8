"""What Slurm says about a run, for people to read. Standard library only; one call of `squeue`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from batchgen.ledger.status import RunStatus
from batchgen.paths import RunPaths
from batchgen.scheduler.commands import (
    NoScheduler,
    QueuedTask,
    SchedulerError,
    queued,
    slurm_intent,
)

HELD_BY_ADMIN = "JobHeldAdmin"


@dataclass(frozen=True, slots=True)
class QueueView:
    """Tasks of the latest submission, by their state in Slurm's queue."""

    running: int = 0
    pending: int = 0
    reasons: dict[str, int] = field(default_factory=dict)  # reason to wait -> number of tasks
    held: dict[str, str] = field(default_factory=dict)  # task that waits for a release -> reason
    steward: str = ""  # "running", "waits" with the reason; empty: there is no steward
    problem: str = ""  # why the queue is unknown
    absent: bool = False  # the queue is unknown because this machine has no Slurm

    @property
    def known(self) -> bool:
        return not self.problem

    @property
    def empty(self) -> bool:
        return self.known and not (self.running or self.pending or self.held or self.steward)


def look(run: RunPaths) -> QueueView | None:
    """Ask Slurm about a run; None if it is not on Slurm. Never raises: the view says if Slurm is
    silent."""
    intent = slurm_intent(run)
    if intent is None:
        return None
    try:
        found = queued(run, intent.number)
    except SchedulerError as error:
        return QueueView(problem=str(error), absent=isinstance(error, NoScheduler))
    tasks = [task for task in found if not task.is_steward]
    stewards = [task for task in found if task.is_steward]
    waiting = [task for task in tasks if task.waits and not task.held]
    return QueueView(
        running=sum(not task.waits for task in tasks),
        pending=len(waiting),
        reasons=dict(Counter(task.reason for task in waiting)),
        held={task.task_id: task.reason for task in found if task.held},
        steward=_of_steward(stewards[0]) if stewards else "",
    )


def _of_steward(steward: QueuedTask) -> str:
    if not steward.waits:
        return "running"
    return "waits" if steward.reason == "Dependency" else f"waits ({steward.reason})"


def with_queue(status: RunStatus, view: QueueView | None) -> RunStatus:
    """The status corrected by the queue: heartbeats do not show whether tasks are still to come."""
    if view is None or not view.known:
        return status
    if view.empty and status.state in ("running", "submitted"):
        return replace(status, state="stopped" if status.left else "finished", running=0)
    comes = view.running or view.pending or view.held  # a steward alone only collects
    if (status.state == "stopped" and not view.empty) or (status.state == "finished" and comes):
        return replace(status, state="submitted")
    return status


def queue_lines(view: QueueView | None) -> list[str]:
    """The lines of `batchgen status`."""
    if view is None:
        return []
    if not view.known:
        return [f"queue     unknown ({view.problem}); the figures are from the run folder"]
    why = ", ".join(f"{reason} x{n}" for reason, n in view.reasons.items())
    parts = [f"{view.running} running", f"{view.pending} pending" + (f" ({why})" if why else "")]
    parts.append(f"steward {view.steward}" if view.steward else "no steward")
    lines = ["queue     " + ("empty" if view.empty else ", ".join(parts))]
    for task, reason in view.held.items():
        goes = "only an administrator can release it"
        if reason != HELD_BY_ADMIN:
            goes = f"`scontrol release {task}` lets it go"
        lines.append(f"held      {task}: {reason}; {goes}")
    return lines
