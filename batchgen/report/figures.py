"""Sums over all rows of a run: counts, seconds by bucket and host, evaluations, a histogram."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchgen.catalog.accounts import BUSY_PARTS, WALL_PARTS
from batchgen.report.data import Caching, Cost, Counts, Histogram, Ranks, Share

LINES = 40  # most lines of a table by bucket or host
SHOWN_RANKS = 200
_OF_RANKS = ("attempt", "host", "exit_reason", "rows_ok", "wall_s", *WALL_PARTS)
_SECONDS = ("seconds", "cost_s", "encode_s", "denoise_s", "decode_s")
_FINE = np.logspace(-4, 6, 1001)  # 2.3 % apart
_MOST_BARS, _LEAST_BARS = 32, 6

_MEANINGS = {
    "load_s": "loading the model, until the first row could start",
    "compile_s": "compiling",
    "warmup_s": "warming up",
    "other_s": "other phases before rendering",
    "move_s": "moving components between host and device",
    "useful_s": "encoding and denoising of rows that are in the catalog",
    "shared_decode_s": "decoding by all ranks of a replica together",
    "retried_s": "tries that failed, and rows rendered twice or too late",
    "saved_s": "rows saved in flight, to go on in another attempt",
    "lost_s": "rows in flight: when their process ended, or now",
    "idle_s": "waiting for rows, for the writer or for other ranks",
    "tail_s": "waiting after the last row, for the run to end",
}


@dataclass(slots=True)
class Sums:
    """Sums of columns by keys, over pieces of the catalog."""

    keys: tuple[str, ...]
    values: tuple[str, ...]
    _parts: list[pa.Table] = field(default_factory=list)

    def add(self, rows: pa.Table) -> None:
        """Add rows of the catalog."""
        counted = rows.append_column("rows", pa.repeat(1, len(rows)))
        self._parts.append(self._summed(counted))
        if len(self._parts) > 20:
            self._parts = [self.table()]

    def table(self) -> pa.Table:
        """One row for each combination of keys: keys, `rows`, values."""
        return self._summed(pa.concat_tables(self._parts))

    def _summed(self, table: pa.Table) -> pa.Table:
        names = ("rows", *self.values)
        found = table.group_by([*self.keys]).aggregate([(name, "sum") for name in names])
        found = found.select([*self.keys, *(f"{name}_sum" for name in names)])
        return found.rename_columns([*self.keys, *names])


@dataclass(slots=True)
class Figures:
    """What is summed up over the rows of a run."""

    _status: Sums = field(default_factory=lambda: Sums(("status",), ()))
    _buckets: Sums = field(default_factory=lambda: Sums(("bucket",), _SECONDS))
    _hosts: Sums = field(default_factory=lambda: Sums(("host",), _SECONDS))
    _caches: Sums = field(
        default_factory=lambda: Sums(
            ("cache_strategy", "cache_ratio"), ("steps_total", "steps_computed")
        )
    )
    _counts: np.ndarray = field(default_factory=lambda: np.zeros(len(_FINE) - 1, np.int64))
    _shortest: float = math.inf  # seconds of a row, as is the next
    _longest: float = 0.0
    _aliases: int = 0

    def add(self, rows: pa.Table) -> None:
        """Add rows of `Source.pieces`."""
        own = rows.filter(rows["own"])
        self._status.add(rows)
        for sums in (self._buckets, self._hosts):
            sums.add(own)
        self._count(own["seconds"].to_numpy())
        # Of a row that goes on, only what its last attempt computed is known.
        self._caches.add(rows.filter(rows["whole"]))
        self._aliases += pc.sum(pc.equal(rows["status"], "ok")).as_py() or 0
        self._aliases -= len(own)

    def _count(self, seconds: np.ndarray) -> None:
        self._counts += np.histogram(np.clip(seconds, _FINE[0], _FINE[-1]), _FINE)[0]
        self._shortest = float(seconds.min(initial=self._shortest))
        self._longest = float(seconds.max(initial=self._longest))

    def counts(self) -> Counts:
        found = {line["status"]: line["rows"] for line in self._status.table().to_pylist()}
        ok, failed, quarantined, pending = (
            found.get(name, 0) for name in ("ok", "failed", "quarantined", "pending")
        )
        rows = sum(found.values())
        return Counts(rows, ok, failed, quarantined, pending, self._aliases)

    def buckets(self) -> tuple[Cost, ...]:
        """The costliest first; those beyond LINES as one."""
        return _costs(self._buckets.table(), "bucket")

    def hosts(self) -> tuple[Cost, ...]:
        return _costs(self._hosts.table(), "host")

    def caches(self) -> tuple[Caching, ...]:
        """By strategy and ratio, of rows that one attempt drew from beginning to end."""
        order = [(name, "ascending") for name in self._caches.keys]
        lines = self._caches.table().sort_by(order).to_pylist()
        return tuple(
            Caching(
                line["cache_strategy"],
                line["cache_ratio"],
                line["rows"],
                line["steps_total"],
                line["steps_computed"],
            )
            for line in lines
        )

    def histogram(self) -> Histogram:
        """Bars from the shortest row to the longest; medians are exact to 2.3 %."""
        taken = np.flatnonzero(self._counts)
        if not len(taken):
            return Histogram((), (), 0.0, 0.0)
        bars = int(np.clip(self._counts.sum() ** 0.5, _LEAST_BARS, _MOST_BARS))
        step = max(1, -(-int(taken[-1] - taken[0]) // bars))
        low, high = taken[0] // step * step, (taken[-1] // step + 1) * step
        edges = np.arange(low, high + 1, step)
        counts = [int(self._counts[a : a + step].sum()) for a in edges[:-1]]
        return Histogram(
            tuple(_FINE[np.minimum(edges, len(_FINE) - 1)].tolist()),
            tuple(counts),
            self._percentile(0.5),
            self._percentile(0.95),
        )

    def _percentile(self, share: float) -> float:
        below = np.cumsum(self._counts)
        place = int(np.searchsorted(below, share * below[-1]))
        middle = float(np.sqrt(_FINE[place] * _FINE[place + 1]))
        return min(max(middle, self._shortest), self._longest)


def _costs(table: pa.Table, key: str) -> tuple[Cost, ...]:
    lines = table.sort_by([("seconds", "descending")]).to_pylist()
    found = [
        Cost(line[key], line["rows"], *(float(line[name]) for name in _SECONDS)) for line in lines
    ]
    rest = found[LINES:]
    if not rest:
        return tuple(found)
    sums = [sum(getattr(c, n) for c in rest) for n in ("rows", "seconds", "predicted")]
    stages = [sum(getattr(c, n) for c in rest) for n in ("encode", "denoise", "decode")]
    return (*found[:LINES], Cost(f"{len(rest)} more", int(sums[0]), *sums[1:], *stages))


def shares(attempts: pa.Table) -> tuple[Share, ...]:
    """Where the hours of all ranks went. Their sum is that of their wall times."""
    names = [name for name in WALL_PARTS if name != "busy_s"]
    devices = attempts["devices"].cast(pa.float64())
    hours = {
        name: (pc.sum(pc.multiply(attempts[name], devices)).as_py() or 0.0) / 3600
        for name in (*BUSY_PARTS, *names)
    }
    return tuple(Share(n, hours[n], m) for n, m in _MEANINGS.items() if hours[n] > 0)


def ranks(attempts: pa.Table) -> Ranks:
    """Attempts by wall time; of more than SHOWN_RANKS, as many evenly from that order."""
    order = attempts.select([*_OF_RANKS]).sort_by([("wall_s", "descending")])
    total = len(order)
    if total > SHOWN_RANKS:
        order = order.take(np.linspace(0, total - 1, SHOWN_RANKS).astype(np.int64))
    columns = {name: tuple(order[name].to_pylist()) for name in order.column_names}
    ahead = [order[name].to_numpy() for name in WALL_PARTS[:5]]  # load ... move
    return Ranks(
        total=total,
        tag=columns["attempt"],
        host=columns["host"],
        ended=columns["exit_reason"],
        rows=columns["rows_ok"],
        load=tuple(np.sum(ahead, 0).tolist()) if total else (),
        busy=tuple(map(sum, zip(columns["busy_s"], columns["shared_decode_s"], strict=True))),
        idle=columns["idle_s"],
        tail=columns["tail_s"],
    )
