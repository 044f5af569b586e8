"""What a cluster says of itself: partitions, kinds of nodes, limits, preemption, accounts.

Standard library only. Each `parse_*` takes the output of one command. Fields that a site's version
of Slurm does not print keep their defaults; a line that cannot be read raises SchedulerError with
the line. Sizes are MiB and times are minutes unless the name says otherwise; None = no limit.
"""

from __future__ import annotations

import getpass
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from batchgen.scheduler.commands import SchedulerError, ask

_NONE = {"", "none", "n/a", "(null)", "unlimited", "infinite", "partition_limit"}
_GRES = re.compile(r"gpu(?::(?P<type>[^:()]+))?:(?P<count>\d+)(?:\([^)]*\))?$")
_UNUSABLE = ("down", "drain", "drng", "fail", "maint", "inval", "unk", "resv")


@dataclass(frozen=True, slots=True)
class Gpus:
    """GPUs of one type in a node."""

    type: str  # empty if the site names no types
    count: int


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Nodes of one partition that are alike."""

    partition: str
    nodes: int
    cpus: int
    memory: int
    gpus: tuple[Gpus, ...]
    features: tuple[str, ...]
    usable: bool  # neither down nor drained nor reserved

    @property
    def gpu_count(self) -> int:
        return sum(gpus.count for gpus in self.gpus)


@dataclass(frozen=True, slots=True)
class Partition:
    """Limits and rules of one partition."""

    name: str
    default: bool = False
    state: str = "UP"
    max_time: int | None = None
    default_time: int | None = None
    max_memory: int | None = None  # per node
    preempt_mode: str = ""
    grace_s: int = 0
    accounts: tuple[str, ...] = ()  # accounts that may use it; empty = all
    qos: str = ""  # the partition's own QOS, with limits of its own


@dataclass(frozen=True, slots=True)
class Limits:
    """Settings of the whole cluster."""

    cluster: str = ""
    version: str = ""
    max_array_size: int = 1001
    max_job_count: int = 10000
    preempt_type: str = ""
    requeue: bool = True
    signals_before_preemption: bool = False
    whole_gpus: bool = True  # --gpus-per-node works (select/cons_tres)
    enforces_accounts: bool = False


@dataclass(frozen=True, slots=True)
class Access:
    """What the accounting database says of this user; empty where it does not answer."""

    default_account: str = ""
    accounts: tuple[str, ...] = ()
    qos: tuple[str, ...] = ()
    default_qos: str = ""
    max_submit: int | None = None  # jobs; every array element counts as one
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    limits: Limits
    partitions: tuple[Partition, ...]
    groups: tuple[NodeGroup, ...]
    access: Access = Access()

    def partition(self, name: str) -> Partition | None:
        return next((p for p in self.partitions if p.name == name), None)

    def groups_of(self, name: str) -> list[NodeGroup]:
        """Node groups of a partition, those with most GPUs in all first; only usable ones if there
        are any."""
        mine = [g for g in self.groups if g.partition == name]
        mine = [g for g in mine if g.usable] or mine
        return sorted(mine, key=lambda g: (-g.gpu_count * g.nodes, -g.cpus * g.nodes))


def read_cluster() -> ClusterInfo:
    """Ask this machine's Slurm with four short commands. SchedulerError if one fails."""
    return ClusterInfo(
        limits=parse_config(ask("scontrol", "show", "config")),
        partitions=parse_partitions(ask("scontrol", "--oneliner", "show", "partition")),
        groups=parse_nodes(ask("sinfo", "--noheader", "--exact", "--format=%R|%D|%c|%m|%G|%f|%t")),
        access=read_access(),
    )


