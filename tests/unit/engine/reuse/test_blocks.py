"""Forwards that leave out blocks or attentions, against those that do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_engine import small_spec, system, two_experts
from toy_flux import flux_spec
from toys import TOYS

from batchgen.caches.blocks import NO_BLOCKS, PROBE, STACK, WHOLE, Attention, Blocks
from batchgen.engine.loading.weights import load_components
from batchgen.engine.memory.plan import plan_memory
from batchgen.engine.reuse.blocks import NOTHING, BlockStack, Kept, Stacks, stack_blocks
from batchgen.families.family import Item, family_code, family_spec
from batchgen.numerics.edges import make_batch_invariant
from batchgen.request import Bucket

IMAGES = ("flux2_klein", "sd3", "qwen_image", "z_image", "hunyuan_dit")
TOGETHER = ("hunyuan_dit",)  # whose blocks are left out all or none
SPECS = {
    "wan": small_spec(),
    "wan22": two_experts(small_spec()),
    "flux": flux_spec(heads=4),
    **{name: TOYS[name].spec(heads=4) for name in IMAGES},
}
BUCKETS = {
    "wan": Bucket(64, 64, 5),
    "wan22": Bucket(64, 64, 5),
    **dict.fromkeys(("flux", *IMAGES), Bucket(64, 64, 1)),
}
KINDS: dict[str, tuple[Attention, ...]] = {
    "wan": ("self", "cross"),
    "wan22": ("self", "cross"),
    **dict.fromkeys(("flux", *IMAGES), ("self",)),
    "hunyuan_dit": ("self", "cross"),
}


class Subject:
    """A family before and after its blocks have become stacks."""

    def __init__(self, name: str) -> None:
        self.name = name
        spec = SPECS[name]
        components = load_components(spec, torch.float32)
        self.experts = plan_memory(spec, "resident").experts
        torch.manual_seed(0)
        for expert in self.experts:
            for module in components[expert].modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
        self.family = family_code(spec.family).build(
            spec, system(), components, torch.device("cpu")
        )
        for expert in self.experts:
            make_batch_invariant(self.family.modules[expert])
        self.layers = family_spec(spec.family).layers(spec)
        self.parted = name not in TOGETHER
        self.pack = [self.item(seed) for seed in range(3)]
        self.keys = [*self.transformer.state_dict()]
        self.before = self.family.forward(self.pack)
        self.stacks: Stacks = stack_blocks(self.family, spec.family, self.experts)

    @property
    def transformer(self) -> Any:
        return self.family.modules[self.experts[0]]

    def item(self, seed: int) -> Item:
        return self.family.random_item(BUCKETS[self.name], seed, self.experts[0])

    def run(
        self, blocks: Blocks, given: list[Kept] | None = None
    ) -> tuple[list[Tensor], list[Kept]]:
        return self.stacks.forward(self.family, self.pack, blocks, given or [])


@pytest.fixture(scope="module", params=sorted(SPECS))
def subject(request: pytest.FixtureRequest, one_thread: None) -> Iterator[Subject]:
    with torch.no_grad():
        yield Subject(request.param)


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def close(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


def test_a_stack_is_the_list_it_was(subject: Subject) -> None:
    assert [*subject.transformer.state_dict()] == subject.keys
    first = 0
    parts = {part.name: part for part in family_spec(subject.name).COMPONENTS}
    for name in parts["transformer"].stacks:
        stack = getattr(subject.transformer, name)
        assert isinstance(stack, BlockStack)
        assert [*stack] == [stack]
        blocks = [stack[i] for i in range(len(stack))]
        assert blocks == [*stack.children()] == stack[:]
        assert type(blocks[0]).__name__ in repr(stack)
        assert stack.span == range(first, first + len(blocks))
        first += len(blocks)
    assert first == subject.layers


@torch.no_grad()
def test_whole_forwards_keep_their_bits_whatever_is_kept(subject: Subject) -> None:
    assert equal(subject.family.forward(subject.pack), subject.before)
    kinds = KINDS[subject.name]
    parts = (Blocks(state=1), Blocks(since=1)) if subject.parted else ()
    for blocks in (WHOLE, STACK, *parts, Blocks(attends=kinds)):
        velocities, kept = subject.run(blocks)
        assert equal(velocities, subject.before)
        for one in kept:
            assert len(one.tensors) == (len(kinds) if blocks.attends else blocks not in (WHOLE,))
            for tensor in one.tensors:  # of its own: it holds no more memory than its item needs
                assert tensor.shape[0] == 1
                assert tensor.untyped_storage().nbytes() == tensor.nbytes


@torch.no_grad()
def test_what_is_kept_stands_in_for_what_is_left_out(subject: Subject) -> None:
    """At the same step: all blocks, the blocks behind one, the blocks before one."""
    kinds = KINDS[subject.name]
    last = subject.layers - 1
    ends = ((Blocks(since=1), Blocks(stop=1)), (Blocks(since=last), Blocks(stop=last)))
    for keep, use in ((STACK, NO_BLOCKS), *(ends if subject.parted else ())):
        _, kept = subject.run(keep)
        velocities, _ = subject.run(use, kept)
        assert close(velocities, subject.before)
    for start in (1, last) if subject.parted else ():  # in FLUX the last is of the second list
        _, kept = subject.run(Blocks(state=start))
        velocities, _ = subject.run(Blocks(start=start), kept)
        assert equal(velocities, subject.before)
    _, kept = subject.run(Blocks(attends=kinds))
    velocities, _ = subject.run(Blocks(reuses=kinds), kept)
    assert equal(velocities, subject.before)
    velocities, again = subject.run(Blocks(reuses=kinds[:1], attends=kinds[1:]), kept)
    assert equal(velocities, subject.before)
    assert [*again[0].attention] == [*kinds[1:]]


@torch.no_grad()
def test_a_forward_that_stops_behind_its_first_block_goes_on(subject: Subject) -> None:
    """As a probe does: the rest runs, or what it added before is added."""
    if not subject.parted:
        return
    velocities, kept = subject.run(STACK)
    _, probed = subject.run(Blocks(stop=1, state=1, since=0))
    first = subject.run(Blocks(since=1))[1]
    for whole, head, rest in zip(kept, probed, first, strict=True):
        assert whole.added is not None and head.added is not None and rest.added is not None
        assert torch.allclose(whole.added, head.added + rest.added, atol=1e-5)
    rest, tail = subject.run(Blocks(start=1, since=1), probed)
    assert equal(rest, velocities)
    given = [replace(one, added=end.added) for one, end in zip(probed, tail, strict=True)]
    apart, _ = subject.run(Blocks(start=1, stop=1), given)
    assert close(apart, velocities)
    before = [Kept(added=end.added) for end in tail]  # a probe comes to the same by itself
    guessed, again = subject.run(PROBE, before)
    assert equal(guessed, apart)
    new = subject.run(PROBE, [NOTHING, *before[1:]])  # beside one without a past
    alone, _ = subject.run(PROBE)  # of nobody who has a past
    assert equal(new[0], [alone[0], *apart[1:]]) and not torch.equal(alone[0], apart[0])
    for kept in (again, new[1]):
        assert equal([one.added for one in kept], [one.added for one in probed])


@torch.no_grad()
def test_left_out_blocks_and_attentions_do_not_run(subject: Subject) -> None:
    ran: list[str] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: ran.append(type(module).__name__))
        for name, module in subject.transformer.named_modules()
        if name.split(".")[-1].isdigit()
        and name.count(".") == 1
        and ("blocks" in name or name.startswith("layers"))
    ]
    _, kept = subject.run(Blocks(since=0, state=1))
    ran.clear()
    parts = (
        (Blocks(start=1), subject.layers - 1),
        (Blocks(stop=1, state=1), 1),
        (Blocks(start=1, stop=1), 0),
    )
    for use, count in ((NO_BLOCKS, 0), *(parts if subject.parted else ())):
        subject.run(use, kept)
        assert len(ran) == count == use.ran(subject.layers)
        ran.clear()
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def test_packs_keep_and_take_what_each_item_does_alone(subject: Subject) -> None:
    """Whatever is as long as the longest text of a pack, and whichever pack gets it again."""
    kinds = KINDS[subject.name]
    parts = ((Blocks(state=1), Blocks(start=1)), (Blocks(since=1), Blocks(stop=1)))
    for keep, use in (
        (STACK, NO_BLOCKS),
        *(parts if subject.parted else ()),
        (Blocks(attends=kinds), Blocks(reuses=kinds)),
    ):
        _, kept = subject.run(keep)
        velocities, _ = subject.run(use, kept)
        for at, item in enumerate(subject.pack):
            _, (alone,) = subject.stacks.forward(subject.family, [item], keep, [])
            assert equal([*kept[at].tensors], [*alone.tensors])
            velocity, _ = subject.stacks.forward(subject.family, [item], use, [alone])
            assert torch.equal(velocity[0], velocities[at])
            velocity, _ = subject.stacks.forward(subject.family, [item], use, [kept[at]])
            assert torch.equal(velocity[0], velocities[at])


def test_an_error_inside_leaves_nothing_told(subject: Subject) -> None:
    with pytest.raises(ZeroDivisionError), subject.stacks.told(NO_BLOCKS):
        1 / 0  # noqa: B018
    assert subject.stacks.passage.blocks == WHOLE
