"""seacache: computes when the denoised part of the input has moved far enough
(https://arxiv.org/abs/2602.18993).

The input of the first attention is filtered over its grid of tokens: by what a Wiener filter leaves
of a picture whose power falls with the frequency, at the noise of the step. The relative change of
that from step to step is added up; at `threshold` the step is computed and the sum begins anew.
Until then what all blocks added at the last computed step is added again. No coefficients of the
model are needed.

Published thresholds for Wan 2.1, 0.20 and 0.35, save half and two thirds of the evaluations; a
ratio is mapped onto the line through the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from batchgen.caches.knobs import ratio, threshold
from batchgen.caches.residual import Summing
from batchgen.caches.spread import spread
from batchgen.caches.strategy import BranchCache, Facts, Keeps, Look, Row, Tensor, computed_count
from batchgen.request import Range

PER_RATIO = 0.4
VIDEO_POWER, IMAGE_POWER = 3.0, 2.0  # of the frequency, by which the power of pictures falls
FACTS = Facts(
    kind="adaptive",
    reuses="stack",
    keeps=Keeps(streams=1, wide=1),
    signal="embedded",
    table="used",
    warmup=1,
    cooldown=1,
    params={"threshold": Range(0, 10)},
)
_TINY = 1e-16
_EDGE = 1e-6  # sigmas are kept so far from 0 and 1


def computed(row: Row, table: Mapping[str, Any] | None) -> tuple[int, ...] | None:
    return tuple(range(row.steps)) if row.ratio == 0 else None


def expected(row: Row, table: Mapping[str, Any] | None) -> float:
    """A guess: what the ratio promises, but no fewer than must be computed."""
    return float(len(spread(row, computed_count(row.steps, ratio(row, table, PER_RATIO)))))


def branch(row: Row, table: Mapping[str, Any] | None) -> BranchCache:
    return Filtered(row, threshold(row, table, PER_RATIO))


class Filtered(Summing):
    """A branch that looks at its filtered input."""

    def signal(self, look: Look) -> Tensor:
        noise = min(max(self._row.sigmas[look.step], _EDGE), 1 - _EDGE)
        return wiener(look.signal("embedded"), self._row.picture(noise), noise)


def wiener(grid: Tensor, share: float, noise: float) -> Tensor:
    """(1, frames, rows, columns, width) with the noise filtered out, where the grid is
    share x picture + noise x noise.

    What a filter does whose gains are products of those along each axis is done axis by axis. Grids
    are short: a product with a small matrix takes an eighth of the time of transforms there and
    back on the embedded model's, a quarter on 21 x 30 x 52.
    """
    counts = tuple(grid.shape[1:4])
    filtered = grid.float()
    for axis, along in enumerate(_filters(counts, share, noise, grid.device), start=1):
        if counts[axis - 1] > 1:
            filtered = (along @ filtered.flatten(axis + 1)).view(grid.shape)
    return filtered


@lru_cache(maxsize=512)  # of ten schedules
def _filters(
    counts: tuple[int, ...], share: float, noise: float, device: Any
) -> tuple[Tensor, ...]:
    """The filter along each axis, (count, count). Rows of one schedule have the same ones."""
    power = VIDEO_POWER if counts[0] > 1 else IMAGE_POWER
    return tuple(_circulant(count, share, noise, power).float().to(device) for count in counts)


def _circulant(count: int, share: float, noise: float, power: float) -> Tensor:
    """What the gains of frequencies do to values on a circle; of mean 1, so that steps compare."""
    import torch

    frequency = torch.fft.fftfreq(count, dtype=torch.float64).abs()
    picture = 1 / (frequency**power + _TINY)
    gain = share * picture / (share**2 * picture + noise**2 + _TINY)
    places = torch.arange(count)
    return torch.fft.ifft(gain / gain.mean()).real[(places[:, None] - places) % count]
