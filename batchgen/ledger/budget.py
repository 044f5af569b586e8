"""What a run has spent of its device hours, and whether it may begin more."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from batchgen.durable import write_json
from batchgen.errors import RunStateError
from batchgen.ledger.counts import read_counters
from batchgen.paths import RunPaths
from batchgen.regular import read_control

LOOK_EVERY_S = 10.0  # the sum is this old at most, and twice that where many ranks ask


def spent_hours(run: RunPaths) -> float:
    """Device hours of all attempts until their last heartbeats, at most ten seconds ago each."""
    found = (read_counters(path) for path in run.counters_files(0))
    return sum(c.wall_s * c.devices for c in found if c is not None) / 3600


def budget_spent(run: RunPaths, limit: float | None) -> str:
    """Says that `limit` (device hours) is reached and how a run goes on; empty if it is not."""
    if limit is None or (spent := spent_hours(run)) < limit:
        return ""
    return (
        f"{spent:.4g} device hours are spent of system.max_gpu_hours={limit:g}; go on with a "
        "higher one, null = without end"
    )


class Budget:
    """What a rank asks before it begins a row. The ranks of a run share one sum: whoever finds it
    old adds the counters up again, so that a thousand ranks do not all read a thousand files."""

    def __init__(
        self,
        run: RunPaths,
        limit: float | None,
        clock: Callable[[], float] = time.time,
        on_reached: Callable[[], object] = lambda: None,
    ) -> None:
        """`limit` in device hours; None = without end. `on_reached` is called once."""
        self._on_reached = on_reached
        self._run, self._limit, self._clock = run, limit, clock
        self._patience = LOOK_EVERY_S * (1 + random.random())  # ranks do not look all at once
        self._looked, self._hours = 0.0, 0.0
        self._least = self._patience if limit is None else min(self._patience, limit * 3600 / 20)

    @property
    def reached(self) -> bool:
        """Whether no further row may be begun."""
        if self._limit is None:
            return False
        # abs: a clock that was set back must not hold the looks up
        if self._hours < self._limit and abs(self._clock() - self._looked) >= self._least:
            self._look()
            if self._hours >= self._limit:
                self._on_reached()
        return self._hours >= self._limit

    def _look(self) -> None:
        self._looked = now = self._clock()
        if (hours := _shared(self._run.spent, now, self._least)) is not None:
            self._hours = hours
            return
        self._hours = spent_hours(self._run)
        with suppress(OSError):  # the others add up for themselves
            write_json(self._run.spent, {"t": now, "device_hours": self._hours})


def _shared(path: Path, now: float, age_s: float) -> float | None:
    """The sum that another rank stored, unless it is older than `age_s` or of the future."""
    try:
        stored = read_control(path)
    except RunStateError:
        return None
    if stored is None or not isinstance(hours := stored.get("device_hours"), float):
        return None
    return hours if abs(now - stored.get("t", 0.0)) <= age_s else None
