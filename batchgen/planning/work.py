"""The rows that are to be drawn, as far as layouts are priced by them: sums by shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pyarrow as pa

from batchgen.config.schema import ModelSpec
from batchgen.families.family import Scales, family_spec
from batchgen.planfile import open_parquet, reading
from batchgen.planning.store import BucketForecast
from batchgen.request import FIELDS, MODEL_FIELDS, Bucket

_SCALES = tuple(field.name for field in MODEL_FIELDS if field.kind == "number")


@dataclass(frozen=True, slots=True)
class Work:
    """The rows of one shape."""

    bucket: Bucket
    rows: int
    steps: int  # of the solver, over all rows, without those that caches skip
    evaluations: int  # forwards of one item, over all rows, steps and branches

    @property
    def branches(self) -> float:
        """Mean forwards of a step."""
        return self.evaluations / self.steps


def planned_work(buckets: Iterable[BucketForecast]) -> list[Work]:
    """All rows of a plan."""
    return [Work(b.bucket, b.rows, b.steps or b.evaluations, b.evaluations) for b in buckets]


def read_work(plan: Path, rows: np.ndarray, model: ModelSpec) -> list[Work]:
    """Some rows of a plan."""
    with reading(plan):
        file = open_parquet(plan)
        wanted = ("bucket", "num_steps", "steps_expected", *_SCALES)
        there = [name for name in wanted if name in file.schema_arrow.names]
        table = file.read(columns=there).take(pa.array(rows))

    def column(name: str) -> np.ndarray:
        older = name not in there  # than the field
        return np.full(len(rows), FIELDS[name].default) if older else table[name].to_numpy()

    branches = family_spec(model.family).branches(model, scales_of(column))
    evaluations = table["num_steps"].to_numpy() * branches
    if "steps_expected" in there:
        evaluations = table["steps_expected"].to_numpy()
    steps = evaluations / branches
    names, inverse = np.unique(table["bucket"].to_numpy(), return_inverse=True)
    sums = [np.bincount(inverse, weights=weights) for weights in (None, steps, evaluations)]
    return [
        Work(Bucket.parse(name), *(round(float(part[at])) for part in sums))
        for at, name in enumerate(names.tolist())
    ]


def scales_of(column: Callable[[str], np.ndarray]) -> Scales:
    """The guidance of rows as arrays, for a family that counts their branches."""
    return cast(Scales, SimpleNamespace(**{name: column(name) for name in _SCALES}))
