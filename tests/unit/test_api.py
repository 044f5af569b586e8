"""The verbs from Python: the same runs and the same refusals as on the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cli_calls import AT_ONCE, NULL, JobFolder, make_job_folder

import batchgen
from batchgen.errors import ConfigError, ManifestError, RunStateError, UsageError


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobFolder:
    monkeypatch.chdir(tmp_path)
    for name, value in AT_ONCE.items():
        monkeypatch.setenv(name, value)
    return make_job_folder(tmp_path, 3)


def test_a_run_from_plan_to_verify(job: JobFolder) -> None:
    planned = batchgen.plan(job.job, NULL)
    assert (planned.rows, planned.unique_rows) == (3, 3)
    assert not job.root.exists()  # nothing was made
    done = batchgen.run(job.job, NULL, "tag=api", "output.enable_launch_log=true")
    assert (done.rows, done.ok) == (3, 3)
    status = batchgen.status()  # the latest in ./outputs
    assert (status.state, status.ok) == ("finished", 3)
    assert batchgen.resume("api").ok == 3  # nothing is left
    assert batchgen.collect(status.run).rows == 3
    assert batchgen.verify("latest", root=job.root).is_sound
    assert batchgen.write_report().is_file()
    launches = Path(status.run, "logs/launch.log").read_text()
    assert "run" in launches and "resume" in launches


def test_results_are_tables_in_a_notebook(job: JobFolder) -> None:
    planned = batchgen.plan(job.job, NULL)
    shown = planned._repr_html_()
    assert "<th>rows</th><td>3</td>" in shown and "<caption>Planned</caption>" in shown
    named = replace(planned, plan_id="<b>&")
    assert "&lt;b&gt;&amp;" in named._repr_html_()
    assert "<th>shards</th><td>1</td>" in shown and "Forecast(" not in shown  # a part: a table


def test_what_was_submitted_can_be_waited_for(job: JobFolder) -> None:
    assert job.call("submit", str(job.job), NULL, "slurm.executor=local").code == 0
    assert batchgen.status(watch=True).ok == 3
    assert batchgen.resume().ok == 3  # refused while a rank is at work


def test_what_is_wrong_is_raised_in_the_words_of_the_command_line(job: JobFolder) -> None:
    with pytest.raises(ConfigError, match=r"slurm\.executor: 'inline' renders in this process"):
        batchgen.submit(job.job, NULL)
    with pytest.raises(ManifestError, match="nowhere"):
        batchgen.plan(job.job, NULL, "manifest=nowhere.parquet")
    with pytest.raises(ConfigError, match=r"forecast of .* is above system\.max_gpu_hours=1e-09"):
        batchgen.plan(job.job, NULL, "system.max_gpu_hours=1e-9")
    with pytest.raises(UsageError, match=r"no run in .*outputs.*--root FOLDER"):
        batchgen.status()
    batchgen.run(job.job, NULL)
    with pytest.raises(RunStateError, match=r"no run 'other' in .*; the latest of 1 is job-"):
        batchgen.status("other")
    with pytest.raises(UsageError, match="purge needs repair"):
        batchgen.verify(purge=True)
    assert batchgen.status(job.root / "latest").ok == 3


def test_there_is_nothing_else_in_it() -> None:
    with pytest.raises(AttributeError, match="no attribute 'render'"):
        batchgen.__getattr__("render")
