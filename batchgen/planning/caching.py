"""What caches save: the coefficients that rows use, and the evaluations that are left to them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa

from batchgen.caches.audit import audited
from batchgen.caches.pilots import DRAWN, FEWEST_STEPS, FITTED, PSNR, RATIOS, Choice
from batchgen.caches.settings import NAMES, NO_SETTINGS, PREFIX, IllegalSetting, Settings
from batchgen.caches.strategies import planned
from batchgen.caches.strategy import NONE, strategy
from batchgen.caches.tables import Tables, published
from batchgen.config.schema import JobConfig
from batchgen.errors import ConfigError
from batchgen.planning.fits import Drawing, Fits, can_be_fitted
from batchgen.planning.manifests.caching import RATIO_GIVEN, combinations
from batchgen.planning.manifests.problems import Problems
from batchgen.planning.manifests.rows import ResolvedRows
from batchgen.planning.store import CacheForecast
from batchgen.request import FIELDS

_SETTINGS = tuple(PREFIX + name for name in NAMES)
_DRAWING = tuple(field.name for field in fields(Drawing))
_MOST_KEPT = 10_000  # combinations
_MOST_TOLD = 1000
_FLOOR = "system.cache.min_psnr_db"
_FLOOR_REASON = (
    f"{_FLOOR} chooses the ratio of planned alone; give these rows a cache_ratio, or set "
    f"{_FLOOR}=null"
)

Told = tuple[str, float, int, float]  # strategy, ratio, steps, guidance: what `plan` tells of


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a run brings along into a plan of its rows. As it stands here: there is no run yet."""

    tables: Tables | None = None  # its own
    drawn: tuple[int, ...] = ()  # row_index of its pilot's rows, which stay without a cache
    fitted: bool = False  # its pilot is over: rows that lack coefficients go on without


@dataclass(frozen=True, slots=True)
class Alike:
    """What holds for all rows of one combination of settings and drawing."""

    told: Told
    settings: Settings = NO_SETTINGS
    refused: str = ""  # the strategy that these rows do without
    table: str = ""  # digest of the coefficients; "" where there are none
    share: float = 1.0  # of the evaluations that are expected to be computed
    lacks: tuple[float, ...] = ()  # ratios for which a pilot has to make coefficients


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

    def strategies(self, groups: np.ndarray) -> set[tuple[int, str]]:
        """The strategies in each group; `groups`: of each row its own, or -1 for a row that does
        not count."""
        pairs = np.unique(np.stack([groups, self.place]), axis=1).T.tolist()
        named = ((group, self.alike[place].settings.strategy) for group, place in pairs)
        return {(group, name) for group, name in named if group >= 0 and name != NONE}

    def columns(self) -> dict[str, pa.Array]:
        """The request's cache columns as planned."""
        values = {PREFIX + n: [getattr(a.settings, n) for a in self.alike] for n in NAMES}
        values["cache_table"] = [alike.table for alike in self.alike]
        values["cache_refused"] = [alike.refused for alike in self.alike]
        kinds = {"text": pa.large_string(), "integer": pa.int64(), "number": pa.float64()}
        place = pa.array(self.place)
        return {n: pa.array(v, kinds[FIELDS[n].kind]).take(place) for n, v in values.items()}


_WITHOUT = Alike((NONE, 0.0, 0, 0.0))
NO_RUN = Earlier()


def wants_pilots(job: JobConfig) -> bool:
    """Whether rows that lack coefficients get them by a pilot."""
    cache = job.system.cache
    return cache.calibrate or cache.min_psnr_db is not None


