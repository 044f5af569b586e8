"""Which coefficients serve a row, and which ratio keeps rows near enough to themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from batchgen.caches.pilots import FEWEST_STEPS, FITTED, PSNR, RATIOS, Choice, Judged
from batchgen.caches.settings import Settings
from batchgen.caches.strategies import planned
from batchgen.caches.strategy import Row, computed_count, strategy
from batchgen.caches.tables import Entry, Tables, row_key
from batchgen.config.schema import JobConfig
from batchgen.families.family import family_spec
from batchgen.request import Bucket


@dataclass(frozen=True, slots=True)
class Drawing:
    """How rows are drawn, beside the settings of their cache (`caches.tables.Sampling`)."""

    num_steps: int
    guidance_scale: float
    guidance_scale_2: float | None
    true_cfg_scale: float
    solver: str
    sigma_shift: float
    width: int
    height: int
    num_frames: int
    use_dynamic_cfg: int = 0
    guidance_rescale: float = 0.0

    @property
    def bucket(self) -> Bucket:
        return Bucket(self.width, self.height, self.num_frames)


class Fits:
    """The tables that planning may use: a run's own first, so that it keeps them."""

    def __init__(self, job: JobConfig, weights: str, own: Tables | None = None) -> None:
        """`weights`: digest of the checkpoint, by which fits of a user's own go."""
        self._model, self._models = job.model, (weights, job.model.name)
        usual, given = (
            family_spec(job.model.family).boundary(job.model),
            job.system.sampler.boundary,
        )
        self._boundary = usual if given is None else given
        self._moved = self._boundary != usual  # the job has set it
        self._own = own

    @cached_property
    def _tables(self) -> Sequence[Tables]:
        return [tables for tables in (self._own, Tables.usual()) if tables is not None]

    def row(self, settings: Settings, drawing: Drawing) -> Row:
        """What a strategy is told of a row for its forecast: noise levels about as they will be."""
        model, boundary = self._model, self._boundary
        family, steps, shift = family_spec(model.family), drawing.num_steps, drawing.sigma_shift
        attention = family.attention_flops(model, drawing.bucket)
        whole = family.forward_flops(model, drawing.bucket)
        linear = [1 - step / steps for step in range(steps + 1)]
        sigmas = tuple(shift * s / (1 + (shift - 1) * s) for s in linear)
        second = [i for i, sigma in enumerate(sigmas) if boundary is not None and sigma < boundary]
        return Row(
            ratio=settings.ratio,
            warmup=settings.warmup,
            cooldown=settings.cooldown,
            params=settings.knobs,
            sigmas=sigmas,
            starts=tuple(sorted({0, *second[:1]} - {steps})),
            layers=family.layers(model),
            attention=(attention.get("self", 0.0) / whole, attention.get("cross", 0.0) / whole),
        )

    def find(self, name: str, row: Row, drawing: Drawing, having: str = "") -> Entry | None:
        """The nearest coefficients for rows that are drawn so, of those whose content has `having`;
        of planned ones the nearest that such rows can follow."""
        count = round(strategy(name).expected(row, None))
        branches = int(family_spec(self._model.family).branches(self._model, drawing))
        keys = [
            row_key(drawing, name, model, count, branches, self._boundary) for model in self._models
        ]
        found = (e for tables in self._tables for e in tables.serving(*keys, having=having))
        if name == planned.NAME:
            found = (entry for entry in found if self._fits(row, drawing, entry))
        return next(found, None)

    def _fits(self, row: Row, drawing: Drawing, entry: Entry) -> bool:
        """Whether a planned row will follow the fit. Where its experts begin the fit knows better:
        it was made on rows of this very schedule, or, where it does not say so, of the model's
        own. Those that are shipped are of the model's own size, and hold up to twice as many pixels
        (measured on the embedded model)."""
        key, usual = entry.key, self._model.request_defaults
        if self._moved and key.boundary is None:
            return False
        shipped = key.model == self._model.name and key.pixels_range is None and key.bucket is None
        if shipped and not 1 <= drawing.width * drawing.height / (usual.width * usual.height) <= 2:
            return False
        starts = tuple(entry.content["starts"])
        return bool(planned.path(replace(row, starts=starts), entry.content).leaps)

    def choice(self, settings: Settings, drawing: Drawing, floor_db: float) -> Choice:
        """The largest ratio of planned that was judged to be good enough for such rows."""
        judged = []
        for ratio in RATIOS:
            row = self.row(replace(settings, ratio=ratio), drawing)
            if (entry := self.find(planned.NAME, row, drawing, PSNR)) is not None:
                judged.append(Judged(ratio=ratio, **entry.content[PSNR]))
        return Choice.among(drawing.num_steps, drawing.guidance_scale, floor_db, judged)


def can_be_fitted(settings: Settings, row: Row) -> bool:
    """Whether a pilot can make coefficients for these rows. A fit of the planned strategy chooses
    all computed steps itself; where coefficients are no more than thresholds, a row that has its
    own needs none."""
    if settings.strategy not in FITTED or row.ratio == 0:
        return False
    if settings.strategy != planned.NAME:
        own = "threshold" in row.params
        needed = strategy(settings.strategy).FACTS.table == "needed"
        return row.steps >= FEWEST_STEPS and (needed or not own)
    free = len(row.starts) <= computed_count(row.steps, row.ratio) < row.steps
    return free and settings.warmup == settings.cooldown == 0
