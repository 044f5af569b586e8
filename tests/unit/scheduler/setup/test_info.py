"""What Slurm prints becomes facts and a profile; what nobody can read is an error, not a guess."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from batchgen.cli.main import main
from batchgen.config.build import build
from batchgen.config.schema import SlurmConfig
from batchgen.errors import UsageError
from batchgen.scheduler.commands import SchedulerError
from batchgen.scheduler.setup.info import (
    Access,
    ClusterInfo,
    Gpus,
    Limits,
    minutes,
    parse_access,
    parse_config,
    parse_gres,
    parse_nodes,
    parse_partitions,
)
from batchgen.scheduler.setup.profiles import Choice, choose, profile_text

# A cluster of H100 and A100 nodes, as Slurm 23.11 prints it (shortened).
CONFIG = """\
Configuration data as of 2026-03-02T10:11:12
AccountingStorageEnforce = associations,limits,qos,safe
ClusterName             = alpha
JobRequeue              = 0
MaxArraySize            = 401
MaxJobCount             = 25000
PreemptMode             = CANCEL
PreemptType             = preempt/qos
SelectType              = select/cons_tres
SlurmctldParameters     = enable_configless
SLURM_VERSION           = 23.11.4

Slurmctld(primary) at ctl01 is UP
"""
PARTITIONS = """\
PartitionName=cpu AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL\
 Default=YES QoS=N/A DefaultTime=NONE\
 GraceTime=0 MaxTime=2-00:00:00 Nodes=c[001-200] PreemptMode=OFF State=UP MaxMemPerNode=UNLIMITED
PartitionName=gpu AllowGroups=ALL AllowAccounts=vision,speech AllowQos=ALL\
 Default=NO QoS=gpu_limits DefaultTime=01:00:00\
 GraceTime=60 MaxTime=08:00:00 Nodes=g[01-40] PreemptMode=CANCEL State=UP MaxMemPerNode=900000
PartitionName=old AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL\
 Default=NO QoS=N/A DefaultTime=NONE\
 GraceTime=0 MaxTime=UNLIMITED Nodes=o[1-9] PreemptMode=REQUEUE State=DRAIN
