"""A machine without the GPUs that the profile asks for."""

from __future__ import annotations

import pytest
import torch
from cli_calls import rows_of

from batchgen.ledger.status import read_status

GPU = ("slurm.executor=local", "slurm.gpus_per_node=1", "slurm.device.name=h100")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is one")
@pytest.mark.slow
def test_rows_are_not_rendered_on_the_cpu_in_silence(new_job_folder) -> None:
    work = new_job_folder(2)
    done = work.run(*GPU)
    assert done.code == 1
    status = read_status(done.run)
    assert (status.ok, status.failed, status.left) == (0, 0, 2)
    (attempt,) = status.attempts  # and no further one, which would meet the same
    assert attempt.ended == "ConfigError"
    assert "torch sees no CUDA device" in attempt.error
    assert "slurm.gpus_per_node=1" in attempt.error
    told = work.here("logs", str(done.run.root), "--failed")
    assert attempt.error in told.out


@pytest.mark.slow
def test_fake_gpus_are_no_devices(new_job_folder) -> None:
    """As on a development cluster: the profile names the CPU as its device."""
    done = new_job_folder(1).run(*GPU[:2], "slurm.device.name=cpu")
    assert list(rows_of(done.run).status) == ["ok"]
