"""Submissions at the edges: nothing to start, nowhere else to go, refused before they begin."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_calls import make_job_folder
from login_node import LoginNode
from quick_cases import first_quick
from run_folder import RunFolder, make_request

from batchgen.ledger.status import read_status
from batchgen.planning.plan import read_plan


def test_a_replan_that_leaves_nothing_to_render_starts_nothing(login_node: LoginNode) -> None:
    """The default seed: every row has its own."""
    assert login_node.submit() == 0
    login_node.fake.work()
    asked = login_node.fake.calls("sbatch")
    assert login_node.on_run("resume", "seed=7", "--detach") == 0, login_node.err
    assert "nothing is left to render" in login_node.out
    assert login_node.on_run("resume", "seed=8") == 0, login_node.err
    assert "4 of 4 rows ok" in login_node.out
    assert login_node.fake.calls("sbatch") == asked
    status = read_status(login_node.run)
    assert (status.state, status.submission, status.ok) == ("finished", 3, 4)


@pytest.mark.parametrize(
    "refused",
    [("slurm.nodes=2",), pytest.param(("slurm=inline", "--detach"), marks=pytest.mark.slow)],
)
def test_a_resume_that_is_refused_leaves_no_draft(tmp_path: Path, refused: tuple[str, ...]) -> None:
    work = make_job_folder(tmp_path, 1)
    run = work.run("model=null-engine", "slurm.executor=local").run
    before, files = read_plan(run.plan).plan_id, sorted(run.root.iterdir())
    done = work.call("resume", str(run.root), "row_defaults.num_steps=3", "--rerender-changed",
                     *refused)  # fmt: skip
    assert done.code == 2 and "slurm." in done.err
    assert sorted(run.root.iterdir()) == files
    assert read_plan(run.plan).plan_id == before


@pytest.mark.parametrize(
    ("others", "excluded"),
    first_quick(
        [
            ({"node2": "drain", "node3": "down*", "node4": "alloc"}, "node1"),
            ({"node2": "drain", "node3": "down*", "node4": "idle*"}, ""),
        ],
        1,
    ),
)
def test_a_suspect_goes_elsewhere_if_there_is_somewhere_else(
    login_node: LoginNode, monkeypatch: pytest.MonkeyPatch, others: dict[str, str], excluded: str
) -> None:
    """It died alone on node1; to wait for nodes that are down would be to wait for ever."""
    monkeypatch.setenv("BATCHGEN_FAILPOINT", "row.row-000:*:kill")
    assert login_node.submit("slurm.max_attempts=1") == 0
    login_node.fake.work()
    assert login_node.on_run("resume", "--detach") == 0
    login_node.fake.work()
    for name, how in others.items():
        login_node.fake.set_node(name, how)
    assert login_node.on_run("resume", "--detach") == 0
    task, _ = login_node.fake.jobs()[-2:]
    assert task["excluded"] == excluded


@pytest.mark.parametrize(("signalled", "excluded"), [(False, "node1"), (True, "")])
def test_where_a_suspect_was_killed_after_a_signal_is_no_place_to_avoid(
    login_node: LoginNode, signalled: bool, excluded: str
) -> None:
    assert login_node.submit("slurm.max_attempts=1") == 0
    run_folder = RunFolder(login_node.run, [make_request(row) for row in range(4)])
    with run_folder.journal(1, host="node1") as journal:
        journal.start(0, "row-000", alone=True)
        if signalled:
            journal.signalled("SIGTERM")
    for job in login_node.fake.jobs():
        login_node.fake.change(job["job_id"], state="COMPLETED")
    assert login_node.on_run("resume", "--detach") == 0, login_node.err
    task, _ = login_node.fake.jobs()[-2:]
    assert task["excluded"] == excluded
