"""Figures of each policy at each budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from batchgen.bench.cache.policies import OURS
from batchgen.bench.cache.samples import Pair, Sample, Samples, Speed

DRAWS = 2000  # of the bootstrap
UNEVEN = 0.05


@dataclass(frozen=True, slots=True)
class Quality:
    """Of decoded frames against the same rows without a cache, in dB but for ssim and score."""

    mean: float
    p10: float
    p5: float
    worst: float
    ssim: float
    score: float | None
    equal: int  # rows that are equal to the bit


@dataclass(frozen=True, slots=True)
class Speedup:
    """Against the uncached rows of the same blocks: medians over the blocks of a ratio of seconds,
    and of that ratio divided by total / computed evaluations (`worth`)."""

    in_flight: int
    denoise: float  # wall seconds of the steps
    denoise_worth: float
    thread: float  # CPU seconds of the drawing thread: moved less by what else runs
    thread_worth: float
    wall: float  # wall seconds of everything, decoding included


@dataclass(frozen=True, slots=True)
class Ahead:
    """How far the planned cache is ahead of a policy on the same rows at the same budget, in dB."""

    mean: float
    low: float  # of the 95 % interval of the mean, by a bootstrap over rows
    high: float
    p10: float  # difference of the two 10th percentiles


@dataclass(frozen=True, slots=True)
class Figures:
    """One line of the table."""

    policy: str
    ratio: float
    rows: int
    computed: float  # evaluations of a row, mean
    total: float  # without a cache
    threshold: float | None
    quality: Quality
    alone: Speedup
    packed: Speedup
    same_alone: bool  # rows have the same frames alone and packed
    ahead: Ahead | None

    @property
    def share(self) -> float:
        return self.computed / self.total

    @property
    def over_budget(self) -> bool:
        """Whether it computes clearly more than the ratio promises."""
        return self.share > (1 - self.ratio) * (1 + UNEVEN)


def figures(kept: Samples) -> list[Figures]:
    """Of all that was drawn, in its order."""
    pairs = dict.fromkeys((block.policy, block.ratio) for block in kept.blocks)
    return [_figures(kept, policy, ratio) for policy, ratio in pairs]


def _figures(kept: Samples, policy: str, ratio: float) -> Figures:
    blocks = kept.of(policy, ratio)
    rows = [sample for block in blocks for sample in block.samples]
    ours = {s.row: s.psnr for block in kept.of(OURS, ratio) for s in block.samples}
    return Figures(
        policy=policy,
        ratio=ratio,
        rows=len(rows),
        computed=float(np.mean([s.computed for s in rows])),
        total=float(np.mean([s.total for s in rows])),
        threshold=blocks[0].threshold,
        quality=_quality(rows),
        alone=_speedup([block.alone for block in blocks]),
        packed=_speedup([block.packed for block in blocks]),
        same_alone=all(block.same_alone for block in blocks),
        ahead=None if policy == OURS else _ahead(ours, rows),
    )


def _quality(rows: Sequence[Sample]) -> Quality:
    psnrs = np.array([s.psnr for s in rows])
    scores = [s.score for s in rows if s.score is not None]
    p10, p5 = np.percentile(psnrs, (10, 5)).tolist()
    return Quality(
        mean=float(psnrs.mean()),
        p10=p10,
        p5=p5,
        worst=float(psnrs.min()),
        ssim=float(np.mean([s.ssim for s in rows])),
        score=float(np.mean(scores)) if scores else None,
        equal=sum(s.equal for s in rows),
    )


def _speedup(pairs: Sequence[Pair]) -> Speedup:
    ratios = np.array([_ratios(pair.plain, pair.cached) for pair in pairs])
    promised = np.array([[pair.plain.steps / pair.cached.steps] for pair in pairs])
    denoise, thread, wall = np.median(ratios, axis=0).tolist()
    denoise_worth, thread_worth, _ = np.median(ratios / promised, axis=0).tolist()
    in_flight = pairs[0].cached.in_flight
    return Speedup(in_flight, denoise, denoise_worth, thread, thread_worth, wall)


def _ratios(plain: Speed, cached: Speed) -> tuple[float, float, float]:
    return (
        plain.denoise / cached.denoise,
        plain.thread / cached.thread,
        plain.wall / cached.wall,
    )


def _ahead(ours: Mapping[int, float], rows: Sequence[Sample]) -> Ahead | None:
    """On the rows that both have drawn."""
    both = [(ours[s.row], s.psnr) for s in rows if s.row in ours]
    if not both:
        return None
    a, b = np.array(both).T
    picks = np.random.default_rng(0).integers(len(a), size=(DRAWS, len(a)))
    low, high = np.percentile((a - b)[picks].mean(1), (2.5, 97.5)).tolist()
    p10 = np.percentile(a, 10) - np.percentile(b, 10)
    return Ahead(float((a - b).mean()), low, high, float(p10))
