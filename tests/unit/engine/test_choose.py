"""Choosing an engine leaves the process as it was."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from toy_engine import small_spec, system

from batchgen.engine.choose import choose_engine


@pytest.fixture
def collector() -> Iterator[None]:
    """Garbage is collected again behind the test."""
    yield
    gc.enable()


@pytest.mark.parametrize("swept", [True, False])
def test_garbage_is_collected_as_before(collector: None, swept: bool) -> None:
    (gc.enable if swept else gc.disable)()
    choose_engine(small_spec(), system(), local_rank=0, host="node1")
    assert gc.isenabled() == swept