class CacheSums:
    """Looks up what rows under a cache need and save, and adds it up."""

    def __init__(self, job: JobConfig, weights: str, earlier: Earlier = NO_RUN) -> None:
        """`weights`: digest of the checkpoint."""
        self._model, self._floor = job.model, job.system.cache.min_psnr_db
        self._fits = Fits(job, weights, earlier.tables)
        self._pilots = wants_pilots(job) and not earlier.fitted  # may still come
        self._fitted_already = earlier.fitted
        self._drawn = np.array(earlier.drawn, np.int64)
        self._known: dict[tuple[Any, ...], Alike] = {}
        self._audit_every = job.system.cache.audit_every
        self._asked = False  # whether any row asks for a cache
        self.choices: dict[Drawing, Choice] = {}
        self._rows: Counter[Told] = Counter()
        self._fitted: Counter[Told] = Counter()
        self._published: Counter[Told] = Counter()
        self._left: dict[Told, float] = defaultdict(float)  # sum of the rows' shares
        self.refused: Counter[str] = Counter()
        self.tables: set[str] = set()  # digests that rows use

    def look_up(self, rows: ResolvedRows, problems: Problems) -> CachedRows | None:
        """The caches of a batch; None where no row has one. Rows whose knobs their strategy cannot
        use, or for which it lacks coefficients that it needs, go to `problems`; rows that are there
        already are passed over, as they hold anything."""
        if "cache_strategy" not in rows.columns.schema.names:
            return None
        self._asked = True
        names = (*_SETTINGS, *_DRAWING, "cache_refused")
        columns = [rows.column(name) for name in names]
        columns.append(rows.column(RATIO_GIVEN))
        first, place = combinations(columns)
        combined = zip(*(c.take(pa.array(first)).to_pylist() for c in columns), strict=True)
        legal = np.ones(len(rows), bool)
        legal[np.array(problems.in_batch, np.int64) - rows.first_row] = False
        some_legal = np.bincount(place, weights=legal, minlength=len(first)) > 0
        found = []
        for code, values in enumerate(combined):
            try:
                found.append(self._alike(values) if some_legal[code] else _WITHOUT)
            except IllegalSetting as error:
                at = np.flatnonzero((place == code) & legal) + rows.first_row
                shown = [error.value] * min(len(at), problems.keep)
                problems.add(at, PREFIX + error.name, shown, error.reason)
                found.append(_WITHOUT)
        return self._drawn_apart(CachedRows(found, place), rows)

    def _drawn_apart(self, found: CachedRows, rows: ResolvedRows) -> CachedRows:
        """A pilot's rows are without a cache."""
        place = found.place.copy()
        place[np.array(self.drawn_among(rows), np.int64) - rows.first_row] = len(found.alike)
        return CachedRows([*found.alike, replace(_WITHOUT, refused=DRAWN)], place)

    def drawn_among(self, rows: ResolvedRows) -> list[int]:
        """row_index of a pilot's rows in a batch."""
        behind = rows.first_row + len(rows)
        here: list[int] = self._drawn[
            (self._drawn >= rows.first_row) & (self._drawn < behind)
        ].tolist()
        return here

    def _alike(self, values: tuple[Any, ...]) -> Alike:
        """One combination. Batches have much the same ones."""
        if len(self._known) > _MOST_KEPT:  # rows that all differ: do not keep every one
            self._known.clear()
        if values not in self._known:
            *row, refused, given = values
            settings = Settings(*row[: len(_SETTINGS)])
            drawing = Drawing(*row[len(_SETTINGS) :])
            found = self._look_up(settings, drawing, given)
            self._known[values] = replace(found, refused=found.refused or refused)
        return self._known[values]

    def _look_up(self, settings: Settings, drawing: Drawing, given: bool) -> Alike:
        """What is expected of one combination; `given`: the rows say the ratio themselves. Raises
        IllegalSetting."""
        if settings == NO_SETTINGS:
            return _WITHOUT
        if self._floor is None or given or settings.ratio == 0:
            return self._with(settings, drawing)
        if settings.strategy != planned.NAME:
            raise IllegalSetting("strategy", settings.strategy, _FLOOR_REASON)
        choice = self._fits.choice(settings, drawing, self._floor)
        if not choice.judged and self._pilots:
            wanted = [self._lacks(replace(settings, ratio=ratio), drawing) for ratio in RATIOS]
            return replace(self._with(settings, drawing), lacks=tuple(r for w in wanted for r in w))
        self.choices[drawing] = choice
        if choice.ratio == 0:
            return replace(_WITHOUT, refused=settings.strategy)
        return self._with(replace(settings, ratio=choice.ratio), drawing, PSNR)

    def _lacks(self, settings: Settings, drawing: Drawing) -> tuple[float, ...]:
        """The ratio, if a pilot may make coefficients for it."""
        possible = can_be_fitted(settings, self._fits.row(settings, drawing))
        return (settings.ratio,) if self._pilots and possible else ()

    def _with(self, settings: Settings, drawing: Drawing, having: str = "") -> Alike:
        """With coefficients if there are any. Raises IllegalSetting where they are needed and there
        are none."""
        name, steps = settings.strategy, drawing.num_steps
        chosen, row = strategy(name), self._fits.row(settings, drawing)
        needs = chosen.FACTS.table if row.ratio > 0 else ""
        told = (name, settings.ratio, steps, drawing.guidance_scale)
        try:
            entry = self._fits.find(name, row, drawing, having) if needs else None
            lacks = self._lacks(settings, drawing) if needs and entry is None else ()
            if entry is None and needs == "needed" and not lacks:
                raise IllegalSetting("strategy", name, self._no_table(settings, drawing))
            content = entry.content if entry else None
            share = chosen.expected(row, content) / steps
        except ConfigError as error:
            raise IllegalSetting("params", settings.params, str(error)) from None
        return Alike(told, settings, "", entry.digest if entry else "", share, lacks)

    def _no_table(self, settings: Settings, drawing: Drawing) -> str:
        lacking = (
            f"there are no coefficients of it for {self._model.name}, {drawing.solver}, "
            f"{drawing.num_steps} steps, {drawing.bucket}, guidance {drawing.guidance_scale:g}"
        )
        if not can_be_fitted(settings, self._fits.row(settings, drawing)):
            fitted = f"a pilot fits {', '.join(FITTED)}, from {FEWEST_STEPS} steps on"
            return f"{lacking}, and {fitted}"
        if self._fitted_already:
            return f"{lacking}, and this run's pilot is over: start a new run"
        return f"{lacking}; system.cache.calibrate=true lets a pilot measure them"

    def check_floor(self) -> None:
        """After all rows: ConfigError where `min_psnr_db` had no ratio to choose, since no row asks
        for a cache."""
        if self._floor is not None and not self._asked:
            raise ConfigError(
                f"{_FLOOR}: {self._floor:g}: no row asks for a cache whose ratio it could choose; "
                "row_defaults.cache=planned asks for all"
            )

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
                self._published[alike.told] += count if alike.table in published() else 0
                self.tables |= {alike.table} - {""}
                self._left[alike.told] += alike.share * count
        asked = refused.value_counts().to_pylist()
        self.refused.update({c["values"]: c["counts"] for c in asked if c["values"]})

    def found_ratios(self) -> tuple[Choice, ...]:
        """What `min_psnr_db` chose, each choice once."""
        return tuple(dict.fromkeys(self.choices.values()))[:_MOST_TOLD]

    def forecasts(self) -> tuple[CacheForecast, ...]:
        """By settings, those of most rows first."""
        return tuple(
            CacheForecast(
                *told, rows, self._fitted[told], self._left[told] / rows, self._published[told]
            )
            for told, rows in self._rows.most_common(_MOST_TOLD)
        )
