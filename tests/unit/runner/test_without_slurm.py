"""Runs of a cluster, looked at from a machine without Slurm's commands: heartbeats decide."""

from __future__ import annotations

from pathlib import Path

import pytest
from login_node import LoginNode
from run_folder import RunFolder, make_request

from batchgen.ledger.events import End
from batchgen.ledger.intent import submission_numbers


@pytest.fixture
def away(login_node: LoginNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LoginNode:
    """One row is rendered, then the run is seen from elsewhere."""
    assert login_node.submit() == 0
    login_node.fake.work()
    assert login_node.on_run("retry", "--rows", "row-001", "--detach") == 0
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    return login_node


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(argv, marks=[pytest.mark.slow] * (argv[0] not in ("resume", "cancel")))
        for argv in (
            ("resume", "slurm=local"),
            ("retry", "--rows", "row-002", "slurm=inline"),
            ("cancel",),
            ("verify", "--repair"),
        )
    ],
)
def test_the_run_can_be_taken_up(
    away: LoginNode, caplog: pytest.LogCaptureFixture, argv: tuple[str, ...]
) -> None:
    assert away.on_run(*argv) == 0, away.err
    assert "squeue: not found" in caplog.text
    assert caplog.text.count("heartbeats") == 1
    away.assert_every_row_once()


def test_a_rank_that_beats_keeps_others_out(
    away: LoginNode, caplog: pytest.LogCaptureFixture
) -> None:
    """Of this machine, whose process is known to live."""
    run_folder = RunFolder(away.run, [make_request(row) for row in range(4)])
    with run_folder.journal(2, host="node1") as journal:
        for verb in (("resume", "slurm=local"), ("verify", "--repair")):
            assert away.on_run(*verb) == 2
            assert "is at work" in away.err and "heartbeats" in caplog.text
        journal.end(End(reason="done"))
    assert away.on_run("retry", "--rows", "row-001", "slurm=inline") == 0
    assert len(submission_numbers(away.run)) == 3


def test_a_cluster_is_still_needed_to_submit_to_it(away: LoginNode) -> None:
    assert away.on_run("resume") == 2
    assert "slurm=local" in away.err


def test_watching_ends_where_nobody_can_be_asked(away: LoginNode) -> None:
    assert away.on_run("status", "--watch") == 0
    assert "queue     unknown" in away.out and "squeue: not found" in away.out
