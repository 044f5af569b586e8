"""A submission reads journals and keys once, and once more only where somebody wrote since."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_calls import make_job_folder
from run_folder import RunFolder

from batchgen.ledger.intent import read_intent
from batchgen.ledger.reading import bands, plan_rows, scan
from batchgen.ledger.reading.plan_rows import read_plan_rows
from batchgen.ledger.reading.scan import index_commits
from batchgen.ledger.reading.winners import choose
from batchgen.ledger.submissions import SubmissionInfo, SubmissionRows, begin_submission


def test_what_was_committed_since_it_was_read_counts(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(rows=3)
    run_folder.submit([0, 1, 2])
    with run_folder.journal(1) as journal:
        run_folder.render(journal, 0)
        found = choose(index_commits(run_folder.run), read_plan_rows(run_folder.run.plan))
        run_folder.render(journal, 1)
    rest = np.array([1, 2])
    rows = SubmissionRows(rest, np.zeros(2, np.int32), np.arange(2))
    number = begin_submission(run_folder.run, rows, SubmissionInfo(), found=found)
    intent = read_intent(run_folder.run, number)
    assert intent is not None and intent.before.ok == 2
    assert intent.reopened == {"ok": (1,)}


def test_journals_and_keys_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = make_job_folder(tmp_path, 2)
    run = work.run("model=null-engine", "slurm=inline").run
    read: list[str] = []
    every = ((scan, "scan_journal"), (plan_rows, "read_band"), (bands, "read_band"))
    for module, name in every:
        real = getattr(module, name)

        def spy(*args: object, name: str = name, real: Callable[..., object] = real) -> object:
            read.append(name)
            return real(*args)

        monkeypatch.setattr(module, name, spy)
    from batchgen.runner.submit import submit

    started = submit(run, rows=np.array([0]))
    assert started is not None and started.number == 2
    assert read == ["scan_journal", "read_band"]
