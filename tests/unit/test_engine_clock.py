"""The clock of a rank: every second is on one account, and waiting is a tail until work follows."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, astuple

import pytest

from batchgen.engine.clock import Clock
from batchgen.records import RankSeconds

T = 0.1


def near(**seconds: float) -> RankSeconds:
    expected = asdict(RankSeconds(**seconds)).items()
    return RankSeconds(**{name: pytest.approx(s, abs=T / 2) for name, s in expected})


def test_blocks_interrupt_each_other_and_the_rest_is_waiting() -> None:
    clock, began = Clock(), time.perf_counter()
    with clock.on("load"):
        time.sleep(T)
    time.sleep(2 * T)
    with clock.on("encode"):
        time.sleep(T)
        with clock.on("move"):
            time.sleep(2 * T)
        time.sleep(T)
    with clock.on("denoise"):
        time.sleep(T)
        now = clock.read()
    assert now == near(load=T, idle=2 * T, encode=2 * T, move=2 * T, denoise=T)
    assert now.busy == now.encode + now.denoise
    assert sum(astuple(now)) == pytest.approx(time.perf_counter() - began, abs=0.01)


def test_waiting_is_a_tail_until_work_follows() -> None:
    clock = Clock()
    time.sleep(T)
    assert clock.read() == near(tail=T)
    with clock.on("denoise"):
        pass
    time.sleep(T)
    assert clock.read() == near(idle=T, tail=T)
    thread = threading.Thread(target=clock.worked)  # a row was written
    thread.start()
    thread.join()
    assert clock.read() == near(idle=2 * T)
    time.sleep(T)
    assert clock.read() == near(idle=2 * T, tail=T)
    assert clock.read().waiting == pytest.approx(3 * T, abs=T / 2)


def test_an_error_in_a_block_ends_it() -> None:
    clock = Clock()
    with pytest.raises(ValueError, match="no"), clock.on("load"):
        time.sleep(T)
        raise ValueError("no")
    time.sleep(T)
    assert clock.read() == near(load=T, tail=T)
