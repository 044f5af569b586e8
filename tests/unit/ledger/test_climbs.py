"""Climbs of the memory ladder: durable, and known to later attempts on a device of that name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from run_folder import RunFolder

from batchgen.ledger import journal as journal_module
from batchgen.ledger.climbs import climbs_before, steepest
from batchgen.ledger.reading.scan import index_commits
from batchgen.ledger.restarts import fence_restart
from batchgen.ledger.status import read_status
from batchgen.records import Attempt, Climb

CARD = "NVIDIA H100"
FOUR, TWO = (Climb("smaller", "denoise", "32x32x5", n) for n in (4, 2))
OTHER, DECODE = Climb("smaller", "denoise", "64x64x5", 3), Climb("smaller", "decode", "32x32x5", 4)
MODEL, STREAM = Climb("model", "load"), Climb("stream", "denoise")


def test_the_smallest_pack_of_each_kind_counts() -> None:
    """Before weights left the device, and behind that."""
    found = steepest([FOUR, OTHER, TWO, MODEL, Climb("model", "decode"), DECODE, FOUR])
    assert found == (TWO, OTHER, MODEL, DECODE, FOUR)
    assert steepest([*found, STREAM, OTHER, TWO]) == (*found, STREAM, OTHER, TWO)


def test_later_attempts_know_on_such_a_device(make_run_folder: Callable[..., RunFolder]) -> None:
    """A restart of the task by its fence, whatever ended the start before; the next submission, of
    any task, by its intent."""
    run_folder = make_run_folder(4)
    run, number = run_folder.run, run_folder.submit()
    killed = run_folder.journal(number, card="1")
    for climb in (FOUR, MODEL):
        killed.climbed(climb)
    restarted = Attempt(number, 0, 1, 0)
    assert climbs_before(run, Attempt(number, 0, 0, 0), CARD) == ()
    fence_restart(run, restarted)
    assert {*climbs_before(run, restarted, CARD)} == {FOUR, MODEL}
    assert climbs_before(run, restarted, "NVIDIA A10") == ()
    with run_folder.journal(number, restart=1, card="1") as second:
        second.climbed(TWO)
        second.climbed(STREAM)
    killed.close()
    later = Attempt(run_folder.submit(), 7, 0, 0)
    assert climbs_before(run, later, CARD) == (FOUR, MODEL, TWO, STREAM)
    assert climbs_before(run, later, "NVIDIA A10") == ()


@pytest.mark.parametrize("followed", [True, False])
def test_a_climb_is_synced_and_shown(
    followed: bool, make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by the writer, or by a reader of lines after the counters were written."""
    monkeypatch.setattr(journal_module, "COUNTERS_EVERY_S", 1e9 if followed else 0.0)
    synced = []
    monkeypatch.setattr(journal_module.os, "fsync", synced.append)
    run_folder = make_run_folder(1)
    journal = run_folder.journal(run_folder.submit(), card="1")
    before = len(synced)
    journal.climbed(STREAM)
    journal.climbed(FOUR)  # is no way down
    assert len(synced) == before + 2
    assert [a.memory_rung for a in read_status(run_folder.run).attempts] == ["stream"]
    (facts,) = index_commits(run_folder.run).journals
    assert facts.climbs == [STREAM, FOUR] and not facts.bad_lines
