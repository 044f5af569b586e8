"""What every file of batchgen/engine/families must keep. The folder is the registry."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from rig import request, small_spec

from batchgen.config.family import load_family
from batchgen.config.schema import ModelSpec
from batchgen.engine.edges import pack_equals_solo, run_item_by_item
from batchgen.engine.family import Family, family_named, family_names
from batchgen.engine.weights import load_components
from batchgen.records import Bucket

SPECS: dict[str, ModelSpec] = {"wan": small_spec("random")}
BUCKET = Bucket(32, 32, 5)


@pytest.fixture(scope="module", params=family_names())
def family(request: pytest.FixtureRequest, one_thread: None) -> Family:
    spec = SPECS[request.param]  # a new family adds its small spec here
    components = load_components(spec, torch.float32)
    return family_named(request.param).build(spec, components, torch.device("cpu"))


def test_the_folder_is_the_registry() -> None:
    assert "wan" in family_names()
    assert set(SPECS) == set(family_names())


def test_parts_are_folders_of_a_checkpoint() -> None:
    for name, spec in SPECS.items():
        parts = family_named(name).parts(spec, torch.bfloat16)
        assert len({part.name for part in parts}) == len(parts)
        assert {"transformer", "vae"} <= {part.name for part in parts}
        assert all(part.spec_key.startswith("model.") for part in parts)


def test_what_is_checked_is_what_is_loaded() -> None:
    """The components that planning names are the parts, of the classes that are loaded."""
    for name, spec in SPECS.items():
        known = {part.name: part for part in load_family(name).COMPONENTS}
        parts = family_named(name).parts(spec, torch.bfloat16)
        assert {part.name for part in parts} == known.keys() - {"scheduler"}
        for part in parts:
            component = known[part.name]
            if component.kind == "diffusers":
                assert component.class_name == part.model_class.__name__
            elif component.kind == "transformers":
                assert component.class_name == part.model_class.config_class.model_type
            else:
                assert (component.kind, part.model_class) == ("tokenizer", None)


@torch.no_grad()
def test_a_text_becomes_a_condition(family: Family) -> None:
    tokens = family.tokenize("a red circle")
    assert tokens.count > 0
    assert not tokens.truncated
    first, second = family.encode(tokens), family.encode(tokens)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert family.tokenize("x" * 10_000).truncated


def test_texts_follow_guidance(family: Family) -> None:
    """The prompt comes first; guidance of exactly one needs no second branch."""
    row = request(0, prompt="p", negative_prompt="n")
    assert family.texts(row)[0] == "p"
    assert family.texts(replace(row, guidance_scale=1.0)) == ("p",)


def test_latents_come_from_the_seed_alone(family: Family) -> None:
    row = request(0, seed=7)
    other = replace(row, row_index=5, row_id="other", prompt="other", num_steps=9)
    assert torch.equal(family.initial_latents(row), family.initial_latents(other))
    assert not torch.equal(
        family.initial_latents(row), family.initial_latents(replace(row, seed=8))
    )
    assert family.initial_latents(row).dtype == torch.float32


@torch.no_grad()
def test_velocities_have_the_shape_of_their_latents(family: Family) -> None:
    items = [family.random_item(BUCKET, seed) for seed in range(3)]
    velocities = family.forward(items)
    assert [v.shape for v in velocities] == [item.latents.shape for item in items]


@pytest.mark.parametrize("items", [2, 3, 5, 8])
@torch.no_grad()
def test_a_pack_equals_each_item_alone_once_the_edges_are_invariant(
    family: Any, items: int
) -> None:
    run_item_by_item(family.edges)
    pack = [family.random_item(BUCKET, seed) for seed in range(items)]
    alone = [family.forward([item])[0] for item in pack]
    for together, single in zip(family.forward(pack), alone, strict=True):
        torch.testing.assert_close(together, single, atol=1e-5, rtol=0)  # on any machine
    if not pack_equals_solo(family, BUCKET, items):
        pytest.skip("kernels of this machine depend on the batch: strict mode packs nothing here")


@torch.no_grad()
def test_the_edges_themselves_do_not_depend_on_the_batch(family: Family) -> None:
    """Each edge, called as the forward calls it, gives a pack's items the bits each has alone."""
    run_item_by_item(family.edges)
    seen: dict[torch.nn.Module, torch.Tensor] = {}
    hooks = [
        edge.register_forward_pre_hook(lambda module, args: seen.update({module: args[0]}))
        for edge in family.edges
    ]
    family.forward([family.random_item(BUCKET, seed) for seed in range(4)])
    for hook in hooks:
        hook.remove()
    assert set(seen) == set(family.edges)
    for edge, inputs in seen.items():
        assert inputs.shape[0] == 4
        alone = torch.cat([edge(x) for x in inputs.split(1)])
        assert torch.equal(edge(inputs), alone)


@torch.no_grad()
def test_decoding_gives_uint8_frames_of_the_bucket(family: Family) -> None:
    latents = family.random_item(BUCKET, 1).latents
    frames = family.decode(latents, BUCKET)
    assert frames.dtype == torch.uint8
    assert tuple(frames.shape) == (BUCKET.num_frames, BUCKET.height, BUCKET.width, 3)
    assert torch.equal(frames, family.decode(latents, BUCKET))


def test_token_counts_grow_with_the_bucket(family: Family) -> None:
    assert 0 < family.tokens_per_item(BUCKET) < family.tokens_per_item(Bucket(64, 64, 5))


def test_the_schedule_has_the_steps_of_the_request(family: Family) -> None:
    row = request(0, num_steps=7)
    schedule = family.schedule(row)
    assert len(schedule) == 7
    assert all(a > b for a, b in zip(schedule.timesteps, schedule.timesteps[1:], strict=False))
    assert isinstance(family.guidance(row, float(schedule.timesteps[0])), float)
    assert isinstance(family.phase(row, float(schedule.timesteps[0])), int)
