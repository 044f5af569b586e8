"""The clock of a rank: every second is on one account, and waiting is a tail until work follows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import astuple

import pytest

from batchgen.engine import clock as clock_module
from batchgen.engine.clock import Clock
from batchgen.records import RankSeconds


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let so many seconds pass; none pass otherwise."""
    now = 100.0

    def pass_(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(clock_module, "perf_counter", lambda: now)
    return pass_


def test_blocks_interrupt_each_other_and_the_rest_is_waiting(
    passes: Callable[[float], None],
) -> None:
    clock = Clock()
    with clock.on("load"):
        passes(1)
    passes(2)
    with clock.on("encode"):
        passes(3)
        with clock.on("move"):
            passes(4)
        passes(5)
    with clock.on("denoise"):
        passes(6)
        now = clock.read()
    assert now == RankSeconds(load=1, idle=2, encode=8, move=4, denoise=6)
    assert (now.busy, now.waiting, sum(astuple(now))) == (14, 2, 21)


def test_waiting_is_a_tail_until_work_follows(passes: Callable[[float], None]) -> None:
    clock = Clock()
    passes(1)
    assert clock.read() == RankSeconds(tail=1)
    with clock.on("denoise"):
        pass
    passes(2)
    assert clock.read() == RankSeconds(idle=1, tail=2)
    thread = threading.Thread(target=clock.worked)  # a row was written
    thread.start()
    thread.join()
    assert clock.read() == RankSeconds(idle=3)
    passes(4)
    assert clock.read() == RankSeconds(idle=3, tail=4)


def test_an_error_in_a_block_ends_it(passes: Callable[[float], None]) -> None:
    clock = Clock()
    with pytest.raises(ValueError, match="no"), clock.on("load"):
        passes(1)
        raise ValueError("no")
    passes(2)
    assert clock.read() == RankSeconds(load=1, tail=2)
