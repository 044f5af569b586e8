"""Near the wall-time limit only rows are begun that are predicted to be done before the signal."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from statistics import median

from batchgen.ledger.budget import Budget
from batchgen.records import RowStats
from batchgen.request import Request

RECENT = 99  # rows whose seconds are remembered


class Admission:
    """Knows when the device will be done with the rows taken so far: rows share it, so their
    seconds add up, however many are in flight. Called from the engine's two threads."""

    def __init__(
        self,
        until: float | None,
        clock: Callable[[], float] = time.time,
        share_left: Callable[[Request], float] = lambda request: 1.0,
        speed: float = 1.0,
        budget: Budget | None = None,
    ) -> None:
        """`until`: unix seconds of the drain signal; None = unknown, every row is begun.
        `share_left`: what earlier attempts have left of a row's work; `speed`: of this replica,
        against the one rank that costs are predicted for. `budget`: of the run; None = without end.
        """
        self._until, self._clock, self._share_left = until, clock, share_left
        self._budget = budget
        self._speed = speed
        self._free_at = 0.0
        self._taken: set[int] = set()
        self._ratios: deque[float] = deque(maxlen=RECENT)  # busy seconds over predicted ones
        self._rendered = 0
        self._lock = threading.Lock()
        self.declined = 0

    @property
    def is_over(self) -> bool:
        """Whether no row at all is to be begun: the run has spent its budget."""
        return self._budget is not None and self._budget.reached

    @property
    def busy(self) -> bool:
        """Whether rows that were taken are still at work."""
        with self._lock:
            return bool(self._taken)

    def admits(self, request: Request) -> bool:
        """Whether the row fits; if so it counts as taken. One row is always taken when nothing is
        rendered yet and nothing is at work: it is saved on the way and so goes on."""
        if self._until is None:
            return True
        cost_s = request.cost_s / self._speed * self._share_left(request)
        with self._lock:
            now = self._clock()
            begins = max(now, self._free_at) if self._taken else now
            ends = begins + cost_s * (median(self._ratios) if self._ratios else 1.0)
            if ends > self._until and (self._taken or self._rendered):
                self.declined += 1
                return False
            self._taken.add(request.row_index)
            self._free_at = ends
            return True

    def rendered(self, request: Request, stats: RowStats) -> None:
        """Learn from a row that is done."""
        stages, audit = stats.stages, stats.audit
        busy = stages.encode + stages.denoise + stages.decode + stages.d2h
        busy += audit.seconds if audit else 0.0
        whole = request.steps_expected or stats.steps_total  # 0 in plans older than this field
        share = stats.steps_computed / whole if whole else 0.0
        with self._lock:
            self._taken.discard(request.row_index)
            self._rendered += 1
            if request.cost_s > 0 and share > 0:
                self._ratios.append(busy / (request.cost_s / self._speed * share))

    def dropped(self, request: Request) -> None:
        """The row has failed, or waits for another try."""
        with self._lock:
            self._taken.discard(request.row_index)
