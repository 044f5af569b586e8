"""A submission whose intent is gone: every verb says the same, and a repair goes on from there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from run_folder import RunFolder

from batchgen import catalog
from batchgen.catalog.collect import collect
from batchgen.catalog.verify import verify
from batchgen.errors import RunStateError
from batchgen.ledger import intent as intent_module
from batchgen.ledger.events import End
from batchgen.ledger.status import read_status
from batchgen.runner.resume import prepare_resume
from batchgen.runner.submit import submit


@pytest.fixture
def lost(make_run_folder: Callable[..., RunFolder]) -> RunFolder:
    """Two submissions of a row each; nothing is at work."""
    run_folder = make_run_folder(3)
    for number, row in ((1, 0), (2, 1)):
        assert run_folder.submit([row]) == number
        with run_folder.journal(number) as journal:
            run_folder.render(journal, row)
            journal.end(End(reason="done"))
    return run_folder


@pytest.mark.parametrize("numbers", [[2], [1, 2]])
def test_every_verb_names_it_and_a_repair_draws_the_line_anew(
    lost: RunFolder, numbers: list[int]
) -> None:
    run = lost.run
    for number in numbers:
        run.intent(number).unlink()
    lost.age()
    for verb in (
        read_status,
        collect,
        submit,
        lambda run: catalog.snapshot(run.root),
        lambda run: prepare_resume(run, [], rerender_changed=False),
    ):
        with pytest.raises(RunStateError, match=r"submissions/0002/intent\.json is gone"):
            verb(run)
    damage = [(damage.kind, damage.path) for damage in verify(run).damage]
    assert damage == [("lost", f"submissions/{n:04d}/intent.json") for n in numbers]
    report = verify(run, repair=True)
    assert (report.is_sound, report.voided, report.submission) == (True, 0, 3)
    assert collect(run).ok == read_status(run).ok == 2
    assert verify(run).findings == ()


def test_an_earlier_one_is_not_needed(lost: RunFolder) -> None:
    """All that counts of it is in the later one; that it is gone is told."""
    lost.run.intent(1).unlink()
    assert collect(lost.run).ok == read_status(lost.run).ok == 2
    assert [damage.path for damage in verify(lost.run).damage] == ["submissions/0001/intent.json"]


def test_one_that_comes_late_is_waited_for(
    lost: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine has begun it: here the journals are seen first."""
    path = lost.run.intent(2)
    hidden = path.rename(path.with_name("hidden"))
    monkeypatch.setattr(intent_module.time, "sleep", lambda seconds: hidden.rename(path))
    assert read_status(lost.run).ok == 2


def test_a_submission_that_was_cut_off_is_no_fault(lost: RunFolder) -> None:
    """A crash between the folder and its intent."""
    lost.run.submission(3).mkdir()
    assert collect(lost.run).ok == read_status(lost.run).ok == 2