def read_access() -> Access:
    """This user's accounts and QOS; empty if the accounting does not answer."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # the user may have no name, in a container for example
        return Access(problem=f"the user with the number {os.getuid()} has no name here")
    fields = "format=account,defaultqos,qos,maxsubmit"
    try:
        default = ask("sacctmgr", "-nP", "show", "user", user, "format=defaultaccount")
        lines = ask("sacctmgr", "-nP", "show", "assoc", "where", f"user={user}", fields)
        return parse_access(default, lines)
    except SchedulerError as error:
        return Access(problem=str(error))


# ------------------------------------------------------------------------------------------ parsing
def parse_config(text: str) -> Limits:
    """Limits from `scontrol show config`."""
    found = dict(re.findall(r"^(\w+)\s*=[ \t]*(.*?)[ \t]*$", text, re.M))
    if "MaxArraySize" not in found:
        raise SchedulerError("scontrol show config: there is no MaxArraySize in the answer")
    told = found.get("SlurmctldParameters", "") + "," + found.get("PreemptParameters", "")
    return Limits(
        cluster=found.get("ClusterName", ""),
        version=found.get("SLURM_VERSION", ""),
        max_array_size=_whole(found["MaxArraySize"], "MaxArraySize"),
        max_job_count=_whole(found.get("MaxJobCount", "10000"), "MaxJobCount"),
        preempt_type=_word(found.get("PreemptType", "")).removeprefix("preempt/"),
        requeue=found.get("JobRequeue", "1") != "0",
        signals_before_preemption="send_user_signal" in told,
        whole_gpus=found.get("SelectType", "select/cons_tres") == "select/cons_tres",
        enforces_accounts=_word(found.get("AccountingStorageEnforce", "")) != "",
    )


def parse_partitions(text: str) -> tuple[Partition, ...]:
    """Partitions from `scontrol --oneliner show partition`; empty if this user sees none."""
    parsed = []
    for line in filter(None, map(str.strip, text.splitlines())):
        found = dict(re.findall(r"([\w/]+)=(\S*)", line))
        if "PartitionName" in found:
            parsed.append(_partition(found))
        elif "=" in line:
            raise SchedulerError(f"scontrol show partition: the line {line!r} cannot be read")
    return tuple(parsed)


def _partition(found: dict[str, str]) -> Partition:
    memory = _word(found.get("MaxMemPerNode", ""))
    return Partition(
        name=found["PartitionName"],
        default=found.get("Default") == "YES",
        state=found.get("State", "UP"),
        max_time=minutes(found.get("MaxTime", "")),
        default_time=minutes(found.get("DefaultTime", "")),
        max_memory=_whole(memory, "MaxMemPerNode") if memory else None,
        preempt_mode=_word(found.get("PreemptMode", "")),
        grace_s=_whole(found.get("GraceTime", "0"), "GraceTime"),
        accounts=()
        if found.get("AllowAccounts", "ALL") == "ALL"
        else _list(found["AllowAccounts"]),
        qos=_word(found.get("QoS", "")),
    )


def parse_nodes(text: str) -> tuple[NodeGroup, ...]:
    """Node groups from `sinfo --exact --format=%R|%D|%c|%m|%G|%f|%t`. Other lines, such as banners,
    are ignored.

    Nodes that differ only in their present state form one group.
    """
    counts: Counter[NodeGroup] = Counter()
    for line in filter(None, map(str.strip, text.splitlines())):
        parts = line.split("|")
        if len(parts) == 1:
            continue
        if len(parts) != 7:
            raise SchedulerError(f"sinfo: the line {line!r} cannot be read")
        name, nodes, cpus, memory, gres, features, state = parts
        alike = NodeGroup(
            partition=name,
            nodes=0,
            cpus=_whole(cpus, "CPUs"),
            memory=_whole(memory, "memory"),
            gpus=parse_gres(gres),
            features=_list(_word(features)),
            usable=not state.lower().startswith(_UNUSABLE) and not state.endswith(("*", "$")),
        )
        counts[alike] += _whole(nodes, "nodes")
    return tuple(replace(group, nodes=nodes) for group, nodes in counts.items())


def parse_gres(text: str) -> tuple[Gpus, ...]:
    """GPUs in a node's gres: `gpu:h100:8(S:0-1),nvme:2` -> eight of type h100."""
    outside = re.sub(r"\([^)]*\)", "", text)  # the socket lists in parentheses hold commas
    found = [_GRES.match(item.strip()) for item in outside.split(",")]
    return tuple(Gpus(m["type"] or "", int(m["count"])) for m in found if m)


def parse_access(default: str, associations: str) -> Access:
    """Access from `sacctmgr -nP show user` and `show assoc` (account, default QOS, QOS,
    MaxSubmitJobs)."""
    rows = [line.split("|") for line in associations.splitlines() if line.count("|") == 3]
    main = default.strip().splitlines()[0].strip() if default.strip() else ""
    own = [row for row in rows if row[0] == main] or rows
    submit = [int(row[3]) for row in own if row[3].isdigit()]
    return Access(
        default_account=main,
        accounts=tuple(dict.fromkeys(row[0] for row in rows if row[0])),
        qos=tuple(dict.fromkeys(q for row in own for q in _list(row[2]))),
        default_qos=next((row[1] for row in own if row[1]), ""),
        max_submit=min(submit, default=None),
    )


def minutes(text: str) -> int | None:
    """Minutes from Slurm's times `minutes`, `MM:SS`, `HH:MM:SS`, `D-HH`, `D-HH:MM:SS`; None = no
    limit."""
    if text.strip().lower() in _NONE:
        return None
    days, _, rest = text.strip().rpartition("-")
    parts = rest.split(":")
    if not all(p.isdigit() for p in (*parts, days or "0")) or len(parts) > 3:
        raise SchedulerError(f"{text!r} is no time limit; Slurm writes D-HH:MM:SS or UNLIMITED")
    numbers = [int(p) for p in parts]
    if days or len(numbers) == 3:
        hours, mins, _ = (*numbers, 0, 0)[:3]
        return int(days or 0) * 1440 + hours * 60 + mins
    return numbers[0]


def _whole(text: str, what: str) -> int:
    found = re.match(r"\s*(\d+)", text)
    if found is None:
        raise SchedulerError(f"{what}: {text!r} is not a number")
    return int(found[1])


def _word(text: str) -> str:
    return "" if text.strip().lower() in _NONE else text.strip()


def _list(text: str) -> tuple[str, ...]:
    return tuple(item for item in re.split(r"[,\s]+", text) if item)


def names_of(partitions: Sequence[Partition]) -> str:
    return ", ".join(p.name for p in partitions) or "none"
