"""Pack sizes: budget, sweep, self-test."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchgen.engine.packs import DecodeSizes, Packer, even_chunks
from batchgen.numerics.edges import is_edge, make_batch_invariant
from batchgen.request import Bucket

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL, LARGE = Bucket(32, 32, 5), Bucket(640, 480, 81)


def tokens(bucket: Bucket) -> int:
    return {SMALL: 8, LARGE: 25_200}[bucket]


def packer(
    device: torch.device = CPU, budget: Any = "auto", strict: bool = False, equal: bool = True
) -> Packer:
    return Packer(
        tokens,
        device,
        budget,
        "strict" if strict else "throughput",
        equal=lambda bucket, items: equal,
    )


def test_a_budget_counts_tokens_and_one_item_always_goes() -> None:
    assert packer(budget=100).size(SMALL) == 12
    assert packer(budget=100).size(LARGE) == 1
    assert packer().size(SMALL) == 128


def test_strict_goes_item_by_item_where_the_self_test_fails() -> None:
    failing, passing = packer(strict=True, equal=False), packer(strict=True)
    assert (failing.size(SMALL), failing.self_test) == (1, "failed")
    assert (passing.size(SMALL), passing.self_test) == (128, "passed")
    assert (packer(equal=False).size(SMALL), packer().self_test) == (128, "not needed")
    assert packer(strict=True, equal=False).size(LARGE) == 1


def sweep(seconds_per_forward: Any) -> tuple[int, list[int]]:
    """Feed the sweep a device's forward times; returns the settled size and the sizes tried."""
    sizing, tried = packer(CUDA), []
    while sizing.measuring(SMALL, size := sizing.size(SMALL)):
        tried.append(size)
        sizing.observe(SMALL, size, seconds_per_forward(size))
        assert len(tried) < 60
    return sizing.size(SMALL), tried


def test_the_sweep_ends_where_an_item_gets_no_cheaper() -> None:
    """A device whose forward takes the same time up to eight items, then grows with them."""
    size, tried = sweep(lambda items: 0.010 * max(1.0, items / 8))
    assert size == 8
    assert tried == [1, 1, 2, 2, 4, 4, 8, 8, 16, 16]


def test_the_sweep_stays_at_one_when_packing_loses() -> None:
    assert sweep(lambda items: 0.010 * items**1.2)[0] == 1


def test_the_sweep_ends_at_the_token_limit() -> None:
    size, _ = sweep(lambda items: 0.010)
    assert size == 65_536 // 8


def test_only_forwards_of_the_candidate_size_are_timed() -> None:
    """A forward is waited for only where its time says something."""
    sizing = packer(CUDA)
    assert sizing.measuring(SMALL, 1)
    assert not sizing.measuring(SMALL, 2)
    assert not packer(CPU).measuring(SMALL, 1)
    assert not packer(CUDA, budget=64).measuring(SMALL, 1)


def test_chunks_are_exact_while_the_sweep_measures_and_even_after() -> None:
    sizing, items = packer(CUDA), list(range(7))
    for size in (1, 1, 2, 2, 4, 4):
        assert len(sizing.chunks(SMALL, items)[0]) == size
        sizing.observe(SMALL, size, 0.010 * max(1, size / 2))
    assert sizing.sizes == ((str(SMALL), 2),)
    assert [len(chunk) for chunk in sizing.chunks(SMALL, items)] == [1, 2, 2, 2]


def test_out_of_memory_halves_the_limit() -> None:
    sizing = packer()
    sizing.shrink(SMALL, 100)
    assert sizing.size(SMALL) == 50
    sizing.shrink(SMALL, 1)
    assert sizing.size(SMALL) == 1


def test_with_more_room_packs_are_whole_again_also_where_an_attempt_before_had_less() -> None:
    sizing, whole = packer(), packer().size(SMALL)
    sizing.allow(SMALL, 2)
    assert sizing.size(SMALL) == 2 < whole
    sizing.forget()
    assert sizing.size(SMALL) == whole
    for searching in packer(CUDA), DecodeSizes(lambda bucket: 8):
        searching.allow(SMALL, 1)
        assert settled_size(searching) == 1
        searching.forget()
        assert settled_size(searching) > 1


def settled_size(sizing: Packer | DecodeSizes) -> int:
    """Where more items are always cheaper."""
    for _ in range(6):
        sizing.observe(SMALL, sizing.size(SMALL), 0.010)
    return sizing.size(SMALL)


@pytest.mark.parametrize("count", range(1, 20))
@pytest.mark.parametrize("size", [1, 2, 3, 7, 30])
def test_chunks_are_few_full_and_even(count: int, size: int) -> None:
    chunks = even_chunks(range(count), size)
    assert [i for chunk in chunks for i in chunk] == list(range(count))
    assert len(chunks) == -(-count // size)
    lengths = [len(chunk) for chunk in chunks]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1


class Nosy(nn.Linear):
    """Its result depends on the batch size, as some kernels' last bits do."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.shape[0]


def test_an_edge_sees_one_item_at_a_time() -> None:
    """A Linear is one where it sees a vector per item, and none where it sees tokens."""
    module, x = Nosy(2, 2, bias=False), torch.arange(6.0).view(3, 2)
    plain, names = module(x), list(module.state_dict())
    make_batch_invariant(nn.Sequential(module))
    make_batch_invariant(nn.Sequential(module))
    assert torch.equal(plain, x + 3)
    assert torch.equal(module(x), x + 1)
    assert torch.equal(module(x.view(3, 1, 2)), x.view(3, 1, 2) + 3)
    assert list(module.state_dict()) == names


def test_a_patch_convolution_is_an_edge_and_one_of_single_cells_is_none() -> None:
    convolutions = [nn.Conv2d(4, 4, 2, 2), nn.Conv2d(4, 4, 1)]
    make_batch_invariant(nn.ModuleList(convolutions))
    x = torch.zeros(2, 4, 8, 8)
    assert [is_edge(module, x, 2) for module in convolutions] == [True, False]
