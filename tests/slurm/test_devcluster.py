"""The development cluster itself: what the other tests stand on."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from slurm.cluster import NODES, SCRIPT, Cluster, free_port_base

NOBODY = 65534


def ranks(cluster: Cluster, *options: str) -> dict[int, tuple[str, str]]:
    """rank -> (node, its GPUs) of eight ranks on four nodes."""
    say = "echo $SLURM_PROCID $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"
    out = cluster.call("srun", "-N4", "--ntasks-per-node=2", "-t1", *options, "sh", "-c", say)
    lines = [line.split(" ", 2) for line in out.splitlines()]
    return {int(rank): (node, gpus) for rank, node, gpus in lines}


def test_four_nodes_with_two_gpus(cluster: Cluster) -> None:
    assert [cluster.node_state(node) for node in NODES] == ["idle"] * 4
    assert set(cluster.call("sinfo", "-hN", "-o", "%c %m %G").splitlines()) == {"4 4000 gpu:fake:2"}
    found = ranks(cluster, "--gpus-per-node=2")
    assert sorted(found) == list(range(8))
    assert {node for node, _ in found.values()} == set(NODES)
    assert {gpus for _, gpus in found.values()} == {"0,1"}


def test_gpus_are_split_over_ranks(cluster: Cluster) -> None:
    found = ranks(cluster, "--gpus-per-task=1")
    assert sorted(gpus for _, gpus in found.values()) == ["0"] * 4 + ["1"] * 4


def test_a_job_on_a_killed_node_starts_again(cluster: Cluster) -> None:
    job = cluster.call(
        "sbatch", "--parsable", "-J", "victim", "-w", "node2", "-n2", "-o", "/dev/null",
        "--wrap", "srun sleep 100",
    )  # fmt: skip
    cluster.wait_until(lambda: len(cluster.processes_on(2)) == 2, 20)
    assert cluster.processes_on("node2", name="victim") == cluster.processes_on(2)
    cluster.node_kill(2)
    assert not cluster.processes_on(2)
    cluster.call("scontrol", "update", "nodename=node2", "state=down", "reason=test")
    cluster.wait_until(lambda: [q.state for q in cluster.squeue("victim")] == ["PENDING"], 40)
    cluster.node_up(2)
    cluster.wait_until(lambda: len(cluster.processes_on(2)) == 2, 40)
    assert "Restarts=1" in cluster.call("scontrol", "show", "job", job)


def test_a_step_over_its_memory_is_killed(cluster: Cluster) -> None:
    eat = "python3 -c 'import time; kept = bytearray(400_000_000); time.sleep(20)'"
    begun = time.monotonic()
    done = subprocess.run(
        ["srun", "-n1", "--mem=100M", "sh", "-c", eat], capture_output=True, text=True
    )
    assert done.returncode != 0 and "memory limit" in done.stderr
    assert time.monotonic() - begun < 15


def test_high_preempts_main(cluster: Cluster) -> None:
    cluster.call(
        "sbatch", "-J", "low", "-N4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 100"
    )
    cluster.wait_until(lambda: [q.state for q in cluster.squeue("low")] == ["RUNNING"], 20)
    assert cluster.call("srun", "-p", "high", "-n1", "-t1", "echo", "in") == "in"
    assert [q.state for q in cluster.squeue("low")] != ["RUNNING"]


def test_daemons_come_and_go(cluster: Cluster) -> None:
    cluster.stop_dbd()
    assert cluster.squeue() == []  # the scheduler does without
    assert cluster.call("sacct", "-n", check=False) == ""
    cluster.start_dbd()
    cluster.restart_ctld(after_s=0.5)
    assert " is UP" in cluster.call("scontrol", "ping")
    assert "devcluster" in cluster.call("sacctmgr", "-nP", "list", "cluster")


def test_wrong_words_are_answered() -> None:
    env = {**os.environ, "BATCHGEN_DEVCLUSTER_DIR": "/tmp/batchgen-no-such-cluster"}

    def said(*argv: str) -> tuple[int, str]:
        done = subprocess.run([SCRIPT, *argv], env=env, capture_output=True, text=True)
        return done.returncode, done.stderr

    assert said("uo")[0] == 2 and "usage" in said("uo")[1]
    assert said("node-kill", "1") == (1, said("node-kill", "1")[1])
    assert "make one with" in said("node-kill", "1")[1]
    assert said("status")[0] == 3


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be somebody else")
def test_any_user_may_run_one_once_the_packages_are_there(cluster: Cluster) -> None:
    folder = Path(f"/tmp/batchgen-test-cluster-{os.getpid()}-user")
    knobs = {"DIR": str(folder), "PORT": str(free_port_base()), "NODES": "2"}
    env = {**os.environ, **{f"BATCHGEN_DEVCLUSTER_{k}": v for k, v in knobs.items()}, "HOME": "/"}
    del env["SLURM_CONF"]

    def call(*argv: str) -> str:
        with open(f"{folder}.said", "w+") as said:  # daemons would keep a pipe open
            subprocess.run(
                argv, env=env, cwd="/", stdout=said, stderr=said, timeout=120, check=True,
                user=NOBODY, group=NOBODY, extra_groups=[],
            )  # fmt: skip
            said.seek(0)
            return said.read()

    try:
        call(str(SCRIPT), "up")
        env["SLURM_CONF"] = str(folder / "etc" / "slurm.conf")
        assert call("srun", "-N2", "id", "-u").split() == [str(NOBODY)] * 2
    finally:
        call(str(SCRIPT), "reset")
        Path(f"{folder}.said").unlink()
    assert not folder.exists()
