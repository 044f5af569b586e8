"""Which rows of a manifest are a pilot's: those with which a strategy is fitted to the model before
the others are planned. The same job gives the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from types import SimpleNamespace
from typing import cast

import numpy as np
import pyarrow as pa

from batchgen.caches.pilots import AUDITED, FEWEST, JUDGES, ROWS, Pilot
from batchgen.caches.strategies import planned
from batchgen.caches.strategy import strategy
from batchgen.caches.tables import SCALES
from batchgen.config.schema import JobConfig
from batchgen.errors import ConfigError
from batchgen.families.family import Scales, family_spec
from batchgen.planning.caching import Alike, CachedRows, CacheSums, Earlier
from batchgen.planning.manifests.columns import REQUEST_COLUMNS
from batchgen.planning.manifests.defaults import Defaults
from batchgen.planning.manifests.images import Intake
from batchgen.planning.manifests.manifest import Manifest
from batchgen.planning.manifests.problems import Problems
from batchgen.planning.manifests.rows import ResolvedRows, resolve_rows
from batchgen.planning.pricing.cost import CostModel
from batchgen.request import Bucket

_LOOKED_AT = 64  # rows of each combination in a batch
_MOST_STRATA = 1024  # kept of a group
Stratum = tuple[tuple[float, ...], str]  # scales and bucket


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """A row that may be drawn."""

    rank: bytes  # by chance, but the same whenever it is asked
    row: int = field(compare=False)
    prompt: str = field(compare=False)
    seed: int | None = field(compare=False)  # None: from the row's id, so nobody else's

    @property
    def drawn(self) -> tuple[object, ...]:
        """What it is drawn from, beside what its stratum has."""
        return self.prompt, self.row if self.seed is None else -1, self.seed


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that one fit serves."""

    strategy: str
    num_steps: int
    branches: int
    bucket: str  # "" where the schedule does not depend on it


@dataclass(slots=True)
class Lacking:
    """What a group lacks, and who may be drawn for it."""

    count: int = 0  # rows that ask
    ratios: set[float] = field(default_factory=set)
    strata: dict[Stratum, list[Candidate]] = field(default_factory=dict)

    def add(self, stratum: Stratum, found: Sequence[Candidate]) -> None:
        if stratum in self.strata or len(self.strata) < _MOST_STRATA:
            known = sorted((*self.strata.get(stratum, ()), *found))
            self.strata[stratum] = _different(known)[: ROWS + AUDITED]

    def rows(self, most: int) -> list[int]:
        """So many rows, spread over scales and sizes, the highest and the lowest scale first."""
        names = sorted(self.strata)
        places = np.unique(np.linspace(0, len(names) - 1, min(most, len(names))).round())
        picked = [names[int(place)] for place in places]
        columns = [self.strata[name] for name in (picked[-1], *picked[:-1])]
        in_turn = [c for c in chain.from_iterable(zip_longest(*columns)) if c is not None]
        return [candidate.row for candidate in _different(in_turn)][:most]


def _different(candidates: Sequence[Candidate]) -> list[Candidate]:
    """In this order, without those that draw the same, and with a prompt for the second time only
    behind all others."""
    once = {c.drawn: c for c in reversed(candidates)}
    kept = [c for c in candidates if once[c.drawn] is c]
    first = {c.prompt: c for c in reversed(kept)}
    repeats = [first[c.prompt] is not c for c in kept]
    return [c for _, c in sorted(zip(repeats, kept, strict=True), key=lambda pair: pair[0])]


def find_pilots(
    job: JobConfig,
    weights: str,
    manifest: Manifest,
    defaults: Defaults,
    costs: CostModel,
    earlier: Earlier,
    intake: Intake,
) -> tuple[Pilot, ...]:
    """The pilots that the rows of a manifest call for. None for a manifest with illegal rows: it is
    refused by who plans it. ConfigError where too few rows ask for the same, if they need it or
    none gets a fit."""
    sums, problems, first, served = CacheSums(job, weights, earlier), Problems(), 0, False
    groups: dict[Group, Lacking] = {}
    wanted = [name for name in manifest.columns if name in REQUEST_COLUMNS]
    for batch in manifest.batches(wanted):
        rows = resolve_rows(batch, first, defaults, problems, intake)
        first += len(rows)
        if problems.count:
            return ()
        found = sums.look_up(rows, problems)
        if found is not None:
            served = served or any(alike.table for alike in found.alike)
            _note(job, groups, rows, found)
    pilots = [_pilot(job, costs, group, lacking) for group, lacking in groups.items()]
    enough = [pilot for pilot in pilots if len(pilot.rows) >= pilot.fewest]
    for pilot in pilots:
        needed = strategy(pilot.strategy).FACTS.table == "needed"
        if pilot not in enough and (needed or not (enough or served)):
            raise ConfigError(_too_few(pilot))
    return tuple(enough)


