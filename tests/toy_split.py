"""Families on a rank: each forward divided and whole, in one process, side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention
from toy_cogvideox import COGVIDEOX, COGVIDEOX_2B
from toy_engine import small_spec, system, tiny_wan_spec, two_experts
from toy_flux import flux_spec
from toy_hunyuan_video import HUNYUAN_VIDEO
from toy_hunyuan_video15 import HUNYUAN_VIDEO15
from toy_loras import as_planned, files_of, save_lora
from toy_ltx import LTX
from toy_wan_images import SMALL
from toys import TOYS

from batchgen.caches.blocks import NO_BLOCKS, STACK, Blocks
from batchgen.config.schema import ModelSpec, ParallelConfig, RadialConfig
from batchgen.engine.adapters import load_adapters
from batchgen.engine.attention.choice import Attention
from batchgen.engine.devices.device import lone_layout
from batchgen.engine.loading.weights import load_components
from batchgen.engine.memory.plan import plan_memory
from batchgen.engine.parallel.mesh import Mesh
from batchgen.engine.parallel.split import Split, divide, part
from batchgen.engine.reuse.blocks import NOTHING, named, stack_blocks
from batchgen.engine.reuse.recall import Recall
from batchgen.families.family import Item, family_code, family_spec, latent_frames
from batchgen.families.recalled import Recalled
from batchgen.families.wan.model import Wan
from batchgen.numerics.edges import make_batch_invariant
from batchgen.request import Bucket, Request

CPU = torch.device("cpu")
AttentionOpName = Literal["torch", "xfuser"]


def odd_texts(spec: ModelSpec, tokens: int) -> ModelSpec:
    """The same with texts of so many tokens."""
    encoder = replace(spec.dims.text_encoder_2, max_tokens=tokens)
    return replace(spec, dims=replace(spec.dims, text_encoder_2=encoder))


def short_texts(spec: ModelSpec, tokens: int) -> ModelSpec:
    """The same with texts of so many tokens at most, of the first encoder."""
    encoder = replace(spec.dims.text_encoder, max_tokens=tokens)
    return replace(spec, dims=replace(spec.dims, text_encoder=encoder))


SPECS: dict[str, ModelSpec] = {
    "wan": small_spec(),
    "wan22": two_experts(small_spec()),
    "flux": flux_spec(heads=4),
    "tiny-wan": tiny_wan_spec(),  # six heads
    "flux-odd": odd_texts(flux_spec(heads=4), 21),
    "flux2_klein": TOYS["flux2_klein"].spec(heads=4),
    "qwen_image": TOYS["qwen_image"].spec(heads=4),
    "qwen-short": short_texts(TOYS["qwen_image"].spec(heads=4), 9),
    "sd3": TOYS["sd3"].spec(heads=4),
    # Feed-forwards of 512. Of 170, with 4 heads, SiLU ends within a vector of a CPU's, and the last
    # elements of a share may have other bits than those of the whole.
    "z_image": TOYS["z_image"].spec(heads=12),
    "ltx": LTX.spec(heads=4),
    "hunyuan-video": HUNYUAN_VIDEO.spec(heads=4),
    "hunyuan-video-1.5": HUNYUAN_VIDEO15.spec(heads=4),
    "cogvideox": COGVIDEOX.spec(heads=4),
    "cogvideox-2b": COGVIDEOX_2B.spec(heads=4),
    "hunyuan-dit": TOYS["hunyuan_dit"].spec(heads=4),
    **{name: spec() for name, spec in SMALL.items()},
}
# 48, 27, 3 and 35 tokens: the last end in a block of three queries.
CLIPS = (
    *((Bucket(64, 64, 9), 3), (Bucket(48, 48, 9), 2)),
    *((Bucket(48, 16, 1), 1), (Bucket(112, 80, 1), 1)),
)
IMAGES = ((Bucket(64, 64, 1), 3), (Bucket(48, 80, 1), 2))  # 16, 15 tokens
CASES = {
    "wan": CLIPS,
    "wan22": CLIPS[1:2],
    "tiny-wan": CLIPS[1:2],
    "flux": IMAGES[:1],
    "flux-odd": IMAGES[1:],
    "flux2_klein": IMAGES[1:],
    "qwen_image": IMAGES[:1],  # texts of several lengths in a pack
    "qwen-short": IMAGES[1:],
    "sd3": IMAGES,  # 3.5, with a second attention
    "z_image": IMAGES,
    "ltx": ((LTX.bucket, 2),),
    "hunyuan-video": ((HUNYUAN_VIDEO.bucket, 2),),
    "hunyuan-video-1.5": ((HUNYUAN_VIDEO15.bucket, 2),),
    "cogvideox": ((COGVIDEOX.bucket, 2),),
    "cogvideox-2b": ((COGVIDEOX_2B.bucket, 1),),
    "hunyuan-dit": IMAGES,
    "wan_i2v": CLIPS[1:2],
    "wan22_i2v": CLIPS[1:2],
    "wan22_ti2v": ((Bucket(160, 96, 9), 3),),  # 45 tokens; items with and without an image
}
# Of each way to look at divided forwards those that quick tests have; slow ones have the others.
QUICK: dict[str, tuple[str, ...]] = {
    "divided": tuple(name for name in CASES if name not in SMALL),
    "partly": (
        *("wan", "flux-odd", "flux2_klein", "sd3", "qwen_image", "z_image"),
        *("hunyuan-video-1.5", "cogvideox"),
    ),
    "recalled": ("wan", "wan22", "flux"),
    "adapted": ("wan", "wan22", "flux"),
}


def further(way: str) -> tuple[str, ...]:
    """The names that no quick test has."""
    return tuple(name for name in CASES if name not in QUICK[way])


@dataclass(frozen=True)
class Seen:
    """What one rank saw of a pack that was run divided, and its items alone and whole."""

    name: str
    items: int
    difference: float  # largest, of any item
    equal: bool
    told: str  # by the self-test
    sent: dict[str, int]  # bytes, by kind
    attended: int  # tokens, by all attentions over all items that this rank drew with others


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
    return plan_memory(SPECS[name], "resident").experts


def family_on(name: str, device: torch.device = CPU) -> Any:
    """The family at work, edges set."""
    spec = SPECS[name]
    family = family_code(spec.family).build(spec, system(), components(name), device)
    for expert in experts(name):
        make_batch_invariant(family.modules[expert].to(device))
    return family


def recall_of(name: str, family: Any) -> Recall:
    """What is recalled of the family from now on."""
    recall = Recall()
    recall.lead(family, experts(name), _recalled(name))
    return recall


def _recalled(name: str) -> tuple[Recalled, ...]:
    parts = family_spec(SPECS[name].family).COMPONENTS
    return next(part.recalled for part in parts if part.name == experts(name)[0])


@contextmanager
def split_of(mesh: Mesh, name: str, family: Any, op: AttentionOpName = "torch") -> Iterator[Split]:
    """The family's forwards divided over the ranks of `mesh`; its modules are used again later."""
    chosen = system(parallel=ParallelConfig(attention_op=op))
    split = divide(mesh, family, experts(name), chosen)
    assert split is not None
    try:
        yield split
    finally:
        if split.sequence is not None:
            split.sequence.undo()


