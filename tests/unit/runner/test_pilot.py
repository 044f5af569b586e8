"""A pilot on a cluster: one task of one rank before all others; the steward goes on from there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cli_calls import make_job_folder, rows_of
from fake_slurm import FakeSlurm
from login_node import LoginNode

from batchgen.ledger.intent import read_intent

COUNT = 10
CALIBRATE = (
    "model=tiny-wan", "row_defaults.num_steps=6", "row_defaults.cache_ratio=0.5",
    "system.cache.calibrate=true", "slurm.start_up_s=60",
)  # fmt: skip
WIDE = ("slurm.nodes=4", "slurm.ranks_per_node=2", "system.parallel.cfg=2", "slurm.start_up_s=1e-6")


@pytest.fixture
def login_node(
    fake: FakeSlurm,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> LoginNode:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [{"row_id": f"row-{i:03d}", "prompt": f"circle {i}"} for i in range(COUNT)]
    return LoginNode(make_job_folder(tmp_path, rows), fake, capsys)


def asked_for(script: str) -> list[str]:
    """Nodes, ranks of a node, and the elements of an array."""
    names = ("nodes", "ntasks-per-node", "array")
    return [found for n in names for found in re.findall(rf"^#SBATCH --{n}=(.*)$", script, re.M)]


def test_a_pilot_is_one_task_of_one_rank(login_node: LoginNode) -> None:
    assert login_node.submit(*CALIBRATE, *WIDE, "--dry-run") == 0, login_node.err
    shown = json.loads(login_node.out.splitlines()[-1])
    assert (shown["rows"], shown["shards"], shown["waiting"]) == (5, 1, 5)
    assert "would submit 5 rows as 1 shard of a pilot, then plan 5 more" in login_node.out
    assert login_node.submit(*CALIBRATE, *WIDE) == 0, login_node.err
    assert "are planned when these, a pilot, are drawn: the steward does" in login_node.out
    task, _ = login_node.fake.jobs()
    assert asked_for(task["script"]) == asked_for(shown["scripts"][0]) == ["1", "1"], "no array"
    intent = read_intent(login_node.run, 1)
    assert intent is not None and intent.pilot and intent.layout is not None
    assert (intent.layout.replicas_together, intent.layout.ranks_of_a_replica) == (1, 1)
    assert intent.config["slurm"]["ranks_per_node"] == 2, "the others get what they ask for"


@pytest.mark.slurm
def test_the_steward_goes_on_with_what_the_pilot_found(login_node: LoginNode) -> None:
    assert login_node.submit(*CALIBRATE) == 0, login_node.err
    login_node.fake.work()
    assert login_node.names() == {"s1": 1, "s1-steward": 1, "s2": 1, "s2-steward": 1}
    rows = rows_of(login_node.run)
    assert [*rows.status] == ["ok"] * COUNT
    drawn = rows.cache_refused == "pilot"
    assert drawn.sum() == 5 and rows[~drawn].cache_table.ne("").all()
    assert {*rows[~drawn].cache_strategy} == {"planned"}
