"""`slurm init` and `slurm check` on a real cluster, as a new user would type them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from cli_calls import JobFolder
from slurm.cluster import PROFILE, Cluster

from batchgen.config.build import build
from batchgen.config.schema import SlurmConfig


@pytest.fixture
def job_folder(cluster: Cluster, tmp_path: Path) -> JobFolder:
    """A working folder with the project's own profile and nothing else."""
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "mine.yaml").write_text(PROFILE.read_text())
    return JobFolder(tmp_path, tmp_path / "job.yaml", tmp_path / "outputs")


def test_init_then_check(job_folder: JobFolder) -> None:
    """The written profile says what the cluster is, and works."""
    made = job_folder.call("slurm", "init", "fresh", "--json")
    assert made.code == 0, made.err
    file = job_folder.folder / "slurm" / "fresh.yaml"
    config = build(SlurmConfig, yaml.safe_load(file.read_text()))
    assert (config.partition, config.ranks_per_node, config.gpus_per_node) == ("main", 2, 2)
    assert (config.cpus_per_rank, config.mem_gb, config.nodes) == (2, 3, 4)
    assert made.json["max_array_size"] == 1001
    assert "grace time is 3 s" in made.out and "REQUEUE" in made.out
    again = job_folder.call("slurm", "init", "fresh")
    assert again.code == 2 and "--force" in again.err
    assert job_folder.call("slurm", "init", "fresh", "--partition", "high", "--force").code == 0
    assert 'partition: "high"' in file.read_text()
    wrong = job_folder.call("slurm", "init", "other", "--partition", "hihg")
    assert wrong.code == 2 and "did you mean 'high'" in wrong.err
    checked = job_folder.call("slurm", "check", "fresh", "--json")
    assert checked.code == 0 and checked.json["ok"], checked.out + checked.err


def test_check_tells_figures_and_cleans_up(job_folder: JobFolder) -> None:
    done = job_folder.call("slurm", "check", "mine", "--write", "--json")
    assert done.code == 0, done.out + done.err
    verdicts = {f["what"]: f["verdict"] for f in done.json["findings"]}
    assert {"batchgen", "ranks", "device", "clock", "mkdir race", "rename", "append"} <= {*verdicts}
    assert set(verdicts.values()) <= {"ok", "warn"} and verdicts["sbatch"] == "ok"
    assert "fail" not in done.out and "CUDA_VISIBLE_DEVICES=0,1" in done.out
    assert not list(job_folder.root.iterdir())
    text = (job_folder.folder / "slurm" / "mine.yaml").read_text()
    written = build(SlurmConfig, yaml.safe_load(text))
    assert written.device.matmul_tflops == done.json["device"]["matmul_tflops"] > 0
    assert "# preempted by the partition" in text


def test_check_of_a_folder_of_many_characters(job_folder: JobFolder) -> None:
    root = "it's q\"x #h $(x) `y` %j%% %A ü节;& [1]"
    done = job_folder.call("slurm", "check", "mine", "--root", root)
    assert done.code == 0 and "fail" not in done.out, done.out + done.err
    assert not list((job_folder.folder / root).iterdir())
    refused = job_folder.call("slurm", "check", "mine", "--root", "back\\slash")
    assert refused.code == 2 and "a backslash" in refused.err
    assert not (job_folder.folder / "back\\slash").exists()


def test_check_of_a_profile_that_does_not_work(job_folder: JobFolder) -> None:
    """Each says what is wrong, in Slurm's own words where it has some."""
    lost = job_folder.call(
        "slurm", "check", "mine", "slurm.python=/no/such/python", "slurm.ranks_per_node=1", "--json"
    )
    assert lost.code == 1 and "/no/such/python" in lost.json["findings"][0]["said"]
    assert Path(lost.json["folder"], "logs").is_dir()
    refused = job_folder.call("slurm", "check", "mine", "slurm.partition=nope")
    assert refused.code == 1 and "invalid partition" in refused.err.lower()
    unknown = job_folder.call("slurm", "check", "mien")
    assert unknown.code == 2 and "did you mean 'mine'" in unknown.err
    local = job_folder.call("slurm", "check", "local")
    assert local.code == 2 and "no Slurm to try" in local.err


def test_check_gives_up_on_a_job_that_waits(job_folder: JobFolder, cluster: Cluster) -> None:
    late = job_folder.call(
        "slurm", "check", "mine", "slurm.extra.begin=now+1hour", "--wait", "0.05"
    )
    assert late.code == 1 and "waits (BeginTime)" in late.err
    cluster.wait_until(lambda: not cluster.squeue(), 10)


def test_a_node_of_another_version(job_folder: JobFolder) -> None:
    """A venv that is not the same everywhere is found out."""
    other = job_folder.folder / "python"
    other.write_text(
        "#!/bin/sh\nshift 3\n"  # -u -m batchgen.scheduler.setup.probe
        '[ "$SLURMD_NODENAME" = node1 ] && v=0.1.0 || v=9.9.9\n'
        f'exec {sys.executable} -c "import sys, batchgen; batchgen.__version__ = '
        "'$v'; from batchgen.scheduler.setup.probe import main; "
        'sys.exit(main(sys.argv[1]))" "$@"\n'
    )
    other.chmod(0o755)
    done = job_folder.call(
        "slurm", "check", "mine", f"slurm.python={other}", "slurm.ranks_per_node=1", "--json"
    )
    verdicts = {f["what"]: f for f in done.json["findings"]}
    assert done.code == 1 and verdicts["batchgen"]["verdict"] == "fail"
    assert "9.9.9" in verdicts["batchgen"]["said"]
