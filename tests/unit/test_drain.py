"""When a rank is to end: a signal, or the mark that `cancel` leaves for ranks it cannot reach."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from batchgen.worker import Drain


def test_the_mark_of_a_cancelled_submission_ends_the_rank(tmp_path: Path) -> None:
    mark = tmp_path / "cancelled"
    with Drain(mark) as drain:
        assert not drain()
    mark.touch()
    with Drain(mark) as drain:
        assert drain() and drain.reason == "cancelled"


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGTERM, "cancelled"), (signal.SIGUSR2, "drained")]
)
def test_a_signal_ends_the_rank_and_the_handlers_before_come_back(
    tmp_path: Path, number: signal.Signals, reason: str
) -> None:
    before = signal.getsignal(number)
    with Drain(tmp_path / "cancelled") as drain:
        os.kill(os.getpid(), number)
        assert drain() and drain.reason == reason
    assert signal.getsignal(number) == before
