"""What a rank takes on its device, and which ways to keep weights there a job may have."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from batchgen.config.capability import served_by
from batchgen.config.checkpoints.checkpoint import scale_of
from batchgen.config.schema import JobConfig, ModelSpec
from batchgen.config.stages import stages_of
from batchgen.families.family import Component, Stage, family_spec
from batchgen.families.streaming import (
    STREAMING,
    TEXTS_ABREAST,
    Places,
    StreamBytes,
    Weights,
    places_of,
    told,
    weighty,
)
from batchgen.families.tiling import tiling_of
from batchgen.records import MemoryMode, Precision
from batchgen.request import Bucket

GIB = 1024**3
_WORKSPACES = "CUBLAS_WORKSPACE_CONFIG"
_USABLE = 0.92  # of device memory: the rest is fragmentation and the driver's own


@dataclass(frozen=True, slots=True)
class Need:
    """What a rank takes, the leader of a replica, which takes most."""

    peak_bytes: int
    resident_blocks: int = 0  # of a transformer, in mode `stream`
    places: str = ""  # as in `Layout`
    host_bytes: int = 0  # of weights that wait in host memory, beside a device


def workspace_bytes(config: str | None) -> int:
    """Of the workspace that cuBLAS has for a thread and a stream. `config`: buffers as pairs
    `:KiB:number`, as the environment may have them; without any it is torch's own, that from
    Hopper on, which is the largest: 32 MiB, before that 8.1 (torch's CublasHandlePool.cpp)."""
    buffers = re.findall(r":(\d+):(\d+)", config or "")
    return sum(1024 * int(size) * int(count) for size, count in buffers) or 32 << 20


def on_cpu(job: JobConfig) -> bool:
    return job.slurm.device.name == "cpu"


def precision_of(job: JobConfig) -> Precision:
    return "float32" if on_cpu(job) else job.model.dtype


def residencies(job: JobConfig) -> tuple[MemoryMode, ...]:
    """Legal ones, the one that takes the least memory last. A CPU computes where all components
    are anyway; no memory at all (`vram_limit` 0) means that all blocks stream."""
    memory = job.system.memory
    if memory.mode != "auto":
        return (memory.mode,)
    served = served_by(job.model).memory_modes
    if "model" not in served:
        return ("resident",)
    streams = "stream" in served
    disk: tuple[MemoryMode, ...] = ("disk",) if _disk_helps(job) else ()
    if streams and memory.vram_limit == 0:
        return ("stream", *disk)
    if on_cpu(job):
        return ("resident",)
    return ("resident", "model", "stream", *disk) if streams else ("resident", "model")


def _disk_helps(job: JobConfig) -> bool:
    """Where the node's memory cannot hold what its ranks move from there to their devices."""
    slurm, model = job.slurm, job.model
    rounded = job.system.memory.store_dtype == "fp8"
    if not slurm.mem_gb or on_cpu(job) or model.weights_folder is None or rounded:
        return False
    if any(scale_of(part, file) for part, file in model.files.items()):
        return False
    held = slurm.ranks_per_node * weights_of(job).total
    return "disk" in served_by(model).memory_modes and held > 1e9 * slurm.mem_gb


def most_demanding(job: JobConfig, buckets: Sequence[Bucket]) -> Bucket:
    """The shape that needs the most memory; at least one has to be given."""
    family = family_spec(job.model.family)

    def needs(bucket: Bucket) -> int:
        decode = _decode_bytes(job, job.model, bucket)
        return max(family.forward_bytes(job.model, bucket), decode)

    return max(buckets, key=needs)


def changes_pixels(job: JobConfig) -> tuple[str, ...]:
    """The settings of memory that do; where weights are does not."""
    system, found = job.system, list[str]()
    if system.memory.store_dtype != "same":
        found.append(f"system.memory.store_dtype={system.memory.store_dtype}")
    for name, own in sorted(system.components.items()):
        if own.dtype is not None:
            found.append(f"system.components.{name}.dtype={own.dtype}")
    if system.vae.tiled is True:
        found.append(f"system.vae.tiled=true, tile={system.vae.tile}, stride={system.vae.stride}")
    return tuple(found)


def room_bytes(job: JobConfig) -> float:
    """What a rank may take of its device."""
    usable, limit = job.slurm.device.memory_gib * _USABLE, job.system.memory.vram_limit
    return GIB * (min(usable, limit) if limit else usable)


def most_bytes(job: JobConfig, memory: MemoryMode) -> float:
    """What a rank may take in a mode. On a CPU a limit says how many blocks stay, and no more:
    those that stream are in the same memory."""
    if memory in STREAMING and on_cpu(job):
        return GIB * _USABLE * job.slurm.device.memory_gib
    return room_bytes(job)


def fits(job: JobConfig, memory: MemoryMode, need: Need) -> bool:
    """Whether there is room for that, on the device and for what the ranks of a node keep in its
    memory."""
    slurm = job.slurm
    waiting = 0 if memory in STREAMING and on_cpu(job) else need.host_bytes
    if slurm.mem_gb and slurm.ranks_per_node * waiting > 1e9 * slurm.mem_gb:
        return False
    return need.peak_bytes <= most_bytes(job, memory)


def need_of(
    job: JobConfig,
    bucket: Bucket,
    memory: MemoryMode,
    *,
    sequence: int = 1,
    items: int = 1,
    kept: int = 0,
    decoded: int = 1,
    beside: int = 0,
    stay: int | None = None,
) -> Need:
    """Weights, activations, what rows in flight keep (`kept` bytes), and adapters (`beside`), which
    count as if they never left. `sequence` ranks share the tokens; `decoded` rows are decoded
    together. Of blocks that stream so many `stay`; None: all that there is room for."""
    model, weights = replace(job.model, dtype=precision_of(job)), weights_of(job)
    family = family_spec(model.family)
    work = items * -(-family.forward_bytes(model, bucket) // sequence) + kept
    decode = decoded * _decode_bytes(job, model, bucket) + kept
    own = _own_places(job, weights, memory)
    places = places_of(model, memory, own)
    streams, count = [p for p in weights.of("denoise") if places[p.name] in STREAMING], 0
    passed = stages_of(job)
    beside += 0 if on_cpu(job) or "encode" not in passed else _workspaces(weights, places)
    if streams:
        blocks = weights.streamed(streams[0])
        count = _staying(job, blocks, work + beside) if stay is None else stay
    held = _Held(weights, places, count, passed)
    if on_cpu(job):  # all in one memory, but for what is on disk
        held = replace(held, moved=("disk",))
        always, waiting = held.always + held.waiting + held.moving, 0
    else:
        always, waiting = held.always, held.waiting
    extra = {"encode": 0, "denoise": work, "decode": decode}
    peak = always + beside + max(held.stage(stage) + extra[stage] for stage in passed)
    return Need(peak, count, told(own), waiting)


def _workspaces(weights: Weights, places: Places) -> int:
    """Of the threads on which texts go through an encoder that streams: each has one for its
    products, which torch keeps for the threads to come."""
    if not any(p.blocks and places[p.name] in STREAMING for p in weights.of("encode")):
        return 0
    return TEXTS_ABREAST * workspace_bytes(os.environ.get(_WORKSPACES))


def _decode_bytes(job: JobConfig, model: ModelSpec, bucket: Bucket) -> int:
    """Of one row; tile by tile, of the largest one beside what is kept of all."""
    family, tiling = family_spec(model.family), tiling_of(job.system.vae)
    tiles = served_by(model).tiles
    if tiling is None or tiles is None:
        return family.decode_bytes(model, bucket)
    largest = tiling.largest(bucket, tiles.factor)
    return tiles.kept_bytes(bucket) + family.decode_bytes(model, largest)


@dataclass(frozen=True, slots=True)
class _Held:
    """Bytes of weights on the device, where of an expert `count` blocks stay."""

    weights: Weights
    places: Places
    count: int
    stages: tuple[Stage, ...]  # that rows go through; components of others are not loaded
    moved: tuple[MemoryMode, ...] = ("model", "stream", "disk")  # places from which stages bring it

    @property
    def always(self) -> int:
        return self._whole("resident")

    @property
    def waiting(self) -> int:
        """In host memory, for its stage."""
        return self._whole("model", "stream")

    @property
    def moving(self) -> int:
        """Shelves for blocks of the component that takes most of them."""
        parts = (p for p in self._parts if self.places[p.name] == "stream")
        return max((self.weights.streamed(p).moving(self._stay(p)) for p in parts), default=0)

    def stage(self, stage: Stage) -> int:
        """While a stage runs, what is moved in for it; of the experts one."""
        parts = [p for p in self.weights.of(stage) if self.places[p.name] in self.moved]
        held = [self.weights.held(p, self.places[p.name], self._stay(p)) for p in parts]
        return max(held, default=0) if stage == "denoise" else sum(held)

    def _whole(self, *places: MemoryMode) -> int:
        parts = (p for p in self._parts if self.places[p.name] in places)
        return sum(map(self.weights.whole, parts))

    @property
    def _parts(self) -> list[Component]:
        return [p for p in weighty(self.weights.model) if any(map(p.works_in, self.stages))]

    def _stay(self, part: Component) -> int:
        return self.count if part.stacks else 0


def weights_of(job: JobConfig) -> Weights:
    """Bytes of the weights of a job's model."""
    return Weights(job.model, precision_of(job), job.system)


def row_tables(job: JobConfig, memory: MemoryMode) -> int:
    """Bytes that a row in flight keeps for each of its evaluations, in place of weights that are
    not on the device (`Weights.row_tables`)."""
    return weights_of(job).tables(places_of(job.model, memory, _asked(job)))


def _asked(job: JobConfig) -> dict[str, MemoryMode]:
    """Places of components that a job names."""
    return {name: c.memory for name, c in job.system.components.items() if c.memory is not None}


def _own_places(job: JobConfig, weights: Weights, memory: MemoryMode) -> Places:
    """Of the components that live otherwise than `memory`: as the job asks, and encoders whose
    blocks need not stream, since they fit."""
    asked = _asked(job)
    encoders, places = weights.of("encode"), places_of(job.model, memory, asked)
    streams = {p.name for p in encoders if places[p.name] == "stream" and p.name not in asked}
    if _fills(job) and sum(map(weights.whole, encoders)) <= room_bytes(job):
        return asked | dict.fromkeys(sorted(streams), "model")
    return asked


def _fills(job: JobConfig) -> bool:
    """Whether blocks stay where there is room; where streaming is asked for without a limit, none
    does."""
    memory = job.system.memory
    return memory.mode == "auto" if memory.vram_limit is None else memory.vram_limit > 0


def _staying(job: JobConfig, blocks: StreamBytes, work: int) -> int:
    """As many blocks as there is room for beside the work of a forward."""
    return blocks.most(room_bytes(job) - work) if _fills(job) else 0