"""
NODES = """\
Welcome to alpha
cpu|150|128|515000|(null)|(null)|idle
cpu|50|128|515000|(null)|(null)|mix
gpu|20|112|1031000|gpu:h100:8(S:0-1),nvme:2|h100,ib|alloc
gpu|12|112|1031000|gpu:h100:8(S:0-1),nvme:2|h100,ib|idle~
gpu|2|112|1031000|gpu:h100:8(S:0-1),nvme:2|h100,ib|drain*
gpu|1|112|1031000|gpu:h100:8(S:0-1),nvme:2|h100,ib|drng
gpu|1|112|1031000|gpu:h100:8(S:0-1),nvme:2|h100,ib|mix$
gpu|6|64|515000|gpu:a100:4(S:0-1)|a100|mix
old|9|16|64000|gpu:2|(null)|down*
"""


@pytest.fixture
def alpha() -> ClusterInfo:
    return ClusterInfo(
        limits=parse_config(CONFIG),
        partitions=parse_partitions(PARTITIONS),
        groups=parse_nodes(NODES),
        access=parse_access("vision\n", "vision|normal|normal,high|200\nspeech||normal|\n"),
    )


def loaded(info: ClusterInfo, choice: Choice) -> SlurmConfig:
    return build(SlurmConfig, yaml.safe_load(profile_text("x", info, choice)))


def test_facts_of_a_gpu_cluster(alpha: ClusterInfo) -> None:
    limits = alpha.limits
    assert (limits.cluster, limits.version, limits.max_array_size) == ("alpha", "23.11.4", 401)
    assert limits.enforces_accounts and not limits.requeue and limits.preempt_type == "qos"
    gpu = alpha.partition("gpu")
    assert gpu is not None and gpu.max_time == 480 and gpu.grace_s == 60
    assert gpu.accounts == ("vision", "speech") and gpu.max_memory == 900000
    first, second = alpha.groups_of("gpu")
    assert first.nodes == 32  # whether at work or asleep; drained ones do not count
    assert first.gpus == (Gpus("h100", 8),) and second.gpus == (Gpus("a100", 4),)
    assert alpha.access == Access("vision", ("vision", "speech"), ("normal", "high"), "normal", 200)


def test_a_profile_takes_the_gpus(alpha: ClusterInfo) -> None:
    """The default partition has no GPU, so another is taken; and its most numerous kind of node."""
    choice = choose(alpha)
    config = loaded(alpha, choice)
    assert config.partition == "gpu" and config.ranks_per_node == 8
    assert config.gres == "gpu:h100:8" and config.gpus_per_node == 0  # two types: named
    assert config.cpus_per_rank == 14 and config.timeout_min == 480
    assert config.mem_gb == 834  # 95 % of the partition's limit, which is less than a node has
    assert config.account == "vision" and config.device.name == "h100"
    notes = "\n".join(choice.notes)
    for words in ("nodes differ (32 x 112 CPUs", "CANCEL", "SIGTERM", "does not requeue"):
        assert words in notes
    assert "at most 401 elements" in notes and "200 jobs" in notes and "vision, speech" in notes
    assert "other partitions with GPUs: old" in notes


def test_a_wanted_partition(alpha: ClusterInfo) -> None:
    config = loaded(alpha, choose(alpha, "cpu"))
    assert (config.ranks_per_node, config.cpus_per_rank, config.gpus_per_node) == (1, 128, 0)
    assert config.timeout_min == 720 and config.device.name == "cpu"
    old = choose(alpha, "old")
    assert loaded(alpha, old).gpus_per_node == 2 and loaded(alpha, old).device.name == "gpu"
    assert any("DRAIN" in note for note in old.notes)
    assert any("none of its nodes" in note for note in old.notes)
    with pytest.raises(UsageError, match=r"'gpus' is not one of cpu, gpu, old .*'gpu'"):
        choose(alpha, "gpus")


def test_gres_where_gpus_per_node_is_unknown(alpha: ClusterInfo) -> None:
    other = replace(alpha, limits=replace(alpha.limits, whole_gpus=False))
    assert loaded(other, choose(other, "old")).gres == "gpu:2"


def test_accounts_that_cannot_be_asked(alpha: ClusterInfo) -> None:
    blind = replace(alpha, access=Access(problem="sacctmgr: not found"))
    notes = "\n".join(choose(blind).notes)
    assert "set `account` (ask your site)" in notes and "sacctmgr: not found" in notes


def test_names_that_yaml_would_change(alpha: ClusterInfo) -> None:
    """A partition may be called `no` or `007`."""
    partition = replace(alpha.partitions[0], name="007")
    groups = tuple(replace(group, partition="007") for group in alpha.groups[:1])
    info = replace(alpha, partitions=(partition,), groups=groups)
    assert loaded(info, choose(info)).partition == "007"


def test_nothing_to_see() -> None:
    assert parse_partitions("") == () and parse_nodes("") == ()
    with pytest.raises(UsageError, match="shows no partition"):
        choose(ClusterInfo(Limits(), (), ()))
    alone = parse_partitions("PartitionName=main Default=YES")
    with pytest.raises(UsageError, match="'main' has no nodes"):
        choose(ClusterInfo(Limits(), alone, ()))


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("(null)", ()),
        ("gpu:8", (Gpus("", 8),)),
        ("gpu:a100:4(S:0,1),gpu:v100:2(S:0)", (Gpus("a100", 4), Gpus("v100", 2))),
        ("gpu:1g.10gb:7(S:0-1)", (Gpus("1g.10gb", 7),)),
        ("nvme:3,craynetwork:4,shard:h100:32", ()),
        ("gpu:nvidia_h100_80gb_hbm3:8(IDX:0-7)", (Gpus("nvidia_h100_80gb_hbm3", 8),)),
    ],
)
def test_gres(text: str, gpus: tuple[Gpus, ...]) -> None:
    assert parse_gres(text) == gpus


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("UNLIMITED", None), ("NONE", None), ("", None), ("30", 30), ("30:00", 30),
        ("08:00:00", 480), ("2-00:00:00", 2880), ("1-12", 2160),
    ],
)  # fmt: skip
def test_minutes(text: str, value: int | None) -> None:
    assert minutes(text) == value


def test_what_cannot_be_read_is_said() -> None:
    with pytest.raises(SchedulerError, match="no MaxArraySize"):
        parse_config("slurm_load_ctl_conf error: Unable to contact slurm controller\n")
    with pytest.raises(SchedulerError, match="MaxArraySize: 'many' is not a number"):
        parse_config("MaxArraySize = many\n")
    with pytest.raises(SchedulerError, match="Default=YES"):
        parse_partitions("Default=YES State=UP")
    with pytest.raises(SchedulerError, match=r"cpu\|1\|2"):
        parse_nodes("cpu|1|2\n")
    with pytest.raises(SchedulerError, match="memory: 'lots'"):
        parse_nodes("cpu|1|2|lots|(null)|(null)|idle\n")
    with pytest.raises(SchedulerError, match="'soon' is no time limit"):
        minutes("soon")


def test_init_without_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/there.yaml").write_text("executor: slurm\n")
    for verb in ("init", "mine"), ("check", "there"):
        assert main(["slurm", *verb]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.startswith(
            "batchgen slurm: Slurm's commands (sbatch, squeue) are not on this machine; go on at a "
            "login node of the cluster"
        )
    assert main(["slurm", "init", "no/slash"]) == 2
    assert [file.name for file in (tmp_path / "slurm").iterdir()] == ["there.yaml"]
