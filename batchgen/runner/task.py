"""What an executor starts: the smallest thing that can be pickled (a folder and two numbers)."""

from __future__ import annotations

from pathlib import Path

from batchgen.paths import RunPaths
from batchgen.runner.rank import rank_from_environment


def run_task(folder: str, submission: int, task: int) -> None:
    """One rank of one task; everything else it needs is in the run folder."""
    from batchgen.worker import work  # torch: only where rows are rendered

    work(RunPaths(Path(folder)), submission, rank_from_environment(task))
