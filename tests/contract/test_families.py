"""What every folder of batchgen/families must keep. The folder is the registry."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from toy_engine import request, small_spec, system, two_experts
from toy_flux import flux_spec
from toy_wan_images import SMALL
from toys import TOYS
from video_toys import VIDEO_TOYS

from batchgen.caches.blocks import Blocks
from batchgen.config.schema import ModelSpec
from batchgen.engine.decode import Decoder
from batchgen.engine.devices.device import lone_layout
from batchgen.engine.devices.selftest import pack_equals_solo
from batchgen.engine.encoding.abreast import Abreast
from batchgen.engine.loading.checkpoint import meta_model
from batchgen.engine.loading.parts import parts
from batchgen.engine.loading.weights import load_components
from batchgen.engine.memory.fp8 import FP8, store_in_fp8
from batchgen.engine.memory.gauge import Gauge
from batchgen.engine.memory.plan import plan_memory
from batchgen.engine.memory.stream import Feed
from batchgen.engine.parallel.dispatch import attend_through
from batchgen.engine.parallel.sequence import named
from batchgen.engine.reuse.blocks import layers_of
from batchgen.errors import ConfigError
from batchgen.families.components import component_bytes
from batchgen.families.family import (
    DecodesRows,
    DrawsFromImages,
    FamilySpec,
    Item,
    family_code,
    family_names,
    family_spec,
    share_computed,
)
from batchgen.families.sequence import AttendsApart, Cut
from batchgen.families.streaming import block_weights
from batchgen.families.vision import SeesImages
from batchgen.numerics.edges import is_edge, make_batch_invariant
from batchgen.numerics.remembered import Remembered
from batchgen.request import Bucket, Request, Solver

# A new family adds its small spec here, and a bucket of 16 tokens or more with a larger one.
SPECS: dict[str, ModelSpec] = {
    "wan": small_spec("random"),
    "wan22": two_experts(small_spec("random")),
    "flux": flux_spec("random"),
    **{name: toy.spec() for name, toy in TOYS.items()},
    **{name: spec() for name, spec in SMALL.items()},
    **{toy.family: toy.spec() for toy in VIDEO_TOYS.values()},
}
CLIPS = (Bucket(64, 32, 5), Bucket(64, 64, 5))
IMAGES = (Bucket(128, 64, 1), Bucket(192, 64, 1))
BUCKETS = {
    "wan": CLIPS,
    "wan22": CLIPS,
    "flux": IMAGES,
    "wan_i2v": CLIPS,
    "wan22_i2v": CLIPS,
    "wan22_ti2v": (Bucket(128, 64, 5), Bucket(128, 128, 5)),
    **dict.fromkeys(TOYS, IMAGES),
    **{
        toy.family: (toy.bucket, replace(toy.bucket, height=2 * toy.bucket.height))
        for toy in VIDEO_TOYS.values()
    },
}
# LTX-Video's plan divides texts and then has masks of other lengths than they.
UNDIVIDED = {"ltx": {"encoder_hidden_states", "encoder_attention_mask"}}
NOT_USED = {"timestep", "encoder_hidden_states_mask", "modulate_index"}
TOKEN_TIMES = ("wan22_ti2v",)  # each token has a timestep: no Linear sees one vector per item
FIRST = {"z_image": "noise_refiner.*.attention"}  # in front of those that see all tokens
LOST_IN_FP8 = 0.1  # of a velocity, of models with random weights
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Loaded:
    """A family at work, as the contract sees it."""

    spec: FamilySpec
    model: ModelSpec
    family: Any  # FamilyModel
    bucket: Bucket
    larger: Bucket

    @property
    def experts(self) -> tuple[str, ...]:
        return plan_memory(self.model, "resident").experts

    def items(self, count: int, expert: str = "") -> list[Item]:
        expert = expert or self.experts[0]
        return [self.family.random_item(self.bucket, seed, expert) for seed in range(count)]

    def row(self, **changes: Any) -> Request:
        size = {"width": self.bucket.width, "height": self.bucket.height}
        own = self.model.request_defaults
        defaults = {"num_frames": self.bucket.num_frames, "solver": own.solver}
        return request(0, **(size | defaults | changes))


@pytest.fixture(scope="module", params=sorted(SPECS))
def loaded(request: pytest.FixtureRequest, one_thread: None) -> Loaded:
    name = request.param
    model, (bucket, larger) = SPECS[name], BUCKETS[name]
    family = family_code(name).build(model, system(), load_components(model, torch.float32), CPU)
    found = Loaded(family_spec(name), model, family, bucket, larger)
    for expert in found.experts:
        make_batch_invariant(family.modules[expert])
    return found


def test_the_folder_is_the_registry() -> None:
    own = {name for name in family_names() if family_spec(name).OWN_ENGINE}
    assert own == {"null", "generic"}
    assert set(SPECS) == set(BUCKETS) == set(family_names()) - own


@pytest.mark.parametrize("name", sorted(SPECS))
def test_components_are_folders_of_a_checkpoint(name: str) -> None:
    model, spec = SPECS[name], family_spec(name)
    found = parts(model, torch.bfloat16)
    assert len({part.name for part in found}) == len(found)
    assert {"transformer", "vae"} <= {part.name for part in found}
    assert all(part.spec_key.startswith("model.") for part in found)
    names = {part.name for part in spec.COMPONENTS if part.kind == "model"}
    assert names == {name for name, _, _ in component_bytes(model).parts}
    assert set(model.dims.__dataclass_fields__) >= {
        part.dims for part in spec.COMPONENTS if part.dims
    }


def test_every_module_is_a_component_and_the_stacks_hold_its_blocks(loaded: Loaded) -> None:
    components = {part.name: part for part in loaded.spec.COMPONENTS if part.kind == "model"}
    assert set(loaded.family.modules) == set(components)
    for expert in loaded.experts:
        stacks = [
            loaded.family.modules[expert].get_submodule(name) for name in components[expert].stacks
        ]
        assert all(isinstance(stack, torch.nn.ModuleList) for stack in stacks)
        assert sum(len(stack) for stack in stacks) == loaded.spec.layers(loaded.model)


@torch.no_grad()
def test_what_decodes_is_enough_to_decode(loaded: Loaded) -> None:
    """To the bit, without weights of transformers and encoders."""
    alone = Decoder.load(
        loaded.model, system(), "cpu", layout=lone_layout(loaded.model, system(), CPU)
    )
    assert {
        p.is_meta for name in loaded.experts for p in alone.family.modules[name].parameters()
    } == {True}
    assert set(alone.family.modules) == {
        part.name
        for part in loaded.spec.COMPONENTS
        if part.kind == "model" and (part.works_in("decode") or part.stage == "denoise")
    }
    assert alone.family.state_dtype == loaded.family.state_dtype
    row = loaded.row()
    latents = loaded.family.initial_latents(row).to(loaded.family.state_dtype)
    frames = [
        family.decode_row(latents, row)
        if isinstance(family, DecodesRows)
        else family.decode(latents, row.bucket)
        for family in (loaded.family, alone.family)
    ]
    assert torch.equal(*frames)


def test_tokens_are_divided_where_diffusers_divides_them(loaded: Loaded) -> None:
    """Where it has a plan, that is right for these models, but for inputs that none has here; what
    it lacks is whose tokens a tensor holds, and shares of different sizes."""
    plan = loaded.family.sequence
    for expert in loaded.experts:
        transformer = loaded.family.modules[expert]
        if getattr(transformer, "_cp_plan", None) is None:
            continue
        theirs = {
            (module, tensor, one.split_dim)
            for module, tensors in transformer._cp_plan.items()
            if isinstance(tensors, dict)
            for tensor, one in tensors.items()
        }
        ours = {(cut.module, cut.tensor, cut.dim) for cut in plan.cuts}
        unused = NOT_USED | UNDIVIDED.get(loaded.model.family, set())
        assert {tensor for _, tensor, _ in theirs - ours} <= unused
        assert ours <= theirs
        where = transformer._cp_plan[plan.gather.module].gather_dim
        assert plan.gather == Cut(plan.gather.module, 0, plan.gather.stream, where)


@torch.no_grad()
def test_every_block_attends_over_all_tokens_through_an_op_of_ours(loaded: Loaded) -> None:
    """diffusers' processors lead there in this version of it, those of families whose tokens are
    divided."""
    if loaded.spec.capabilities(loaded.model).ulysses == (1,):
        pytest.skip("not divided")
    handed: list[int] = []

    def whole(attend: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        handed.append(q.shape[1])
        out: Tensor = attend(q, k, v)
        return out

    item = loaded.items(1)[0]
    alone = loaded.family.forward([item])[0]
    led = [
        (attends, module)
        for attends in loaded.family.sequence.attends
        for module in named(loaded.family.modules[loaded.experts[0]], attends.modules)
    ]
    undo = [attend_through(module, whole) for _, module in led]
    routed = loaded.family.forward([item])[0]
    for step in undo:
        step()
    loaded.family.forward([item])
    assert torch.equal(routed, alone)
    assert len(handed) == len(undo)
    layers, most = loaded.spec.layers(loaded.model), max(handed)
    assert handed.count(most) == sum(attends.reused for attends, _ in led) == layers
    assert most >= loaded.spec.tokens(loaded.model, loaded.bucket)
    served = isinstance(loaded.spec, AttendsApart)
    apart = loaded.spec.apart(loaded.model, loaded.bucket) if served else ()
    assert sorted(tokens for tokens in handed if tokens != most) == sorted(apart)


def test_a_processor_that_leads_nowhere_is_refused() -> None:
    class Own:
        _parallel_config = None

    attention = torch.nn.Module()
    attention.processor = Own()  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="Own of this diffusers does not let attention be"):
        attend_through(attention, lambda attend, q, k, v, mask: attend(q, k, v))


@pytest.mark.parametrize("name", sorted(SPECS))
def test_predicted_weights_are_those_of_the_components(name: str) -> None:
    """The small models' biases and norms weigh more than those of real ones."""
    for part in parts(SPECS[name], torch.float32):
        if part.model_class is not None and not part.is_processor:
            counted = sum(p.numel() for p in meta_model(part.model_class, part.config).parameters())
            predicted = family_spec(name).parameters(SPECS[name], part.name)
            assert predicted == pytest.approx(counted, rel=0.3), part.name


