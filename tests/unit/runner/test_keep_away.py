"""What is pending keeps away from a node on which tasks end as they start, and from no other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import count

import pytest
from fake_slurm import UNREACHABLE
from login_node import LoginNode
from run_folder import RunFolder, make_request

from batchgen.ledger.events import End
from batchgen.runner import recover
from batchgen.scheduler import commands as scheduler
from batchgen.scheduler.commands import SchedulerError


class Night:
    """What happens to tasks of a submission, one after the other; each is a journal."""

    def __init__(self, login_node: LoginNode) -> None:
        self.login_node = login_node
        self.run_folder = RunFolder(login_node.run, [make_request(row) for row in range(4)])
        self.tasks = count()

    def rendered(self, host: str) -> None:
        with self.run_folder.journal(1, next(self.tasks), host=host) as journal:
            self.run_folder.render(journal, 0)
            journal.end(End(reason="done"))

    def fell(self, host: str, ranks: int = 1, reason: str = "RuntimeError") -> None:
        """Its ranks load nothing."""
        task = next(self.tasks)
        for replica in range(ranks):
            with self.run_folder.journal(1, task, replica=replica, host=host) as journal:
                journal.end(End(reason=reason, error=f"{host} has no device"))

    def avoided(self, host: str) -> str:
        """What the pending elements keep away from after a task on `host` has looked."""
        recover.keep_away(self.login_node.run, 1, host)
        (pending,) = [job for job in self.login_node.fake.jobs() if job["element"] == 1]
        return str(pending["excluded"])


@pytest.fixture
def night(login_node: LoginNode) -> Night:
    """An array of two: one element at work, one pending."""
    assert login_node.submit() == 0
    login_node.fake.change("1001", state="RUNNING", node="node9", reason="None")
    return Night(login_node)


# ------------------------------------------------------------------------------------- which nodes
def test_a_node_where_two_tasks_came_to_nothing_takes_no_more(night: Night) -> None:
    night.rendered("node1")
    night.fell("node2", ranks=2)
    assert night.avoided("node2") == "", "it may have been a moment's trouble"
    night.fell("node2")
    night.rendered("node1")
    assert night.avoided("node2") == "node2"


def test_no_node_is_avoided_while_none_renders(night: Night) -> None:
    for _ in range(3):
        night.fell("node2")
    assert night.avoided("node2") == ""


def test_a_node_that_broke_after_it_had_rendered_is_avoided_too(night: Night) -> None:
    night.rendered("node1")
    night.rendered("node2")
    night.fell("node2")
    night.rendered("node2")
    night.fell("node2", ranks=2)
    assert night.avoided("node2") == "", "one since its last row"
    night.fell("node2", reason="StorageError")
    assert night.avoided("node2") == "", "the run folder's fault"
    night.fell("node2", reason="KeysChanged")
    assert night.avoided("node2") == "", "somebody changed the weights"
    night.fell("node2")
    assert night.avoided("node2") == "node2"


def test_not_more_than_half_of_the_nodes_break(night: Night) -> None:
    """Then it is the cluster, or the job."""
    for host in ("node1", "node2", "node3", "node4"):
        night.rendered(host)
    for host in ("node2", "node3", "node3", "node4", "node4"):
        night.fell(host)
    assert night.avoided("node3") == "node3"
    night.fell("node2")
    assert night.avoided("node4") == "node3"


# --------------------------------------------------------------------------------------- the order
def test_an_array_keeps_away_from_one_node_more(login_node: LoginNode) -> None:
    """Slurm replaces the list, and says of what runs that it cannot be changed."""
    assert login_node.submit("slurm.exclude='node[3-4]'") == 0
    login_node.fake.change("1001", state="RUNNING", node="node1", reason="None")
    assert scheduler.exclude("1001", "node2")
    running, pending = login_node.fake.jobs()[:2]
    assert (running["excluded"], pending["excluded"]) == ("node[3-4]", "node3,node4,node2")
    asked = len(login_node.fake.asked())
    assert not scheduler.exclude("1001", "node3")
    assert [c for c in login_node.fake.asked()[asked:] if c[:2] == ["scontrol", "update"]] == []


def test_an_order_that_is_not_carried_out_is_an_error(login_node: LoginNode) -> None:
    assert login_node.submit() == 0
    with pytest.raises(SchedulerError, match="Invalid node name"):
        scheduler.exclude("1001", "node9")
    login_node.fake.steer("scontrol", "fail", UNREACHABLE)
    with pytest.raises(SchedulerError, match="Unable to contact"):
        scheduler.exclude("1001", "node2")


def test_nothing_is_ordered_once_nothing_is_pending(login_node: LoginNode) -> None:
    assert login_node.submit() == 0
    for job_id in ("1001", "1002"):
        login_node.fake.change(job_id, state="RUNNING", node="node1", reason="None")
    assert not scheduler.exclude("1001", "node2")


# ----------------------------------------------------------------------------------- as a task ends
@pytest.fixture
def falls(night: Night) -> Callable[[], str]:
    """The third task of node2 to end as it starts; what it prints."""
    night.rendered("node1")
    night.fell("node2")
    night.fell("node2")
    night.rendered("node1")

    def fall() -> str:
        rank = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}
        place = {"SUBMITIT_EXECUTOR": "slurm", "SLURMD_NODENAME": "node2"}
        again = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_RESTART_COUNT": "1"}
        trouble = {**again, "BATCHGEN_NULL_SLOW": "nonsense"}  # loads no engine
        argv = [
            sys.executable,
            "-m",
            "batchgen.runner.task",
            "task",
            str(night.login_node.run.root),
        ]
        done = subprocess.run(
            [*argv, "1", "0", "1"],
            env={**os.environ, **rank, **place, **trouble},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "ConfigError" in done.stderr
        return done.stderr

    return fall


def test_a_task_that_falls_says_so_once_it_is_so(night: Night, falls: Callable[[], str]) -> None:
    assert "array 1001 keeps away from node2" in falls()
    assert night.login_node.fake.jobs()[1]["excluded"] == "node2"


def test_a_node_that_cannot_be_avoided_keeps_nobody_from_the_steward(
    night: Night, falls: Callable[[], str]
) -> None:
    """What Slurm holds is let go all the same."""
    night.login_node.fake.change("1001", state="COMPLETED")
    night.login_node.fake.change("1002", reason="launch failed requeued held")
    night.login_node.fake.steer("scontrol", "fail", UNREACHABLE)
    said = falls()
    assert "Unable to contact" in said and "keeps away" not in said
    assert night.login_node.fake.jobs()[1]["state"] == "CANCELLED"
