"""What an executor starts. It is given a folder and numbers; everything else is in the run folder.

`python -m batchgen.runner.task task RUN SUBMISSION FIRST STRIDE` is one rank of an array element
(shard FIRST + STRIDE * array index); `... steward RUN SUBMISSION` is the job behind the arrays.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from batchgen.errors import KeysChanged, RunStateError, StorageError
from batchgen.paths import RunPaths
from batchgen.records import Attempt
from batchgen.scheduler.rank import rank_from_environment
from batchgen.worker import work
from batchgen.worker.meetings.address import announce

START_AGAIN = 200
_NOBODYS = (KeysChanged, RunStateError, StorageError)  # errors for which the node is not to blame
FORMAT = "%(asctime)s %(levelname)s %(message)s"


def run_task(folder: str, submission: int, task: int) -> None:
    """Run one rank of one task."""
    run, rank = RunPaths(Path(folder)), rank_from_environment(task)
    if rank.rank == 0:
        announce(run.queue_address(Attempt(submission, task, rank.restart, rank.rank)))
    work(run, submission, rank)


def main(what: str, folder: str, *numbers: str) -> int:
    """Run a task or steward and return the exit status: 0; of a steward 1 if rows are left or
    failed. `numbers` are the submission and, for a task, the array's first shard and the step from
    one element to the next."""
    printed = logging.StreamHandler()  # a rank prints only warnings: the rest is in its own log
    printed.setLevel(logging.INFO if what == "steward" else logging.WARNING)
    logging.basicConfig(handlers=[printed], level=logging.INFO, format=FORMAT)
    run, submission = RunPaths(Path(folder)), int(numbers[0])
    if what == "steward":
        return _steward(run, submission)
    first, stride = map(int, numbers[1:])
    task = first + stride * int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    error: Exception | None = None
    try:
        run_task(folder, submission, task)
    except Exception as raised:
        error = raised
        raise
    finally:
        if os.environ.get("SLURM_PROCID") == "0":
            _leave(run, submission, error)
    return 0


def _leave(run: RunPaths, submission: int, error: Exception | None) -> None:
    """Called as a task ends: after an error keeps a bad node from the next tasks, and lets the
    steward start if this is the last task."""
    from batchgen.runner.recover import free_the_steward, keep_away

    host = rank_from_environment(0).host
    if error is not None and not isinstance(error, _NOBODYS):
        _try(lambda: keep_away(run, submission, host))
    _try(lambda: free_the_steward(run))


def _try(call: Callable[[], object]) -> None:
    """Call, and only log an error: it must not hide how the task ended."""
    try:
        call()
    except Exception as trouble:
        logging.getLogger(__name__).warning(
            "after this task the queue could not be checked: %s", trouble
        )


def _steward(run: RunPaths, submission: int) -> int:
    """Run the steward. After an unexpected error (a stale file handle, for example) it returns an
    exit status of 128 or more, with which the batch script starts the steward again, a few
    times."""
    try:
        from batchgen.runner.steward import follow_up

        return follow_up(run, submission)
    except Exception:
        logging.getLogger(__name__).exception("the steward failed")
        return START_AGAIN


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
