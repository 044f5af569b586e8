"""A run under a budget ends before its rows do, says so, and goes on with a higher one."""

from __future__ import annotations

import pytest
from cli_calls import SLOW_ROWS, JobFolder, published, rows_of

from batchgen.ledger.status import read_status

NULL = ("model=null-engine", "row_defaults.num_steps=1")
NOTHING = "--max-gpu-hours=0.0000001"  # to start a rank takes more


def test_a_run_goes_on_with_a_higher_budget(
    new_job_folder, caplog: pytest.LogCaptureFixture
) -> None:
    work: JobFolder = new_job_folder(3)
    done = work.run_here(*NULL, NOTHING)
    assert done.code == 1
    assert (
        "device hours are spent of system.max_gpu_hours=1e-07; go on with a higher" in caplog.text
    )
    name = str(done.run.root)
    assert f"go on    batchgen resume {done.run.root.name} --max-gpu-hours X" in done.out
    shown = work.here("status", str(done.run.root)).out
    assert f"go on with  batchgen resume {done.run.root.name} --max-gpu-hours X" in shown
    assert [line for line in shown.splitlines() if line != line.rstrip()] == []
    nothing = work.here("logs", name, "--failed")
    assert nothing.code == 0 and "no row has failed and no attempt has died" in nothing.out
    refused = work.here("resume", name)
    assert refused.code == 2 and "go on with a higher one" in refused.err
    status = read_status(done.run)
    assert (status.ok, status.left, len(status.attempts)) == (0, 3, 1)
    assert (status.attempts[0].ended, status.attempts[0].error) == ("budget", "")
    lifted = work.here("resume", name, "system.max_gpu_hours=null")
    assert lifted.code == 0, lifted.err
    assert list(rows_of(done.run).status) == ["ok"] * 3 and len(published(done.run)) == 3
    assert work.here("resume", name, NOTHING).code == 0, "nothing is left to spend it on"
    next(done.run.media.iterdir()).unlink()
    repaired = work.here("verify", name, "--repair")
    assert "--max-gpu-hours X" in repaired.out, "a resume has the run's own limit, not the last one"
    assert work.here("resume", name).code == 2


def test_rows_in_flight_are_finished_and_no_other_is_begun(new_job_folder) -> None:
    rows = 600
    work: JobFolder = new_job_folder(rows)  # minutes of work
    done = work.run(*NULL[:1], *SLOW_ROWS, "row_defaults.num_steps=30", "--max-gpu-hours=0.001")
    assert done.code == 1
    status = read_status(done.run)
    assert status.ok < rows and status.left == rows - status.ok and status.failed == 0
    assert [attempt.ended for attempt in status.attempts] == ["budget"]
    assert not list(done.run.root.glob("state/**/*.safetensors")), "nothing was stopped midway"


def test_what_is_no_budget_is_refused(new_job_folder) -> None:
    work: JobFolder = new_job_folder(1)
    done = work.here("run", str(work.job), "model=null-engine", "--max-gpu-hours", "0")
    assert done.code == 2 and "system.max_gpu_hours" in done.err
    assert not work.root.exists()