@pytest.mark.parametrize("name", sorted(SPECS))
def test_predicted_blocks_are_those_of_the_transformer(name: str) -> None:
    """One number for each, in the order in which they run."""
    spec = family_spec(name)
    expert = next(part for part in spec.COMPONENTS if part.stacks)
    (part,) = [part for part in parts(SPECS[name], torch.float32) if part.name == expert.name]
    model = meta_model(part.model_class, part.config)
    blocks = [block for stack in expert.stacks for block in model.get_submodule(stack)]
    counted = [sum(p.numel() for p in block.parameters()) for block in blocks]
    predicted = spec.block_parameters(SPECS[name])
    assert len(predicted) == spec.layers(SPECS[name]) == len(counted)
    assert list(predicted) == pytest.approx(counted, rel=0.3)
    assert sum(predicted) < spec.parameters(SPECS[name], expert.name)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_predicted_blocks_are_those_of_the_encoders(name: str) -> None:
    loads = {part.name: part for part in parts(SPECS[name], torch.float32)}
    encoders = [part for part in family_spec(name).COMPONENTS if part.layers]
    assert encoders
    for encoder in encoders:
        part = loads[encoder.name]
        blocks = layers_of(meta_model(part.model_class, part.config), encoder.layers)
        counted = [sum(p.numel() for p in block.parameters()) for block in blocks]
        predicted = block_weights(SPECS[name], encoder)
        assert list(predicted) == pytest.approx(counted, rel=0.3)
        assert sum(predicted) < family_spec(name).parameters(SPECS[name], encoder.name)


