"""How the ranks of a submission and their memory are used, decided once, when it is made.

What is legal is enumerated in the order of preference, each candidate is priced, and the first that
fits is taken: data parallel before all else, because rows are independent, and all components on
the device before one stage at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod

from batchgen.config.schema import ONE_MACHINE, JobConfig, ModelSpec, ParallelConfig
from batchgen.errors import ConfigError
from batchgen.families.family import component_bytes, family_spec
from batchgen.planning.store import Plan
from batchgen.records import Layout, MemoryMode, Precision
from batchgen.request import Bucket

GIB = 1024**3
_USABLE = 0.92  # of device memory: the rest is fragmentation and the driver's own
_HELD = {"resident": "all components stay", "model": "one component at a time"}


def resolve_layout(job: JobConfig, buckets: Iterable[Bucket]) -> Layout:
    """The layout for rows of these shapes; ConfigError with the way on if it does not fit."""
    layout = choose_layout(job, most_demanding(job.model, buckets))
    if not layout.fits:
        raise ConfigError(layout.reason)
    return layout


def refuse_misfit(job: JobConfig, plan: Plan) -> None:
    """ConfigError with the way on if the rows of a plan do not fit the job's device."""
    resolve_layout(job, (forecast.bucket for forecast in plan.buckets))


def most_demanding(model: ModelSpec, buckets: Iterable[Bucket]) -> Bucket:
    """The shape that needs the most memory; at least one has to be given."""
    family = family_spec(model.family)
    return max(buckets, key=lambda bucket: family.activation_bytes(model, bucket))


def choose_layout(job: JobConfig, bucket: Bucket) -> Layout:
    """The layout for a job whose most demanding shape is `bucket`. If none fits, it is the one that
    takes the least memory, and its reason says what to do."""
    candidates = [
        _priced(job, bucket, degrees, memory)
        for degrees in _degrees(job)
        for memory in _residencies(job)
    ]
    return next((layout for layout in candidates if layout.fits), candidates[-1])


@dataclass(frozen=True, slots=True)
class _Degrees:
    dp: int
    cfg: int
    ulysses: int
    ring: int


def _degrees(job: JobConfig) -> Iterator[_Degrees]:
    """Legal degrees. `auto` is 1, but for dp: the replicas that the others leave ranks for."""
    parallel, ranks = job.system.parallel, job.slurm.nodes * job.slurm.ranks_per_node
    one = _of_a_replica(parallel)
    dp = ranks // prod(one) if parallel.dp == "auto" else parallel.dp
    yield _Degrees(dp, *one)


def _of_a_replica(parallel: ParallelConfig) -> tuple[int, int, int]:
    given = (parallel.cfg, parallel.ulysses, parallel.ring)
    cfg, ulysses, ring = (1 if degree == "auto" else degree for degree in given)
    return cfg, ulysses, ring


def _residencies(job: JobConfig) -> tuple[MemoryMode, ...]:
    """Legal ones, the one that takes the least memory last. A CPU computes where all components
    are anyway."""
    mode = job.system.memory.mode
    if mode == "resident" or mode == "model":
        return (mode,)
    return ("resident",) if _on_cpu(job) else ("resident", "model")


def _on_cpu(job: JobConfig) -> bool:
    return job.slurm.device.name == "cpu"


def _priced(job: JobConfig, bucket: Bucket, degrees: _Degrees, memory: MemoryMode) -> Layout:
    peak = _peak_bytes(job, bucket, memory)
    layout = Layout(
        nodes=job.slurm.nodes,
        ranks_per_node=job.slurm.ranks_per_node,
        dp=degrees.dp,
        cfg=degrees.cfg,
        ulysses=degrees.ulysses,
        ring=degrees.ring,
        memory=memory,
        precision=_precision(job),
        attention="sdpa" if job.system.attention == "auto" else job.system.attention,
        device=job.slurm.device.name,
        vram_gib=peak / GIB,
        fits=peak <= _room_bytes(job),
    )
    return replace(layout, reason=_reason(layout, job, bucket))


def _precision(job: JobConfig) -> Precision:
    return "float32" if _on_cpu(job) else job.model.dtype


def _peak_bytes(job: JobConfig, bucket: Bucket, memory: MemoryMode) -> int:
    """Of one rank that draws one item at a time: weights and activations."""
    model = replace(job.model, dtype=_precision(job))
    weights = component_bytes(model)
    all_there = memory == "resident" or _on_cpu(job)
    held = weights.total if all_there else weights.largest
    return held + family_spec(model.family).activation_bytes(model, bucket)


def _room_bytes(job: JobConfig) -> float:
    """What a rank may take."""
    usable, limit = job.slurm.device.memory_gib * _USABLE, job.system.memory.vram_limit
    return GIB * (usable if limit is None else min(usable, limit))


# ----------------------------------------------------------------------------------------- in words
def _reason(layout: Layout, job: JobConfig, bucket: Bucket) -> str:
    device, limit = job.slurm.device, job.system.memory.vram_limit
    where = f"{layout.vram_gib:.2f} GiB of {device.memory_gib:g} GiB on {device.name}"
    capped = "" if limit is None else f", system.memory.vram_limit={limit:g}"
    asked = "" if job.system.memory.mode == "auto" else ", as system.memory.mode asks"
    inside = f"({where}{capped}, {_HELD[layout.memory]}{asked})"
    if layout.fits:
        return f"dp first: a replica fits one rank {inside}, and rows are independent"
    return f"a replica does not fit one rank {inside}: {_way_on(job, bucket)}"


def _way_on(job: JobConfig, bucket: Bucket) -> str:
    ways = []
    if _peak_bytes(job, bucket, "model") <= _room_bytes(job):
        ways.append("set system.memory.mode=auto")
    if job.system.memory.vram_limit is not None:
        ways.append("raise system.memory.vram_limit")
    if _on_cpu(job) and job.slurm.executor in ONE_MACHINE:
        ways.append("say which device is there (slurm.device.name=... slurm.device.memory_gib=...)")
    ways.append("choose a profile with more memory (slurm=...), a smaller size or a smaller model")
    return "; or ".join(ways)
