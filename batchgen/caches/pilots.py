"""What a pilot is: rows of a run that are drawn first, uncached, so that the strategy of the others
can be fitted to the model before they are planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batchgen.caches.strategies import planned
from batchgen.caches.strategy import computed_count

MEASURED = ("magcache", "teacache", "seacache", "first_block")  # set by what rows show of a model
FITTED = (planned.NAME, *MEASURED)  # strategies that a pilot can fit
FEWEST_STEPS = 4  # of a row that is measured
ROWS, FEWEST = 16, 4  # rows of a fit
JUDGES = 2  # rows at least, where a fit is judged
AUDITED = 8  # further ones, on which a fit is judged; fewer where there are fewer
RATIOS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # that `min_psnr_db` chooses from
PSNR = "psnr"  # of a table's content: what it was judged to be, as `Judged` has it
DRAWN = "pilot"  # in `cache_refused`: the row is drawn without a cache, as part of a pilot


@dataclass(frozen=True, slots=True, kw_only=True)
class Pilot:
    """One fit to make."""

    strategy: str
    rows: tuple[int, ...]  # row_index; the last `audited` ones enter no fit
    audited: int
    ratios: tuple[float, ...]
    sized: bool  # the schedule depends on the size, and the rows are of one
    num_steps: int
    branches: int
    guidance: tuple[float, float]  # lowest and highest
    layers: int = 1  # blocks of a forward
    judges: bool = False  # whether it is judged how far fits are from rows without a cache
    cost_s: float = 0.0  # device seconds of the fits, beside the rows' own

    def __str__(self) -> str:
        low, high = self.guidance
        guided = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        ratios = ", ".join(f"{ratio:g}" for ratio in self.ratios)
        return f"{self.strategy} {ratios}, {self.num_steps} steps, guidance {guided}"

    @property
    def fewest(self) -> int:
        """Rows that it has to have."""
        return FEWEST + JUDGES * self.judges

    @property
    def drawn(self) -> int:
        """Evaluations of the rows themselves, which are uncached."""
        return len(self.rows) * self.num_steps * self.branches

    @property
    def fits(self) -> int:
        """Evaluations of the fits, at most: every row goes through every fit of the planned
        strategy; what others are set by is seen while rows are drawn, but for the first block
        alone."""
        if self.strategy != planned.NAME:
            return -(-self.drawn // self.layers) if self.strategy == "first_block" else 0
        counts = {computed_count(self.num_steps, ratio) for ratio in self.ratios}
        return len(self.rows) * self.branches * sum(counts)


@dataclass(frozen=True, slots=True)
class Judged:
    """How far rows are from themselves without a cache, in decoded frames: PSNR in dB."""

    ratio: float
    rows: int
    p5: float
    mean: float
    worst: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The ratio that `min_psnr_db` found for rows of these settings; 0: none is good enough."""

    num_steps: int
    guidance_scale: float
    floor_db: float
    ratio: float
    judged: tuple[Judged, ...]

    @classmethod
    def among(
        cls, num_steps: int, guidance_scale: float, floor_db: float, judged: Sequence[Judged]
    ) -> Choice:
        """The largest ratio whose rows stay above `floor_db` but for one in twenty."""
        good = [each.ratio for each in judged if each.p5 >= floor_db]
        return cls(num_steps, guidance_scale, floor_db, max(good, default=0.0), tuple(judged))
