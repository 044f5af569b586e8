"""When a rank is to end before its rows are drawn, and how long it stays after that."""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from batchgen.anchor import Anchor
from batchgen.paths import RunPaths
from batchgen.records import Attempt

log = logging.getLogger(__name__)
SIGNALS = {signal.SIGTERM: "terminated", signal.SIGUSR2: "drained"}  # reason to end
LOOK_EVERY_S = 2.0  # at five files: a thousand ranks ask one file server
LINGER_S = 60.0  # grace times are shorter as a rule; then the steward takes over
NEAR_LIMIT_S = 60.0  # the wall limit is the reason when it is this much nearer than its signal
RESTARTS_AHEAD = 3  # a task may have been started again more than once meanwhile


class Drain:
    """Whether this rank is to end: a signal came, the submission was cancelled (`cancelled`, ranks
    may be out of reach), others have taken its rows over (`superseded`), or the run folder is not
    the one that was opened (`lost`)."""

    def __init__(self, run: RunPaths, attempt: Attempt) -> None:
        self._run, self._attempt, self._anchor = run, attempt, Anchor(run)
        self._looked = 0.0
        self._signalled = self._terminated = False
        self.reason = ""
        self.signal = ""  # the name of the first that came

    def __enter__(self) -> Drain:
        """Signals are the main thread's; elsewhere (a test) nobody sends any."""
        self._before = {}
        self._heard, self._told = os.pipe()
        os.set_blocking(self._told, False)
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._handle) for s in SIGNALS}
            self._told_before = signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before:
            signal.set_wakeup_fd(self._told_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._heard)
        os.close(self._told)
        self._anchor.close()
        whose = self._before.get(signal.SIGTERM)
        if self._terminated and callable(whose):  # this rank is in the process of a command
            whose(signal.SIGTERM, None)

    def signal_within(self, seconds: float) -> str:
        """Wait for a signal, on any thread; its name, or nothing after so long or a `wake`. This
        hears it at once, while handlers wait for the main thread to come out of a long call."""
        if not select.select([self._heard], [], [], seconds)[0]:
            return ""
        numbers = os.read(self._heard, 64)
        return next((signal.Signals(n).name for n in numbers if n in SIGNALS), "")

    def wake(self) -> None:
        """End a wait for signals."""
        os.write(self._told, b"\0")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._terminated |= number == signal.SIGTERM
        self._hear(signal.Signals(number))

    def hear(self, name: str) -> None:
        """A signal came to another rank of the replica: the same as if it had come here."""
        self._hear(signal.Signals[name])
        os.write(self._told, bytes([signal.Signals[name]]))

    def _hear(self, number: signal.Signals) -> None:
        self._signalled = True
        self.signal = self.signal or number.name
        self.reason = self.reason or SIGNALS[number]

    def __call__(self) -> bool:
        """Cheap enough for every tick: looks into the run folder every two seconds."""
        now = time.monotonic()
        if now - self._looked > LOOK_EVERY_S:
            self._looked = now
            self.reason = self._found() or self.reason
        return bool(self.reason)

    def _found(self) -> str:
        """Nothing too if the folder cannot be looked into now: storage that fails over, say."""
        if self._anchor.is_lost():
            return "lost"
        try:
            if self._run.cancelled(self._attempt.submission).exists():
                return "cancelled"
            return "superseded" if self._is_superseded() else ""
        except OSError:
            return ""

    def _is_superseded(self) -> bool:
        """A later submission has an intent, or a later start of the task has accepted journals."""
        number = self._attempt.submission + 1
        while self._run.submission(number).exists():  # one without an intent does not count
            if self._run.intent(number).exists():
                return True
            number += 1
        mine = self._attempt
        later = range(mine.restart + 1, mine.restart + 1 + RESTARTS_AHEAD)
        return any(
            self._run.fence(Attempt(mine.submission, mine.task, k, 0)).exists() for k in later
        )

    def linger(
        self, ends: float | None, signal_delay_s: float, waiting: Callable[[], object]
    ) -> None:
        """Stay a while after a signal that did not come for the wall limit (`ends`, unix seconds):
        the scheduler is then about to kill this task and to start it again, and a task that has
        ended by itself would not be started again. Returns at once where the limit is near or
        unknown, or where the run folder says that others go on. `waiting` is told now and then."""
        if not self._signalled or ends is None:
            return
        until = min(time.time() + LINGER_S, ends - signal_delay_s - NEAR_LIMIT_S)
        if time.time() < until:
            log.info("waiting to be killed and started again (%.0f s at most)", LINGER_S)
        while time.time() < until and not self._found():
            waiting()
            time.sleep(LOOK_EVERY_S)
