"""One replica over two nodes: its node loses power, and its rows go on there or on one node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cli_calls import JobFolder, make_job_folder, recorded
from slurm.campaign import Campaign
from slurm.cluster import Cluster

from batchgen.ledger.intent import journal_files
from batchgen.ledger.status import AttemptStatus

Make = Callable[..., JobFolder]
ROWS = 6
STEPS = ("row_defaults.num_steps=12", "system.batch.max_rows_in_flight=1")
# A replica of four ranks, two on each of two nodes.
OVER_TWO_NODES = (
    "model=tiny-wan", "system.determinism=strict", "slurm.nodes=2", "slurm.ranks_per_node=2",
    "system.parallel.cfg=2", "system.parallel.ulysses=2", "slurm.watchdog_s=180",
)  # fmt: skip
ON_ONE_NODE = ("slurm.nodes=1", "slurm.ranks_per_node=4", "slurm.gpus_per_node=0")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[object, ...]]:
    """What one rank makes of the rows."""
    return recorded(make_job_folder(tmp_path_factory.mktemp("alone"), ROWS).run(*STEPS).run)


def in_the_middle(run: Campaign) -> tuple[list[str], AttemptStatus]:
    """The nodes of the replica, its leader's first, and its attempt, once it has committed a row
    and draws another."""

    def busy() -> list[AttemptStatus]:
        live = [a for a in run.status().attempts if a.process.alive() and a.running]
        return [a for a in live if a.commits]

    run.until(busy, 150)
    (attempt,) = busy()
    nodes = [node for node in NODES if run.cluster.processes_on(node)]
    return sorted(nodes, key=lambda node: node != attempt.host), attempt
