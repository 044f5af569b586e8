"""Simulates a Slurm array: shards start in order on node groups, replicas pull rows in a shard."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Cluster:
    """Slots (node groups that one shard keeps busy) with a speed each; 1.0 renders a row in its
    predicted cost. A start-up takes as long at any speed."""

    speeds: tuple[float, ...]
    ranks: int  # replicas of a slot that pull rows at once
    start_up_s: float

    def ideal_s(self, costs: np.ndarray) -> float:
        """Total work over the sum of speeds: no start-ups, no waiting."""
        return float(costs.sum()) / (sum(self.speeds) * self.ranks)


@dataclass(frozen=True, slots=True)
class Simulated:
    """One simulated run. Shares are of the makespan times all slots, or replicas."""

    shards: int
    makespan_s: float  # start-ups counted
    ideal_s: float  # start-ups not counted
    start_up_share: float
    tail_s: float  # from the first slot without work to the end
    shard_idle_share: float  # replicas that wait for the last row of their shard
    longest_shard_s: float  # wall seconds, start-up counted, at speed 1

    @property
    def ratio(self) -> float:
        return self.makespan_s / self.ideal_s


def simulate(costs: np.ndarray, shard: np.ndarray, cluster: Cluster) -> Simulated:
    """Run shards 0, 1, ... (`shard`: number of each row) as slots become free."""
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
    """Seconds of each shard's rows at speed 1, pulled longest first by `ranks` replicas."""
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
