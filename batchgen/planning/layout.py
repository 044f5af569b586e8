"""How a replica's ranks are used: data parallel first, because rows are independent."""

from __future__ import annotations

from dataclasses import dataclass

from batchgen.config.schema import JobConfig
from batchgen.families.family import ComponentBytes, component_bytes, family_spec
from batchgen.request import Bucket

GIB = 1024**3
_USABLE = 0.92  # of device memory: the rest is fragmentation and the driver's own


@dataclass(frozen=True, slots=True)
class Layout:
    """Ranks of one shard and where the weights live, with the reason."""

    nodes: int
    ranks_per_node: int
    dp: int
    cfg: int
    ulysses: int
    ring: int
    memory: str  # residency: resident or model
    vram_gib: float  # predicted peak of one rank with one item per forward
    fits: bool
    reason: str

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node


def choose_layout(job: JobConfig, bucket: Bucket) -> Layout:
    """The layout for a job whose most demanding shape is `bucket`."""
    family, model, slurm = family_spec(job.model.family), job.model, job.slurm
    weights = component_bytes(model)
    activations = family.activation_bytes(model, bucket)
    room = slurm.device.memory_gib * GIB * _USABLE
    memory = _residency(job.system.memory.mode, weights, activations, room)
    resident = weights.total if memory == "resident" else weights.largest
    peak = resident + activations
    ranks = slurm.ranks_per_node
    fits = peak <= room
    return Layout(
        nodes=slurm.nodes,
        ranks_per_node=ranks,
        dp=ranks,
        cfg=1,
        ulysses=1,
        ring=1,
        memory=memory,
        vram_gib=peak / GIB,
        fits=fits,
        reason=_reason(memory, peak, job, fits),
    )


def _residency(mode: str, weights: ComponentBytes, activations: int, room: float) -> str:
    if mode != "auto":
        return mode
    return "resident" if weights.total + activations <= room else "model"


def _reason(memory: str, peak: float, job: JobConfig, fits: bool) -> str:
    device = job.slurm.device
    where = f"{peak / GIB:.2f} GiB of {device.memory_gib:g} GiB on {device.name}"
    held = "all components stay" if memory == "resident" else "one component at a time"
    if fits:
        return f"dp first: a replica fits one rank ({where}, {held}), and rows are independent"
    return (
        f"a replica does not fit one rank ({where}, {held}): choose a profile with more memory "
        "(slurm=...), a smaller size or a smaller model"
    )
