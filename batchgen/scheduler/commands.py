"""Questions and orders to Slurm. Standard library only, since `status` uses it too.

Jobs are addressed by name, made from run and submission. Names are known before anything is
submitted, so the jobs of a submit that was cut off are found again. Accounting (`sacct`) is never
asked: what was rendered is in the run folder.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from batchgen.anchor import Place
from batchgen.errors import BatchgenError, UsageError
from batchgen.ledger.intent import Intent, own_render, profile_of, read_intent
from batchgen.paths import RunPaths

T = TypeVar("T")
log = logging.getLogger(__name__)
PATIENCE_S = 20.0  # for a question
ORDER_PATIENCE_S = 180.0  # for sbatch, which retries by itself while there are too many jobs
RETRY_S = 5.0
STEWARD = "-steward"  # suffix of its job name
_FIELDS = ("%i", "%A", "%F", "%j", "%T", "%N", "%r")
_TITLES = re.compile(r"JOBID\|JOBID\|ARRAY_JOB_ID\|NAME\|STATE\|NODELIST\|REASON")
# Reasons of jobs that Slurm itself holds. Jobs that a person holds are left alone.
_HELD_BY_SLURM = ("launch failed", "requeued held", "requeued in held", "jobheldadmin")
# idle~ is powered off and usable; idle* does not answer and idle$ is reserved for maintenance.
_USABLE = re.compile(r"(idle|mix|alloc|comp|plnd)[~#+-]?")
_NO_CONTROLLER = ("Unable to contact slurm controller", "establish a configuration source")
# Environment variables by which a user's settings could hide jobs of the run.
_WISHES = ("SQUEUE_", "SCANCEL_", "SINFO_")


class SchedulerError(BatchgenError):
    """Slurm refuses, does not answer, or answers something that cannot be read."""


class NoScheduler(SchedulerError):
    """Slurm's commands are not on this machine (or in this container), so waiting is useless."""


class NoController(SchedulerError):
    """Slurm's commands are on this machine, but they find no controller that answers."""


@dataclass(frozen=True, slots=True)
class QueuedTask:
    """One line of the queue: an array element, or a job without an array."""

    task_id: str  # as Slurm's commands name it: 123_4
    job_id: str  # of this element: SLURM_JOB_ID of its processes
    array_id: str  # id of the whole array, for dependencies
    name: str
    state: str  # PENDING, RUNNING, COMPLETING ...
    node: str
    reason: str  # why it waits; empty or None while it runs

    @property
    def is_steward(self) -> bool:
        return self.name.endswith(STEWARD)

    @property
    def waits(self) -> bool:
        return self.state in ("PENDING", "REQUEUE_HOLD", "REQUEUED", "SPECIAL_EXIT")

    @property
    def held(self) -> bool:
        """Whether it waits until somebody releases it."""
        return self.waits and (self.held_by_slurm or "held" in self.reason.lower())

    @property
    def held_by_slurm(self) -> bool:
        reason = self.reason.lower()
        return self.waits and any(words in reason for words in _HELD_BY_SLURM)


def slurm_intent(run: RunPaths) -> Intent | None:
    """The intent of the latest submission that started tasks, if it did so on Slurm and not in the
    folder that was copied to this one."""
    intent = own_render(run)
    if intent is None or profile_of(run, intent).executor != "slurm":
        return None
    return intent


def job_name(run: RunPaths, submission: int, *, steward: bool = False) -> str:
    """Job name of all arrays of a submission, or of its steward; no other run has it."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", run.root.name)
    return f"bg-{plain}{_copy_mark(run)}-s{submission}" + (STEWARD if steward else "")


def _copy_mark(run: RunPaths) -> str:
    """The part of a job name that differs between a run folder and its copy."""
    first = read_intent(run, 1)
    if first is None or first.place.is_of(run):
        return ""
    return f"-{Place.of(run).inode:x}"


def names(run: RunPaths, submission: int) -> list[str]:
    """Job names under which a submission may be at work: its arrays, its steward, and the earlier
    steward that started it (a submission that only quarantined rows may lie in between)."""
    numbers = range(submission, max(0, submission - 3), -1)
    return [job_name(run, submission), *(job_name(run, n, steward=True) for n in numbers)]


def queued(run: RunPaths, submission: int) -> list[QueuedTask]:
    """A submission's tasks in the queue, without the job that asks and those that have ended: a
    COMPLETING task commits no more, and if it is started again it is fenced off."""
    return others(queue(names(run, submission)))


def others(tasks: Sequence[QueuedTask]) -> list[QueuedTask]:
    """The tasks that may still do something, without the job that asks."""
    own = os.environ.get("SLURM_JOB_ID") if "BATCHGEN_JOB_ENDS" in os.environ else None
    return [task for task in tasks if task.job_id != own and task.state != "COMPLETING"]


def is_there() -> bool:
    """Whether Slurm's commands are on this machine."""
    return shutil.which("squeue") is not None and shutil.which("sbatch") is not None


def refuse_absent(instead: str = "") -> None:
    """UsageError if Slurm's commands are not on this machine, SchedulerError if Slurm does not
    answer them; says what to do, and what may be done `instead`."""
    other = f", or {instead}" if instead else ""
    if not is_there():
        raise UsageError(
            "Slurm's commands (sbatch, squeue) are not on this machine; go on at a login node of "
            f"the cluster{other}"
        )
    try:
        max_array_size()
    except NoController as error:
        raise NoController(
            f"{error}; go on where `scontrol ping` says that it is up{other}"
        ) from error


