"""The only reader of rank variables: environment -> RankInfo."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from ipaddress import ip_address

from batchgen.records import RankInfo


def rank_from_environment(task: int, env: Mapping[str, str] = os.environ) -> RankInfo:
    """This process's place among the processes of task `task`.

    Read from the variables of submitit's batch script (Slurm) or local executor. Without them the
    process is alone, also inside a person's own allocation, whose variables are about other ranks.
    """
    executor = env.get("SUBMITIT_EXECUTOR")
    if executor == "slurm":
        return RankInfo(
            rank=int(env["SLURM_PROCID"]),
            world_size=int(env["SLURM_NTASKS"]),
            local_rank=int(env["SLURM_LOCALID"]),
            task=task,
            restart=int(env.get("SLURM_RESTART_COUNT", "0")),
            host=env.get("SLURMD_NODENAME", socket.gethostname()),
            job_id=env.get("SLURM_JOB_ID", ""),
            address=_own_address(env),
            ends=_wall_limit(env),
        )
    if executor == "local":
        return RankInfo(
            rank=int(env["SUBMITIT_LOCAL_GLOBALID"]),
            world_size=int(env["SUBMITIT_LOCAL_NTASKS"]),
            local_rank=int(env["SUBMITIT_LOCAL_LOCALID"]),
            task=task,
            restart=0,
            host=socket.gethostname(),
            job_id=env.get("SUBMITIT_LOCAL_JOB_ID", ""),
        )
    return RankInfo(0, 1, 0, task, 0, socket.gethostname())


def _own_address(env: Mapping[str, str]) -> str:
    """Where other nodes reach this one. On the node that started the step, as that of rank 0 does,
    it is what Slurm itself is reached by, which needs no names; elsewhere the node's name."""
    address = env.get("SLURM_LAUNCH_NODE_IPADDR", "")
    return address if _is_ours(address) else socket.gethostname()


def _is_ours(address: str) -> bool:
    """Whether it is a number of this machine's on a network."""
    try:
        if ip_address(address).is_loopback:
            return False
        socket.create_server((address, 0)).close()
    except (ValueError, OSError):
        return False
    return True


def _wall_limit(env: Mapping[str, str]) -> float | None:
    """When Slurm ends the task (unix seconds); None if unknown. Slurm 23 and later say it; for
    older ones the batch script computes it from the limit that it asked for."""
    text = env.get("SLURM_JOB_END_TIME") or env.get("BATCHGEN_JOB_ENDS")
    return float(text) if text else None
