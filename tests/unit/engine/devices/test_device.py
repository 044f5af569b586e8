"""Which device a rank gets, and when it gets none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy_engine import small_spec, system

from batchgen.engine.choose import choose_engine
from batchgen.engine.devices.device import (
    device_of_rank,
    pick_device,
    refuse_less,
    require_devices,
)
from batchgen.engine.engine import Engine
from batchgen.errors import ConfigError
from batchgen.records import Layout

ASKED = "slurm.gpus_per_node=8"
GIB = 1024**3
LAYOUT = Layout(memory="model", precision="bfloat16", attention="sdpa", device="cpu", vram_gib=12)


def there_are(count: int, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(("seen", "ranks"), [(8, 8), (8, 4), (4, 1), (1, 8)])
def test_each_rank_has_a_device_of_its_own(
    seen: int, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is seen alone is the rank's own: Slurm binds them so."""
    there_are(seen, monkeypatch)
    require_devices(ASKED, ranks)
    names = [device_of_rank(rank) for rank in range(ranks)]
    assert names == [f"cuda:{rank if seen > 1 else 0}" for rank in range(ranks)]


def test_the_device_of_a_rank_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """For events, pinned memory and groups of ranks, which name none."""
    current = list[torch.device]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for name in ("cuda:3", "cuda", "cpu"):
        assert pick_device(name) == torch.device(name)
    assert current == [torch.device("cuda:3")]


@pytest.mark.parametrize(
    ("seen", "words"), [(0, "torch sees no CUDA device"), (7, "torch sees 7 CUDA")]
)
def test_a_node_that_lacks_devices_is_refused(
    seen: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not rendered on the CPU, nor twice on one device."""
    there_are(seen, monkeypatch)
    with pytest.raises(ConfigError, match=f"{words}.*{ASKED}"):
        choose_engine(small_spec(), system(), local_rank=0, host="node7", asked=ASKED, ranks=8)


def test_the_cpu_does_where_no_device_is_asked_for_or_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there_are(0, monkeypatch)
    place = {"local_rank": 1, "host": "node7", "ranks": 2}
    assert choose_engine(small_spec(), system(), **place).device == "cpu"  # type: ignore[arg-type]
    null = replace(small_spec(), family="null")
    assert choose_engine(null, system(), **place, asked=ASKED).device == "cpu"  # type: ignore[arg-type]


def test_the_engine_does_what_the_layout_says() -> None:
    """The settings say otherwise: they were heard when the layout was decided."""
    config = system(memory={"mode": "resident"})
    choice = choose_engine(small_spec(), config, layout=LAYOUT, local_rank=0, host="node7")
    assert choice.device_class.endswith(" bfloat16")
    replica = Engine.load(small_spec(), config, "cpu", layout=LAYOUT).replica
    assert set(replica.residency.plan.places.values()) == {"model"}
    transformer = replica.family.modules["transformer"]
    assert {p.dtype for p in transformer.parameters()} >= {torch.bfloat16}


def test_a_device_with_less_free_than_planned_is_refused() -> None:
    refuse_less(LAYOUT, free=12 * GIB, total=16 * GIB)
    with pytest.raises(ConfigError, match=r"needs 12\.0 GiB, but 11 of the device's 16 GiB"):
        refuse_less(LAYOUT, free=11 * GIB, total=16 * GIB)
