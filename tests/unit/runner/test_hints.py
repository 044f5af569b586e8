"""What a command says is to be done next can be typed as it stands."""

from __future__ import annotations

import json
import re
import shlex
import signal
from pathlib import Path

import pytest
from cli_calls import make_job_folder, rows_of
from fake_slurm import UNREACHABLE
from login_node import JOB, TWO_SHARDS, LoginNode
from planned_run import plan_run
from waiting import wait_for

from batchgen.cli.main import main
from batchgen.ledger.blame.rows import Verdict
from batchgen.ledger.upkeep.repair import quarantine_rows
from batchgen.paths import RunPaths, as_typed
from batchgen.scheduler.commands import job_name


def hints(text: str) -> list[list[str]]:
    """Every command that is named in a text."""
    found = re.findall(r"`batchgen ([^`]+)`|^\S.*  batchgen (.+)$", text, re.M)
    found += re.findall(r"yet: batchgen (.+)$", text, re.M)
    return [shlex.split("".join(words)) for words in found]


# --------------------------------------------------------------------------------- the run's name
def test_a_run_is_named_as_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert as_typed(tmp_path / "outputs" / "job-1") == "job-1"
    assert as_typed(tmp_path / "else" / "job-1") == str(tmp_path / "else" / "job-1")
    assert as_typed(Path("/my runs/job-1")) == "'/my runs/job-1'"


def test_every_hint_finds_its_run_wherever_it_lies(
    login_node: LoginNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "somewhere else"
    assert (
        login_node.call("submit", str(login_node.job_folder.job), *JOB, f"output.root_dir='{root}'")
        == 0
    )
    (folder,) = root.iterdir()
    said = login_node.out
    login_node.call("resume", str(folder), "--detach")  # it is at work
    said += login_node.err
    login_node.call("cancel", str(folder))
    for argv in (("status", str(folder)), ("collect", "latest", "--root", str(root))):
        login_node.call(*argv)
        said += login_node.out
    verbs = [words[0] for words in hints(said)]
    assert {"status", "cancel", "resume"} <= {*verbs}, said
    for words in hints(said):
        assert words[1] == str(folder), words
    login_node.call("status", "no-such-run", "--root", str(root))
    assert "no run" in login_node.err


def test_below_outputs_the_name_is_enough(tmp_path: Path) -> None:
    work = make_job_folder(tmp_path, 1)
    started = work.call("submit", str(work.job), "model=null-engine", "slurm.executor=local")
    ((verb, name, option),) = hints(started.out)
    assert (verb, option) == ("status", "--watch")
    assert work.call(verb, name, option).code == 0


# --------------------------------------------------------------------------------- quarantined rows
@pytest.fixture
def quarantined(tmp_path: Path) -> RunPaths:
    """A run of three rows, the middle one quarantined, nothing rendered."""
    run = plan_run(tmp_path, [1] * 3, "slurm=inline").run
    quarantine_rows(run, [Verdict(1, "it bites", "node1")])
    return run


def test_quarantined_rows_are_told_with_the_way_to_try_them_again(
    quarantined: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(quarantined.root)
    along, again = ["resume", folder, "--quarantined"], ["retry", folder, "--rows", "row-1"]
    assert main(["resume", folder]) == 1
    said = capsys.readouterr().out
    assert "row-1 is quarantined: it bites" in said
    assert "2 of 3 rows ok, 1 quarantined" in said
    assert "row-1: KilledItsProcess: it bites" in said
    assert hints(said) == [along, again]
    assert main(["resume", folder]) == 1, "nothing to render, and not all is well"
    assert hints(capsys.readouterr().out) == [along, again]
    assert main(["resume", folder, "slurm=local", "--detach"]) == 1
    said = capsys.readouterr().out
    assert "1 quarantined" in said and "started" not in said
    assert hints(said) == [along, again]
    assert main(["retry", folder, "--rows", "row-1"]) == 0
    assert list(rows_of(quarantined).status) == ["ok"] * 3
    assert main(["resume", folder, "slurm=local", "--detach"]) == 0


def test_a_resume_takes_quarantined_rows_along(
    quarantined: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    """A verdict that was only bad luck is not for ever; what is missing is rendered too."""
    assert main(["resume", str(quarantined.root), "--quarantined"]) == 0
    assert "quarantined" not in capsys.readouterr().out
    assert list(rows_of(quarantined).status) == ["ok"] * 3
    assert main(["resume", str(quarantined.root), "--quarantined"]) == 0, "there are none"


def test_what_is_left_beside_them_is_for_a_resume(
    quarantined: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(quarantined.root)
    assert main(["collect", folder]) == 1
    told = hints(capsys.readouterr().out)
    assert told == [["resume", folder], ["retry", folder, "--rows", "row-1"]]
    assert main(["retry", folder, "slurm=local", "--detach"]) == 1, "none has failed"
    assert hints(capsys.readouterr().out) == told


# ------------------------------------------------------------------------------------- interrupted
def interrupt_at(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Ctrl-C for this process as it comes to the function of that name."""

    def interrupted(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(where, interrupted)


def test_who_only_watched_has_nothing_to_go_on_with(
    login_node: LoginNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert login_node.submit() == 0
    for where, argv in (
        ("batchgen.cli.status._redraw", ("status", str(login_node.run.root), "--watch")),
        ("batchgen.bench.schedule.cases.compare", ("bench", "schedule", "--seeds", "1")),
    ):
        with monkeypatch.context() as patch:
            interrupt_at(patch, where)
            assert login_node.call(*argv) == 130
        assert "interrupted" in login_node.err and "resume" not in login_node.err


def test_an_interrupt_is_one_also_if_slurm_does_not_answer(login_node: LoginNode) -> None:
    process = login_node.job_folder.start(
        "run", str(login_node.job_folder.job), *JOB, *TWO_SHARDS, "--json"
    )
    wait_for(lambda: any("steward" in job["name"] for job in login_node.fake.jobs()))
    login_node.fake.steer("squeue", "fail", UNREACHABLE)
    wait_for(lambda: list(login_node.job_folder.root.glob("job-*/submissions/0001/jobs.json")))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Unable to contact" in err and f"batchgen resume {login_node.run.root.name}" in err
    assert json.loads(out.splitlines()[-1])["exit_code"] == 130
    assert login_node.run.cancelled(1).exists()
    assert login_node.fake.jobs(job_name(login_node.run, 1))
