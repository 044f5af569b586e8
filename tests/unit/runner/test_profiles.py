"""The profiles that come with the project, and what becomes of their keys in a batch script."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchgen.config.compose import compose_job
from batchgen.config.schema import SlurmConfig
from batchgen.errors import ConfigError
from batchgen.paths import RunPaths
from batchgen.runner.executors.slurm import steward_batch, task_batches

ROOT = Path(__file__).parents[3]
PROFILES = sorted(path.stem for path in (ROOT / "slurm").glob("*.yaml"))


def profile(name: str, *overrides: str) -> SlurmConfig:
    return compose_job(ROOT / "jobs" / "demo.yaml", [f"slurm={name}", *overrides]).config.slurm


@pytest.mark.parametrize("name", PROFILES)
def test_each_profile_makes_a_script(name: str, tmp_path: Path) -> None:
    slurm = profile(name)
    run = RunPaths(tmp_path)
    (script,) = [batch.script() for batch in task_batches(run, 1, 3, slurm, 1000)]
    for words in (
        f"--array=0-2%{slurm.nodes}" if slurm.nodes < 3 else "--array=0-2",
        f"--ntasks-per-node={slurm.ranks_per_node}",
        f"--signal=USR2@{slurm.signal_delay_s}",
        "--requeue",
    ):
        assert words in script
    steward = steward_batch(run, 1, slurm).script()
    assert "--ntasks-per-node=1" in steward and "gpus" not in steward


def test_h100x8_is_a_whole_node() -> None:
    slurm = profile("h100x8")
    assert slurm.ranks_per_node == slurm.gpus_per_node == 8 and slurm.device.name == "h100"


def test_all_memory_of_a_node_is_for_tasks_alone(tmp_path: Path) -> None:
    """The steward is a small job, whatever its tasks take."""
    slurm, run = profile("devcluster", "slurm.mem_gb=0"), RunPaths(tmp_path)
    assert "--mem=0M\n" in task_batches(run, 1, 1, slurm, 1000)[0].script()
    assert "--mem=4096M\n" in steward_batch(run, 1, slurm).script()


@pytest.mark.parametrize(
    "override",
    ["slurm.mem_gb=-1", "slurm.signal_delay_s=-1", "slurm.signal_delay_s=70000",
     "slurm.watchdog_s=-1", "slurm.start_up_s=-1"],
)  # fmt: skip
def test_values_out_of_range(override: str) -> None:
    with pytest.raises(ConfigError, match=r"out of range"):
        profile("devcluster", override)
