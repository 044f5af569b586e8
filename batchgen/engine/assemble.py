"""From a model's description to a replica at work, in one visible order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from batchgen.caches.tables import Tables
from batchgen.config.capability import shared_tiles
from batchgen.config.schema import MemoryConfig, ModelSpec, SystemConfig
from batchgen.engine.adapters import load_adapters
from batchgen.engine.attention.choice import Attention
from batchgen.engine.compiled import Compiled, keep_pairs_apart
from batchgen.engine.contract import Ascent, KeptTexts
from batchgen.engine.devices import device as devices
from batchgen.engine.devices.kernels import KernelWatch
from batchgen.engine.devices.selftest import pack_equals_solo
from batchgen.engine.encoding.abreast import Abreast
from batchgen.engine.encoding.pictures import PictureBook
from batchgen.engine.encoding.prompts import EncodedText, PromptBook, Together, Work
from batchgen.engine.encoding.texts import TextStore
from batchgen.engine.isolation import Failed, attempt
from batchgen.engine.ladder import Ladder
from batchgen.engine.loading.weights import load_components
from batchgen.engine.memory.fp8 import store_in_fp8
from batchgen.engine.memory.gauge import Gauge
from batchgen.engine.memory.plan import MemoryPlan, plan_memory
from batchgen.engine.memory.residency import Residency
from batchgen.engine.memory.stream import Feed
from batchgen.engine.packs import DecodeSizes, Packer
from batchgen.engine.parallel.mesh import Mesh
from batchgen.engine.parallel.split import Split, divide
from batchgen.engine.parallel.tiles import DividedDecodes
from batchgen.engine.ranks.team import Team
from batchgen.engine.replica import Replica
from batchgen.engine.reuse.blocks import Stacks, blocks_of, layers_of, stack_blocks
from batchgen.engine.reuse.recall import TEXT_BYTES, Recall
from batchgen.engine.reuse.shorter import SkipsBlocks, shorten
from batchgen.families.family import (
    STAGES,
    Component,
    FamilyModel,
    Stage,
    family_code,
    family_spec,
    latent_frames,
    share_computed,
)
from batchgen.families.kept import RowBytes
from batchgen.families.streaming import Weights
from batchgen.loras import NO_LORAS
from batchgen.numerics.edges import make_batch_invariant
from batchgen.pictures import Read
from batchgen.records import Layout, rows_decoded
from batchgen.request import Bucket, Loras

T = TypeVar("T")


def assemble(
    model: ModelSpec,
    system: SystemConfig,
    layout: Layout,
    device: torch.device,
    *,
    overlap: bool,
    moved: Callable[[], object],
    team: Team,
    tables: Tables,
    images: Read,
    ascent: Ascent,
    mesh: Mesh | None = None,
    texts: KeptTexts | None = None,
    loras: Mapping[str, Path] = NO_LORAS,
    stages: Sequence[Stage] = STAGES,
) -> Replica:
    """One rank of a replica, as the layout says, with the components of some stages; a follower has
    those that denoise, and with tiles to decode those that decode. `moved` is told of each
    component that is loaded."""
    devices.prepare(device, system)
    ascent = replace(ascent, before=team.result(lambda: ascent.before))
    plan = plan_memory(model, layout.memory, layout.resident_blocks, layout.places)
    shared = shared_tiles(model, system.vae, stages) if mesh is not None else None
    if not team.leads:
        stages = ("denoise", "decode") if shared else ("denoise",)
    own = {n: devices.DTYPES[c.dtype] for n, c in system.components.items() if c.dtype is not None}
    components = load_components(
        model, devices.DTYPES[layout.precision], moved, stages, own, plan.on_disk
    )
    adapters = load_adapters(model.family, components, plan.experts, loras)
    family = family_code(model.family).build(model, system, components, device)
    _settle_numerics(family, plan, system)
    compiled = Compiled(system.compile)
    recall = _recall(family, model.family, plan, outside_blocks=compiled.on)
    adapters.lead(family, plan.experts)
    attention = Attention(system, layout)
    attention.lead(family, plan.experts, frames=partial(latent_frames, model))
    stacks = stack_blocks(family, model.family, plan.experts)
    split = divide(mesh, family, plan.experts, system) if mesh is not None else None
    if split is None and isinstance(family, SkipsBlocks):
        shorten(stacks, [family.modules[expert] for expert in plan.experts], family)
    abreast = Abreast(device)
    apart = recall.weights(family, plan.experts)
    residency = _residency(family, device, plan, system.memory, stacks, abreast, apart)
    recall.residency = residency
    ladder = Ladder(residency, recall, device, ascent, streams=compiled.may_stream)
    ladder.load()
    _compile(compiled, model, family, residency, attention)
    encoding = partial(_encoding, ladder)
    equal = _self_test(family, residency, split, adapters.tests)
    packer = _packer(model, system, device, mesh, equal, few_shapes=compiled.on)
    decodes = DecodeSizes(partial(rows_decoded, layout.decode_pixels))
    _keep_to_room(ladder, packer, decodes, alone=mesh is None)
    return Replica(
        system=system,
        family=family,
        device=device,
        residency=residency,
        ladder=ladder,
        prompts=PromptBook(
            family,
            model.prompt_overflow,
            store=_store(texts, device, layout),
            attempt=encoding,
            together=partial(_together, residency, abreast),
        ),
        pictures=PictureBook(family, images, attempt=encoding),
        packer=packer,
        decodes=decodes,
        team=team,
        stacks=stacks,
        attention=attention,
        kernels=KernelWatch(device),
        compiled=compiled,
        recall=recall,
        adapters=adapters,
        tables=tables,
        split=split,
        divided=DividedDecodes(mesh, family, shared[1]) if mesh and shared else None,
        layers=family_spec(model.family).layers(model),
        smallest=Bucket(*(family_spec(model.family).stride(model).pixels,) * 2, 1),
        share=partial(share_computed, model),
        row_bytes=_row_bytes(model, system, layout, plan),
        most_kept=round(layout.kept_gib * devices.GIB),
        overlap=overlap,
    )


def _row_bytes(
    model: ModelSpec, system: SystemConfig, layout: Layout, plan: MemoryPlan
) -> Callable[[Bucket, int, int, tuple[str, ...]], int]:
    """What a row keeps, as it was planned: behind a rung of the ladder more weights have left the
    device than tables come."""
    precision = layout.precision
    tables = Weights(model, precision, system).tables(plan.places)
    sequence = layout.ulysses * layout.ring
    return cache(RowBytes(replace(model, dtype=precision), tables, layout.cfg, sequence).of)


def _compile(
    compiled: Compiled,
    model: ModelSpec,
    family: FamilyModel,
    residency: Residency,
    attention: Attention,
) -> None:
    """Have the blocks compiled, if anything is."""
    plan, spec = residency.plan, family_spec(model.family)
    transformers = [family.modules[expert] for expert in plan.experts]
    streams = any(part.name in plan.experts for part in plan.streaming)
    compiled.lead(transformers, residency.device.type, streams=streams, attention=attention)
    if compiled.on and spec.capabilities(model).pairs:
        keep_pairs_apart(family, partial(spec.branches, model))


def _keep_to_room(ladder: Ladder, packer: Packer, decodes: DecodeSizes, *, alone: bool) -> None:
    """No pack is larger than what earlier attempts had room for, until there is more."""
    for bucket, items in ladder.allowed("denoise", alone=alone):
        packer.allow(bucket, items)
    for bucket, rows in ladder.allowed("decode", alone=alone):
        decodes.allow(bucket, rows)
    ladder.roomier += [packer.forget, decodes.forget]


def _settle_numerics(family: FamilyModel, plan: MemoryPlan, system: SystemConfig) -> None:
    """What the transformers compute with, and in which order, before anything is led around it."""
    for expert in plan.experts:
        if system.memory.store_dtype == "fp8":
            store_in_fp8(layers_of(family.modules[expert], plan.part(expert).stacks))
        make_batch_invariant(family.modules[expert])


def _packer(
    model: ModelSpec,
    system: SystemConfig,
    device: torch.device,
    mesh: Mesh | None,
    equal: Callable[[Bucket, int], bool],
    *,
    few_shapes: bool,
) -> Packer:
    return Packer(
        partial(family_spec(model.family).tokens, model),
        device,
        system.batch.token_budget,
        system.determinism,
        equal=equal,
        ranks=mesh.cfg.size if mesh is not None else 1,
        few_shapes=few_shapes,
    )


def _store(texts: KeptTexts | None, device: torch.device, layout: Layout) -> TextStore | None:
    if texts is None:
        return None
    return TextStore(texts, device, f"{devices.device_name(device)} {layout.precision}")


def _recall(family: FamilyModel, name: str, plan: MemoryPlan, *, outside_blocks: bool) -> Recall:
    """Where memory is short, texts are computed again. Compiled blocks recall nothing."""
    part = next(part for part in family_spec(name).COMPONENTS if part.name == plan.experts[0])
    recall = Recall(text_bytes=TEXT_BYTES if plan.resident else 0)
    inside = part.stacks if outside_blocks else ()
    recalled = [one for one in part.recalled if one.modules.partition(".")[0] not in inside]
    recall.lead(family, plan.experts, recalled)
    return recall


def _residency(
    family: FamilyModel,
    device: torch.device,
    plan: MemoryPlan,
    memory: MemoryConfig,
    stacks: Stacks,
    abreast: Abreast,
    apart: Mapping[nn.Module, str],
) -> Residency:
    gauge = Gauge()

    def feed_of(part: Component, plan: MemoryPlan) -> Feed:
        module = family.modules[part.name]
        blocks = blocks_of(module) if part.stacks else layers_of(module, part.layers)
        feed = Feed(
            blocks,
            plan.stay if part.stacks else (),
            device,
            gauge,
            prefetch=memory.prefetch,
            pin=memory.pin,
            on_disk=part.name in plan.on_disk,
            apart=apart,
        )
        if part.stacks:
            stacks.feed(module, feed)
        else:
            feed.lead(blocks, abreast.pause)
        return feed

    return Residency(family.modules, device, plan, feed_of, gauge, apart)


def _encoding(ladder: Ladder, work: Callable[[], T]) -> T | Failed:
    """Encode something, on any rung."""
    residency = ladder.residency

    def there() -> T:
        residency.ensure(*residency.of("encode"))
        return work()

    return ladder.attempt(there, "encode")


def _together(residency: Residency, abreast: Abreast) -> Together | None:
    """Where an encoder's layers come for each text, they come for several at once."""
    encoders = residency.of("encode")
    if not any(part.name in encoders for part in residency.plan.streaming):
        return None

    def run(works: Sequence[Work]) -> Sequence[EncodedText | Failed]:
        there = attempt(lambda: residency.ensure(*encoders))
        return [there] * len(works) if isinstance(there, Failed) else abreast.run(works)

    return run


def _self_test(
    family: FamilyModel, residency: Residency, split: Split | None, loras: Sequence[Loras]
) -> Callable[[Bucket, int], bool]:
    """Experts are of one architecture: whichever is on the device answers for both. A rank asks
    alone, whatever the others do. `loras`: sets of adapters, each of which has to pass."""

    def equal(bucket: Bucket, items: int) -> bool:
        residency.ensure(residency.expert)
        with split.whole() if split else nullcontext():
            return all(
                pack_equals_solo(family, bucket, items, residency.expert, one) for one in loras
            )

    return equal
