"""Judges the nodes' reports for `slurm check`: lines with advice, and figures of the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

from batchgen.config.schema import DeviceConfig, SlurmConfig
from batchgen.scheduler.setup.probe import RACES, Environment, NodeReport, RankReport

Verdict = Literal["ok", "warn", "fail"]
SKEW_WARN_S, SKEW_FAIL_S = 2.0, 60.0
SLOW_APPEND_S = 10.0
LITTLE_GIB = 5.0
_SAME_VENV = (
    "use one environment on a shared folder for the login node and the nodes, or name the nodes' "
    "python in the profile's `python`"
)


@dataclass(frozen=True, slots=True)
class CheckLine:
    """One line of the table."""

    verdict: Verdict
    what: str
    said: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class NodeClock:
    """When the login node asked for a node's time, the answer, and when the answer was read (unix
    seconds)."""

    host: str
    asked: float
    told: float
    read: float

    @property
    def skew_s(self) -> float:
        """Least difference of the two clocks, in seconds, that explains the answer; 0 if they may
        agree."""
        if self.told < self.asked:
            return self.told - self.asked
        return max(0.0, self.told - self.read)


def judge(
    slurm: SlurmConfig,
    login: Environment,
    ranks: Sequence[RankReport],
    nodes: Sequence[NodeReport],
    clocks: Sequence[NodeClock],
) -> list[CheckLine]:
    """The lines of the table, in order. `nodes` has one or two reports."""
    return [
        *_environment(login, ranks),
        _ranks(slurm, ranks, len(nodes)),
        _gpus(slurm, ranks),
        _clocks(clocks),
        *_shared(nodes),
        _sbatch(slurm, nodes),
        *_space(nodes),
    ]


# ----------------------------------------------------------------------------------------- findings
def _environment(login: Environment, ranks: Sequence[RankReport]) -> list[CheckLine]:
    return [
        _alike("batchgen", login.version, {r.host: r.version for r in ranks}, "fail"),
        _alike("package", login.package, {r.host: r.package for r in ranks}, "warn"),
        _alike("python", login.python_version, {r.host: r.python_version for r in ranks}, "warn"),
    ]


def _alike(what: str, here: str, there: dict[str, str], otherwise: Verdict) -> CheckLine:
    differing = {host: value for host, value in there.items() if value != here}
    if not differing:
        return CheckLine("ok", what, here)
    said = ", ".join(f"{host}: {value}" for host, value in differing.items())
    return CheckLine(otherwise, what, f"{here} here, {said}", _SAME_VENV)


def _ranks(slurm: SlurmConfig, ranks: Sequence[RankReport], nodes: int) -> CheckLine:
    wanted = slurm.ranks_per_node
    per_host: dict[str, list[int]] = {}
    for report in ranks:
        per_host.setdefault(report.host, []).append(report.local_rank)
    spread = ", ".join(f"{host}: {len(local)}" for host, local in sorted(per_host.items()))
    good = (
        sorted(r.rank for r in ranks) == list(range(wanted * nodes))
        and len(per_host) == nodes
        and all(sorted(local) == list(range(wanted)) for local in per_host.values())
        and {r.world_size for r in ranks} == {wanted * nodes}
    )
    if good:
        return CheckLine("ok", "ranks", spread)
    advice = (
        f"each of {nodes} nodes should have ranks 0 to {wanted - 1}; look at srun_args and extra"
    )
    return CheckLine("fail", "ranks", spread, advice)


def _gpus(slurm: SlurmConfig, ranks: Sequence[RankReport]) -> CheckLine:
    broken = [r for r in ranks if r.problem]
    if broken:
        first = broken[0]
        return CheckLine(
            "fail", "device", f"{first.host}: {first.problem}", "rows cannot be rendered"
        )
    asked = bool(slurm.gpus_per_node or slurm.gres)
    seen = [r for r in ranks if r.device]
    visible = sorted({r.visible for r in ranks if r.visible})
    given = f"CUDA_VISIBLE_DEVICES={' or '.join(visible) or 'unset'}"
    if slurm.device.name == "cpu" and not seen:
        return CheckLine(
            "ok", "device", "CPU, as the profile's `device` says" + asked * f"; {given}"
        )
    if not asked and seen:
        advice = "the profile asks for none: other jobs may be on them; set gpus_per_node or gres"
        return CheckLine("warn", "device", f"{len(seen)} ranks see a GPU", advice)
    if len(seen) < len(ranks):
        said = f"{len(ranks) - len(seen)} of {len(ranks)} ranks see no GPU; {given}"
        return CheckLine(
            "fail", "device", said, "look at the driver, torch's build and gpus_per_node"
        )
    shared = [d for d, n in Counter((r.host, r.device) for r in seen).items() if n > 1]
    if shared:
        advice = "ranks_per_node should be the number of GPUs"
        return CheckLine("warn", "device", f"several ranks share a GPU on {shared[0][0]}", advice)
    names = Counter(str((r.figures or {}).get("name")) for r in seen)
    said = ", ".join(f"{n} x {name}" for name, n in names.items())
    if all(slurm.device.name.lower() in name.lower() for name in names):
        return CheckLine("ok", "device", said)
    advice = (
        f"the profile's device.name {slurm.device.name!r} is no part of it: forecasts find no runs"
    )
    return CheckLine("warn", "device", said, advice)


def _clocks(clocks: Sequence[NodeClock]) -> CheckLine:
    if not clocks:
        return CheckLine("warn", "clock", "no node answered", "see `shared folder`")
    worst = max(clocks, key=lambda c: abs(c.skew_s))
    width = max(c.read - c.asked for c in clocks)
    said = f"within {abs(worst.skew_s) + width:.1f} s of this machine's"
    if abs(worst.skew_s) < SKEW_WARN_S:
        return CheckLine("ok", "clock", said)
    said = f"{worst.host} is {worst.skew_s:+.1f} s off"
    advice = "times in status and the end of a job's time are wrong by that; the nodes need NTP"
    return CheckLine("fail" if abs(worst.skew_s) >= SKEW_FAIL_S else "warn", "clock", said, advice)


def _shared(nodes: Sequence[NodeReport]) -> list[CheckLine]:
    """What run folders need of a shared file system, tried from two nodes."""
    if len(nodes) < 2:
        said = "not tried: only one node"
        return [CheckLine("warn", "shared folder", said, "try again with two nodes")]
    broken = next((node.problem for node in nodes if node.problem), "")
    if broken:
        advice = "is output.root_dir on a file system that all nodes share, and close in time?"
        return [CheckLine("fail", "shared folder", broken, advice)]
    return [_races(nodes), _renames(nodes), _appends(nodes)]


def _races(nodes: Sequence[NodeReport]) -> CheckLine:
    wins = Counter(number for node in nodes for number in node.races_won)
    wrong = [n for n in range(RACES) if wins[n] != 1]
    if not wrong:
        return CheckLine("ok", "mkdir race", f"{RACES} of {RACES} won by one node alone")
    said = f"{len(wrong)} of {RACES} won by both nodes or by none"
    return CheckLine(
        "fail", "mkdir race", said, "two submissions could get one number: do not use it"
    )


def _renames(nodes: Sequence[NodeReport]) -> CheckLine:
    reads, torn = sum(n.reads for n in nodes), sum(n.torn for n in nodes)
    if torn:
        said = f"{torn} of {reads} reads saw a file that was torn or missing"
        return CheckLine(
            "fail", "rename", said, "replacing a file is not atomic here: do not use it"
        )
    return CheckLine("ok", "rename", f"{reads} reads during replacement, none torn")


def _appends(nodes: Sequence[NodeReport]) -> CheckLine:
    slowest = max(max(node.append_s, default=0.0) for node in nodes)
    said = f"fsynced lines seen by the other node in {slowest:.2f} s at most"
    if slowest <= SLOW_APPEND_S:
        return CheckLine("ok", "append", said)
    return CheckLine("warn", "append", said, "status lags by so much; nothing is lost")


def _sbatch(slurm: SlurmConfig, nodes: Sequence[NodeReport]) -> CheckLine:
    if slurm.steward_python is not None:  # the probe runs under the tasks' python
        advice = f"it needs sbatch beside it: `sbatch --test-only` where {slurm.steward_python} is"
        return CheckLine("warn", "sbatch", "not tried: the steward uses steward_python", advice)
    broken = next(((n.host, n.sbatch) for n in nodes if n.sbatch), None)
    if broken is None:
        return CheckLine("ok", "sbatch", "works on the nodes: the steward can resubmit")
    said = f"{broken[0]}: {broken[1].splitlines()[0]}"
    advice = (
        "the steward cannot resubmit from there; name a steward_partition, or a steward_python "
        "outside the container, or use `resume`"
    )
    return CheckLine("warn", "sbatch", said, advice)


def _space(nodes: Sequence[NodeReport]) -> list[CheckLine]:
    shared = min(node.shared_gib for node in nodes)
    least = min(nodes, key=lambda node: node.scratch_gib)
    little = "little; `batchgen plan` says how much a run takes"
    scratch = "little; set TMPDIR in the profile's `setup`"
    return [
        _room("space", shared, "where runs are kept", little),
        _room("scratch", least.scratch_gib, f"in {least.scratch}", scratch),
    ]


def _room(what: str, gib: float, where: str, advice: str) -> CheckLine:
    said = f"{gib:.0f} GiB free {where}"
    return (
        CheckLine("warn", what, said, advice) if gib < LITTLE_GIB else CheckLine("ok", what, said)
    )


# ------------------------------------------------------------------------------------------ figures
def measured_device(slurm: SlurmConfig, ranks: Sequence[RankReport]) -> DeviceConfig | None:
    """The profile's device with the median of the ranks' measurements; None if no rank measured.
    Speeds of links and network are not measured."""
    figures = [r.figures for r in ranks if r.figures]
    if not figures:
        return None
    memory = median(f["memory_gib"] for f in figures)
    if not any(r.device for r in ranks):  # a CPU rank has a share of the node's memory
        memory = (slurm.mem_gb or memory) / slurm.ranks_per_node
    return replace(
        slurm.device,
        memory_gib=_rounded(memory),
        matmul_tflops=_rounded(median(f["matmul_tflops"] for f in figures)),
        h2d_gbs=_rounded(median(f["h2d_gbs"] for f in figures)),
    )


def _rounded(value: float) -> float:
    """The value to two digits: more would be noise."""
    return float(f"{value:.2g}") if value < 100 else float(round(value))


def device_block(device: DeviceConfig) -> str:
    """The YAML of a profile's `device:`."""
    name = '"' + device.name.replace('"', '\\"') + '"'
    return (
        f"device:\n  name: {name}\n  memory_gib: {device.memory_gib:g}\n"
        f"  matmul_tflops: {device.matmul_tflops:g}\n  h2d_gbs: {device.h2d_gbs:g}\n"
        f"  disk_gbs: {device.disk_gbs:g}\n"
        f"  link_gbs: {device.link_gbs:g}\n  nic_gbs: {device.nic_gbs:g}\n"
    )


def with_device(profile: str, device: DeviceConfig) -> str:
    """A profile's text with its `device:` block replaced or added, whichever YAML style it has."""
    lines = profile.splitlines(keepends=True)
    start = next((i for i, line in enumerate(lines) if line.startswith("device:")), None)
    if start is None:
        return profile.rstrip("\n") + "\n" + device_block(device)
    end = start + 1
    while end < len(lines) and lines[end].startswith((" ", "\t")):
        end += 1
    return "".join(lines[:start]) + device_block(device) + "".join(lines[end:])
