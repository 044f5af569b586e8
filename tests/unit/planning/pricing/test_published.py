"""The time model, told what one GPU takes, against what engines published for 2 to 16."""

from __future__ import annotations

import pytest
from packaged_jobs import job_of
from published import HELD, REPORTED, Run, Table

from batchgen.config.schema import ModelSpec
from batchgen.planning.pricing.cost import CostModel
from batchgen.planning.pricing.timemodel import (
    Shape,
    SharedForward,
    exchange_seconds,
    shape_of,
    wires_of,
)

NODE = 8  # GPUs
HELD_TO = 0.15


def model_of(name: str) -> ModelSpec:
    return job_of(f"model={name}").model


def shape_and_rest(table: Table) -> tuple[Shape, float]:
    """The shape of an item, and the seconds that are not shared: text and decoding."""
    if isinstance(table.model, Shape):
        return table.model, 0.0
    model = model_of(table.model)
    seconds = CostModel(model, table.device).bucket(table.bucket)
    rest = seconds.encode + seconds.decode if table.whole else 0.0
    return shape_of(model, table.bucket, "bfloat16"), rest


def predicted(table: Table, run: Run) -> float:
    shape, rest = shape_and_rest(table)
    wires = wires_of(table.device, NODE)
    alone = (table.alone_s - rest) / table.evaluations
    forward = SharedForward(shape, alone, run.ulysses, run.ring, wires)
    told = exchange_seconds(shape, run.cfg, run.gpus, wires)
    return table.evaluations * (forward.seconds() + told) / run.cfg + rest


def differences(table: Table) -> list[float]:
    """Predicted over published, less one, of each run; printed for who looks (`pytest -s`)."""
    print(f"\n{table.source}: {table.alone_s:g} s on one GPU")
    found = []
    for run in table.runs:
        seconds = predicted(table, run)
        found.append(seconds / run.seconds - 1)
        degrees = f"cfg {run.cfg} x ulysses {run.ulysses} x ring {run.ring}"
        print(f"  {degrees}: {run.seconds:g} s, predicted {seconds:.4g} s ({found[-1]:+.1%})")
    return found


@pytest.mark.parametrize("table", HELD, ids=lambda table: table.source)
def test_published_times_of_wan_are_predicted(table: Table) -> None:
    assert max(map(abs, differences(table))) <= HELD_TO


@pytest.mark.parametrize("table", REPORTED, ids=lambda table: table.source)
def test_times_of_other_engines_are_reported(table: Table) -> None:
    """How far they are is printed; none is faster than as many GPUs could be without a loss."""
    assert differences(table)
    for run in table.runs:
        assert table.alone_s / run.gpus < predicted(table, run) < table.alone_s
