"""When rows were finished and how many ranks were there, over the time in which any was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchgen.report.data import Timeline

MOST_BINS, LEAST_BINS = 120, 12


@dataclass(slots=True)
class Clock:
    """Unix seconds to seconds of work: time in which no attempt was there is left out."""

    starts: np.ndarray  # of the spans in which any was there, ascending (unix seconds)
    ends: np.ndarray

    @classmethod
    def of(cls, began: np.ndarray, ended: np.ndarray) -> Clock:
        """From the times of all attempts."""
        order = np.argsort(began)
        began, reach = began[order], np.maximum.accumulate(ended[order])
        is_new = np.r_[True, began[1:] > reach[:-1]] if len(began) else np.zeros(0, bool)
        last = np.r_[is_new[1:], True] if len(began) else is_new
        return cls(began[is_new], reach[last])

    @property
    def total(self) -> float:
        return float((self.ends - self.starts).sum())

    def at(self, times: np.ndarray) -> np.ndarray:
        """Seconds of work until each time."""
        if not len(self.starts):
            return np.zeros(len(times))
        before = np.r_[0.0, np.cumsum(self.ends - self.starts)]
        edges = np.stack([self.starts, self.ends], 1).ravel()
        reached = np.stack([before[:-1], before[1:]], 1).ravel()
        mapped: np.ndarray = np.interp(times, edges, reached)
        return mapped


class Times:
    """Rows by the time of their end."""

    def __init__(self, attempts: pa.Table, rows: int) -> None:
        """For all attempts, and about so many finished rows."""
        bins = int(np.clip(2 * rows**0.5, LEAST_BINS, MOST_BINS))
        began, ended = attempts["started"].to_numpy(), attempts["ended"].to_numpy()
        known = began > 0
        self._began, self._ended = began[known], np.maximum(began, ended)[known]
        self._devices = attempts["devices"].to_numpy()[known]
        self._clock = Clock.of(self._began, self._ended)
        self._edges = np.linspace(0, max(self._clock.total, 1e-6), bins + 1)
        self._ok, self._failed = np.zeros(bins, np.int64), np.zeros(bins, np.int64)

    def add(self, rows: pa.Table) -> None:
        """Add rows of `Source.pieces`."""
        self._ok += self._binned(rows.filter(rows["own"]))
        failed = pc.is_in(rows["status"], pa.array(["failed", "quarantined"], pa.large_string()))
        self._failed += self._binned(rows.filter(failed))

    def _binned(self, rows: pa.Table) -> np.ndarray:
        at = np.clip(self._clock.at(rows["ended"].to_numpy()), 0, self._edges[-1])
        counts: np.ndarray = np.histogram(at, self._edges)[0]
        return counts

    def timeline(self) -> Timeline:
        clock, bin_s = self._clock, float(self._edges[1])
        gaps = clock.starts[1:] - clock.ends[:-1]
        return Timeline(
            bin_s=bin_s,
            began=float(clock.starts[0]) if len(clock.starts) else 0.0,
            ended=float(clock.ends[-1]) if len(clock.ends) else 0.0,
            work_s=clock.total,
            pauses=int((gaps > bin_s).sum()),
            ok=tuple(self._ok.tolist()),
            failed=tuple(self._failed.tolist()),
            ranks=tuple(self._ranks().round(3).tolist()),
        )

    def _ranks(self) -> np.ndarray:
        """Ranks at work in each bin: the growth of rank seconds that were spent until its edges."""
        began, ended = self._clock.at(self._began), self._clock.at(self._ended)
        spent = np.zeros(len(self._edges))
        for start, end, devices in zip(began, ended, self._devices, strict=True):
            spent += devices * (np.clip(self._edges, start, end) - start)
        growth: np.ndarray = np.diff(spent) / self._edges[1]
        return growth
