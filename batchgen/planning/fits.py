"""Which coefficients serve a row, and which ratio keeps rows near enough to themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from batchgen.caches.pilots import FITTED, PSNR, RATIOS, Choice, Judged
from batchgen.caches.settings import Settings
from batchgen.caches.strategies import planned
from batchgen.caches.strategy import Row, computed_count, strategy
from batchgen.caches.tables import Entry, Key, Tables
from batchgen.config.schema import JobConfig
from batchgen.families.family import family_spec
from batchgen.request import Bucket

Shape = Mapping[str, Any]  # what coefficients may depend on beside the model and the settings


class Fits:
    """The tables that planning may use: a run's own first, so that it keeps them."""

    def __init__(self, job: JobConfig, weights: str, own: Tables | None = None) -> None:
        """`weights`: digest of the checkpoint, by which fits of a user's own go."""
        self._model, self._models = job.model, (weights, job.model.name)
        boundary = family_spec(job.model.family).boundary(job.model)
        given = job.system.sampler.boundary
        self._boundary = boundary if given is None else given
        self._own = own

    @cached_property
    def _tables(self) -> Sequence[Tables]:
        return [tables for tables in (self._own, Tables.usual()) if tables is not None]

    def row(self, settings: Settings, shape: Shape) -> Row:
        """What a strategy is told of a row for its forecast: noise levels about as they will be."""
        model, boundary = self._model, self._boundary
        family, steps, shift = family_spec(model.family), shape["num_steps"], shape["sigma_shift"]
        bucket = Bucket(shape["width"], shape["height"], shape["num_frames"])
        attention = family.attention_flops(model, bucket)
        whole = family.forward_flops(model, bucket)
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

    def find(self, name: str, row: Row, shape: Shape, having: str = "") -> Entry | None:
        """The coefficients for rows of this shape, of those whose content has `having`."""
        keys = [_key(name, model, row, shape) for model in self._models]
        found = (tables.find(*keys, having=having) for tables in self._tables)
        entry = next(filter(None, found), None)
        unused = entry is not None and name == planned.NAME and not _fits(row, entry)
        return None if unused else entry

    def choice(self, settings: Settings, shape: Shape, floor_db: float) -> Choice:
        """The largest ratio of planned that was judged to be good enough for rows of this shape."""
        judged = []
        for ratio in RATIOS:
            row = self.row(replace(settings, ratio=ratio), shape)
            if (entry := self.find(planned.NAME, row, shape, PSNR)) is not None:
                judged.append(Judged(ratio=ratio, **entry.content[PSNR]))
        return Choice.among(shape["num_steps"], shape["guidance_scale"], floor_db, judged)


def can_be_fitted(settings: Settings, row: Row) -> bool:
    """Whether a pilot can make coefficients for these rows. A fit of the planned strategy chooses
    all computed steps itself."""
    if settings.strategy not in FITTED or row.ratio == 0:
        return False
    free = len(row.starts) <= computed_count(row.steps, row.ratio) < row.steps
    return settings.strategy != planned.NAME or (free and settings.warmup == settings.cooldown == 0)


def _key(name: str, model: str, row: Row, shape: Shape) -> Key:
    """What coefficients of rows of this shape are looked up by."""
    second = shape["guidance_scale_2"]
    return Key(
        strategy=name,
        model=model,
        solver=shape["solver"],
        sigma_shift=shape["sigma_shift"],
        num_steps=row.steps,
        bucket=str(Bucket(shape["width"], shape["height"], shape["num_frames"])),
        guidance_scale=shape["guidance_scale"],
        guidance_scale_2=shape["guidance_scale"] if second is None else second,
        true_cfg_scale=shape["true_cfg_scale"],
        computed=round(strategy(name).expected(row, None)),
    )


def _fits(row: Row, entry: Entry) -> bool:
    """Whether a planned row will follow the fit. Where its experts begin the fit knows better: it
    was made on rows of this very schedule."""
    starts = tuple(entry.content["starts"])
    return bool(planned.path(replace(row, starts=starts), entry.content).leaps)
