"""time_stats.csv: minimum, maximum and mean of each stage over the rows of a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

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


@dataclass(slots=True)
class Timers:
    """Timers summed over parts of the catalog; memory does not grow."""

    _timers: dict[str, _Timer] = field(default_factory=lambda: {name: _Timer() for name in _ORDER})

    def add(self, rows: pa.Table) -> None:
        """Add rows of the catalog; only ok rows that are no aliases count."""
        own = pc.and_(pc.equal(rows["status"], "ok"), pc.is_null(rows["alias_of"]))
        for name, column in ROW_TIMERS.items():
            self._timers[name].add(rows[column].filter(own))

    def add_loads(self, seconds: Iterable[float]) -> None:
        """Add one sample for each attempt that loaded its model."""
        self._timers["load"].add(pa.chunked_array([pa.array(seconds, pa.float64())]))

    def csv(self, now: float) -> str:
        """Text of the CSV file without empty timers; `now` is in unix seconds."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(HEADER)
        stamp = datetime.fromtimestamp(now).strftime("%Y-%m-%d %H:%M:%S")
        for name, timer in self._timers.items():
            if timer.samples:
                mean = timer.total / timer.samples
                values = [f"{1000 * value:.3f}" for value in (timer.low, timer.high, mean)]
                writer.writerow([stamp, name, *values, timer.samples])
        return out.getvalue()
