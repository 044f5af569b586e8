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
        return wiener(look.signal("embedded"), self._row.sigmas[look.step])


def wiener(grid: Tensor, sigma: float) -> Tensor:
    """(1, frames, rows, columns, width) with the noise filtered out, where the grid is
    (1 - sigma) x picture + sigma x noise. The filter is the product of those along each axis, and
    of mean 1, so that steps compare."""
    import torch

    axes = (1, 2, 3)
    power = VIDEO_POWER if grid.shape[1] > 1 else IMAGE_POWER
    noise = min(max(sigma, _EDGE), 1 - _EDGE)
    gain = torch.ones((), device=grid.device)
    for axis in axes:
        count = grid.shape[axis]
        frequency = torch.fft.fftfreq(count, device=grid.device).abs()
        picture = 1 / (frequency**power + _TINY)
        along = (1 - noise) * picture / ((1 - noise) ** 2 * picture + noise**2 + _TINY)
        gain = gain * along.view([count if axis == other else 1 for other in range(5)])
    spectrum = torch.fft.fftn(grid.float(), dim=axes)
    return torch.fft.ifftn(spectrum * (gain / gain.mean()), dim=axes).real
