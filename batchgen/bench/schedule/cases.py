"""Ways to cut a run into shards, compared on simulated clusters with one slow node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from batchgen.bench.schedule.costs import make_costs
from batchgen.bench.schedule.simulate import Cluster, Simulated, simulate
from batchgen.planning.pricing.shards import GOOD_MULTIPLE, cut_shards

OURS = "batchgen"
EQUAL_COST = "equal cost"
EQUAL_ROWS = "equal rows"


@dataclass(frozen=True, slots=True)
class Case:
    """A run on a cluster.

    `waves`: length of the run, in shards of GOOD_MULTIPLE start-ups for every node; `slow`: speed
    of the one node that differs; `noise`: sigma of the log of real over predicted cost; `most_s`:
    as in `cut_shards`.
    """

    nodes: int = 64
    ranks: int = 8
    rows_per_rank: int = 100
    costs: str = "log-uniform"
    spread: float = 10.0
    waves: float = 20.0
    start_up_s: float = 20.0
    slow: float = 0.5
    noise: float = 0.0
    most_s: float | None = None

    def predicted(self, seed: int) -> np.ndarray:
        """Seconds of each row on one replica at speed 1."""
        replicas = self.nodes * self.ranks
        return make_costs(
            self.costs,
            rows=self.rows_per_rank * replicas,
            total_s=self.waves * GOOD_MULTIPLE * self.start_up_s * replicas,
            replicas=replicas,
            spread=self.spread,
            seed=seed,
        )

    def clusters(self) -> Iterator[Cluster]:
        """Clusters where the slow node gets the first and longest shard, or the last shard of the
        first wave."""
        fast = (1.0,) * (self.nodes - 1)
        for speeds in {(self.slow, *fast), (*fast, self.slow)}:
            yield Cluster(speeds, self.ranks, self.start_up_s)


@dataclass(frozen=True, slots=True)
class Compared:
    """One strategy on one case; of all seeds and places of the slow node the worst run is shown."""

    case: Case
    strategy: str
    mean_ratio: float
    worst: Simulated
    imbalance: float  # predicted work of the longest shard over the mean


def compare(case: Case, seeds: int) -> list[Compared]:
    """Compare our cut with the same number of shards of equal cost, and of equal row counts."""
    found: dict[str, list[tuple[Simulated, float]]] = {}
    for seed in range(seeds):
        predicted = case.predicted(seed)
        off = np.random.default_rng([seed, 1]).lognormal(0.0, case.noise, len(predicted))
        for strategy, shard in cuts(case, predicted).items():
            work = np.bincount(shard, weights=predicted)
            runs = [simulate(predicted * off, shard, cluster) for cluster in case.clusters()]
            found.setdefault(strategy, []).extend(
                (run, float(work.max() / work.mean())) for run in runs
            )
    return [_summary(case, strategy, runs) for strategy, runs in found.items()]


def cuts(case: Case, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """Strategy -> the shard of each row. Equal row counts are cut in manifest order."""
    cut = partial(
        cut_shards, predicted, slots=case.nodes, start_up_s=case.start_up_s, ranks=case.ranks
    )
    ours = cut(shards=None, most_s=case.most_s)
    shards = int(ours.max()) + 1
    return {
        OURS: ours,
        EQUAL_COST: cut(shards=shards),
        EQUAL_ROWS: np.arange(len(predicted)) * shards // len(predicted),
    }


def _summary(case: Case, strategy: str, runs: list[tuple[Simulated, float]]) -> Compared:
    return Compared(
        case=case,
        strategy=strategy,
        mean_ratio=float(np.mean([outcome.ratio for outcome, _ in runs])),
        worst=max((outcome for outcome, _ in runs), key=lambda outcome: outcome.ratio),
        imbalance=max(imbalance for _, imbalance in runs),
    )
