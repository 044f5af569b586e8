"""What caches save: the coefficients that rows use, and the evaluations that are left to them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from batchgen.caches.audit import audited
from batchgen.caches.settings import NAMES, NO_SETTINGS, PREFIX, IllegalSetting, Settings
from batchgen.caches.strategies import planned
from batchgen.caches.strategy import NONE, Row, strategy
from batchgen.caches.tables import Entry, Key, Tables
from batchgen.config.schema import JobConfig, ModelSpec
from batchgen.errors import ConfigError
from batchgen.families.family import family_spec
from batchgen.planning.manifests.caching import combinations
from batchgen.planning.manifests.problems import Problems
from batchgen.planning.manifests.rows import ResolvedRows
from batchgen.planning.store import CacheForecast
from batchgen.request import Bucket

_SETTINGS = tuple(PREFIX + name for name in NAMES)
# What coefficients may depend on beside the model and the settings.
_SHAPE = (
    *("num_steps", "guidance_scale", "guidance_scale_2", "true_cfg_scale", "solver"),
    *("sigma_shift", "width", "height", "num_frames"),
)
_MOST_KEPT = 10_000  # combinations
_MOST_TOLD = 1000

Told = tuple[str, float, int, float]  # strategy, ratio, steps, guidance: what `plan` tells of


@dataclass(frozen=True, slots=True)
class Alike:
    """What holds for all rows of one combination of settings and shape."""

    told: Told
    table: str = ""  # digest of the coefficients; "" where there are none
    share: float = 1.0  # of the evaluations that are expected to be computed


@dataclass(frozen=True, slots=True)
class CachedRows:
    """What caches make of a batch of rows."""

    alike: list[Alike]
    place: np.ndarray  # of each row's own in `alike`

    @property
    def share(self) -> np.ndarray:
        """Of each row."""
        shares: np.ndarray = np.array([alike.share for alike in self.alike])[self.place]
        return shares

    @property
    def table(self) -> pa.Array:
        """The column `cache_table`."""
        tables = [alike.table for alike in self.alike]
        return pa.array(tables, pa.large_string()).take(pa.array(self.place))


class CacheSums:
    """Looks up what rows under a cache need and save, and adds it up."""

    def __init__(self, job: JobConfig, weights: str) -> None:
        """`weights`: digest of the checkpoint."""
        self._model, self._weights, sampler = job.model, weights, job.system.sampler
        boundary = family_spec(job.model.family).boundary(job.model)
        self._boundary = boundary if sampler.boundary is None else sampler.boundary
        self._known: dict[tuple[Any, ...], Alike] = {}
        self._audit_every = job.system.cache.audit_every
        self._rows: Counter[Told] = Counter()
        self._fitted: Counter[Told] = Counter()
        self._left: dict[Told, float] = defaultdict(float)  # sum of the rows' shares
        self.refused: Counter[str] = Counter()

    def look_up(self, rows: ResolvedRows, problems: Problems) -> CachedRows | None:
        """The caches of a batch; None where no row has one. Rows whose knobs their strategy cannot
        use, or for which it lacks coefficients that it needs, go to `problems`."""
        if "cache_strategy" not in rows.columns.schema.names:
            return None
        columns = [rows.column(name) for name in (*_SETTINGS, *_SHAPE)]
        first, place = combinations(columns)
        combined = zip(*(c.take(pa.array(first)).to_pylist() for c in columns), strict=True)
        found = []
        for code, values in enumerate(combined):
            try:
                found.append(self._alike(values))
            except IllegalSetting as error:
                at = np.flatnonzero(place == code) + rows.first_row
                shown = [error.value] * min(len(at), problems.keep)
                problems.add(at, PREFIX + error.name, shown, error.reason)
                found.append(Alike((NONE, 0.0, 0, 0.0)))
        return CachedRows(found, place)

    def _alike(self, values: tuple[Any, ...]) -> Alike:
        """One combination. Batches have much the same ones."""
        if len(self._known) > _MOST_KEPT:  # rows that all differ: do not keep every one
            self._known.clear()
        if values not in self._known:
            settings = Settings(*values[: len(_SETTINGS)])
            shape = dict(zip(_SHAPE, values[len(_SETTINGS) :], strict=True))
            self._known[values] = self._look_up(settings, shape)
        return self._known[values]

    def _look_up(self, settings: Settings, shape: Mapping[str, Any]) -> Alike:
        """What is expected of one combination. Raises IllegalSetting."""
        name, steps = settings.strategy, shape["num_steps"]
        told = (name, settings.ratio, steps, shape["guidance_scale"])
        if settings == NO_SETTINGS:
            return Alike(told)
        row = _row(self._model, settings, shape, self._boundary)
        try:
            entry = self._entry(name, row, shape)
            content = entry.content if entry else None
            share = strategy(name).expected(row, content) / steps
        except ConfigError as error:
            raise IllegalSetting("params", settings.params, str(error)) from None
        return Alike(told, entry.digest if entry else "", share)

    @cached_property
    def _tables(self) -> Tables:
        return Tables.usual()

    def _entry(self, name: str, row: Row, shape: Mapping[str, Any]) -> Entry | None:
        """The coefficients for rows of this shape. Raises IllegalSetting where they are needed and
        there are none."""
        needs = strategy(name).FACTS.table
        if not needs or row.ratio == 0:
            return None
        keys = (_key(name, model, row, shape) for model in (self._weights, self._model.name))
        entry = self._tables.find(*keys)
        if entry is None and needs == "needed":
            raise IllegalSetting("strategy", name, _no_table(self._model, shape))
        unused = entry is not None and name == planned.NAME and not _fits(row, entry)
        return None if unused else entry

    def audits(self, found: CachedRows | None, digests: Sequence[bytes]) -> np.ndarray:
        """Of each row of a batch, by its key: whether it is drawn without its cache too (bool)."""
        if found is None or not self._audit_every:
            return np.zeros(len(digests), bool)
        cached = np.array([alike.told[0] != NONE for alike in found.alike])[found.place]
        chosen = [audited(digest.hex(), self._audit_every) for digest in digests]
        both: np.ndarray = cached & np.array(chosen, bool)
        return both

    def count(self, found: CachedRows, refused: pa.Array, rendered: np.ndarray) -> None:
        """Add up the rows of a batch that are rendered, and all that are refused (`refused`: the
        column `cache_refused`)."""
        rows = np.bincount(found.place, weights=rendered, minlength=len(found.alike))
        for alike, count in zip(found.alike, rows.astype(int).tolist(), strict=True):
            if alike.told[0] != NONE and count:
                self._rows[alike.told] += count
                self._fitted[alike.told] += count if alike.table else 0
                self._left[alike.told] += alike.share * count
        asked = refused.value_counts().to_pylist()
        self.refused.update({c["values"]: c["counts"] for c in asked if c["values"]})

    def forecasts(self) -> tuple[CacheForecast, ...]:
        """By settings, those of most rows first."""
        return tuple(
            CacheForecast(*told, rows, self._fitted[told], self._left[told] / rows)
            for told, rows in self._rows.most_common(_MOST_TOLD)
        )


def _key(name: str, model: str, row: Row, shape: Mapping[str, Any]) -> Key:
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


def _row(
    model: ModelSpec, settings: Settings, shape: Mapping[str, Any], boundary: float | None
) -> Row:
    """What a strategy is told of a row for its forecast: noise levels about as they will be."""
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


def _no_table(model: ModelSpec, shape: Mapping[str, Any]) -> str:
    return (
        f"there are no coefficients of it for {model.name}, {shape['solver']}, "
        f"{shape['num_steps']} steps, {shape['width']}x{shape['height']}x{shape['num_frames']}; "
        "system.cache.calibrate=true makes them"
    )
