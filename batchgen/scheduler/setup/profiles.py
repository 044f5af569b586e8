"""From what a cluster says of itself to a profile: the choices, notes about them, and the YAML
file."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

from batchgen.errors import UsageError, closest
from batchgen.scheduler.setup.info import ClusterInfo, Gpus, NodeGroup, Partition, names_of

LONGEST_MIN = 720  # a longer wall time waits longer in the queue and saves nothing
NODES = 4
MOST_CPUS_PER_GPU = 16
_SHORT_GRACE_S = 20
# name in a gres type -> name, memory GiB, bfloat16 TFLOP/s of a large product, host to device GB/s
_DEVICES = {
    "h100": ("h100", 79, 700, 50),
    "h200": ("h200", 139, 790, 50),
    "a100": ("a100", 39, 240, 24),
}
_CPU = ("cpu", 4, 0.05, 10)
_UNKNOWN = (16, 50, 10)


@dataclass(frozen=True, slots=True)
class Choice:
    """The keys of a profile that follow from the cluster, and notes on what a person should look
    at."""

    partition: Partition
    group: NodeGroup
    gpus: Gpus | None  # GPUs of a node; None = a CPU node
    by_gres: bool  # use --gres: the type must be named, or --gpus-per-node does not work
    nodes: int
    ranks_per_node: int
    cpus_per_rank: int
    mem_gb: int
    timeout_min: int
    account: str | None
    qos: str | None
    notes: tuple[str, ...]


def choose(info: ClusterInfo, partition: str | None = None) -> Choice:
    """One rank for each GPU of the partition's most numerous kind of GPU node; without GPUs one
    rank a node.

    UsageError if the partition does not exist or has no nodes.
    """
    chosen = _partition(info, partition)
    groups = info.groups_of(chosen.name)
    if not groups:
        raise UsageError(f"partition {chosen.name!r} has no nodes")
    group = groups[0]
    gpus = max(group.gpus, key=lambda g: g.count, default=None)
    ranks = gpus.count if gpus else 1
    alike = [g for g in groups if _has(g, gpus)]
    memory = min(g.memory for g in alike)
    if chosen.max_memory:
        memory = min(memory, chosen.max_memory)
    cpus = min(g.cpus for g in alike) // ranks or 1
    access = info.access
    return Choice(
        partition=chosen,
        group=group,
        gpus=gpus,
        by_gres=gpus is not None and (not info.limits.whole_gpus or _several_types(groups)),
        nodes=min(NODES, sum(g.nodes for g in alike)),
        ranks_per_node=ranks,
        cpus_per_rank=min(cpus, MOST_CPUS_PER_GPU) if gpus else cpus,
        mem_gb=max(1, int(memory * 0.95) // 1024),
        timeout_min=min(chosen.max_time or LONGEST_MIN, LONGEST_MIN),
        account=access.default_account or None if info.limits.enforces_accounts else None,
        qos=None,
        notes=tuple(_notes(info, chosen, groups, partition)),
    )


def _partition(info: ClusterInfo, wanted: str | None) -> Partition:
    """The wanted partition; else the default one, or that with most GPUs if the default has
    none."""
    if not info.partitions:
        raise UsageError("this cluster shows no partition to this user")
    if wanted is not None:
        found = info.partition(wanted)
        if found is None:
            near = closest(wanted, [p.name for p in info.partitions])
            legal = names_of(info.partitions)
            raise UsageError(f"partition {wanted!r} is not one of {legal}{near}")
        return found
    return max(info.partitions, key=lambda p: (min(_gpus(info, p), 1), p.default, _gpus(info, p)))


def _gpus(info: ClusterInfo, partition: Partition) -> int:
    return sum(g.gpu_count * g.nodes for g in info.groups_of(partition.name))


def _has(group: NodeGroup, gpus: Gpus | None) -> bool:
    return gpus is None or any(g.type == gpus.type and g.count >= gpus.count for g in group.gpus)


def _several_types(groups: list[NodeGroup]) -> bool:
    return len({gpus.type for group in groups for gpus in group.gpus}) > 1


# -------------------------------------------------------------------------------------------- notes
def _notes(
    info: ClusterInfo, chosen: Partition, groups: list[NodeGroup], wanted: str | None
) -> list[str]:
    """What a person should look at, most important first."""
    return [
        *_place_notes(info, chosen, groups, wanted),
        *_preemption_notes(info, chosen),
        *_limit_notes(info, chosen),
    ]


def _place_notes(
    info: ClusterInfo, chosen: Partition, groups: list[NodeGroup], wanted: str | None
) -> list[str]:
    notes = []
    others = [p for p in info.partitions if p.name != chosen.name and _gpus(info, p)]
    if wanted is None and others:
        notes.append(f"other partitions with GPUs: {names_of(others)} (--partition)")
    if not any(g.gpu_count for g in groups):
        notes.append("no GPU in this partition: rows are rendered on CPUs")
    kinds: Counter[str] = Counter()
    for group in groups:
        kinds[describe(group)] += group.nodes
    if len(kinds) > 1:
        said = "; ".join(f"{nodes} x {kind}" for kind, nodes in kinds.items())
        notes.append(f"its nodes differ ({said}); `constraint` or `exclude` narrow them down")
    if chosen.state != "UP":
        notes.append(f"the partition is {chosen.state}: nothing starts there now")
    if not any(g.usable for g in groups):
        notes.append("none of its nodes can be used now (down, drained or reserved)")
    return notes


def _preemption_notes(info: ClusterInfo, chosen: Partition) -> list[str]:
    limits, mode = info.limits, chosen.preempt_mode.upper()
    if limits.preempt_type == "" or mode in ("", "OFF"):
        return []
    notes = [f"jobs here can be preempted ({mode}, by {limits.preempt_type})"]
    if "REQUEUE" not in mode:
        notes.append(
            f"preemption is by {mode}: Slurm does not start such an element again, the steward does"
        )
    if not limits.signals_before_preemption:
        notes.append("before a preemption Slurm sends SIGTERM alone; rows are saved on it as well")
    if chosen.grace_s < _SHORT_GRACE_S:
        notes.append(
            f"grace time is {chosen.grace_s} s: a model of many GB may not save its rows in that"
        )
    return notes


def _limit_notes(info: ClusterInfo, chosen: Partition) -> list[str]:
    limits, access, notes = info.limits, info.access, []
    if not limits.requeue:
        notes.append("the cluster does not requeue by itself; batchgen asks for it (--requeue)")
    if limits.max_array_size <= 1:
        notes.append("job arrays are switched off: every shard is a job of its own")
    elif limits.max_array_size < 1001:
        notes.append(f"arrays have at most {limits.max_array_size} elements; more become windows")
    if access.max_submit is not None:
        notes.append(f"you may have {access.max_submit} jobs submitted; array elements count")
    if chosen.accounts:
        notes.append(f"the partition is for the accounts {', '.join(chosen.accounts)}")
    if limits.enforces_accounts and not access.default_account:
        known = ", ".join(access.accounts) or "ask your site"
        notes.append(f"jobs need an account and you have no default one: set `account` ({known})")
    if access.problem:
        notes.append(f"accounts and QOS are not known ({access.problem})")
    return notes


def describe(group: NodeGroup) -> str:
    """A node group in words: `64 CPUs, 503 GiB, 8 h100 GPUs`."""
    gpus = ", ".join(f"{g.count} {g.type} GPUs".replace("  ", " ") for g in group.gpus)
    return f"{group.cpus} CPUs, {group.memory / 1024:.0f} GiB" + (f", {gpus}" if gpus else "")


# --------------------------------------------------------------------------------------------- file
def profile_text(name: str, info: ClusterInfo, choice: Choice) -> str:
    """The YAML of a profile, with comments that say what the cluster said."""
    limits, partition, access = info.limits, choice.partition, info.access
    gpu = choice.gpus
    typed = f"gpu:{gpu.type}:{gpu.count}" if gpu and gpu.type else f"gpu:{gpu.count if gpu else 0}"
    gres = typed if choice.by_gres else "null"
    kind = describe(choice.group)
    longest = "none" if partition.max_time is None else f"{partition.max_time} min"
    notes = "".join(f"# - {note}\n" for note in choice.notes)
    lines = [
        ("executor: slurm", ""),
        (f"partition: {_quoted(partition.name)}", f"time limit {longest}"),
        (
            f"account: {_quoted(choice.account)}",
            f"yours: {', '.join(access.accounts) or 'unknown'}",
        ),
        ("qos: null", f"yours: {', '.join(access.qos) or 'unknown'}"),
        (f"nodes: {choice.nodes}", "elements at work at once; each takes one node"),
        (f"ranks_per_node: {choice.ranks_per_node}", "one process per GPU" if gpu else ""),
        (f"gpus_per_node: {0 if choice.by_gres or gpu is None else gpu.count}", ""),
        (f"gres: {gres}", "" if gres == "null" else "types differ, so the type is named"),
        (f"cpus_per_rank: {choice.cpus_per_rank}", ""),
        (f"mem_gb: {choice.mem_gb}", "of the node"),
        (f"timeout_min: {choice.timeout_min}", ""),
        (
            f"signal_delay_s: {min(90, 20 * choice.timeout_min)}",
            "so long before the end, rows in flight are saved",
        ),
        ("constraint: null", f"features: {', '.join(choice.group.features) or 'none'}"),
        ("exclude: null", ""),
        ("setup: []", 'shell lines first: ["module load cuda/12.8"]'),
        ("python: null", "how python starts on a node, for containers"),
        ("srun_args: []", ""),
        ("steward_python: null", "a Python beside Slurm's commands, where the image has none"),
        ("extra: {}", "further sbatch options, verbatim: {reservation: week12}"),
    ]
    body = "\n".join(f"{key:<26}# {why}" if why else key for key, why in lines)
    return (
        f"# {name}: cluster {limits.cluster or 'unknown'} (Slurm {limits.version or 'unknown'}), "
        f"nodes of {kind}.\n"
        f"# At most {limits.max_array_size} elements in an array and {limits.max_job_count} jobs "
        f"in all. Written by `batchgen slurm init`;\n# try it with `batchgen slurm check {name}`.\n"
        f"{'# Look at:' + chr(10) + notes if notes else ''}{body}\n{_device(gpu)}"
    )


def _device(gpu: Gpus | None) -> str:
    """The `device:` block: known figures for a known type of GPU, cautious ones for another."""
    if gpu is None or gpu.type == "fake":
        name, *figures = _CPU
    else:
        known = next((v for k, v in _DEVICES.items() if k in gpu.type.lower()), None)
        name, *figures = known or (gpu.type or "gpu", *_UNKNOWN)
    memory, tflops, h2d = figures
    return (
        "device:                   # for forecasts; `batchgen slurm check --write` measures them\n"
        f"  name: {_quoted(str(name))}\n  memory_gib: {memory}\n  matmul_tflops: {tflops}\n"
        f"  h2d_gbs: {h2d}\n  link_gbs: 10\n  nic_gbs: 1\n"
    )


def _quoted(text: str | None) -> str:
    """A YAML string: names such as `no`, `1` or `null` are quoted."""
    return "null" if text is None else json.dumps(text, ensure_ascii=False)
