"""A run under a budget ends before its rows do, says so, and goes on with a higher one."""

from __future__ import annotations

import pytest
from cli_calls import SLOW_ROWS, JobFolder, published, rows_of

from batchgen.ledger.status import read_status

NULL = ("model=null-engine", *SLOW_ROWS, "row_defaults.num_steps=40",
        "system.batch.max_rows_in_flight=1")  # fmt: skip
HALF_A_SECOND = "--max-gpu-hours=0.00014"


@pytest.mark.parametrize("executor", ["inline", "local"])
def test_the_rest_waits_for_a_higher_budget(new_job_folder, executor: str) -> None:
    work: JobFolder = new_job_folder(60)  # 24 seconds of one rank
    done = work.run(*NULL, f"slurm.executor={executor}", HALF_A_SECOND)
    assert done.code == 1
    status = read_status(done.run)
    assert 0 < status.ok < 60 and status.left == 60 - status.ok and status.failed == 0
    (attempt,) = status.attempts  # nobody started a second one
    assert (attempt.ended, attempt.error) == ("budget", "")
    assert "device hours are spent of system.max_gpu_hours=0.00014" in done.err
    name = str(done.run.root)
    refused = work.here("resume", name)
    assert refused.code == 2 and "go on with a higher one" in refused.err
    assert len(read_status(done.run).attempts) == 1
    lifted = work.here("resume", name, "system.max_gpu_hours=null", "row_defaults.num_steps=40")
    assert lifted.code == 0, lifted.err
    assert list(rows_of(done.run).status) == ["ok"] * 60 and len(published(done.run)) == 60
    assert work.here("resume", name, HALF_A_SECOND).code == 0, "nothing is left to spend it on"


def test_what_is_no_budget_is_refused(new_job_folder) -> None:
    work: JobFolder = new_job_folder(1)
    done = work.here("run", str(work.job), "model=null-engine", "--max-gpu-hours", "0")
    assert done.code == 2 and "system.max_gpu_hours" in done.err
    assert not work.root.exists()
