"""Items of a pack as if each were alone, or in the batch that its pipeline makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from toy_engine import system
from toys import TOYS

from batchgen.engine.loading.weights import load_components
from batchgen.families.family import family_code
from batchgen.numerics.edges import in_batches, make_batch_invariant
from batchgen.numerics.noise import seeded_noise
from batchgen.request import Bucket


@pytest.fixture
def linear(one_thread: None) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(512, 512)


@torch.no_grad()
def test_an_edge_sees_an_item_as_often_as_its_pipeline_does(linear: nn.Linear) -> None:
    x = seeded_noise((3, 512), 1)
    wanted = torch.cat([linear(x[:1]), linear(x[1:2].repeat(2, 1))[:1], linear(x[2:])])
    make_batch_invariant(linear)
    with in_batches((1, 2, 1)):
        assert torch.equal(linear(x), wanted)
    assert torch.equal(linear(x), torch.cat([linear(one) for one in x.split(1)]))
    with in_batches((2,)):
        assert torch.equal(linear(x[1:2]), wanted[1:2])


@torch.no_grad()
def test_rows_that_are_no_items_stay_together(linear: nn.Linear) -> None:
    """Tokens of all items, one behind the other, are one product."""
    x = seeded_noise((40, 512), 1)
    wanted = linear(x)
    make_batch_invariant(linear)
    with in_batches((1, 1)):
        assert torch.equal(linear(x), wanted)


@torch.no_grad()
def test_tokens_cut_out_of_a_pack_are_as_those_of_one_item(linear: nn.Linear) -> None:
    x = seeded_noise((3, 40, 512), 1)
    alone = torch.cat([linear(one[:, :20]) for one in x.split(1)])
    make_batch_invariant(linear)
    assert torch.equal(linear(x[:, :20]), alone)


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(20, 33, 16), (3, 30, 12), (5, 5, 5)])
def test_texts_of_any_length_share_a_forward(one_thread: None, lengths: tuple[int, ...]) -> None:
    """Also shorter ones than those whose products no longer depend on their number."""
    spec = TOYS["qwen_image"].spec()
    components = load_components(spec, torch.float32)
    family = family_code("qwen_image").build(spec, system(), components, torch.device("cpu"))
    make_batch_invariant(family.modules["transformer"])
    torch.manual_seed(0)
    for module in family.modules["transformer"].modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    items = []
    for seed, length in enumerate(lengths):
        item = family.random_item(Bucket(64, 64, 1), seed, "transformer")
        items.append(replace(item, condition=(seeded_noise((1, length, 32), seed),)))
    alone = [family.forward([item])[0] for item in items]
    for ours, single in zip(family.forward(items), alone, strict=True):
        assert torch.equal(ours, single)
    assert torch.equal(family.forward(items[:1])[0], alone[0])
