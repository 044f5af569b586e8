"""The only reader of rank variables: environment -> RankInfo."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from batchgen.records import RankInfo


def rank_from_environment(task: int, env: Mapping[str, str] = os.environ) -> RankInfo:
    """This process's place among the processes of task `task`.

    Slurm's own variables come first (an `srun` task), then those of submitit's local executor;
    with neither, the process is alone.
    """
    if "SLURM_PROCID" in env:
        return RankInfo(
            rank=int(env["SLURM_PROCID"]),
            world_size=int(env["SLURM_NTASKS"]),
            local_rank=int(env["SLURM_LOCALID"]),
            task=task,
            restart=int(env.get("SLURM_RESTART_COUNT", "0")),
            host=env.get("SLURMD_NODENAME", socket.gethostname()),
            job_id=env.get("SLURM_JOB_ID", ""),
            address=socket.gethostname(),
        )
    if "SUBMITIT_LOCAL_GLOBALID" in env:
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