@pytest.mark.parametrize("name", sorted(SPECS))
@torch.no_grad()
def test_weights_in_fp8_are_those_that_were_predicted_and_draw_nearly_the_same(name: str) -> None:
    """Of blocks, but for norms and what modulates them, and for what diffusers keeps from its
    layerwise casting."""
    spec, model = family_spec(name), SPECS[name]
    family = family_code(name).build(
        model, system(), load_components(model, torch.float32, stages=("denoise",)), CPU
    )
    expert = next(part for part in spec.COMPONENTS if part.stacks)
    transformer = family.modules[expert.name]
    torch.manual_seed(0)
    for module in transformer.modules():
        if isinstance(module, torch.nn.Linear):
            module.reset_parameters()  # with the smaller ones of `random` blocks hardly count
    item = family.random_item(BUCKETS[name][0], 0, expert.name)
    [exact] = family.forward([item])
    blocks = layers_of(transformer, expert.stacks)
    store_in_fp8(blocks)
    stored = [sum(p.numel() for p in b.parameters() if p.dtype == FP8) for b in blocks]
    assert list(spec.fp8_parameters(model)) == stored
    kept = "|".join(transformer._skip_layerwise_casting_patterns or ["^$"])
    low = [name for name, p in transformer.named_parameters() if p.dtype == FP8]
    assert not [name for name in low if re.search(kept, name)]
    [drawn] = family.forward([item])
    off = float((drawn - exact).norm() / exact.norm())
    assert 1e-4 < off < LOST_IN_FP8, off