def _too_few(pilot: Pilot) -> str:
    key = "min_psnr_db" if pilot.judges else "calibrate"
    return (
        f"system.cache.{key}: {len(pilot.rows)} rows ask for {pilot}; a fit needs {pilot.fewest} "
        "different ones, which are drawn without a cache; add some, or leave the key out"
    )


def _note(
    job: JobConfig, groups: dict[Group, Lacking], rows: ResolvedRows, found: CachedRows
) -> None:
    """Add what the rows of a batch lack."""
    for code, alike in enumerate(found.alike):
        at = np.flatnonzero(found.place == code) if alike.lacks else np.zeros(0, np.int64)
        if len(at):
            group, stratum = _place(job, rows, int(at[0]), alike)
            lacking = groups.setdefault(group, Lacking())
            lacking.ratios.update(alike.lacks)
            lacking.count += len(at)
            some = np.unique(np.linspace(0, len(at) - 1, min(_LOOKED_AT, len(at))).astype(int))
            lacking.add(stratum, list(_candidates(rows, at[some])))


def _place(job: JobConfig, rows: ResolvedRows, row: int, alike: Alike) -> tuple[Group, Stratum]:
    spec = family_spec(job.model.family)
    values = {name: rows.column(name)[row].as_py() for name in SCALES}
    size = (rows.column(name)[row].as_py() for name in ("width", "height", "num_frames"))
    bucket = str(Bucket(*size))
    branches = int(spec.branches(job.model, cast(Scales, SimpleNamespace(**values))))
    sized = bucket if is_sized(job) else ""
    group = Group(alike.settings.strategy, alike.told[2], branches, sized)
    return group, (tuple(-1.0 if v is None else float(v) for v in values.values()), bucket)


def _candidates(rows: ResolvedRows, at: np.ndarray) -> Iterator[Candidate]:
    taken = pa.array(at)
    columns = (rows.column(name).take(taken).to_pylist() for name in ("row_id", "prompt", "seed"))
    for row, (row_id, prompt, seed) in zip(at.tolist(), zip(*columns, strict=True), strict=True):
        rank = hashlib.sha256(row_id.encode()).digest()
        yield Candidate(rank, rows.first_row + row, prompt, seed)


def is_sized(job: JobConfig) -> bool:
    """Whether the model's schedule depends on a row's size."""
    return not family_spec(job.model.family).capabilities(job.model).sigma_shift


def _pilot(job: JobConfig, costs: CostModel, group: Group, lacking: Lacking) -> Pilot:
    judged = job.system.cache.min_psnr_db is not None and group.strategy == planned.NAME
    fewest = FEWEST + JUDGES if judged else FEWEST
    most = ROWS + AUDITED if judged else ROWS
    rows = lacking.rows(min(most, max(fewest, lacking.count // 2)))  # a cache is for the others
    scales = [scale[0] for scale, _ in lacking.strata]
    audited = min(AUDITED, len(rows) // 3) if judged else 0
    pilot = Pilot(
        strategy=group.strategy,
        rows=tuple(rows),
        audited=audited,
        ratios=tuple(sorted(lacking.ratios)),
        sized=bool(group.bucket),
        num_steps=group.num_steps,
        branches=group.branches,
        guidance=(min(scales), max(scales)),
        layers=family_spec(job.model.family).layers(job.model),
        judges=judged,
    )
    buckets = [Bucket.parse(name) for _, name in lacking.strata]
    forward = float(np.mean([costs.bucket(bucket).forward for bucket in buckets]))
    return replace(pilot, cost_s=pilot.fits * forward)
