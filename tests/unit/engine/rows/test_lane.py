"""The finishing lane: order, back-pressure, errors; its thread always ends."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from batchgen.engine.rows.lane import Lane


def lanes() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "batchgen-finish"]


@pytest.mark.parametrize("overlap", [True, False])
def test_jobs_are_done_in_order_before_the_lane_closes(overlap: bool) -> None:
    done: list[int] = []
    with Lane[int](done.extend, overlap=overlap) as lane:
        for job in range(50):
            lane.put(job)
    assert done == list(range(50))
    assert lanes() == []


def test_work_happens_on_one_other_thread_or_on_the_caller() -> None:
    names: set[str] = set()

    def note(jobs: Sequence[int]) -> None:
        names.add(threading.current_thread().name)

    for overlap, expected in ((True, {"batchgen-finish"}), (False, {"MainThread"})):
        names.clear()
        with Lane[int](note, overlap=overlap) as lane:
            lane.put(1)
            lane.put(2)
        assert names == expected


@pytest.mark.parametrize("overlap", [True, False])
def test_every_job_done_is_a_sign_of_life(overlap: bool) -> None:
    signs: list[int] = []
    done: list[int] = []
    with Lane[int](done.extend, overlap=overlap, moved=lambda: signs.append(len(done))) as lane:
        for job in range(5):
            lane.put(job)
        lane.drain()
        assert signs == [1, 2, 3, 4, 5]


def test_a_full_queue_makes_the_caller_wait() -> None:
    gate, done = threading.Event(), []

    def slow(jobs: Sequence[int]) -> None:
        gate.wait(10)
        done.extend(jobs)

    with Lane[int](slow, overlap=True, depth=2) as lane:
        for job in range(3):
            lane.put(job)  # one in work, two waiting
        late = threading.Thread(target=lane.put, args=(3,))
        late.start()
        late.join(0.1)
        assert late.is_alive()
        gate.set()
        late.join(10)
        lane.drain()
        assert done == [0, 1, 2, 3]


@pytest.mark.parametrize("overlap", [True, False])
def test_an_error_reaches_the_caller_and_ends_the_work(overlap: bool) -> None:
    done: list[int] = []

    def work(jobs: Sequence[int]) -> None:
        if 3 in jobs:
            raise OSError("disk full")
        done.extend(jobs)

    with pytest.raises(OSError, match="disk full"), Lane[int](work, overlap=overlap) as lane:
        for job in range(1000):
            lane.put(job)
    assert done == [0, 1, 2]
    assert lanes() == []


def test_a_late_error_is_raised_when_the_lane_closes() -> None:
    put = threading.Event()

    def work(jobs: Sequence[int]) -> None:
        assert put.wait(10)
        raise OSError("late")

    with pytest.raises(OSError, match="late"), Lane[int](work, overlap=True) as lane:
        lane.put(1)
        put.set()
    assert lanes() == []


def test_jobs_are_dropped_when_the_caller_fails() -> None:
    """A caller on its way out with an exception does not wait for a queue of slow work."""
    gate, done = threading.Event(), []

    def slow(jobs: Sequence[int]) -> None:
        gate.wait(10)
        done.extend(jobs)

    with pytest.raises(KeyboardInterrupt), Lane[int](slow, overlap=True) as lane:
        for job in range(4):
            lane.put(job)
        threading.Timer(0.05, gate.set).start()
        raise KeyboardInterrupt
    assert done in ([0], [])
    assert lanes() == []


def test_jobs_that_wait_are_worked_on_together() -> None:
    """As many as are asked for; what comes at once is seen at once."""
    gate, packs = threading.Event(), []

    def work(jobs: Sequence[int]) -> None:
        gate.wait(10)
        packs.append([*jobs])

    def pairs_of_a_ten(waiting: Sequence[int]) -> int:
        return len([job for job in [*waiting][:2] if job // 10 == waiting[0] // 10])

    with Lane[int](work, overlap=True, together=pairs_of_a_ten) as lane:
        lane.put(1)
        lane.put(2, 3, 4, 11, 12, 13, 21)  # more than the depth, all at once
        gate.set()
        lane.drain()
    assert [job for pack in packs for job in pack] == [1, 2, 3, 4, 11, 12, 13, 21]
    assert [11, 12] in packs and [21] in packs and all(len(pack) <= 2 for pack in packs)


def test_the_serial_twin_works_one_by_one() -> None:
    packs: list[list[int]] = []
    with Lane[int](packs.append, overlap=False, together=len) as lane:
        lane.put(1, 2)
    assert packs == [[1], [2]]