def test_what_is_checked_is_what_is_loaded() -> None:
    """The components that planning names are the parts, of the classes that are loaded."""
    for name, model in SPECS.items():
        known = {part.name: part for part in family_spec(name).COMPONENTS}
        loaded = parts(model, torch.bfloat16)
        assert {part.name for part in loaded} == {
            part.name for part in known.values() if part.kind != "scheduler"
        }
        for part in loaded:
            component = known[part.name]
            if component.kind == "processor":
                assert part.is_processor
            elif component.kind == "tokenizer":
                assert part.model_class is None
            elif component.library == "transformers":
                assert component.model_type == part.model_class.config_class.model_type
            else:
                assert component.class_name == part.model_class.__name__


@torch.no_grad()
def test_a_text_becomes_a_condition(loaded: Loaded) -> None:
    family = loaded.family
    tokens = family.tokenize("a red circle")
    assert tokens.count > 0
    assert not tokens.truncated
    first, second = family.encode(tokens), family.encode(tokens)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert family.tokenize("x" * 10_000).truncated
    assert family.max_tokens == loaded.spec.max_tokens(loaded.model)


def forget_texts(family: Any) -> None:
    """Of a family whose encoders do not read again what they were told lately."""
    for encoder in vars(family).values():
        if isinstance(encoder, Remembered):
            encoder._made.clear()


@torch.no_grad()
def test_encoders_whose_blocks_stream_make_the_same_conditions(loaded: Loaded) -> None:
    """Of one text, and of texts side by side, for which they come once."""
    family = loaded.family
    texts = [family.tokenize(text) for text in ('a red circle that says "GO"', 'say "no"')]
    there, abreast = [family.encode(tokens) for tokens in texts], Abreast(CPU)
    for encoder in (part for part in loaded.spec.COMPONENTS if part.layers):
        blocks = layers_of(family.modules[encoder.name], encoder.layers)
        gauge = Gauge()
        feed = Feed(blocks, (), CPU, gauge, prefetch=0, pin=False)
        feed.lead(blocks, abreast.pause)
        feed.open()
        forget_texts(family)
        assert all(map(torch.equal, family.encode(texts[0]), there[0]))
        forget_texts(family)
        once, gauge.streamed = gauge.streamed, 0
        found = abreast.run([partial(family.encode, tokens) for tokens in texts])
        assert all(all(map(torch.equal, *pair)) for pair in zip(found, there, strict=True))
        feed.close()
        assert gauge.streamed == once > 0
        for block in blocks:
            del block.forward  # back to that of its class


