"""When a rank is to end: a signal, the mark that `cancel` leaves for ranks it cannot reach, others
that have taken over; and how long it stays for the scheduler to start it again."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from batchgen.paths import RunPaths
from batchgen.records import Attempt
from batchgen.worker import drain as module
from batchgen.worker.drain import Drain

MINE = Attempt(submission=2, task=5, restart=1, replica=3)


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    run = RunPaths(tmp_path)
    run.submission(2).mkdir(parents=True)
    run.journal(MINE).parent.mkdir(parents=True)
    return run


def reason_now(run: RunPaths) -> str:
    with Drain(run, MINE) as drain:
        assert drain() == bool(drain.reason)
        return drain.reason


def test_the_mark_of_a_cancelled_submission_ends_the_rank(run: RunPaths) -> None:
    assert reason_now(run) == ""
    run.cancelled(1).parent.mkdir()
    run.cancelled(1).touch()
    assert reason_now(run) == ""
    run.cancelled(2).touch()
    assert reason_now(run) == "cancelled"


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGTERM, "terminated"), (signal.SIGUSR2, "drained")]
)
def test_a_signal_ends_the_rank_and_the_handlers_before_come_back(
    run: RunPaths, number: signal.Signals, reason: str
) -> None:
    before = signal.getsignal(number)
    with Drain(run, MINE) as drain:
        assert not drain()
        os.kill(os.getpid(), number)
        assert drain() and drain.reason == reason
        other = signal.SIGTERM if number == signal.SIGUSR2 else signal.SIGUSR2
        os.kill(os.getpid(), other)
        assert drain() and drain.reason == reason  # the first one says why
    assert signal.getsignal(number) == before


IN_A_CALL = """
import hashlib, os, sys, threading, time
from pathlib import Path
from batchgen.paths import RunPaths
from batchgen.records import Attempt
from batchgen.worker.drain import Drain

with Drain(RunPaths(Path(sys.argv[1])), Attempt(2, 5, 1, 3)) as drain:
    def listen():
        looks = 0
        while looks < 3:  # a thread that only passes there does not stay
            time.sleep(0.05)
            looks = looks + 1 if sys._current_frames()[main].f_lineno == call else 0
        print("ready", flush=True)
        print(drain.signal_within(60.0), repr(drain.reason), flush=True)
        os._exit(0)

    main, call = threading.get_ident(), sys._getframe().f_lineno + 2
    threading.Thread(target=listen).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


def test_a_signal_is_heard_while_the_main_thread_is_in_a_long_call(run: RunPaths) -> None:
    """As a forward of the engine is: Python's own handler does not run before it returns."""
    command = [sys.executable, "-c", IN_A_CALL, str(run.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
            assert process.communicate(timeout=30)[0] == "SIGTERM ''\n"
        finally:
            process.kill()


def test_whoever_listens_for_signals_is_woken_by_them_alone(run: RunPaths) -> None:
    with Drain(run, MINE) as drain:
        assert drain.signal_within(0.0) == ""
        drain.wake()
        assert drain.signal_within(60.0) == ""
        os.kill(os.getpid(), signal.SIGUSR2)
        assert drain.signal_within(60.0) == "SIGUSR2"
        assert drain.signal_within(0.0) == ""
    assert signal.set_wakeup_fd(-1) == -1


def test_the_mark_says_more_than_the_signal_that_comes_with_it(run: RunPaths) -> None:
    run.cancelled(2).touch()
    with Drain(run, MINE) as drain:
        os.kill(os.getpid(), signal.SIGTERM)
        assert drain() and drain.reason == "cancelled"


def test_a_later_submission_takes_over_once_it_has_an_intent(run: RunPaths) -> None:
    run.submission(3).mkdir()
    assert reason_now(run) == ""
    run.submission(4).mkdir()
    run.intent(4).touch()
    assert reason_now(run) == "superseded"


@pytest.mark.parametrize("restart", [2, 3])
def test_a_later_start_of_the_task_takes_over(run: RunPaths, restart: int) -> None:
    run.fence(Attempt(2, 5, 1, 0)).touch()  # its own
    run.fence(Attempt(2, 4, restart, 0)).touch()  # another task's
    assert reason_now(run) == ""
    run.fence(Attempt(2, 5, restart, 0)).touch()
    assert reason_now(run) == "superseded"


def test_a_folder_that_cannot_be_looked_into_is_looked_into_again(
    run: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file server that fails over: no reason to end, and none to fail."""
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.0)
    run.cancelled(2).touch()

    def refuse(path: Path) -> bool:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    with Drain(run, MINE) as drain:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "exists", refuse)
            assert not drain()
        assert drain() and drain.reason == "cancelled"


@dataclass
class Clock:
    """Stands in for the module `time`: only sleeping makes it later."""

    now: float = 1e9

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_rank_stays_after_a_signal_that_is_not_the_wall_limits(
    run: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    far = clock.now + 3600

    def lingers(ends: float | None, *, signalled: bool = True) -> float:
        """Seconds that a rank stays after it has ended, telling its watchdog."""
        told: list[float] = []
        with Drain(run, MINE) as drain:
            if signalled:
                os.kill(os.getpid(), signal.SIGUSR2)
            begin = clock.now
            drain.linger(ends, 10.0, lambda: told.append(clock.now))
            stayed = clock.now - begin
        assert len(told) == stayed / module.LOOK_EVERY_S
        return stayed

    assert lingers(far) == module.LINGER_S
    # Without the 10 s of its signal and the 60 s that are near, the limit is 6 s away.
    assert lingers(clock.now + module.NEAR_LIMIT_S + 10 + 6) == 6
    assert lingers(clock.now + module.NEAR_LIMIT_S + 10) == 0
    assert lingers(None) == 0
    assert lingers(far + 3600, signalled=False) == 0
    run.cancelled(2).touch()
    assert lingers(far + 3600) == 0
