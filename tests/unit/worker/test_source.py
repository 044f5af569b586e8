"""Which rows a rank takes from its shard's queue, and which it leaves to others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from planned_run import PlannedRun, plan_run

from batchgen.engine.contract import never
from batchgen.records import Attempt, RankInfo, RowStats
from batchgen.worker.admission import Admission
from batchgen.worker.source import RowStart, ShardSource, open_source
from batchgen.worker.states import RowStates


@contextmanager
def source(
    planned_run: PlannedRun, rank: int, left_s: float, stop: Callable[[], bool] = never
) -> Iterator[ShardSource]:
    """One of two ranks of the first submission, `left_s` before its limit."""
    info = RankInfo(rank, 2, 0, 0, 0, f"node{rank}")
    start = RowStart(info.host, RowStates(planned_run.run, 20, "strict", "none"))
    admission = Admission(time.time() + left_s)
    with open_source(
        planned_run.run, Attempt(1, 0, 0, rank), info, admission, start, stop, 2
    ) as opened:
        yield opened


def test_rows_that_do_not_fit_behind_the_own_ones_are_left_to_an_idle_rank(tmp_path: Path) -> None:
    """Rows of 10 s, 15 s to go: each of two ranks can do one of the twenty."""
    planned_run = plan_run(tmp_path, [1000] * 20)
    planned_run.begin(range(20))
    with source(planned_run, 0, 15) as first, source(planned_run, 1, 15) as second:
        (mine,) = first.take(8)
        assert first.take(8) == [] and first.held_back
        (other,) = second.take(8)
        assert mine.row_index < other.row_index
        first.admission.rendered(mine, RowStats())
        (third,) = first.take(8)  # it took no time: there are 15 s again
        assert other.row_index < third.row_index and not first.held_back


def test_an_idle_rank_looks_for_a_row_that_fits_to_the_end_of_the_queue(tmp_path: Path) -> None:
    planned_run = plan_run(tmp_path, [1, *[1000] * 18, 5])
    planned_run.begin(range(20))
    with source(planned_run, 0, 7) as rank, source(planned_run, 1, 7):
        (short,) = rank.take(1)
        assert rank.take(8) == [] and rank.held_back
        rank.admission.rendered(short, RowStats())
        assert [row.row_index for row in rank.take(8)] == [19]
