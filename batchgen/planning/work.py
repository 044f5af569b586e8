"""The rows that are to be drawn, as far as layouts are priced by them: sums by shape."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from batchgen.config.schema import ModelSpec
from batchgen.families.family import family_spec
from batchgen.planfile import open_parquet, reading
from batchgen.planning.store import BucketForecast
from batchgen.records import Bucket

_COLUMNS = ("bucket", "num_steps", "guidance_scale", "true_cfg_scale")


@dataclass(frozen=True, slots=True)
class Work:
    """The rows of one shape."""

    bucket: Bucket
    rows: int
    steps: int  # of the solver, over all rows
    evaluations: int  # forwards of one item, over all rows, steps and branches

    @property
    def branches(self) -> float:
        """Mean forwards of a step."""
        return self.evaluations / self.steps


@dataclass(frozen=True, slots=True)
class _Guidance:
    """See `families.family.Scales`."""

    guidance_scale: np.ndarray
    true_cfg_scale: np.ndarray


def planned_work(buckets: Iterable[BucketForecast]) -> list[Work]:
    """All rows of a plan."""
    return [Work(b.bucket, b.rows, b.steps or b.evaluations, b.evaluations) for b in buckets]


def read_work(plan: Path, rows: np.ndarray, model: ModelSpec) -> list[Work]:
    """Some rows of a plan."""
    with reading(plan):
        file = open_parquet(plan)
        there = [name for name in _COLUMNS if name in file.schema_arrow.names]
        table = file.read(columns=there).take(pa.array(rows))
    steps = table["num_steps"].to_numpy()
    scales = _Guidance(
        table["guidance_scale"].to_numpy(),
        # an older plan lacks it
        table["true_cfg_scale"].to_numpy() if "true_cfg_scale" in there else np.ones(len(table)),
    )
    evaluations = steps * family_spec(model.family).branches(model, scales)
    names, inverse = np.unique(table["bucket"].to_numpy(), return_inverse=True)
    sums = [np.bincount(inverse, weights=weights) for weights in (None, steps, evaluations)]
    return [
        Work(Bucket.parse(name), *(int(part[at]) for part in sums))
        for at, name in enumerate(names.tolist())
    ]
