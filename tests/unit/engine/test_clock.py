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
    assert now == RankSeconds(load=1, idle=2, encode=8, move=4, denoise=6, open=14)
    assert (now.busy, now.waiting, sum(astuple(now))) == (14, 2, 21 + 14)


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


def test_busy_seconds_are_open_until_a_line_closes_their_row(
    passes: Callable[[float], None],
) -> None:
    clock = Clock()
    with clock.on("encode"):
        passes(1)
    clock.share({0: 0.5, 1: 0.5})
    with clock.on("denoise"):
        passes(4)
        assert clock.read().open == 5, "of whichever row"
    clock.share({0: 2.5})  # row 1 took none of it, and half a second is nobody's
    passes(8)
    assert clock.read().open == 3
    assert clock.close(0) == 2.5
    assert clock.close(0) == 0
    assert clock.read().open == 0.5
    clock.share({0: 2.5})  # the line could not be written
    assert clock.read().open == 3
