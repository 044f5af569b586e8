"""Ranks come from the environment of Slurm or submitit; a process is known by pid and start."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import replace

import pytest
from own_number import own_number

from batchgen.processes import ProcessId, wait_until_gone
from batchgen.scheduler.rank import rank_from_environment


def test_ranks_of_a_slurm_task() -> None:
    env = {
        "SUBMITIT_EXECUTOR": "slurm", "BATCHGEN_JOB_ENDS": "1700000000",
        "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "77",
        "SLURM_RESTART_COUNT": "2", "SLURMD_NODENAME": "node3",
    }  # fmt: skip
    rank = rank_from_environment(4, env)
    assert (rank.rank, rank.world_size, rank.local_rank, rank.task) == (5, 8, 1, 4)
    assert (rank.restart, rank.host, rank.job_id) == (2, "node3", "77")
    assert rank.ends == 1700000000
    assert rank_from_environment(4, env | {"SLURM_JOB_END_TIME": "1800000000"}).ends == 1800000000


def test_a_rank_is_reached_where_slurm_reaches_its_node_or_by_name() -> None:
    """The address of another node, and one that means this machine everywhere, are none."""
    env = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_PROCID": "0", "SLURM_NTASKS": "1",
           "SLURM_LOCALID": "0"}  # fmt: skip
    own = own_number()

    def reached(address: str) -> str:
        return rank_from_environment(4, env | {"SLURM_LAUNCH_NODE_IPADDR": address}).address

    assert reached(own) == own or not own
    assert {reached(a) for a in ("", "240.0.0.1", "127.0.0.1")} == {socket.gethostname()}


def test_ranks_of_the_local_executor_also_inside_an_allocation() -> None:
    env = {
        "SUBMITIT_EXECUTOR": "local", "SLURM_PROCID": "0", "SLURM_NTASKS": "8",
        "SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_NTASKS": "3",
        "SUBMITIT_LOCAL_LOCALID": "1", "SUBMITIT_LOCAL_JOB_ID": "99",
    }  # fmt: skip
    rank = rank_from_environment(0, env)
    assert (rank.rank, rank.world_size, rank.restart, rank.job_id) == (1, 3, 0, "99")


@pytest.mark.parametrize("env", [{}, {"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}])
def test_a_process_that_nobody_started_as_a_rank_is_alone(env: dict[str, str]) -> None:
    """An allocation of the user's own has such variables too."""
    rank = rank_from_environment(0, env)
    assert (rank.rank, rank.world_size) == (0, 1)


def test_a_process_lives_until_it_ends_and_a_zombie_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = ProcessId.of(child.pid)
    assert process.alive()
    assert not replace(process, start=process.start + 1).alive()
    child.kill()
    assert wait_until_gone([process], 5.0)  # not reaped yet: a zombie counts as gone
    child.communicate()
    assert process.alive() is False
    assert replace(process, place="another machine").alive() is None
