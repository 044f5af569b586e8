"""Divided forwards with a card: the attention that is merged, ranks that share a card, and NCCL."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

import pytest
import torch
from ranks import Ranks
from torch.nn import functional as F
from toy_split import on_the_card

from batchgen.config.degrees import Degrees
from batchgen.engine.parallel.ring import attend_lse, merge

TOKENS, HEADS, WIDTH = 32_760, 12, 128  # Wan 1.3B at 832x480, 81 frames
CHUNKS = 4
LAYOUTS = [Degrees(ulysses=2), Degrees(cfg=2), Degrees(ring=2)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_attention_over_chunks_is_attention_over_all(
    cuda: str, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    """Keys in chunks, merged by their log-sum-exp, against one call over all keys: no further from
    float32 than that call is itself, with room for one rounding more."""
    generator = torch.Generator(cuda).manual_seed(0)
    shape = (1, TOKENS, HEADS, WIDTH)
    q, k, v = (torch.randn(shape, generator=generator, device=cuda, dtype=dtype) for _ in range(3))
    exact = whole(q.float(), k.float(), v.float())
    direct, merged = whole(q, k, v), in_chunks(q, k, v)
    errors = [float((x.float() - exact).abs().max()) for x in (direct, merged)]
    times = [seconds(lambda f=f: f(q, k, v)) for f in (whole, in_chunks)]
    with capsys.disabled():
        print(
            f"\n{TOKENS} tokens, {dtype}: {CHUNKS} chunks take {times[1] / times[0]:.2f} times one "
            f"call; error {errors[1]:.1e} against {errors[0]:.1e}"
        )
    assert errors[1] <= 2 * errors[0] + 1e-5


@pytest.mark.parametrize("degrees", LAYOUTS, ids=str)
def test_two_ranks_that_share_a_card_draw_what_one_draws(shared: Ranks, degrees: Degrees) -> None:
    """What they exchange goes through the host, by gloo."""
    assert_near(shared, degrees)


@pytest.mark.parametrize("degrees", LAYOUTS, ids=str)
def test_two_cards_draw_what_one_draws(two_cards: Ranks, degrees: Degrees) -> None:
    """By NCCL."""
    assert_near(two_cards, degrees)


def assert_near(ranks: Ranks, degrees: Degrees) -> None:
    """A card may take other kernels for a share: near, and the self-test has said which."""
    for seen in ranks.run(degrees, on_the_card):
        for case in seen:
            print(degrees, case.name, case.told, f"{case.difference:.1e}")
            assert case.difference <= 1e-3  # float32 products may be TF32
            assert case.told != "passed" or case.equal


@pytest.fixture(scope="module")
def shared(cuda: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    ranks = Ranks(tmp_path_factory.mktemp("shared"), 2, "cuda:0", "gloo")
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def two_cards(cuda: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    ranks = Ranks(tmp_path_factory.mktemp("cards"), 2, "cuda:{rank}", "nccl")
    yield ranks
    ranks.close()


def whole(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """One call: (1, S, H, D)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def in_chunks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The keys one chunk after the other, as around a ring."""
    chunks = zip(k.chunk(CHUNKS, 1), v.chunk(CHUNKS, 1), strict=True)
    parts = [attend_lse(q, *chunk) for chunk in chunks]
    merged = parts[0]
    for part in parts[1:]:
        merged = merge(merged, part)
    return merged[0].to(q.dtype)


def seconds(work) -> float:
    """Of the third call."""
    for _ in range(3):
        torch.cuda.synchronize()
        begin = perf_counter()
        work()
        torch.cuda.synchronize()
    return perf_counter() - begin
