"""What caches save: the coefficients that rows use, and the evaluations that are left to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from batchgen.caches.audit import audited
from batchgen.caches.settings import NO_SETTINGS, Settings
from batchgen.caches.strategy import NONE, Row, strategy
from batchgen.config.schema import JobConfig, ModelSpec
from batchgen.families.family import family_spec
from batchgen.planning.manifests.caching import combinations
from batchgen.planning.manifests.problems import Problems
from batchgen.planning.manifests.rows import ResolvedRows
from batchgen.planning.store import CacheForecast

_SETTINGS = ("strategy", "ratio", "warmup", "cooldown", "params")
# what a table may depend on beside the model and the settings
_SHAPE = (
    *("num_steps", "guidance_scale", "guidance_scale_2", "true_cfg_scale", "solver"),
    *("sigma_shift", "width", "height", "num_frames"),
)


@dataclass(frozen=True, slots=True)
class CachedRows:
    """What caches make of a batch. `place` is that of each row among the combinations."""

    place: np.ndarray
    tables: list[str]  # digest of the coefficients of each combination; "" where there are none
    shares: np.ndarray  # of the evaluations that each is expected to compute
    keys: list[tuple[str, float, int, float]]  # strategy, ratio, steps, guidance of each

    @property
    def share(self) -> np.ndarray:
        """Of each row."""
        share: np.ndarray = self.shares[self.place]
        return share

    @property
    def table(self) -> pa.Array:
        """The column `cache_table`."""
        return pa.array(self.tables, pa.large_string()).take(pa.array(self.place))


class CacheSums:
    """Looks up what caches need and save, and adds it up for `plan`."""

    def __init__(self, job: JobConfig) -> None:
        self._model, sampler = job.model, job.system.sampler
        boundary = family_spec(job.model.family).boundary(job.model)
        self._boundary = boundary if sampler.boundary is None else sampler.boundary
        self._audit_every = job.system.cache.audit_every
        self._rows: Counter[tuple[str, float, int, float]] = Counter()
        self._fitted: Counter[tuple[str, float, int, float]] = Counter()
        self._evaluations: Counter[tuple[str, float, int, float]] = Counter()
        self.refused: Counter[str] = Counter()

    def look_up(self, rows: ResolvedRows, problems: Problems) -> CachedRows | None:
        """The caches of a batch; None where no row has one. Rows without the coefficients that
        their strategy needs go to `problems`."""
        if "cache_strategy" not in rows.columns.schema.names:
            return None
        names = [*(f"cache_{name}" for name in _SETTINGS), *_SHAPE]
        columns = [rows.column(name) for name in names]
        first, place = combinations(columns)
        values = zip(*(c.take(pa.array(first)).to_pylist() for c in columns), strict=True)
        found = CachedRows(place, [], np.ones(len(first)), [])
        for code, row in enumerate(values):
            settings = Settings(*row[: len(_SETTINGS)])
            shape = dict(zip(_SHAPE, row[len(_SETTINGS) :], strict=True))
            self._look_up(found, code, settings, shape)
            if _lacks_table(settings, found.tables[code]):
                at = np.flatnonzero(place == code) + rows.first_row
                reason = _no_table(self._model, shape)
                problems.add(at, "cache_strategy", [settings.strategy] * len(at), reason)
        return found

    def _look_up(
        self, found: CachedRows, code: int, settings: Settings, shape: Mapping[str, Any]
    ) -> None:
        """One combination: its coefficients and its share."""
        steps = shape["num_steps"]
        found.keys.append((settings.strategy, settings.ratio, steps, shape["guidance_scale"]))
        if settings == NO_SETTINGS:
            found.tables.append("")
            return
        digest, table = table_for(self._model, settings, shape)
        row = _row(settings, steps, shape["sigma_shift"], self._boundary)
        found.tables.append(digest)
        found.shares[code] = strategy(settings.strategy).expected(row, table) / steps

    def audits(self, found: CachedRows | None, digests: Sequence[bytes]) -> np.ndarray:
        """Of each row of a batch, by its key: whether it is drawn without its cache too (bool)."""
        if found is None or not self._audit_every:
            return np.zeros(len(digests), bool)
        cached = np.array([key[0] != NONE for key in found.keys])[found.place]
        chosen = [audited(digest.hex(), self._audit_every) for digest in digests]
        both: np.ndarray = cached & np.array(chosen, bool)
        return both

    def count(self, found: CachedRows, refused: pa.Array, rendered: np.ndarray) -> None:
        """Add up the rows of a batch that are rendered."""
        rows = np.bincount(found.place, weights=rendered, minlength=len(found.keys))
        for key, table, share, count in zip(
            found.keys, found.tables, found.shares.tolist(), rows.astype(int).tolist(), strict=True
        ):
            if key[0] != NONE and count:
                self._rows[key] += count
                self._fitted[key] += count if table else 0
                self._evaluations[key] += share * count
        asked = refused.filter(pa.array(rendered)).value_counts().to_pylist()
        self.refused.update({c["values"]: c["counts"] for c in asked if c["values"]})

    def forecasts(self) -> tuple[CacheForecast, ...]:
        """By settings, those of most rows first; of many the rest is left out."""
        return tuple(
            CacheForecast(*key, rows, self._fitted[key], self._evaluations[key] / rows)
            for key, rows in self._rows.most_common()
        )


def table_for(
    model: ModelSpec, settings: Settings, shape: Mapping[str, Any]
) -> tuple[str, Mapping[str, Any] | None]:
    """Digest and content of the coefficients for rows of these settings and this shape; "" and None
    where there are none."""
    return "", None


def _row(settings: Settings, steps: int, shift: float, boundary: float | None) -> Row:
    """What a strategy is told of a row for its forecast: noise levels about as they will be."""
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
    )


def _lacks_table(settings: Settings, table: str) -> bool:
    return (
        settings.strategy != NONE
        and settings.ratio > 0
        and not table
        and strategy(settings.strategy).FACTS.table == "needed"
    )


def _no_table(model: ModelSpec, shape: Mapping[str, Any]) -> str:
    return (
        f"there are no coefficients of it for {model.name}, {shape['solver']}, "
        f"{shape['num_steps']} steps, {shape['width']}x{shape['height']}x{shape['num_frames']}; "
        "system.cache.calibrate=true makes them"
    )