def divided(mesh: Mesh, names: Sequence[str] = QUICK["divided"]) -> list[Seen]:
    """Of each case a pack of random items, for each expert of the family."""
    return [
        found
        for name in names
        if mesh.ring.size in family_spec(SPECS[name].family).capabilities(SPECS[name]).ring
        for bucket, items in CASES[name]
        for found in divided_case(mesh, name, bucket, items)
    ]


def on_the_card(mesh: Mesh) -> list[Seen]:
    """The clips of the Wan family, on the current card."""
    card = torch.device("cuda", torch.cuda.current_device())
    cases = [divided_case(mesh, "wan", *case, device=card) for case in CLIPS]
    return [found for case in cases for found in case]


def divided_case(
    mesh: Mesh,
    name: str,
    bucket: Bucket,
    items: int,
    op: AttentionOpName = "torch",
    device: torch.device = CPU,
) -> list[Seen]:
    family = family_on(name, device)
    with split_of(mesh, name, family, op) as split:
        packs = [
            [family.random_item(bucket, seed, expert) for seed in range(items)]
            for expert in experts(name)
        ]
        return [seen(split, name, pack) for pack in packs]


# ------------------------------------------------------------------------------- blocks left out
WHOLE = "all blocks"
PARTS: dict[str, tuple[Blocks, Blocks]] = {  # what is kept, and what takes it
    WHOLE: (STACK, NO_BLOCKS),
    "the first blocks": (Blocks(state=1), Blocks(start=1)),
    "the last blocks": (Blocks(since=1), Blocks(stop=1)),
    "attentions": (Blocks(attends=("self", "cross")), Blocks(reuses=("self", "cross"))),
}


