"""A rank that makes no step is killed; one that moves, or ends, is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from waiting import process_state, wait_for

from batchgen.worker.watchdog import Watchdog

WHOLE_JOB = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
RANK = """
import sys, time
from batchgen.worker.watchdog import Watchdog
with Watchdog(float(sys.argv[1])) as watchdog:
    print(watchdog._process.pid if watchdog._process else 0, flush=True)
    end = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < end:
        watchdog.kick()
        time.sleep(0.05)
print("ended", flush=True)
"""


def start(limit_s: float, moves_s: float) -> tuple[subprocess.Popen[str], int]:
    """A rank that moves for a while, and its watchdog's pid."""
    rank = subprocess.Popen(
        [sys.executable, "-c", RANK, str(limit_s), str(moves_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert rank.stdout is not None
    return rank, int(rank.stdout.readline())


def is_gone(pid: int) -> bool:
    """No process, or one that nobody has waited for."""
    return process_state(pid) in "ZX"


def ignored(pid: int) -> int:
    """The signals that it ignores, as bits."""
    text = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1], 16) for line in text.splitlines() if line[:7] == "SigIgn:")


def test_a_stopped_rank_is_killed() -> None:
    rank, dog = start(2.0, 60.0)
    os.kill(rank.pid, signal.SIGSTOP)
    began = time.monotonic()
    _, err = rank.communicate(timeout=20)
    assert rank.returncode == -signal.SIGKILL
    assert 1.0 < time.monotonic() - began < 10.0
    assert f"process {rank.pid} made no step for 2 s" in err
    wait_for(lambda: is_gone(dog))


def test_a_rank_that_moves_ends_by_itself_and_takes_its_watchdog_along() -> None:
    rank, dog = start(2.0, 3.0)
    out, _ = rank.communicate(timeout=20)
    assert (rank.returncode, out) == (0, "ended\n")
    wait_for(lambda: is_gone(dog))


def test_the_watchdog_goes_with_a_killed_rank_and_stays_through_a_drain() -> None:
    rank, dog = start(30.0, 60.0)
    heard = sum(1 << (number - 1) for number in WHOLE_JOB)
    wait_for(lambda: ignored(dog) & heard == heard)
    for number in WHOLE_JOB:
        os.kill(dog, number)
    assert not is_gone(dog)
    rank.kill()
    rank.communicate()
    wait_for(lambda: is_gone(dog))


def test_a_rank_survives_its_watchdog() -> None:
    rank, dog = start(2.0, 3.0)
    os.kill(dog, signal.SIGKILL)
    out, err = rank.communicate(timeout=20)
    assert (rank.returncode, out) == (0, "ended\n"), err


def test_zero_seconds_is_no_watchdog() -> None:
    rank, dog = start(0.0, 0.1)
    rank.communicate(timeout=20)
    assert (rank.returncode, dog) == (0, 0)


def test_kicks_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    with Watchdog(5.0) as watchdog:
        monkeypatch.setattr(os, "write", lambda fd, data: written.append(data))
        for _ in range(1000):
            watchdog.kick()
    assert len(written) == 1
