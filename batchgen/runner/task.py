"""What an executor starts: a folder and numbers; everything else is in the run folder.

`python -m batchgen.runner.task task RUN SUBMISSION FIRST` is one rank of an array element (shard
FIRST + array index); `... steward RUN SUBMISSION` is the job behind the arrays.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from batchgen.paths import RunPaths
from batchgen.runner.rank import rank_from_environment

FORMAT = "%(asctime)s %(levelname)s %(message)s"


def run_task(folder: str, submission: int, task: int) -> None:
    """One rank of one task."""
    from batchgen.worker import work  # torch: only where rows are rendered

    work(RunPaths(Path(folder)), submission, rank_from_environment(task))


def main(what: str, folder: str, *numbers: str) -> int:
    """Exit status of the process: 0, or of a steward 1 when rows are left or failed."""
    printed = logging.StreamHandler()  # of a rank only what is wrong: the rest is in its own log
    printed.setLevel(logging.INFO if what == "steward" else logging.WARNING)
    logging.basicConfig(handlers=[printed], level=logging.INFO, format=FORMAT)
    run, submission = RunPaths(Path(folder)), int(numbers[0])
    if what == "steward":
        from batchgen.runner.steward import follow_up

        return follow_up(run)
    task = int(numbers[1]) + int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    try:
        run_task(folder, submission, task)
    finally:
        if os.environ.get("SLURM_PROCID") == "0":
            from batchgen.runner.held import free_the_steward

            free_the_steward(run, submission)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
