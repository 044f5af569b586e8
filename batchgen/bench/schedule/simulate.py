"""Simulates a Slurm array: shards start in order on slots, and the replicas of a slot pull rows
from its shard."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Cluster:
    """Slots (one shard runs on each) with their speeds. At speed 1.0 a row takes its predicted
    cost; a start-up takes the same time at any speed."""

    speeds: tuple[float, ...]
    ranks: int  # replicas of a slot
    start_up_s: float

    def ideal_s(self, costs: np.ndarray) -> float:
        """Total work over the sum of speeds, without start-ups and waiting."""
        return float(costs.sum()) / (sum(self.speeds) * self.ranks)


@dataclass(frozen=True, slots=True)
class Simulated:
    """One simulated run. Shares are of the makespan times all slots, or replicas."""

    shards: int
    makespan_s: float  # with start-ups
    ideal_s: float  # without start-ups
    start_up_share: float
    tail_s: float  # from the moment the first slot has no work to the end
    shard_idle_share: float  # of replicas that wait for the last row of their shard
    longest_shard_s: float  # wall seconds at speed 1, with start-up

    @property
    def ratio(self) -> float:
        return self.makespan_s / self.ideal_s


def simulate(costs: np.ndarray, shard: np.ndarray, cluster: Cluster) -> Simulated:
    """Run shards 0, 1, ... as slots become free; `shard` holds the shard of each row."""
    rows_s = shard_walls(costs, shard, cluster.ranks)
    free = [(0.0, slot) for slot in range(len(cluster.speeds))]
    waited = 0.0
    load = np.bincount(shard, weights=costs)
    for seconds, work in zip(rows_s.tolist(), load.tolist(), strict=True):
        at, slot = free[0]
        speed = cluster.speeds[slot]
        heapq.heapreplace(free, (at + cluster.start_up_s + seconds / speed, slot))
        waited += (seconds - work / cluster.ranks) / speed
    ends = [at for at, _ in free]
    makespan = max(ends)
    slot_seconds = makespan * len(ends)
    return Simulated(
        shards=len(rows_s),
        makespan_s=makespan,
        ideal_s=cluster.ideal_s(costs),
        start_up_share=len(rows_s) * cluster.start_up_s / slot_seconds,
        tail_s=makespan - min(ends),
        shard_idle_share=waited / slot_seconds,
        longest_shard_s=cluster.start_up_s + float(rows_s.max(initial=0.0)),
    )


def shard_walls(costs: np.ndarray, shard: np.ndarray, ranks: int) -> np.ndarray:
    """Seconds for the rows of each shard at speed 1, pulled longest first by `ranks` replicas."""
    order = np.lexsort((-costs, shard))
    ends = np.cumsum(np.bincount(shard))
    return np.array([_pulled(rows, ranks) for rows in np.split(costs[order], ends[:-1])])


def _pulled(rows: np.ndarray, ranks: int) -> float:
    if ranks == 1 or len(rows) <= ranks:
        return float(rows.sum() if ranks == 1 else rows.max(initial=0.0))
    busy: list[float] = sorted(rows[:ranks].tolist())
    for seconds in rows[ranks:].tolist():
        heapq.heapreplace(busy, busy[0] + seconds)
    return max(busy)
