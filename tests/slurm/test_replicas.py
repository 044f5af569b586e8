"""One replica over two nodes: one of them loses power, and its rows go on there or on one node."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from cli_calls import JobFolder, make_job_folder, recorded
from slurm.campaign import Campaign
from slurm.cluster import NODES, Cluster

Make = Callable[..., JobFolder]
ROWS = 6
SLOWLY = ("row_defaults.num_steps=25", "system.batch.max_rows_in_flight=1")
# A replica of four ranks, two on each of two nodes.
OVER_TWO_NODES = (
    *SLOWLY,
    "model=tiny-wan", "system.determinism=strict", "slurm.nodes=2", "slurm.ranks_per_node=2",
    "system.parallel.cfg=2", "system.parallel.ulysses=2", "slurm.watchdog_s=180",
)  # fmt: skip
ON_ONE_NODE = ("slurm.nodes=1", "slurm.ranks_per_node=4", "slurm.mem_gb=3.9")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[object, ...]]:
    """What one rank makes of the rows."""
    return recorded(make_job_folder(tmp_path_factory.mktemp("alone"), ROWS).run(*SLOWLY).run)


def in_the_middle(run: Campaign) -> list[str]:
    """The two nodes of the replica, its leader's first, once it has committed a row and draws the
    next."""

    def busy() -> list[str]:
        live = [a for a in run.status().attempts if a.process.alive() and a.running]
        return [a.host for a in live if a.commits]

    run.until(busy, 150)
    (leading,) = busy()
    (following,) = [n for n in NODES if n != leading and run.cluster.processes_on(n)]
    return [leading, following]


def starts(run: Campaign) -> list[tuple[int, int, int]]:
    """(submission, restart, ranks) of each attempt."""
    found = [(a.attempt, a.devices) for a in run.status().attempts]
    return sorted((a.submission, a.restart, ranks) for a, ranks in found)


@pytest.mark.timeout(500)
def test_a_node_loses_its_power_and_the_run_goes_on_on_one_node(
    cluster: Cluster, new_job_folder: Make, alone: set[tuple[object, ...]]
) -> None:
    """On the other node all ranks of the replica miss those of this one at once."""
    run = Campaign.submit(cluster, new_job_folder(ROWS), *OVER_TWO_NODES)
    _, following = in_the_middle(run)
    cluster.node_kill(following)
    run.until(lambda: run.status().attempts[0].ended)
    attempt = run.status().attempts[0]
    assert attempt.ended == "ReplicaFailed" and f"of 4 on {following}" in attempt.error
    assert run.status().left
    cancelled = run.job_folder.call("cancel", str(run.run.root))  # or Slurm starts it again
    assert cancelled.code == 0, cancelled.err
    run.wait()
    run.resume(*ON_ONE_NODE)
    run.wait()
    run.audit("replica-node")
    first, *again, last = starts(run)
    assert (first, last) == ((1, 0, 4), (2, 0, 4))
    assert len(again) <= 1 and all(start == (1, 1, 4) for start in again), "Slurm was the quicker"
    assert recorded(run.run) == alone


def test_a_rank_dies_and_the_steward_starts_both_nodes_again(
    cluster: Cluster, new_job_folder: Make, alone: set[tuple[object, ...]]
) -> None:
    run = Campaign.submit(cluster, new_job_folder(ROWS), *OVER_TWO_NODES)
    _, following = in_the_middle(run)
    os.kill(cluster.processes_on(following)[0], signal.SIGKILL)
    run.wait()
    run.audit("replica-rank")
    assert starts(run) == [(1, 0, 4), (2, 0, 4)]
    assert recorded(run.run) == alone


@pytest.mark.timeout(500)
def test_the_leader_loses_its_node_and_slurm_starts_both_again(
    cluster: Cluster, new_job_folder: Make, alone: set[tuple[object, ...]]
) -> None:
    """The batch script was on that node: the job has failed with it, and is queued again."""
    run = Campaign.submit(cluster, new_job_folder(ROWS), *OVER_TWO_NODES)
    leading, _ = in_the_middle(run)
    cluster.node_kill(leading)
    run.wait(240)
    run.audit("replica-leader")
    assert starts(run) == [(1, 0, 4), (1, 1, 4)]
    assert recorded(run.run) == alone
