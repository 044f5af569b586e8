"""What a rank takes on its device, and which ways to keep weights there a job may have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from batchgen.config.capability import served_by
from batchgen.config.schema import JobConfig, ModelSpec
from batchgen.families.family import component_bytes, family_spec
from batchgen.families.streaming import StreamBytes, stream_bytes
from batchgen.records import MemoryMode, Precision
from batchgen.request import Bucket

GIB = 1024**3
_USABLE = 0.92  # of device memory: the rest is fragmentation and the driver's own
# Of a token between two steps: a row's latents and what its solver keeps of earlier steps, 2x2
# latent cells of 16 channels in float32 each.
_STATES, _STATE_BYTES = 4, 4 * 64


@dataclass(frozen=True, slots=True)
class Need:
    """What a rank takes, the leader of a replica, which takes most."""

    peak_bytes: int
    resident_blocks: int = 0  # of a transformer, in mode `stream`


def on_cpu(job: JobConfig) -> bool:
    return job.slurm.device.name == "cpu"


def precision_of(job: JobConfig) -> Precision:
    return "float32" if on_cpu(job) else job.model.dtype


def residencies(job: JobConfig) -> tuple[MemoryMode, ...]:
    """Legal ones, the one that takes the least memory last. A CPU computes where all components
    are anyway; no memory at all (`vram_limit` 0) means that all blocks stream."""
    memory = job.system.memory
    if memory.mode == "resident" or memory.mode == "model" or memory.mode == "stream":
        return (memory.mode,)
    streams = "stream" in served_by(job.model).memory_modes
    if streams and memory.vram_limit == 0:
        return ("stream",)
    if on_cpu(job):
        return ("resident",)
    return ("resident", "model", "stream") if streams else ("resident", "model")


def most_demanding(job: JobConfig, buckets: Sequence[Bucket]) -> Bucket:
    """The shape that needs the most memory; at least one has to be given."""
    family = family_spec(job.model.family)

    def needs(bucket: Bucket) -> int:
        asked = (family.forward_bytes, family.decode_bytes)
        return max(ask(job.model, bucket) for ask in asked)

    return max(buckets, key=needs)


def room_bytes(job: JobConfig) -> float:
    """What a rank may take of its device."""
    usable, limit = job.slurm.device.memory_gib * _USABLE, job.system.memory.vram_limit
    return GIB * (min(usable, limit) if limit else usable)


def fits(job: JobConfig, memory: MemoryMode, need: Need) -> bool:
    """Whether there is room for that. On a CPU a limit says how many blocks stay, and no more:
    those that stream are in the same memory."""
    if memory == "stream" and on_cpu(job):
        return need.peak_bytes <= GIB * _USABLE * job.slurm.device.memory_gib
    return need.peak_bytes <= room_bytes(job)


def need_of(
    job: JobConfig,
    bucket: Bucket,
    memory: MemoryMode,
    *,
    sequence: int = 1,
    items: int = 1,
    decoded: int = 1,
) -> Need:
    """Weights and activations. `sequence` ranks share the tokens of each of `items`; the leader
    decodes alone, so many rows together."""
    model = replace(job.model, dtype=precision_of(job))
    family, weights = family_spec(model.family), component_bytes(model)
    work = items * -(-family.forward_bytes(model, bucket) // sequence)
    decode = decoded * family.decode_bytes(model, bucket)
    count = moving = 0
    denoise = weights.expert
    if memory == "stream":
        blocks = stream_bytes(model, job.system.memory.prefetch)
        work += items * _kept_bytes(model, bucket, sequence)
        count = _staying(job, blocks, work)
        denoise, moving = blocks.held(count), blocks.moving(count)
    if memory == "resident" or on_cpu(job):  # all in one memory
        return Need(weights.total + moving + max(work, decode), count)
    stages = weights.of("encode"), denoise + work, weights.of("decode") + decode
    return Need(max(stages), count)


def _staying(job: JobConfig, blocks: StreamBytes, work: int) -> int:
    """As many blocks as there is room for beside the work of a forward; where streaming is asked
    for without a limit, none."""
    memory = job.system.memory
    fill = memory.mode == "auto" if memory.vram_limit is None else memory.vram_limit > 0
    return blocks.most(room_bytes(job) - work) if fill else 0


def _kept_bytes(model: ModelSpec, bucket: Bucket, sequence: int) -> int:
    """Of an item in flight: its row's state, and what a step cache may keep, one state as it is
    between two blocks, which the ranks share."""
    family = family_spec(model.family)
    tokens = family.tokens(model, bucket)
    kept = tokens * family.width(model) * (4 if model.dtype == "float32" else 2)
    return tokens * _STATES * _STATE_BYTES + -(-kept // sequence)
