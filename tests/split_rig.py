"""Families on a rank: each forward divided and whole, in one process, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from flux_rig import flux_spec
from rig import small_spec, system, tiny_wan_spec, two_experts

from batchgen.config.schema import ModelSpec
from batchgen.engine.memory.plan import plan_memory
from batchgen.engine.parallel.attention import TorchOp
from batchgen.engine.parallel.mesh import Mesh
from batchgen.engine.parallel.sequence import SplitSequence
from batchgen.engine.weights import load_components
from batchgen.families.family import family_code
from batchgen.numerics.edges import make_batch_invariant
from batchgen.records import Bucket

CPU = torch.device("cpu")
SPECS: dict[str, ModelSpec] = {
    "wan": small_spec(),
    "wan22": two_experts(small_spec()),
    "flux": flux_spec(heads=4),
    "tiny-wan": tiny_wan_spec(),
}


@dataclass(frozen=True)
class Seen:
    """What one rank saw of a pack that was run divided, and its items alone and whole."""

    difference: float  # largest, of any item
    equal: bool
    sent: dict[str, int]  # bytes, by kind
    tokens: dict[str, int]  # of each stream of an item


@cache
def components(name: str) -> dict[str, Any]:
    """Of `SPECS[name]`, with torch's own initialisation: random weights are too small to show
    anything. Made once a process."""
    found = load_components(SPECS[name], torch.float32)
    torch.manual_seed(0)
    for expert in experts(name):
        for module in found[expert].modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return found


def experts(name: str) -> tuple[str, ...]:
    return plan_memory(SPECS[name], system().memory, CPU).experts


def divided(mesh: Mesh, name: str, bucket: Bucket, items: int) -> list[Seen]:
    """For each expert of a family, a pack of random items."""
    spec = SPECS[name]
    family = family_code(spec.family).build(spec, system(), components(name), CPU)
    transformers = [family.modules[expert] for expert in experts(name)]
    for transformer in transformers:
        make_batch_invariant(transformer)
    split = SplitSequence(mesh, family.sequence, transformers, TorchOp(mesh))
    try:
        return [_seen(mesh, family, split, bucket, items, expert) for expert in experts(name)]
    finally:
        split.undo()


def _seen(
    mesh: Mesh, family: Any, split: SplitSequence, bucket: Bucket, items: int, expert: str
) -> Seen:
    pack = [family.random_item(bucket, seed, expert) for seed in range(items)]
    with split.whole():
        whole = [family.forward([item])[0] for item in pack]
    mesh.wire.sent.clear()
    velocities = family.forward(pack)
    pairs = list(zip(velocities, whole, strict=True))
    return Seen(
        difference=max(float((a - b).abs().max()) for a, b in pairs),
        equal=all(torch.equal(a, b) for a, b in pairs),
        sent=dict(mesh.wire.sent),
        tokens=dict(split.lengths),
    )
