"""time_stats.csv: minimum, maximum and mean of each stage over the rows of a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

HEADER = ["Timestamp", "Timer Name", "Min (ms)", "Max (ms)", "Avg (ms)", "Samples"]
# timer -> catalog column. Each rendered row is one sample; `load` has one for each attempt.
ROW_TIMERS = {
    "overall": "latency_s",
    "encode": "encode_s",
    "denoise": "denoise_s",
    "decode": "decode_s",
    "d2h": "d2h_s",
    "write": "write_s",
    "judge": "judge_s",
}
_ORDER = ("overall", "load", "encode", "denoise", "decode", "d2h", "write", "judge")


@dataclass(slots=True)
class _Timer:
    low: float = float("inf")
    high: float = 0.0
    total: float = 0.0
    samples: int = 0

    def add(self, seconds: pa.ChunkedArray) -> None:
        """Add samples (float64, seconds)."""
        if not len(seconds):
            return
        edges = pc.min_max(seconds).as_py()
        self.low = min(self.low, edges["min"])
        self.high = max(self.high, edges["max"])
        self.total += pc.sum(seconds).as_py()
        self.samples += len(seconds)

    def join(self, other: _Timer) -> None:
        """Add the samples of another one."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.total += other.total
        self.samples += other.samples


@dataclass(slots=True)
class Timers:
    """Timers summed over parts of the catalog; memory does not grow."""

    by_name: dict[str, _Timer] = field(default_factory=lambda: {name: _Timer() for name in _ORDER})

    def add(self, rows: pa.Table) -> None:
        """Add rows of the catalog; only ok rows that are no aliases count."""
        own = pc.and_(pc.equal(rows["status"], "ok"), pc.is_null(rows["alias_of"]))
        for name, column in ROW_TIMERS.items():
            seconds = rows[column].filter(own)
            # in one piece: how a sum is rounded depends on its pieces
            self.by_name[name].add(pa.chunked_array([seconds.combine_chunks()]))

    def join(self, other: Timers) -> None:
        """Add the samples of the next rows."""
        for name, timer in other.by_name.items():
            self.by_name[name].join(timer)

    @classmethod
    def from_json(cls, plain: Mapping[str, Mapping[str, Any]]) -> Timers:
        """Timers by their fields."""
        return cls({name: _Timer(**plain[name]) for name in _ORDER})

    def add_loads(self, seconds: Iterable[float]) -> None:
        """Add one sample for each attempt that loaded its model."""
        self.by_name["load"].add(pa.chunked_array([pa.array(seconds, pa.float64())]))

    def csv(self, now: float) -> str:
        """Text of the CSV file without empty timers; `now` is in unix seconds."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(HEADER)
        stamp = datetime.fromtimestamp(now).strftime("%Y-%m-%d %H:%M:%S")
        for name, timer in self.by_name.items():
            if timer.samples:
                mean = timer.total / timer.samples
                values = [f"{1000 * value:.3f}" for value in (timer.low, timer.high, mean)]
                writer.writerow([stamp, name, *values, timer.samples])
        return out.getvalue()
