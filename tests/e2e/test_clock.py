"""The clock of a machine is set while a rank draws: what a run is said to have cost stays true."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest
from cli_calls import AT_ONCE, NULL, JobFolder, rows_of

from batchgen.ledger.status import read_status

# A judge is called in the rank: from its second row on that one has another time.
SETS_THE_CLOCK = """\
import time

real = time.time


def judge(frames, request, *, hours):
    if request.row_id == "row-001":
        time.time = lambda: real() + 3600 * hours
    return 1.0
"""


@pytest.mark.parametrize("hours", [-3.0, 30.0])
def test_a_clock_that_is_set_costs_nothing(
    hours: float, new_job_folder: Callable[..., JobFolder]
) -> None:
    made: JobFolder = new_job_folder(5)
    (made.folder / "clock.py").write_text(SETS_THE_CLOCK)
    judge = f'output.judges=[{{call: "clock:judge", params: {{hours: {hours}}}}}]'
    done = made.run(NULL, judge, "system.max_gpu_hours=1", env=AT_ONCE)
    assert done.code == 0, done.err
    assert "are spent" not in done.err
    rows = rows_of(done.run)
    assert rows.latency_s.between(0, 60).all(), rows.latency_s.tolist()
    assert rows.ended.max() - rows.ended.min() > 3600, "the clock was set"
    (attempt,) = read_status(done.run).attempts
    assert 0 < attempt.wall_s < 60
    assert pd.read_parquet(done.run.catalog_runs).wall_s.between(0.001, 60).all()