def parts_of(name: str) -> dict[str, tuple[Blocks, Blocks]]:
    """Blocks of whose forwards parts may be left out: of each on its own, or of all at once."""
    served = family_spec(SPECS[name].family).capabilities(SPECS[name]).cache_strategies
    return {
        what: parts for what, parts in PARTS.items() if what == WHOLE or "first_block" in served
    }


def partly(mesh: Mesh, names: Sequence[str] = QUICK["partly"]) -> dict[tuple[str, str], float]:
    """How far a divided pack of a family, of whose forward parts are kept and then left out at a
    step one later, is from each of its items on this rank alone. Of three items two have one home,
    then all."""
    found = {}
    for name in names:
        bucket, parts = CASES[name][-1][0], parts_of(name)
        family = family_on(name)
        stacks = stack_blocks(family, SPECS[name].family, experts(name))
        now = [family.random_item(bucket, seed, "transformer") for seed in range(3)]
        later = [replace(item, timestep=item.timestep - 1) for item in now]
        with split_of(mesh, name, family) as split:
            for what, (keep, take) in parts.items():
                with split.whole():
                    _, kept = stacks.forward(family, now, keep, ())
                    whole, _ = stacks.forward(family, later, take, kept)
                for homes in ([0, 1 % mesh.cfg.size, 0], [0, 0, 0]):
                    _, own = split.partly(stacks, now, homes, keep, [NOTHING] * 3)
                    drawn, _ = split.partly(stacks, later, homes, take, own)
                    apart = max(
                        float((a - b).abs().max()) for a, b in zip(drawn, whole, strict=True)
                    )
                    found[name, f"{what}, {homes}"] = apart
                    held = [home == mesh.cfg.place for home in homes]
                    assert [bool(one.tensors) for one in own] == held
    return found


# -------------------------------------------------------------------------------- three branches
class ThreeBranches(Wan):
    """A Wan whose guided rows have a third branch, as models that edit have."""

    def combine(self, request: Request, timestep: float, velocities: Sequence[Tensor]) -> Tensor:
        if len(velocities) == 1:
            return velocities[0]
        full, text, none = velocities
        return none + request.guidance_scale * (text - none) + 1.5 * (full - text)


def three_branches(mesh: Mesh) -> list[bool]:
    """A guided row of three branches and a row of one in a pack: are both rows' velocities those of
    one rank?"""
    family: Any = ThreeBranches(SPECS["wan"], components("wan"), CPU)
    make_batch_invariant(family.transformer)
    pack = [family.random_item(Bucket(64, 64, 5), seed, "transformer") for seed in range(4)]
    rows = (slice(0, 3), slice(3, 4))
    with split_of(mesh, "wan", family) as split:
        with split.whole():
            whole = [family.forward([item])[0] for item in pack]
        velocities = split.forward(pack)
    request = replace(pack[0].request, guidance_scale=4.0)
    return [
        torch.equal(*(family.combine(request, 500.0, v[row]) for v in (velocities, whole)))
        for row in rows
    ]


def recalled(mesh: Mesh, names: Sequence[str] = QUICK["recalled"]) -> list[float]:
    """How far packs, divided, are from those without what is recalled: of each item as that is
    computed, and after. What a rank has computed whole, it recalls divided."""
    apart = []
    for name in names:
        family, (bucket, _) = family_on(name), CASES[name][0]
        recall = recall_of(name, family)
        pack = [family.random_item(bucket, seed, experts(name)[0]) for seed in range(3)]
        memos = [recall.text(item.condition[0]) for item in pack]  # held
        with split_of(mesh, name, family) as split:
            recall.on = False
            plain = split.forward(pack)
            recall.on = True
            with split.whole():
                family.forward(pack[:1])
            packs = [plain, split.forward(pack), split.forward(pack)]
        apart += [float((a - b).abs().max()) for a, *more in zip(*packs, strict=True) for b in more]
        texts = any(one.sees == "text" for one in _recalled(name))
        assert any(memo.outputs for memo in memos) == texts  # not of items that others draw
    return apart


def takes_lora(name: str) -> bool:
    return "lora" in family_spec(SPECS[name].family).capabilities(SPECS[name]).columns


