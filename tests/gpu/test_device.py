"""What is recorded of a card is what torch says of it."""

from __future__ import annotations

import torch
from toy_engine import small_spec

from batchgen.engine.devices import device as devices
from batchgen.engine.figures import measure


def test_the_card_has_a_name_and_an_identity(cuda: str) -> None:
    card = devices.pick_device("auto")
    assert card.type == "cuda"
    assert devices.device_name(card) == torch.cuda.get_device_name(cuda)
    cards = [torch.device("cuda", k) for k in range(torch.cuda.device_count())]
    assert len({devices.device_id(each) for each in cards}) == len(cards)
    assert all(devices.device_id(each) for each in cards)
    assert devices.device_of_rank(len(cards)) == "cuda:0", "more ranks than cards share them"


def test_the_card_of_a_rank_is_current(cuda: str) -> None:
    """The last one: others are not it by themselves."""
    before, last = torch.cuda.current_device(), torch.cuda.device_count() - 1
    try:
        devices.pick_device(f"cuda:{last}")
        assert torch.cuda.current_device() == last
        ready = torch.cuda.Event()
        ready.record()
        assert ready.device == torch.device("cuda", last)
    finally:
        torch.cuda.set_device(before)


def test_a_model_runs_in_its_own_precision(cuda: str) -> None:
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        assert devices.run_dtype(small_spec("random", dtype=name), torch.device(cuda)) == dtype


def test_the_peak_is_what_tensors_held(cuda: str) -> None:
    card = torch.device(cuda)
    devices.reset_peak(card)
    before = devices.memory(card).peak_device_gib
    held = torch.zeros(1 << 28, dtype=torch.uint8, device=card)  # a quarter of a GiB
    del held
    after = devices.memory(card).peak_device_gib
    assert before is not None and after is not None
    assert 0.25 <= after - before < 0.3


def test_figures_are_those_of_an_accelerator(cuda: str) -> None:
    figures = measure(torch.device(cuda))
    assert figures.name == torch.cuda.get_device_name(cuda)
    total = torch.cuda.get_device_properties(cuda).total_memory
    assert figures.memory_gib == total / 1024**3
    assert figures.matmul_tflops > 1 and figures.h2d_gbs > 1