def test_texts_are_as_many_as_the_branches_that_were_planned(loaded: Loaded) -> None:
    """The prompt comes first; without guidance there is no second branch."""
    for scale in (0.0, 0.5, 1.0, 1.5, 4.0):
        for true_cfg in (1.0, 2.0):
            row = loaded.row(
                prompt="p", negative_prompt="n", guidance_scale=scale, true_cfg_scale=true_cfg
            )
            texts = loaded.family.texts(row)
            fixed = "negative_prompt" in loaded.spec.capabilities(loaded.model).unread
            assert texts in (("p",), ("p", "" if fixed else "n"))
            assert len(texts) == loaded.spec.branches(loaded.model, row)


def test_latents_come_from_the_seed_alone(loaded: Loaded) -> None:
    family, row = loaded.family, loaded.row(seed=7)
    other = replace(row, row_index=5, row_id="other", prompt="other", num_steps=9)
    assert torch.equal(family.initial_latents(row), family.initial_latents(other))
    assert not torch.equal(
        family.initial_latents(row), family.initial_latents(replace(row, seed=8))
    )
    assert family.state_dtype == family.initial_latents(row).dtype == torch.float32


@torch.no_grad()
def test_signals_are_what_goes_into_the_first_block(loaded: Loaded) -> None:
    """What caches look at, as the forward makes it: the input of its first attention."""
    for expert in loaded.experts:
        transformer = loaded.family.modules[expert]
        first = FIRST.get(loaded.model.family, loaded.family.sequence.attends[0].modules)
        attention = named(transformer, first)[0]
        seen: list[Tensor] = []
        hook = attention.register_forward_pre_hook(
            lambda _, args, kwargs, seen=seen: seen.append((*args, *kwargs.values())[0]),
            with_kwargs=True,
        )
        item, other = loaded.items(2, expert)
        loaded.family.forward([item])
        hook.remove()
        signal = loaded.family.signal(item, "embedded")
        assert signal.ndim == 5 and torch.equal(signal.flatten(1, 3), seen[0])
        for kind in ("timestep", "projected"):
            of = [loaded.family.signal(one, kind) for one in (item, item, other)]
            assert of[0].shape[0] == 1 and torch.equal(of[0], of[1])
            assert not torch.equal(of[0], of[2])
            twin = replace(item, condition=other.condition, latents=other.latents)
            alike = torch.equal(of[0], loaded.family.signal(twin, kind))
            assert alike == loaded.family.signals_alike, kind


@torch.no_grad()
def test_velocities_have_the_shape_of_their_latents(loaded: Loaded) -> None:
    for expert in loaded.experts:
        items = loaded.items(3, expert)
        assert {loaded.family.expert(i.request, i.timestep) for i in items} == {expert}
        velocities = loaded.family.forward(items)
        assert [v.shape for v in velocities] == [item.latents.shape for item in items]


@pytest.mark.parametrize("count", [2, 3, 5, 8])
@torch.no_grad()
def test_a_pack_equals_each_item_alone(loaded: Loaded, count: int) -> None:
    """To the bit where this machine's kernels allow it; else the engine goes one by one."""
    for expert in loaded.experts:
        pack = loaded.items(count, expert)
        alone = [loaded.family.forward([item])[0] for item in pack]
        together = loaded.family.forward(pack)
        for ours, single in zip(together, alone, strict=True):
            torch.testing.assert_close(ours, single, atol=1e-5, rtol=0)
        equal = all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
        assert pack_equals_solo(loaded.family, loaded.bucket, count, expert) == equal
        print(f"pack of {count} equals each alone to the bit: {equal}")


@torch.no_grad()
def test_every_module_that_sees_a_vector_per_item_does_not_depend_on_the_batch(
    loaded: Loaded,
) -> None:
    """Each edge, called as the forward calls it, gives a pack's items the bits each has alone."""
    seen: dict[torch.nn.Module, torch.Tensor] = {}
    for expert in loaded.experts:
        hooks = [
            module.register_forward_pre_hook(lambda module, args: seen.update({module: args[0]}))
            for module in loaded.family.modules[expert].modules()
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d))
        ]
        loaded.family.forward(loaded.items(4, expert))
        for hook in hooks:
            hook.remove()
    edges = {module: x for module, x in seen.items() if is_edge(module, x, 4)}
    fewest = 1 if loaded.model.family in TOKEN_TIMES else 3
    assert len(edges) >= fewest * len(loaded.experts)
    for edge, inputs in edges.items():
        assert inputs.shape[0] % 4 == 0  # a patch convolution may see frames
        alone = torch.cat([edge(x) for x in inputs.split(1)])
        assert torch.equal(edge(inputs), alone)


