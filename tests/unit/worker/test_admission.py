"""Near the wall-time limit only rows are begun that fit."""

from __future__ import annotations

from dataclasses import replace

from planned_run import row

from batchgen.records import RowStats, StageSeconds
from batchgen.worker.admission import Admission


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def stats(busy_s: float, computed: float = 10.0) -> RowStats:
    stages = StageSeconds(queue=99.0, encode=busy_s / 4, denoise=busy_s / 2, decode=busy_s / 4)
    return RowStats(stages=stages, steps_total=10, steps_computed=computed)


def test_without_a_limit_every_row_is_begun() -> None:
    admission = Admission(None, Clock())
    assert all(admission.admits(row(i, cost_s=1e9)) for i in range(3))
    assert admission.declined == 0


def test_rows_that_do_not_fit_are_left_and_smaller_ones_begun() -> None:
    """What is taken and not done yet counts: rows in flight share the device."""
    clock = Clock()
    admission = Admission(1100.0, clock)
    answers = [admission.admits(row(i, cost_s=cost)) for i, cost in enumerate((60, 50, 30, 20, 9))]
    assert answers == [True, False, True, False, True]
    assert admission.declined == 2
    clock.now = 1050.0  # the same work is still ahead until 1099
    assert not admission.admits(row(9, cost_s=5))


def test_the_measured_pace_counts() -> None:
    clock = Clock()
    admission = Admission(1100.0, clock)
    assert admission.admits(row(0, cost_s=10))
    clock.now = 1030.0
    admission.rendered(row(0, cost_s=10), stats(30.0))  # three times the predicted seconds
    assert not admission.admits(row(1, cost_s=24))
    assert admission.admits(row(2, cost_s=23))
    admission.rendered(row(2, cost_s=23), stats(23.0, computed=3.0))  # restored: 3 of 10 steps
    assert not admission.admits(row(3, cost_s=23))
    assert admission.admits(row(3, cost_s=21))


def test_the_pace_is_that_of_the_evaluations_that_were_expected() -> None:
    """A cache that computes half of the steps costs half, as was predicted."""
    clock = Clock()
    admission = Admission(1100.0, clock)
    cached = replace(row(0, cost_s=10), steps_expected=5.0)
    assert admission.admits(cached)
    admission.rendered(cached, stats(10.0, computed=5.0))
    assert admission.admits(row(1, cost_s=99))


def test_a_replica_of_several_ranks_is_faster_than_costs_say() -> None:
    clock = Clock()
    admission = Admission(1100.0, clock, speed=6.0)
    answers = [admission.admits(row(i, cost_s=240)) for i in range(3)]  # 40 s each
    assert answers == [True, True, False]
    clock.now = 1050.0
    admission.rendered(row(0, cost_s=240), stats(50.0))  # 1.25 times what was predicted
    admission.dropped(row(1))
    assert not admission.admits(row(2, cost_s=246))
    assert admission.admits(row(3, cost_s=234))


def test_a_row_too_long_for_any_attempt_is_begun_by_a_fresh_one() -> None:
    """It is saved at the signal and goes on in the next attempt."""
    admission = Admission(1010.0, Clock())
    assert admission.admits(row(0, cost_s=3600))
    assert not admission.admits(row(1, cost_s=3600))
    admission.dropped(row(0))
    assert admission.admits(row(1, cost_s=3600))
    admission.rendered(row(1), stats(1.0))
    assert not admission.admits(row(2, cost_s=3600))


def test_a_row_that_goes_on_is_charged_what_is_left_of_it() -> None:
    """3000 s, saved at nine tenths, 500 s to go; behind it there is room for 200 s more."""
    left = {1: 0.1}
    admission = Admission(1500.0, Clock(), lambda request: left.get(request.row_index, 1.0))
    admission.rendered(row(9), stats(0.1))
    assert not admission.admits(row(0, cost_s=3000))
    assert admission.admits(row(1, cost_s=3000))
    assert not admission.admits(row(2, cost_s=201))
    assert admission.admits(row(3, cost_s=199))
