"""What Slurm has of a run, for people to read. Standard library only; one call of `squeue`."""

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
    """Tasks of the latest submission by what Slurm says of them."""

    running: int = 0
    pending: int = 0
    reasons: dict[str, int] = field(default_factory=dict)  # why tasks wait -> how many
    held: dict[str, str] = field(default_factory=dict)  # task -> reason: waits for ever
    steward: str = ""  # waits and why, running; empty: there is none
    problem: str = ""  # why nothing is known
    absent: bool = False  # for there is no Slurm on this machine to be asked

    @property
    def known(self) -> bool:
        return not self.problem

    @property
    def empty(self) -> bool:
        return self.known and not (self.running or self.pending or self.held or self.steward)


def look(run: RunPaths) -> QueueView | None:
    """Ask Slurm about a run; None for a run that is not on Slurm. Never raises for its silence."""
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
    """The status with what heartbeats cannot know: whether anything is still to come."""
    if view is None or not view.known:
        return status
    if view.empty and status.state in ("running", "submitted"):
        return replace(status, state="stopped" if status.left else "finished", running=0)
    comes = view.running or view.pending or view.held  # beside a steward that collects
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
