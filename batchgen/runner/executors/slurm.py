"""Runs shards as Slurm arrays through submitit: one array element per shard, one process per rank.

Behind the arrays waits the steward, a job of one process that submits again what is missing and
writes the catalog.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from batchgen.config.schema import SlurmConfig
from batchgen.failpoints import failpoint
from batchgen.ledger.intent import read_intent
from batchgen.paths import BATCH_FILES, RunPaths
from batchgen.records import Layout
from batchgen.runfile import read_run
from batchgen.runner.executors import Job
from batchgen.scheduler import commands as scheduler
from batchgen.scheduler.batch import Batch, after, parameters, without
from batchgen.scheduler.commands import STEWARD, SchedulerError, job_name, names, others, queued
from batchgen.scheduler.options import export_defaults

log = logging.getLogger(__name__)
POLL_S = 5.0
NEEDS_DRIVER = False
STEWARD_MEM_GB = 4.0  # fixed memory; collecting takes half of it
STEWARD_ROW_BYTES = 150  # further memory per row, for the index of commits and the plan
STEWARD_MIN = 240
STEWARD_STARTS = 3  # starts of a steward that is killed
ROOM = 2  # tasks cancelled to make room for the steward under a limit on submitted jobs


# ---------------------------------------------------------------------------------------- launching
def launch(
    run: RunPaths, submission: int, shards: int, slurm: SlurmConfig, patience_s: float = 0.0
) -> list[Job]:
    """Submit one array element per shard, in as many arrays as the cluster's limit asks for, and
    the steward behind them. Returns once Slurm has them; SchedulerError if it takes none within
    `patience_s`.

    If Slurm takes only some arrays, or part of one (a limit on jobs), the other rows are left to
    the steward.
    """
    window = scheduler.patiently(scheduler.max_array_size, patience_s)
    name = job_name(run, submission)
    intent = read_intent(run, submission)
    slurm, together = in_groups(slurm, intent.layout if intent else None)
    batches = task_batches(run, submission, shards, slurm, window, together)
    jobs: list[Job] = []
    for batch in batches:
        known = [job.job_id for job in jobs]
        batch = after(batch, waits_for(known, slurm))
        try:
            job_id, elements = _submit_once(name, batch, known, patience_s)
        except SchedulerError as error:
            if not jobs:
                raise
            _note(run, f"submission {submission}: {error}; the steward will submit the rest")
            break
        jobs.append(Job("slurm", job_id, len(jobs), stride=len(batches)))
        failpoint("slurm.after_sbatch")
        if elements < batch.elements:
            part = f"a limit on jobs lets in {elements} of {batch.elements} elements of {job_id}"
            _note(run, f"submission {submission}: {part}; the steward will submit the rest")
            break
    _share_again(slurm, jobs, len(batches))
    arrays = [job.job_id for job in jobs]
    launch_steward(run, submission, slurm, arrays, patience_s, make_room=True)
    return jobs


def launch_steward(
    run: RunPaths,
    submission: int,
    slurm: SlurmConfig,
    arrays: Sequence[str],
    patience_s: float = 0.0,
    *,
    make_room: bool = False,
) -> bool:
    """Submit the steward behind the arrays; returns whether Slurm took it. A refusal is noted and
    the tasks run anyway: `resume` does the same by hand. `make_room`: if a limit on submitted jobs
    refuses it, cancel some tasks and ask again, once, since others may take the room."""
    name = job_name(run, submission, steward=True)
    batch = after(steward_batch(run, submission, slurm, read_run(run).rows), arrays)
    try:
        try:
            _submit_once(name, batch, [], 0.0)
        except SchedulerError as error:
            room = make_room and _is_submit_limit(error) and _made_room(run, submission, arrays)
            if not (room or patience_s):
                raise
            _submit_once(name, batch, [], patience_s)
    except SchedulerError as error:
        _note(run, f"submission {submission} has no steward: {error}; `batchgen resume` goes on")
        return False
    return True


def _submit_once(
    name: str, batch: Batch, known: Sequence[str], patience_s: float
) -> tuple[str, int]:
    """Job id of `batch`, and how many of its elements Slurm took.

    The queue is looked at before every try: Slurm may have taken the job without saying so, or an
    earlier start of this process was killed before it heard. The same task twice would be two
    writers of one journal.
    """
    try:
        return scheduler.patiently(lambda: _submit_what_fits(name, batch, known), patience_s)
    except SchedulerError:
        taken = _taken(name, known)
        if taken is None:
            raise
        return taken, batch.elements


def _submit_what_fits(name: str, batch: Batch, known: Sequence[str]) -> tuple[str, int]:
    """Submit the batch, or its first half, quarter ... if a limit on submitted jobs refuses it,
    since Slurm takes a whole array or nothing. If the whole cluster is full, each try takes sbatch
    two minutes, so the size drops to a quarter each time."""
    try:
        return _taken(name, known) or batch.submit(), batch.elements
    except SchedulerError as error:
        full = _is_full(error)
        if batch.elements == 1 or not (full or _is_submit_limit(error)):
            raise
        fewer = max(1, batch.elements // (4 if full else 2))
        log.warning("%s; trying %d of %d elements", error, fewer, batch.elements)
    return _submit_what_fits(name, replace(batch, elements=fewer), known)


def _is_full(error: SchedulerError) -> bool:
    """Whether the cluster has as many jobs as it allows (MaxJobCount)."""
    return "Resource temporarily unavailable" in str(error)


def _is_submit_limit(error: SchedulerError) -> bool:
    """Whether a limit on submitted jobs was reached. Slurm has one text for all limits; only some
    versions print which one it is."""
    limits = re.findall(r"\b(?:QOS|Assoc)[A-Z]\w+", str(error))
    return "job submit limit" in str(error) and (not limits or any("Submit" in x for x in limits))


def _made_room(run: RunPaths, submission: int, arrays: Sequence[str]) -> bool:
    """Cancel the last waiting tasks so that the steward fits under the limit; it submits their rows
    again. False if there are none to spare. The first task of each array stays: it is the
    longest."""
    tasks = [task for task in scheduler.queue([job_name(run, submission)]) if task.waits]
    spare = [t for t in tasks if t.task_id not in (*arrays[:1], *(f"{a}_0" for a in arrays))]
    spare.sort(key=lambda task: [int(number) for number in task.task_id.split("_")])
    ids = [task.task_id for task in spare[-ROOM:]]
    if ids:
        scheduler.cancel_tasks(ids)
        made = f"cancelled {', '.join(ids)} to make room for the steward"
        _note(run, f"submission {submission}: {made}")
    return bool(ids)


def _taken(name: str, known: Sequence[str]) -> str | None:
    """Id of an array of this name that Slurm has and that is not in `known`."""
    found = {task.array_id for task in others(scheduler.queue([name]))} - set(known)
    return min(found, default=None)


def in_groups(slurm: SlurmConfig, layout: Layout | None) -> tuple[SlurmConfig, int]:
    """The profile with groups of nodes in place of its nodes, and how many nodes make a group: a
    replica may span several, which are one array element then."""
    if layout is None:
        return slurm, 1
    together = layout.nodes_together
    return replace(slurm, nodes=max(1, slurm.nodes // together)), together


def task_batches(
    run: RunPaths, submission: int, shards: int, slurm: SlurmConfig, window: int, together: int = 1
) -> list[Batch]:
    """The arrays of a submission, each of at most `window` elements, each on `together` nodes.
    Shards are dealt out in turn, since the longest come first: element i of array n is shard n +
    i * arrays."""
    shared = parameters(slurm, job_name(run, submission), together=together)
    stride = array_count(shards, window, slurm)
    longest = -(-shards // max(1, stride))
    return [
        Batch(
            run.batches(submission, first, longest),
            _command(slurm, "task", run, submission, first, stride),
            {**shared, "array_parallelism": share},
            len(range(first, shards, stride)),
        )
        for first, share in enumerate(_shares(slurm, stride))
    ]


def array_count(shards: int, window: int, slurm: SlurmConfig) -> int:
    """In how many arrays of at most `window` elements to submit the shards.

    All have the same length. If the nodes do not divide evenly among them, some arrays get fewer
    nodes and end last, while nodes of others are idle. So a few more are made until at most a
    twentieth is idle.
    """
    window = min(window, BATCH_FILES)  # the logs of an array share a folder
    count, most = -(-shards // window), _at_once(slurm)
    if count > most:
        return min(shards, -(-count // most) * most)
    while count < shards and 20 * (most % count) > most:
        count += 1
    return count


def waits_for(known: Sequence[str], slurm: SlurmConfig) -> list[str]:
    """Which of the arrays so far, if any, the next one waits for. Arrays run side by side, so that
    one long or waiting element does not hold up other arrays. But if there are more arrays than
    elements may run at once, each array waits for the one that many places before it."""
    most = _at_once(slurm)
    return [known[-most]] if len(known) >= most else []


def _shares(slurm: SlurmConfig, arrays: int) -> list[int]:
    """How many elements of each array may run at once."""
    return [max(1, len(range(n, _at_once(slurm), arrays))) for n in range(arrays)]


def _at_once(slurm: SlurmConfig) -> int:
    return min(slurm.nodes, slurm.array_parallelism)


def _share_again(slurm: SlurmConfig, jobs: Sequence[Job], arrays: int) -> None:
    """If Slurm took only some of the arrays, share all the nodes among them."""
    shares = zip(_shares(slurm, arrays)[: len(jobs)], _shares(slurm, len(jobs)), strict=True)
    for job, (before, now) in zip(jobs, shares, strict=True):
        if now > before:
            with suppress(SchedulerError):  # without this the run is slower, but correct
                order = (f"JobId={job.job_id}", f"ArrayTaskThrottle={now}")
                scheduler.ask("scontrol", "update", *order)


def steward_batch(run: RunPaths, submission: int, slurm: SlurmConfig, rows: int) -> Batch:
    """The steward: one process without devices, with memory for all `rows` of the run. If it is
    killed, it is started again."""
    again = (
        f"[ $? -ge 128 ] && [ ${{SLURM_RESTART_COUNT:-0}} -lt {STEWARD_STARTS - 1} ] && "
        "scontrol requeue $SLURM_JOB_ID"
    )
    wanted = STEWARD_MEM_GB + STEWARD_ROW_BYTES * rows / 2**30
    memory = min(slurm.mem_gb or wanted, wanted)  # mem_gb 0 means all memory of a node
    # None stays None: if nodes have no RealMemory, Slurm refuses any job that asks for memory.
    modest = replace(
        slurm,
        partition=slurm.steward_partition or slurm.partition,
        ranks_per_node=1,
        cpus_per_rank=1,
        gpus_per_node=0,
        gres=None,
        constraint=None,
        extra={} if slurm.steward_partition else without(slurm.extra, "dependency"),
        python=slurm.steward_python or slurm.python,
        srun_args=() if slurm.steward_python else slurm.srun_args,
        mem_gb=None if slurm.mem_gb is None else memory,
        timeout_min=min(slurm.timeout_min, STEWARD_MIN),
        setup=(*slurm.setup, *export_defaults(), f"trap '{again}' EXIT"),
    )
    shared = parameters(modest, job_name(run, submission, steward=True), drains=False)
    return Batch(
        run.steward_batch(submission), _command(modest, "steward", run, submission), shared
    )


def _command(slurm: SlurmConfig, what: str, run: RunPaths, *numbers: int) -> str:
    python = slurm.python or shlex.quote(sys.executable)
    words = [shlex.quote(str(run.root)), *map(str, numbers)]
    return f"{python} -u -m batchgen.runner.task {what} {' '.join(words)}"


def _note(run: RunPaths, text: str) -> None:
    """Log the text, also where `batchgen logs` finds it."""
    log.warning("%s", text)
    with suppress(OSError), (run.logs / "launch.log").open("a") as file:
        print(text, file=file)


# ---------------------------------------------------------------------------- watching and ending
def is_alive(run: RunPaths, submission: int, jobs: Sequence[Job]) -> bool:
    """Whether Slurm has tasks of the submission. Heartbeats do not count: what outlives its job is
    fenced off. Stewards decide between themselves who goes on (`steward.follow_up`)."""
    asked_by_steward = os.environ.get("SLURM_JOB_NAME", "").endswith(STEWARD)
    return any(not (asked_by_steward and t.is_steward) for t in queued(run, submission))


def drain(run: RunPaths, submission: int, jobs: Sequence[Job]) -> None:
    """Nothing new starts; the running tasks find the drain mark by themselves."""
    scheduler.cancel(names(run, submission), pending_only=True)


def kill(run: RunPaths, submission: int, jobs: Sequence[Job]) -> None:
    scheduler.cancel(names(run, submission))