def adapted(mesh: Mesh, names: Sequence[str] = QUICK["adapted"]) -> list[tuple[float, float]]:
    """Of packs that are drawn with an adapter: how far, divided, they are from each item alone on
    this rank, and how far that is from one without."""
    found = []
    with TemporaryDirectory() as folder:
        for name in names:
            parts, (bucket, _) = components.__wrapped__(name), CASES[name][0]
            path = save_lora(Path(folder, f"{name}.safetensors"), parts["transformer"])
            text = ",".join(f"{e}:{path}" for e in experts(name))
            files = files_of(text)
            adapters = load_adapters(SPECS[name].family, parts, experts(name), files)
            family: Any = family_code(SPECS[name].family).build(SPECS[name], system(), parts, CPU)
            for expert in experts(name):
                make_batch_invariant(family.modules[expert])
            adapters.lead(family, experts(name))
            for expert in experts(name):
                plain = [family.random_item(bucket, seed, expert) for seed in range(3)]
                request = replace(plain[0].request, lora=as_planned(text))
                pack = [replace(item, request=request) for item in plain]
                with split_of(mesh, name, family) as split:
                    together = seen(split, name, pack)
                    with split.whole():
                        apart = family.forward(pack[:1])[0] - family.forward(plain[:1])[0]
                found.append((together.difference, float(apart.abs().max())))
    return found


def radially(mesh: Mesh) -> tuple[float, float]:
    """How far a forward that attends radially is from itself whole, and from a dense one."""
    family, expert = family_on("wan"), experts("wan")[0]
    item = family.random_item(CASES["wan"][0][0], 0, expert)
    [dense] = family.forward([item])
    chosen = system(attention="radial", radial=RadialConfig(dense_layers=1, decay=0.25))
    attention = Attention(chosen, lone_layout(SPECS["wan"], chosen, CPU))
    attention.lead(family, [expert], frames=partial(latent_frames, SPECS["wan"]))
    try:
        with split_of(mesh, "wan", family) as split:
            [divided] = split.forward([item])
            with split.whole():
                [whole] = family.forward([item])
    finally:
        for module in family.modules[expert].modules():
            if hasattr(module, "processor"):
                module.processor._attention_backend = None
    return float((divided - whole).abs().max()), float((divided - dense).abs().max())


def failing(mesh: Mesh) -> None:
    """The second rank fails inside its forward, in the second block."""
    family = family_on("wan")
    with split_of(mesh, "wan", family) as split:
        block = family.modules["transformer"].blocks[1]

        def stumble(*_: Any) -> None:
            raise ValueError("a wire fell out")

        hook = block.register_forward_pre_hook(stumble) if mesh.rank == 1 else None
        try:
            split.forward([family.random_item(Bucket(64, 64, 5), 0, "transformer")])
        finally:
            if hook is not None:
                hook.remove()


def seen(split: Split, name: str, pack: list[Item]) -> Seen:
    """The pack divided, and each of its items on this rank alone."""
    with split.whole():
        whole = [split.family.forward([item])[0] for item in pack]
    split.mesh.wire.sent.clear()
    velocities = split.forward(pack)
    sent, axis = dict(split.mesh.wire.sent), split.mesh.cfg
    mine = part(pack, axis.size, axis.place)
    transformer = split.family.modules[experts(name)[0]]
    pairs = list(zip(velocities, whole, strict=True))
    return Seen(
        name=name,
        items=len(pack),
        difference=max(float((a - b).abs().max()) for a, b in pairs),
        equal=all(torch.equal(a, b) for a, b in pairs),
        told=split.self_test,
        sent=sent,
        attended=sum(attended(split, item, transformer) for item in mine),
    )


def attended(split: Split, item: Item, transformer: torch.nn.Module) -> int:
    """Tokens that the attentions of an item see, all together."""
    if split.sequence is None:
        return 0
    plan, lengths = split.family.sequence, dict(split.sequence.lengths)
    if plan.text is not None:
        text = item.condition[plan.text].shape[-2]
        if "joint" in lengths:  # padded to 32s
            cells = split.family.light.cells(split.family.spec, item.request.bucket)
            lengths["joint"] = sum(-(-n // 32) * 32 for n in (math.prod(cells), text))
        else:
            lengths["text"] = text
    return sum(
        len(named(transformer, one.modules)) * sum(lengths[stream] for stream in one.streams)
        for one in plan.attends
    )


@cache
def kernels_keep_bits() -> bool:
    """Whether a product of half the rows, and attention of half the heads, have the bits of the
    whole on this machine."""
    torch.manual_seed(0)
    x, weight, (q, k, v) = torch.randn(48, 512), torch.randn(96, 512), torch.randn(3, 1, 4, 48, 32)
    product = torch.equal(linear(x, weight)[:24], linear(x[:24], weight))
    whole = scaled_dot_product_attention(q, k, v)[:, :2]
    half = scaled_dot_product_attention(*(one[:, :2] for one in (q, k, v)))
    return product and torch.equal(whole, half)
