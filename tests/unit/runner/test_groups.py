"""A replica over several nodes: what Slurm is asked for, and how rows are cut for it."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
from login_node import LoginNode

from batchgen.config.build import build
from batchgen.config.schema import JobConfig
from batchgen.ledger.intent import last_intent
from batchgen.records import Layout
from batchgen.runfile import read_run
from batchgen.runner.executors.slurm import in_groups
from batchgen.runner.submit import cut

# Two replicas of four ranks; a shard has three start-ups of work at least.
FOUR_NODES = (
    "model=tiny-wan", "slurm.nodes=4", "slurm.ranks_per_node=2", "slurm.start_up_s=1e-6",
    "system.parallel.cfg=2", "system.parallel.ulysses=2",
)  # fmt: skip


def options(script: str) -> tuple[str, str]:
    """Nodes of an array element, and the elements with how many may run at once."""
    (nodes,) = re.findall(r"^#SBATCH --nodes=(.*)$", script, re.M)
    (array,) = re.findall(r"^#SBATCH --array=(.*)$", script, re.M)
    return nodes, array


def test_a_dry_run_shows_what_slurm_is_given(login_node: LoginNode) -> None:
    assert login_node.submit(*FOUR_NODES, "--dry-run") == 0, login_node.err
    *_, shown, steward = json.loads(login_node.out.splitlines()[-1])["scripts"]
    assert login_node.submit(*FOUR_NODES) == 0, login_node.err
    given = login_node.fake.jobs()[0]["script"]
    assert options(shown) == options(given) == ("2", "0-3%2")
    assert "--nodes=1\n" in steward


def test_rows_are_cut_for_replicas_and_not_for_nodes_and_ranks(login_node: LoginNode) -> None:
    assert login_node.submit(*FOUR_NODES) == 0, login_node.err
    intent, header = last_intent(login_node.run), read_run(login_node.run)
    assert intent is not None and intent.layout is not None
    layout, config = intent.layout, build(JobConfig, header.config)
    assert (layout.groups, layout.replicas_together) == (2, 1)
    rows = np.repeat(np.arange(4), 25)

    def shards(job: JobConfig, layout: Layout) -> list[int]:
        return cut(login_node.run.plan, rows, job, layout, rows[:1]).shard.tolist()

    alone = replace(layout, nodes=2, ranks_per_node=1, cfg=1, ulysses=1)
    two = replace(config, slurm=replace(config.slurm, nodes=2, ranks_per_node=1))
    assert shards(config, layout) == shards(two, alone)
    assert shards(config, layout) != shards(config, replace(layout, cfg=1, ulysses=1))
    assert in_groups(config.slurm, layout) == (replace(config.slurm, nodes=2), 2)


def test_replicas_within_a_node_share_its_shard(login_node: LoginNode) -> None:
    on_one_node = ("slurm.nodes=2", "slurm.ranks_per_node=8")
    assert login_node.submit(*FOUR_NODES, *on_one_node) == 0, login_node.err
    intent = last_intent(login_node.run)
    assert intent is not None and intent.layout is not None
    layout = intent.layout
    assert (layout.nodes_together, layout.groups, layout.replicas_together) == (1, 2, 2)
    assert options(login_node.fake.jobs()[0]["script"])[0] == "1"
