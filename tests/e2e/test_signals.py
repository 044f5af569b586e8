"""Signals to the process that a person started: what goes on is said, nothing is half written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import warm
from cli_calls import SLOW_ROWS, JobFolder, published
from waiting import wait_for

from batchgen.cli.main import main
from batchgen.ledger.status import read_status
from batchgen.paths import RunPaths

SLOW = ("model=null-engine", *SLOW_ROWS, "row_defaults.num_steps=200")
BOTH = [signal.SIGTERM, signal.SIGHUP]
NewJobFolder = Callable[[int], JobFolder]


def start(job_folder: JobFolder, executor: str) -> tuple[warm.Process, RunPaths]:
    """A run with a row in flight and one that is done."""
    argv = ("run", str(job_folder.job), *SLOW, f"slurm.executor={executor}", "--json")
    process = job_folder.start(*argv)
    while True:
        assert process.poll() is None, process.communicate()
        for folder in job_folder.root.glob("job-*"):
            status = read_status(RunPaths(folder))
            if status.running and status.ok:
                return process, RunPaths(folder)
        time.sleep(0.05)


@pytest.mark.parametrize("number", BOTH)
@pytest.mark.slow
def test_ranks_go_on_without_the_driver(
    number: signal.Signals, new_job_folder: NewJobFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    process, run = start(new_job_folder(8), "local")
    assert main(["collect", str(run.root)]) == 1
    said = capsys.readouterr().out  # a resume would be refused
    assert "at work  batchgen status" in said and "go on" not in said
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    name = run.root.name  # it lies in ./outputs
    for words in (number.name, "ranks go on", f"status {name} --watch", f"cancel {name}"):
        assert words in err
    assert json.loads(out.splitlines()[-1])["run"] == str(run.root)
    status = read_status(run)
    assert status.alive == 1 or status.left == 0, err
    assert main(["cancel", str(run.root)]) == 0
    assert read_status(run).alive == 0


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)]
)
def test_a_rank_in_the_driver_saves_its_rows(
    number: signal.Signals, new_job_folder: NewJobFolder
) -> None:
    made = new_job_folder(3)
    process, run = start(made, "inline")
    process.send_signal(number)
    os.kill(process.pid, signal.SIGTERM)  # the next of those that a session's end brings
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "go on with `batchgen resume" in err and "Traceback" not in err
    (attempt,) = read_status(run).attempts
    assert attempt.ended == "terminated"
    assert main(["resume", str(run.root)]) == 0
    assert len(published(run)) == 3


def test_a_closed_terminal_leaves_no_draft(new_job_folder: NewJobFolder) -> None:
    """Whenever it comes, from the first folder on."""
    made = new_job_folder(2)
    process = made.start("run", str(made.job), "model=null-engine")
    while not made.root.exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (0, 130), err
    assert not list(made.root.glob(".*"))
    for folder in made.root.glob("job-*"):
        assert main(["resume", str(folder)]) == 0


def test_nohup_is_heard(new_job_folder: NewJobFolder) -> None:
    made = new_job_folder(2)
    job = (str(made.job), "model=null-engine")
    line = [sys.executable, "-c", "import os, signal, sys; "
            "signal.signal(signal.SIGHUP, signal.SIG_IGN); "
            "os.execv(sys.executable, [sys.executable, '-m', 'batchgen', *sys.argv[1:]])",
            "run", *job]  # fmt: skip
    process = subprocess.Popen(line, cwd=made.folder, stdout=subprocess.DEVNULL)
    wait_for(made.root.exists)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 0
