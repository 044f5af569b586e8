"""What the rows of a plan are predicted to take, row by row and summed by shape."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pyarrow as pa

from batchgen.families.family import family_spec
from batchgen.planning.caching import CachedRows
from batchgen.planning.manifests.rows import ResolvedRows
from batchgen.planning.pricing.cost import BucketSeconds, CostModel
from batchgen.planning.pricing.work import scales_of
from batchgen.planning.store import BucketForecast
from batchgen.request import Bucket


class CostSums:
    """Predicted seconds of rows, and their sums by bucket."""

    def __init__(self, model: CostModel) -> None:
        self._model = model
        self._family = family_spec(model.model.family)
        self._seconds: dict[Bucket, BucketSeconds] = {}
        self._sums: dict[Bucket, np.ndarray] = defaultdict(lambda: np.zeros(7))  # see `add`
        self._caches: dict[Bucket, set[str]] = defaultdict(set)  # strategies of its rows
        self._most: dict[Bucket, int] = defaultdict(int)  # steps of a row

    def add(
        self,
        rows: ResolvedRows,
        is_alias: np.ndarray,
        cached: CachedRows | None,
        audits: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, pa.Array]:
        """Cost (0 for an alias), expected evaluations and bucket name of every row of a batch. The
        cost has those of `audits` drawn a second time, without their cache."""
        width, height, frames = map(rows.numbers, ("width", "height", "num_frames"))
        codes = (width << 40) | (height << 20) | frames
        distinct, inverse = np.unique(codes, return_inverse=True)
        buckets = [Bucket(c >> 40, (c >> 20) & 0xFFFFF, c & 0xFFFFF) for c in distinct.tolist()]
        for bucket in buckets:
            if bucket not in self._seconds:
                self._seconds[bucket] = self._model.bucket(bucket)
        seconds = np.array([self._seconds[b].per_row() for b in buckets])[inverse]
        rendered = ~is_alias
        branches = self._family.branches(self._model.model, scales_of(rows.numbers))
        steps = rows.numbers("num_steps")
        solved = steps * (1.0 if cached is None else cached.share)
        expected, again = solved * branches, steps * branches * audits
        given = _given(rows)
        parts = (np.ones(len(rows)), steps * branches, expected, solved, audits, again, given)
        sums = [np.bincount(inverse, weights=part * rendered) for part in parts]
        for bucket, more in zip(buckets, np.stack(sums, 1), strict=True):
            self._sums[bucket] += more
        most = np.zeros(len(buckets))
        np.maximum.at(most, inverse, steps * rendered)
        for bucket, longest in zip(buckets, most.tolist(), strict=True):
            self._most[bucket] = max(self._most[bucket], int(longest))
        if cached is not None:
            for at, name in cached.strategies(np.where(rendered, inverse, -1)):
                self._caches[buckets[at]].add(name)
        forward, encode, decode, images = seconds.T
        once = encode + given * images
        cost_s = ((expected + again) * forward + once + (1 + audits) * decode) * rendered
        names = pa.array([str(bucket) for bucket in buckets])
        return cost_s, expected, names.take(pa.array(inverse))

    def forecasts(self) -> tuple[BucketForecast, ...]:
        """Sums by bucket, dearest first."""
        found = [self._forecast(bucket, *sums.tolist()) for bucket, sums in self._sums.items()]
        return tuple(sorted(found, key=lambda forecast: -forecast.cost_s))

    def _forecast(
        self,
        bucket: Bucket,
        rows: float,
        total: float,
        expected: float,
        steps: float,
        audits: float,
        again: float,
        given: float,
    ) -> BucketForecast:
        """Of one bucket, from its sums: evaluations in `total`, as `expected`, and `again` by its
        audits; `given`: rows with images."""
        seconds = self._seconds[bucket]
        return BucketForecast(
            bucket=bucket,
            rows=int(rows),
            tokens=self._family.tokens(self._model.model, bucket),
            evaluations=round(expected),
            denoise_s=(expected + again) * seconds.forward,
            encode_s=rows * seconds.encode + given * seconds.images,
            decode_s=(rows + audits) * seconds.decode,
            steps=round(steps),
            evaluations_total=int(total),
            audits=int(audits),
            audit_evaluations=int(again),
            caches=tuple(sorted(self._caches[bucket])),
            illustrated=int(given),
            most_steps=self._most[bucket],
        )


def _given(rows: ResolvedRows) -> np.ndarray:
    """1 for each row that is given an image, 0 for the others."""
    if "image" not in rows.columns.schema.names:
        return np.zeros(len(rows))
    there = rows.column("image").is_valid()
    return np.asarray(there.to_numpy(zero_copy_only=False), np.float64)
