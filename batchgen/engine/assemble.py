"""From a model's description to a replica at work, in one visible order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.engine import device as devices
from batchgen.engine.memory.plan import plan_memory
from batchgen.engine.memory.residency import Residency
from batchgen.engine.packs import Packer
from batchgen.engine.prompts import PromptBook
from batchgen.engine.replica import Replica
from batchgen.engine.selftest import pack_equals_solo
from batchgen.engine.team import Alone
from batchgen.engine.weights import load_components
from batchgen.families.family import FamilyModel, family_code, family_spec
from batchgen.numerics.edges import make_batch_invariant
from batchgen.records import Layout
from batchgen.request import Bucket


def assemble(
    model: ModelSpec,
    system: SystemConfig,
    layout: Layout,
    device: torch.device,
    *,
    overlap: bool,
    moved: Callable[[], object],
) -> Replica:
    """A replica of one rank, as the layout says. `moved` is told of each component that is
    loaded."""
    devices.prepare(device, system)
    plan = plan_memory(model, layout.memory)
    components = load_components(model, devices.DTYPES[layout.precision], moved)
    family = family_code(model.family).build(model, system, components, device)
    for expert in plan.experts:
        make_batch_invariant(family.modules[expert])
    residency = Residency(family.modules, device, plan)
    return Replica(
        system=system,
        family=family,
        device=device,
        residency=residency,
        prompts=PromptBook(family, model.prompt_overflow),
        packer=Packer(
            partial(family_spec(model.family).tokens, model),
            device,
            system.batch.token_budget,
            system.determinism,
            equal=_self_test(family, residency),
        ),
        team=Alone(),
        overlap=overlap,
    )


def _self_test(family: FamilyModel, residency: Residency) -> Callable[[Bucket, int], bool]:
    """Experts are of one architecture: whichever is on the device answers for both."""

    def equal(bucket: Bucket, items: int) -> bool:
        return pack_equals_solo(family, bucket, items, residency.expert)

    return equal
