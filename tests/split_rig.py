"""Families on a rank: each forward divided and whole, in one process, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from flux_rig import flux_spec
from rig import small_spec, system, tiny_wan_spec, two_experts

from batchgen.config.schema import ModelSpec
from batchgen.engine.memory.plan import plan_memory
from batchgen.engine.parallel.mesh import Mesh
from batchgen.engine.parallel.split import Split, divide
from batchgen.engine.weights import load_components
from batchgen.families.family import Item, family_code
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
    told: str  # by the self-test
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


def family_on(name: str) -> Any:
    """The family at work, edges set."""
    spec = SPECS[name]
    family = family_code(spec.family).build(spec, system(), components(name), CPU)
    for expert in experts(name):
        make_batch_invariant(family.modules[expert])
    return family


@contextmanager
def split_of(mesh: Mesh, name: str, family: Any) -> Iterator[Split]:
    """The family's forwards divided over the ranks of `mesh`; its modules are used again later."""
    split = divide(mesh, family, experts(name), system())
    assert split is not None
    try:
        yield split
    finally:
        if split.sequence is not None:
            split.sequence.undo()


def divided(mesh: Mesh, name: str, bucket: Bucket, items: int) -> list[Seen]:
    """For each expert of a family, a pack of random items."""
    family = family_on(name)
    with split_of(mesh, name, family) as split:
        return [
            seen(split, [family.random_item(bucket, seed, expert) for seed in range(items)])
            for expert in experts(name)
        ]


def seen(split: Split, pack: list[Item]) -> Seen:
    """The pack divided, and each of its items on this rank alone."""
    with split.whole():
        whole = [split.family.forward([item])[0] for item in pack]
    split.mesh.wire.sent.clear()
    velocities = split.forward(pack)
    sent = dict(split.mesh.wire.sent)
    pairs = list(zip(velocities, whole, strict=True))
    return Seen(
        difference=max(float((a - b).abs().max()) for a, b in pairs),
        equal=all(torch.equal(a, b) for a, b in pairs),
        told=split.self_test,
        sent=sent,
        tokens=dict(split.sequence.lengths) if split.sequence else {},
    )