def queue(names: Sequence[str]) -> list[QueuedTask]:
    """Pending and running tasks with these job names; one call of `squeue`.

    SchedulerError if Slurm does not answer, or if the answer is not a table of whole lines. A
    site's banner may stand above the table, but an answer without a table is no empty queue.
    """
    wanted = f"--name={','.join(names)}", f"--format={'|'.join(_FIELDS)}"
    text = ask("squeue", "--all", "--array", *wanted)  # --all: jobs in hidden partitions too
    lines = [line.strip() for line in text.splitlines()]
    if not any(map(_TITLES.fullmatch, lines)) or not text.endswith("\n"):
        raise SchedulerError(f"squeue: {text[:200].strip()!r} is no list of jobs, or not all of it")
    top = next(n for n, line in enumerate(lines) if _TITLES.fullmatch(line))
    tasks = [_task(line) for line in lines[top + 1 :] if line]
    return [task for task in tasks if task.name in names]


def _task(line: str) -> QueuedTask:
    parts = [part.strip() for part in line.split("|", len(_FIELDS) - 1)]
    if len(parts) != len(_FIELDS):
        raise SchedulerError(f"squeue: the line {line!r} cannot be read")
    return QueuedTask(*parts)


def cancel(names: Sequence[str], *, pending_only: bool = False) -> None:
    """Cancel the jobs of these names; SchedulerError if Slurm does not answer."""
    only = ["--state=PENDING"] if pending_only else []
    for name in names:
        ask("scancel", "--quiet", *only, f"--name={name}")


def cancel_tasks(task_ids: Sequence[str]) -> None:
    """Cancel single array elements."""
    ask("scancel", "--quiet", *task_ids)


def exclude(array_id: str, node: str) -> bool:
    """Keep an array's pending elements away from one more node. False if none is pending or all
    keep away already; SchedulerError if Slurm refuses."""
    pending = _excluded(array_id)
    if not pending or all(node in hosts_in(listed) for listed in pending):
        return False
    everything = ",".join([*filter(None, sorted(pending)), node])
    try:  # Slurm replaces the list; no version can add to it
        ask("scontrol", "update", f"JobId={array_id}", f"ExcNodeList={everything}")
    except SchedulerError:  # also raised for running elements, which cannot be changed
        if not all(node in hosts_in(listed) for listed in _excluded(array_id)):
            raise
    return True


def _excluded(array_id: str) -> set[str]:
    """The node lists that pending elements of an array exclude, as Slurm writes them: node[1-3].
    Elements that were started again may have another list."""
    wanted = (f"--jobs={array_id}", "--states=PENDING", "--format=excluded=%x")
    text = ask("squeue", "--all", "--noheader", *wanted)
    found = re.findall(r"^excluded=(.*?)\s*$", text, re.M)  # below a site's banner
    return {"" if listed == "(null)" else listed for listed in found}


def hosts_in(listed: str) -> set[str]:
    """The single nodes of a node list as Slurm writes it."""
    return {*ask("scontrol", "show", "hostnames", listed).split()} if listed else set()


def nodes() -> set[str]:
    """All nodes of the cluster."""
    return {*ask("sinfo", "--all", "--noheader", "--Node", "--format=%N").split()}


def usable_nodes(partition: str | None) -> set[str]:
    """Nodes of a partition (None: the default one) that take jobs now or once they are free."""
    text = ask("sinfo", "--all", "--noheader", "--Node", "--format=%P|%N|%t")
    usable = set()
    for words in (line.strip().split("|") for line in text.splitlines()):
        if len(words) == 3:
            name, node, state = words
            wanted = name.rstrip("*") in partition.split(",") if partition else name.endswith("*")
            if wanted and _USABLE.fullmatch(state):
                usable.add(node)
    return usable


def max_array_size() -> int:
    """The most elements that one array may have; 1 if arrays are switched off on the cluster."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"), re.M)
    if found is None:
        raise SchedulerError("scontrol show config: there is no MaxArraySize in the answer")
    return max(1, int(found[1]))


def patiently(call: Callable[[], T], patience_s: float) -> T:
    """Return `call()`, called again every few seconds while it raises SchedulerError, for at most
    `patience_s`."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return call()
        except NoScheduler:
            raise
        except SchedulerError as error:
            if time.monotonic() + RETRY_S > deadline:
                raise
            log.warning("%s; trying again", error)
            time.sleep(RETRY_S)


def order(script: Path) -> str:
    """Submit a batch script and return its job id; SchedulerError if Slurm refuses or names no
    id."""
    text = ask("sbatch", "--parsable", str(script), patience_s=ORDER_PATIENCE_S)
    found = re.findall(r"^(\d+)(?:;\S+)?$", text, re.M)  # below a site's banner
    if not found:
        raise SchedulerError(f"sbatch: there is no job id in {text[:200].strip()!r}")
    return str(found[-1])


def ask(*command: str, patience_s: float | None = None) -> str:
    """Standard output of a command of Slurm; SchedulerError if it fails or is slow."""
    name, patience_s = command[0], PATIENCE_S if patience_s is None else patience_s
    env = {key: value for key, value in os.environ.items() if not key.startswith(_WISHES)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience_s, env=env)
    except FileNotFoundError as error:
        raise NoScheduler(f"{name}: not found; is Slurm installed here?") from error
    except subprocess.TimeoutExpired as error:
        raise SchedulerError(f"{name} gave no answer in {patience_s:.0f} s") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        said = "; ".join(line.removeprefix(f"{name}: ") for line in lines)
        if any(words in said for words in _NO_CONTROLLER):
            last = lines[-1].removeprefix(f"{name}: ").removeprefix("fatal: ")
            raise NoController(f"{name}: no controller of Slurm answers this machine ({last})")
        raise SchedulerError(f"{name}: {said or f'exit status {done.returncode}'}")
    return done.stdout
