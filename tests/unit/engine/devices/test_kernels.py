"""The attention kernel that is recorded is the one that ran."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from toy_engine import draw, request, small_spec, system

from batchgen.engine.devices import kernels
from batchgen.engine.devices.kernels import KernelWatch
from batchgen.engine.engine import Engine
from batchgen.request import Bucket

HERE, THERE = Bucket(32, 32, 5), Bucket(64, 64, 5)


def attend(tokens: int = 16) -> torch.Tensor:
    query = torch.randn(1, 2, tokens, 8, generator=torch.Generator().manual_seed(0))
    return scaled_dot_product_attention(query, query, query)


@pytest.mark.parametrize(
    ("backend", "name"),
    [(SDPBackend.FLASH_ATTENTION, "sdpa-cpu-flash"), (SDPBackend.MATH, "sdpa-cpu-math")],
)
def test_the_kernel_that_ran_is_named(backend: SDPBackend, name: str) -> None:
    """Whichever torch took: not the one that it would take by itself."""
    watch = KernelWatch(torch.device("cpu"))
    with torch.no_grad(), sdpa_kernel([backend]):
        plain = attend()
        assert torch.equal(watch.run(HERE, attend), plain), "to be watched changes nothing"
    assert (watch.name(HERE), watch.name(THERE)) == (name, "")


def test_layers_may_differ_and_a_model_may_have_none() -> None:
    watch = KernelWatch(torch.device("cpu"))

    def two_layers() -> None:
        attend()
        with sdpa_kernel([SDPBackend.MATH]):
            attend()

    with torch.no_grad():
        watch.run(HERE, two_layers)
        watch.run(THERE, lambda: torch.ones(2, 2) @ torch.ones(2, 2))
    assert (watch.name(HERE), watch.name(THERE)) == ("sdpa-cpu-flash+sdpa-cpu-math", "none")


def test_a_forward_that_fails_is_no_evidence() -> None:
    watch = KernelWatch(torch.device("cpu"))
    with pytest.raises(ZeroDivisionError), torch.no_grad():
        watch.run(HERE, lambda: 1 / 0)
    assert watch.name(HERE) == ""
    with torch.no_grad():
        watch.run(HERE, attend)
    assert watch.name(HERE) == "sdpa-cpu-flash"


def test_an_engine_watches_once_for_all_its_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    """To watch takes as long as a small forward."""
    watches, seeing = list[int](), kernels._Seeing
    monkeypatch.setattr(kernels, "_Seeing", lambda: (watches.append(1), seeing())[1])
    engine = Engine.load(small_spec("random"), system(), "cpu")
    drawn = [draw(engine, [request(0, num_steps=2)]) for _ in range(2)]
    assert [one.stats["row-0"].attention_kernel for one in drawn] == ["sdpa-cpu-flash"] * 2
    assert watches == [1]