@torch.no_grad()
def test_decoding_gives_uint8_frames_of_the_bucket(loaded: Loaded) -> None:
    family, bucket = loaded.family, loaded.bucket
    latents = loaded.items(1)[0].latents
    frames = family.decode(latents, bucket)
    assert frames.dtype == torch.uint8
    assert tuple(frames.shape) == (bucket.num_frames, bucket.height, bucket.width, 3)
    assert torch.equal(frames, family.decode(latents, bucket))


def test_what_shares_a_forward_is_of_one_size(loaded: Loaded) -> None:
    row = loaded.row()
    larger = replace(row, width=loaded.larger.width, height=loaded.larger.height)
    assert loaded.family.group(row) == loaded.family.group(replace(row, num_steps=9, seed=5))
    assert loaded.family.group(row) != loaded.family.group(larger)


def test_costs_grow_with_the_bucket(loaded: Loaded) -> None:
    for ask in (
        loaded.spec.tokens,
        loaded.spec.forward_flops,
        loaded.spec.decode_flops,
        loaded.spec.forward_bytes,
        loaded.spec.decode_bytes,
    ):
        assert 0 < ask(loaded.model, loaded.bucket) < ask(loaded.model, loaded.larger)


def test_what_rows_are_given_costs_where_they_are_given_images(loaded: Loaded) -> None:
    given = "image" in loaded.spec.capabilities(loaded.model).columns
    assert (
        isinstance(loaded.spec, SeesImages) == given == isinstance(loaded.family, DrawsFromImages)
    )
    if isinstance(loaded.spec, SeesImages):
        small, large = (
            loaded.spec.image_flops(loaded.model, b) for b in (loaded.bucket, loaded.larger)
        )
        assert 0 < small < large


def test_a_shortened_forward_costs_what_runs(loaded: Loaded) -> None:
    layers = loaded.spec.layers(loaded.model)

    def share(**parts: Any) -> float:
        return share_computed(loaded.model, loaded.bucket, Blocks(**parts))

    assert share() == share(since=0) == 1
    assert share(stop=0) == share(start=1, stop=1) == 0
    assert share(stop=1) == 1 / layers and share(start=1) == (layers - 1) / layers
    attention = loaded.spec.attention_flops(loaded.model, loaded.bucket)
    assert set(attention) <= {"self", "cross"} and min(attention.values()) > 0
    assert 0 < share(reuses=tuple(attention)) < share(reuses=("self",)) or len(attention) == 1
    assert 0 < share(reuses=("self",)) < 1


def test_heads_divide_the_width(loaded: Loaded) -> None:
    heads, width = loaded.spec.heads(loaded.model), loaded.spec.width(loaded.model)
    assert heads > 0 and width % heads == 0
    blocks = [m for name in loaded.experts for m in loaded.family.modules[name].modules()]
    assert heads in {getattr(module, "heads", None) for module in blocks}


def test_the_schedule_has_the_steps_of_the_request(loaded: Loaded) -> None:
    row = loaded.row(num_steps=7)
    schedule = loaded.family.schedule(row)
    assert len(schedule) == 7
    assert all(a > b for a, b in zip(schedule.timesteps, schedule.timesteps[1:], strict=False))
    experts = [loaded.family.expert(row, float(t)) for t in schedule.timesteps]
    assert list(dict.fromkeys(experts)) == [e for e in loaded.experts if e in experts]  # one-way
    ones = [torch.ones(loaded.items(1)[0].latents.shape)]
    assert torch.equal(loaded.family.combine(row, 500.0, ones), ones[0])


def test_capabilities_name_solvers_that_exist(loaded: Loaded) -> None:
    served = loaded.spec.capabilities(loaded.model)
    assert set(served.solvers) <= set(get_args(Solver))
    assert loaded.model.request_defaults.solver in served.solvers
