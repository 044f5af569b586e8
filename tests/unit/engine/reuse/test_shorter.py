"""Forwards without blocks by a family's shorter way, against its transformer's own forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_engine import small_spec, system
from toy_split import SPECS, experts, family_on

from batchgen.caches.blocks import NO_BLOCKS, STACK
from batchgen.engine.engine import Engine
from batchgen.engine.reuse.blocks import NOTHING, Stacks, stack_blocks
from batchgen.engine.reuse.shorter import SkipsBlocks, shorten
from batchgen.families.family import Item
from batchgen.request import Bucket

BUCKET = Bucket(64, 64, 5)
SHORTER = ("wan", "tiny-wan", "wan22", "wan_i2v", "wan22_i2v")
TOKEN_TIMES = "wan22_ti2v"  # which goes the long way


class Subject:
    """A family with three items of different timesteps, and how often it took the shorter way."""

    def __init__(self, name: str) -> None:
        self.family: Any = family_on(name)
        self.expert = experts(name)[0]
        self.transformer: nn.Module = self.family.modules[self.expert]
        self.stacks: Stacks = stack_blocks(self.family, SPECS[name].family, experts(name))
        self.pack = [self.family.random_item(BUCKET, seed, self.expert) for seed in range(3)]
        self.kept = self.stacks.forward(self.family, self.pack, STACK, [NOTHING] * 3)[1]
        self.plain = self.run()
        self.took = 0

    def run(self, items: list[Item] | None = None) -> list[Tensor]:
        pack = self.pack if items is None else items
        return self.stacks.forward(self.family, pack, NO_BLOCKS, self.kept[: len(pack)])[0]

    def shorten(self) -> None:
        inner = self.family.without_blocks

        def counted(*args: Any, **inputs: Any) -> Tensor | None:
            found: Tensor | None = inner(*args, **inputs)
            self.took += found is not None
            return found

        self.family.without_blocks = counted
        shorten(self.stacks, [self.transformer], self.family)


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture
def subject(one_thread: None) -> Iterator[Callable[[str], Subject]]:
    """Makes one; its modules are used again later."""
    made: list[Subject] = []

    def make(name: str) -> Subject:
        with torch.no_grad():
            made.append(Subject(name))
        return made[-1]

    yield make
    for one in made:
        one.transformer.__dict__.pop("forward", None)


@torch.no_grad()
@pytest.mark.parametrize("name", [*SHORTER, TOKEN_TIMES])
def test_the_shorter_way_has_the_bits_of_the_long_one(
    name: str, subject: Callable[[str], Subject]
) -> None:
    made = subject(name)
    whole = made.family.forward(made.pack)
    made.shorten()
    assert equal(made.run(), made.plain)
    assert equal(made.run(made.pack[:1]), made.plain[:1])
    assert made.took == (0 if name == TOKEN_TIMES else 2)
    assert equal(made.family.forward(made.pack), whole)


@torch.no_grad()
def test_it_is_taken_where_no_block_runs_and_all_have_a_past(
    subject: Callable[[str], Subject],
) -> None:
    made = subject("wan")
    long = made.stacks.forward(made.family, made.pack, NO_BLOCKS, ())[0]
    made.shorten()
    _, kept = made.stacks.forward(made.family, made.pack, STACK, [NOTHING] * 3)
    pairs = zip(kept, made.kept, strict=True)
    assert all(equal([*one.tensors], [*other.tensors]) for one, other in pairs)
    assert equal(made.stacks.forward(made.family, made.pack, NO_BLOCKS, ())[0], long)
    some = [replace(made.kept[0], added=None), *made.kept[1:]]
    drawn, _ = made.stacks.forward(made.family, made.pack, NO_BLOCKS, some)
    assert equal(drawn, [long[0], *made.plain[1:]])
    assert made.took == 0


def test_an_engine_of_one_rank_takes_it(one_thread: None) -> None:
    made = Engine.load(small_spec(), system(), "cpu").replica
    assert isinstance(made.family, SkipsBlocks)
    assert hasattr(made.family.modules["transformer"].forward, "__wrapped__")
