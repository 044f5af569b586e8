"""What a run goes through, each step in a process of its own, so that its peak memory is seen.

`python -m batchgen.bench.scale.steps STEP FOLDER` does one and prints what it took.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING
from unittest.mock import patch

from batchgen.paths import RunPaths

if TYPE_CHECKING:
    import numpy as np

    from batchgen.bench._jobs import Job

LEFT = 100  # one row of so many is committed only behind the first collect
SHARDS = 4096


def plan(folder: Path) -> Callable[[], object]:
    """Check the manifest, give keys and costs, write the plan and the run folder."""
    from batchgen.bench._jobs import made

    return lambda: made(_job(folder))


def submit(folder: Path) -> Callable[[], object]:
    """Cut the shard and record the submission; ranks, which would draw for days, are not begun."""
    from batchgen.config.composing.compose import compose_job
    from batchgen.runner import submit as submissions

    composed = compose_job(_job(folder).path)
    settings = submissions.Settings(composed.resolved, list(composed.overrides))

    def work() -> None:
        with patch.object(submissions, "_launch"):
            submissions.submit(_run(folder), settings)

    return work


def cut(folder: Path) -> Callable[[], object]:
    """Cut the planned rows into shards for a large cluster."""
    from batchgen.planning.plan import read_costs
    from batchgen.planning.pricing.shards import cut_shards

    run = _run(folder)
    return lambda: cut_shards(
        read_costs(run.plan).cost_s, shards=SHARDS, slots=SHARDS, start_up_s=60.0, ranks=8
    )


def fill_most(folder: Path) -> Callable[[], object]:
    """Not the runner's work: journals of nearly all rows."""
    from batchgen.bench.scale.fill import fill

    return lambda: fill(_run(folder), lambda row: row % LEFT > 0)


def status(folder: Path) -> Callable[[], object]:
    """What `status` shows."""
    from batchgen.ledger.status import read_status

    return lambda: read_status(_run(folder))


def scan(folder: Path) -> Callable[[], object]:
    """What a resume reads to find the rows that are left."""
    from batchgen.ledger.reading.left import missing_of, survey
    from batchgen.ledger.upkeep.losses import refuse_losses
    from batchgen.planfile import check_plan
    from batchgen.runfile import read_run

    run = _run(folder)

    def work() -> np.ndarray:
        check_plan(run, read_run(run))
        found = survey(run)
        refuse_losses(run, found)
        return missing_of(found).all

    return work


def collect(folder: Path) -> Callable[[], object]:
    """Write the catalog."""
    from batchgen.catalog import collect as catalog

    return lambda: catalog.collect(_run(folder))


def fill_rest(folder: Path) -> Callable[[], object]:
    """Not the runner's work: journals of the rows that are left."""
    from batchgen.bench.scale.fill import fill

    return lambda: fill(_run(folder), lambda row: row % LEFT == 0)


def report(folder: Path) -> Callable[[], object]:
    """Write the page."""
    from batchgen.report.write import write_report

    return lambda: write_report(_run(folder))


def verify(folder: Path) -> Callable[[], object]:
    """Look at every file, and at the catalog."""
    from batchgen.catalog import verify as checks

    def work() -> None:
        report = checks.verify(_run(folder))
        assert report.is_sound and report.files == report.rows, report.counts

    return work


# in this order; a step behind `collect` sees what it wrote
STEPS: dict[str, Callable[[Path], Callable[[], object]]] = {
    "plan": plan,
    "cut": cut,
    "submit": submit,
    "fill_most": fill_most,
    "status": status,
    "scan": scan,
    "collect": collect,
    "fill_rest": fill_rest,
    "scan_again": scan,
    "collect_again": collect,
    "collect_same": collect,
    "report": report,
    "verify": verify,
}


def _job(folder: Path) -> Job:
    from batchgen.bench._jobs import Job

    return Job(folder / "job.yaml", 0)


def _run(folder: Path) -> RunPaths:
    """The only one."""
    (run,) = (path.parent for path in (folder / "runs").glob("*/run.json"))
    return RunPaths(run)


def memory_mib(kind: str) -> float:
    """Of this process alone: `VmRSS`, what it has, or `VmHWM`, the most that it had. (`ru_maxrss`
    begins with what the process had that started this one.)"""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def cpu_seconds() -> float:
    """Of all threads of this process, and of its children that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return process_time() + ended.ru_utime + ended.ru_stime


def take(step: str, folder: Path) -> dict[str, float]:
    """Do it: seconds, the process's memory before (with what was imported by then) and its peak."""
    work = STEPS[step](folder)
    with suppress(OSError):  # a kernel may lack it: then a peak of imports counts, too
        Path("/proc/self/clear_refs").write_text("5")
    before, begin, busy = memory_mib("VmRSS"), perf_counter(), cpu_seconds()
    work()
    return {
        "seconds": perf_counter() - begin,
        "cpu": cpu_seconds() - busy,
        "before_mib": before,
        "peak_mib": memory_mib("VmHWM"),
    }


if __name__ == "__main__":
    print(json.dumps(take(sys.argv[1], Path(sys.argv[2]))))
