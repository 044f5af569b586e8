"""The rows that are to be drawn, as far as layouts are priced by them: sums by shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from batchgen.planfile import open_parquet, reading
from batchgen.planning.store import BucketForecast, Plan, read_loras
from batchgen.request import FIELDS, MODEL_FIELDS, Bucket

_SCALES = tuple(field.name for field in MODEL_FIELDS if field.kind == "number")


@dataclass(frozen=True, slots=True)
class Work:
    """The rows of one shape."""

    bucket: Bucket
    rows: int
    steps: int  # of the solver, over all rows, without those that caches skip, with audits'
    evaluations: int  # forwards of one item, over all rows, steps and branches, with audits'
    caches: tuple[str, ...] = ()  # strategies of rows, by name
    adapted: int = 0  # numbers in all LoRA files of the plan, which are there from set-up

    @property
    def branches(self) -> float:
        """Mean forwards of a step."""
        return self.evaluations / self.steps


def planned_work(plan: Plan) -> list[Work]:
    """All rows of a plan."""
    adapted = _values(plan.loras)
    return [_planned(bucket, adapted) for bucket in plan.buckets]


def _planned(b: BucketForecast, adapted: int) -> Work:
    steps = b.steps or b.evaluations
    again = round(b.audit_evaluations * steps / max(1, b.evaluations))
    evaluations = b.evaluations + b.audit_evaluations
    return Work(b.bucket, b.rows, steps + again, evaluations, b.caches, adapted)


def _values(loras: Mapping[str, LoraFile]) -> int:
    return sum(file.values for file in loras.values())


def read_work(plan: Path, rows: np.ndarray, model: ModelSpec, audit_every: int = 0) -> list[Work]:
    """Some rows of a plan. One of `audit_every` rows with a cache is drawn without it too."""
    with reading(plan):
        file = open_parquet(plan)
        wanted = ("bucket", "num_steps", "steps_expected", "cache_strategy", "row_key", *_SCALES)
        there = [name for name in wanted if name in file.schema_arrow.names]
        table = file.read(columns=there).take(pa.array(rows))

    def column(name: str) -> np.ndarray:
        older = name not in there  # than the field
        return np.full(len(rows), FIELDS[name].default) if older else table[name].to_numpy()

    branches = family_spec(model.family).branches(model, scales_of(column))
    evaluations = whole = table["num_steps"].to_numpy() * branches
    if "steps_expected" in there:
        evaluations = table["steps_expected"].to_numpy()
    caches = column("cache_strategy")
    evaluations = evaluations + whole * _audits(caches != NONE, column("row_key"), audit_every)
    sums = np.stack([np.ones(len(rows)), evaluations / branches, evaluations])
    names, inverse = np.unique(table["bucket"].to_numpy(), return_inverse=True)
    adapted = _values(read_loras(plan))
    return [
        _work(Bucket.parse(name), sums[:, inverse == at], caches[inverse == at], adapted)
        for at, name in enumerate(names.tolist())
    ]


def _work(bucket: Bucket, sums: np.ndarray, caches: np.ndarray, adapted: int) -> Work:
    """Of the rows of one shape: ones, steps and evaluations of each; strategies."""
    rows, steps, evaluations = (round(float(part)) for part in sums.sum(1))
    return Work(bucket, rows, steps, evaluations, tuple(sorted({*caches} - {NONE})), adapted)


def _audits(cached: np.ndarray, keys: np.ndarray, every: int) -> np.ndarray:
    """Whether rows, of which these are under a cache, are audited."""
    found = cached.copy() if every else np.zeros(len(cached), bool)
    found[found] = [audited(key, every) for key in keys[found].tolist()]
    return found


def scales_of(column: Callable[[str], np.ndarray]) -> Scales:
    """The guidance of rows as arrays, for a family that counts their branches."""
    return cast(Scales, SimpleNamespace(**{name: column(name) for name in _SCALES}))
