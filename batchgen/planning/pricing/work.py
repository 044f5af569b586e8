"""The rows that are to be drawn, as far as layouts are priced by them: sums by shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pyarrow as pa

from batchgen.caches.audit import audited
from batchgen.caches.strategy import NONE
from batchgen.config.schema import ModelSpec
from batchgen.families.family import Scales, family_spec
from batchgen.loras import LoraFile
from batchgen.planfile import own_parquet, reading
from batchgen.planning.store import BucketForecast, Plan, read_loras
from batchgen.request import FIELDS, MODEL_FIELDS, Bucket

_SCALES = tuple(field.name for field in MODEL_FIELDS if field.kind == "number")
_COLUMNS = ("bucket", "num_steps", "steps_expected", "cache_strategy", "image", *_SCALES)


@dataclass(frozen=True, slots=True)
class Work:
    """The rows of one shape."""

    bucket: Bucket
    rows: int
    steps: int  # of the solver, over all rows, without those that caches skip, with audits'
    evaluations: int  # forwards of one item, over all rows, steps and branches, with audits'
    caches: tuple[str, ...] = ()  # strategies of rows, by name
    adapted: int = 0  # numbers in all LoRA files of the plan, which are there from set-up
    illustrated: int = 0  # rows that are given images
    most_steps: int = 0  # of the solver, of any row; 0: they are alike

    @property
    def longest(self) -> int:
        """Steps of the row that has most."""
        return self.most_steps or ceil(self.steps / self.rows)

    @property
    def branches(self) -> float:
        """Mean forwards of a step."""
        return self.evaluations / self.steps if self.steps else 1.0  # rows that are only decoded

    @property
    def most_branches(self) -> int:
        """Of the row that has most: no family has more than two."""
        return 1 + (self.branches > 1)


def planned_work(plan: Plan) -> list[Work]:
    """All rows of a plan."""
    adapted = _values(plan.loras)
    return [_planned(bucket, adapted) for bucket in plan.buckets]


def _planned(b: BucketForecast, adapted: int) -> Work:
    steps = b.steps or b.evaluations
    again = round(b.audit_evaluations * steps / max(1, b.evaluations))
    evaluations = b.evaluations + b.audit_evaluations
    return Work(
        b.bucket,
        b.rows,
        steps + again,
        evaluations,
        b.caches,
        adapted,
        b.illustrated,
        b.most_steps,
    )


def _values(loras: Mapping[str, LoraFile]) -> int:
    return sum(file.values for file in loras.values())


def read_work(plan: Path, rows: np.ndarray, model: ModelSpec, audit_every: int = 0) -> list[Work]:
    """Some rows of a plan. One of `audit_every` rows with a cache is drawn without it too. The plan
    is read piece by piece, so that memory does not grow with it."""
    found: dict[str, _Sums] = {}
    wanted = [*_COLUMNS, *(["row_key"] if audit_every else [])]
    left = np.sort(rows)
    with reading(plan):
        file, first = own_parquet(plan), 0
        there = [name for name in wanted if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=there):
            begin, end = np.searchsorted(left, [first, first + len(batch)])
            mine = batch.take(pa.array(left[begin:end] - first))
            if len(mine):
                _add(found, mine, model, audit_every)
            first += len(batch)
    adapted = _values(read_loras(plan))
    return [_work(Bucket.parse(name), found[name], adapted) for name in sorted(found)]


@dataclass(slots=True)
class _Sums:
    """Of the rows of one shape so far."""

    parts: np.ndarray  # rows, steps, evaluations, rows with images
    caches: set[str]
    most_steps: int = 0


def _add(found: dict[str, _Sums], part: pa.RecordBatch, model: ModelSpec, audit_every: int) -> None:
    """Add some rows of a plan to the sums of their shapes."""

    def column(name: str) -> np.ndarray:
        if name not in part.schema.names:  # the plan is older than the field
            return np.full(len(part), FIELDS[name].default)
        values: np.ndarray = part[name].to_numpy(zero_copy_only=False)
        return values

    branches = family_spec(model.family).branches(model, scales_of(column))
    evaluations = whole = column("num_steps") * branches
    if "steps_expected" in part.schema.names:
        evaluations = column("steps_expected")
    caches = column("cache_strategy")
    if audit_every:
        evaluations = evaluations + whole * _audits(caches != NONE, column("row_key"), audit_every)
    given = np.array([image is not None for image in column("image")])
    sums = np.stack([np.ones(len(part)), evaluations / branches, evaluations, given])
    names, inverse = np.unique(column("bucket").astype(str), return_inverse=True)
    for at, name in enumerate(names.tolist()):
        mine = found.setdefault(name, _Sums(np.zeros(4), set()))
        mine.parts += sums[:, inverse == at].sum(1)
        mine.most_steps = max(mine.most_steps, int(column("num_steps")[inverse == at].max()))
        mine.caches |= {*np.unique(caches[inverse == at].astype(str)).tolist()}


def _work(bucket: Bucket, sums: _Sums, adapted: int) -> Work:
    """`adapted`: values of the adapters that rows may have."""
    rows, steps, evaluations, given = (round(float(part)) for part in sums.parts)
    caches = tuple(sorted(sums.caches - {NONE}))
    return Work(bucket, rows, steps, evaluations, caches, adapted, given, sums.most_steps)


def _audits(cached: np.ndarray, keys: np.ndarray, every: int) -> np.ndarray:
    """Whether rows, of which these are under a cache, are audited."""
    found = cached.copy()
    found[found] = [audited(key, every) for key in keys[found].tolist()]
    return found


def scales_of(column: Callable[[str], np.ndarray]) -> Scales:
    """The guidance of rows as arrays, for a family that counts their branches."""
    return cast(Scales, SimpleNamespace(**{name: column(name) for name in _SCALES}))
