"""Fences: what counts of the past is written down before anything new begins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
from run_folder import RunFolder
from waiting import process_state, wait_for

from batchgen.errors import RunStateError
from batchgen.ledger.intent import accepted_journals, last_intent, read_intent, submission_numbers
from batchgen.ledger.restarts import accept_restart
from batchgen.ledger.scan import STATUS_NAMES
from batchgen.ledger.status import read_status
from batchgen.ledger.submissions import read_shard
from batchgen.ledger.winners import missing_rows, winners
from batchgen.processes import ProcessId
from batchgen.records import Attempt


def statuses(lab: RunFolder) -> list[str]:
    return [STATUS_NAMES[code] for code in winners(lab.run).status.tolist()]


def winning_attempts(lab: RunFolder) -> list[str]:
    found = winners(lab.run)
    journals = [facts.journal.attempt.tag for facts in found.index.journals]
    return [journals[found.index.journal[n]] if n >= 0 else "" for n in found.line.tolist()]


def test_a_submission_is_numbered_and_says_who_made_it(make_lab: Callable[..., RunFolder]) -> None:
    lab = make_lab(3)
    assert [lab.submit(), lab.submit()] == [1, 2]
    intent = read_intent(lab.run, 2)
    assert intent is not None
    assert intent.made_by == ProcessId.current()
    assert intent.made_by.alive()
    assert (intent.rows, intent.shards, intent.manifest_rows) == (3, 1, 3)


def test_shards_keep_their_rows_in_order(make_lab: Callable[..., RunFolder]) -> None:
    from batchgen.ledger.submissions import SubmissionInfo, SubmissionRows, begin_submission

    lab = make_lab(5)
    rows = SubmissionRows(np.array([0, 1, 2, 3, 4]), np.array([1, 0, 1, 0, 1]), np.arange(5)[::-1])
    number = begin_submission(lab.run, rows, SubmissionInfo())
    assert read_shard(lab.run, number, 0).rows.tolist() == [3, 1]
    assert read_shard(lab.run, number, 1).all.tolist() == [4, 2, 0]


def test_what_a_zombie_commits_after_its_successor_began_is_waste(
    make_lab: Callable[..., RunFolder],
) -> None:
    lab = make_lab(3)
    zombie = lab.journal(lab.submit())
    lab.render(zombie, 0)
    second = lab.submit([1, 2])
    lab.render(zombie, 1)  # too late
    assert statuses(lab) == ["ok", "pending", "pending"]
    assert missing_rows(lab.run).pending.tolist() == [1, 2]
    successor = lab.journal(second)
    lab.render(successor, 1)
    assert winning_attempts(lab) == ["s1t0r0p0", "s2t0r0p0", ""]
    lab.render(zombie, 2)
    assert statuses(lab) == ["ok", "ok", "pending"]


def test_a_zombie_stays_fenced_off_for_ever(make_lab: Callable[..., RunFolder]) -> None:
    """A third submission copies the second's limits; it does not measure the journal again."""
    lab = make_lab(3)
    zombie = lab.journal(lab.submit())
    lab.render(zombie, 0)
    lab.submit([1, 2])
    lab.render(zombie, 1)
    lab.submit([1, 2])
    assert statuses(lab) == ["ok", "pending", "pending"]
    lab.submit([1, 2])
    assert statuses(lab) == ["ok", "pending", "pending"]


def test_an_attempt_that_begins_after_it_was_fenced_off_publishes_nothing(
    make_lab: Callable[..., RunFolder],
) -> None:
    """A task of the first submission that waited in a queue until the second had begun."""
    lab = make_lab(2)
    first = lab.submit()
    lab.submit()
    late = lab.journal(first)
    lab.render(late, 0)
    assert statuses(lab) == ["pending", "pending"]
    lab.submit()
    assert statuses(lab) == ["pending", "pending"]


def test_a_torn_line_is_not_accepted_when_it_is_completed_later(
    make_lab: Callable[..., RunFolder],
) -> None:
    """The limit is the last newline, not the file's length."""
    lab = make_lab(2)
    journal = lab.journal(lab.submit())
    lab.render(journal, 0)
    lab.render(journal, 1)
    journal.close()
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-5])
    lab.run.counters(Attempt(1, 0, 0, 0)).unlink()  # it was not counted as written, either
    lab.submit([1])
    journal.path.write_bytes(whole)
    assert statuses(lab) == ["ok", "pending"]


def test_a_crash_before_the_intent_uses_up_a_number_and_no_more(
    make_lab: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab(2)
    journal = lab.journal(lab.submit())
    lab.render(journal, 0)
    for point in ("submission.after_mkdir", "submission.before_intent"):
        monkeypatch.setenv("BATCHGEN_FAILPOINT", f"{point}:*:raise")
        with pytest.raises(RuntimeError):
            lab.submit()
    monkeypatch.delenv("BATCHGEN_FAILPOINT")
    assert submission_numbers(lab.run) == [1, 2, 3]
    intent = last_intent(lab.run)
    assert intent is not None
    assert intent.number == 1
    lab.render(journal, 1)  # not fenced off: the crashed submissions count as empty
    assert statuses(lab) == ["ok", "ok"]
    assert read_status(lab.run).ok == 2
    assert lab.submit() == 4
    assert statuses(lab) == ["ok", "ok"]


def test_of_two_that_begin_at_once_one_is_refused_and_told_by_whom(
    make_lab: Callable[..., RunFolder],
) -> None:
    """Two processes stop right before they take the number, then go on together."""
    lab = make_lab(2)
    code = """
import sys, time
import numpy as np
from pathlib import Path
from batchgen.errors import RunStateError
from batchgen.ledger import submissions as attempts
from batchgen.paths import RunPaths
info = attempts.SubmissionInfo()
rows = attempts.SubmissionRows(np.arange(2), np.zeros(2, np.int32), np.arange(2))
numbers = attempts.submission_numbers
def slow(run):
    found = numbers(run)
    print("ready", flush=True)
    sys.stdin.readline()
    return found
attempts.submission_numbers = slow
try:
    print(attempts.begin_submission(RunPaths(Path(sys.argv[1])), rows, info))
except RunStateError as error:
    print("refused", error)
"""
    command = [sys.executable, "-c", code, str(lab.run.root)]
    pipe = subprocess.PIPE
    both = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1) for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = sorted(process.communicate(timeout=60)[0].strip() for process in both)
    assert said[0] == "1"
    winner = next(p for p in both if p.pid and f"process {p.pid} " in said[1])
    assert said[1].startswith("refused") and "began submission 1" in said[1]
    assert winner.returncode == 0
    assert submission_numbers(lab.run) == [1]


def test_a_submission_that_is_half_begun_keeps_others_out_while_its_maker_lives(
    make_lab: Callable[..., RunFolder],
) -> None:
    """Its folder is made, its intent is not: the next number would render the same rows."""
    lab = make_lab(2)
    code = """
import sys
import numpy as np
from pathlib import Path
from batchgen.ledger.submissions import SubmissionInfo, SubmissionRows, begin_submission
from batchgen.paths import RunPaths
rows = SubmissionRows(np.arange(2), np.zeros(2, np.int32), np.arange(2))
begin_submission(RunPaths(Path(sys.argv[1])), rows, SubmissionInfo())
"""
    maker = subprocess.Popen(
        [sys.executable, "-c", code, str(lab.run.root)],
        env={**os.environ, "BATCHGEN_FAILPOINT": "submission.before_intent:1:stop"},
    )
    wait_for(lambda: process_state(maker.pid) == "T")
    with pytest.raises(RunStateError, match=rf"process {maker.pid} on .* began submission 1"):
        lab.submit()
    assert read_status(lab.run).state == "planned"
    maker.kill()
    maker.wait()
    assert lab.submit() == 2


def test_one_that_was_waited_for_has_won(make_lab: Callable[..., RunFolder]) -> None:
    """The other's intent arrives while we wait: its rows are ours, so we are refused."""
    lab = make_lab(2)
    lab.submit()
    path = lab.run.intent(1)
    text = path.read_text()
    path.unlink()
    maker = json.loads(text)["made_by"] | {"pid": 1, "start": ProcessId.of(1).start}
    (path.parent / "maker.json").write_text(json.dumps(maker))
    theirs = json.dumps(json.loads(text) | {"made_by": maker, "sha256": None})
    timer = threading.Timer(0.1, lambda: path.write_text(theirs))
    timer.start()
    with pytest.raises(RunStateError, match="process 1 on"):
        lab.submit()
    timer.join()


def test_a_restart_accepts_what_its_task_committed_and_fences_off_the_rest(
    make_lab: Callable[..., RunFolder],
) -> None:
    lab = make_lab(4)
    number = lab.submit()
    first = lab.journal(number, task=0)
    other = lab.journal(number, task=1)
    lab.render(first, 0)
    lab.fail(first, 1)
    assert accept_restart(lab.run, Attempt(number, 0, 1, 0)) == {0: "ok", 1: "failed"}
    lab.render(first, 2)  # a zombie's
    lab.render(other, 3)  # another task is not touched
    assert statuses(lab) == ["ok", "failed", "pending", "ok"]
    again = lab.journal(number, task=0, restart=1)
    lab.render(again, 1)
    assert statuses(lab) == ["ok", "ok", "pending", "ok"]
    status = read_status(lab.run)
    assert (status.ok, status.failed, status.left) == (3, 0, 1)


def test_a_second_restart_copies_the_limits_of_the_first(
    make_lab: Callable[..., RunFolder],
) -> None:
    lab = make_lab(3)
    number = lab.submit()
    zombie = lab.journal(number)
    lab.render(zombie, 0)
    accept_restart(lab.run, Attempt(number, 0, 1, 0))
    lab.render(zombie, 1)
    assert accept_restart(lab.run, Attempt(number, 0, 2, 0)) == {0: "ok"}
    assert statuses(lab) == ["ok", "pending", "pending"]
    lab.submit([1, 2])
    assert statuses(lab) == ["ok", "pending", "pending"]


def test_a_first_start_accepts_nothing(make_lab: Callable[..., RunFolder]) -> None:
    lab = make_lab(1)
    number = lab.submit()
    assert accept_restart(lab.run, Attempt(number, 0, 0, 0)) == {}
    assert not lab.run.fence(Attempt(number, 0, 0, 0)).exists()


def test_limits_name_the_fenced_journals_only(make_lab: Callable[..., RunFolder]) -> None:
    lab = make_lab(2)
    old = lab.journal(lab.submit())
    lab.render(old, 0)
    size = old.path.stat().st_size
    new = lab.journal(lab.submit([1]))
    limits = {journal.path: journal.limit for journal in accepted_journals(lab.run)}
    assert limits == {old.path: size, new.path: None}


def test_an_ok_row_keeps_its_media_when_a_retry_fails(make_lab: Callable[..., RunFolder]) -> None:
    lab = make_lab(2)
    first = lab.journal(lab.submit())
    lab.render(first, 0)
    lab.fail(first, 1)
    second = lab.journal(lab.submit([0, 1]))
    lab.fail(second, 0)
    lab.fail(second, 1, "again")
    assert statuses(lab) == ["ok", "failed"]
    assert winning_attempts(lab) == ["s1t0r0p0", "s2t0r0p0"]
    third = lab.journal(lab.submit([0]))
    lab.render(third, 0)
    assert winning_attempts(lab) == ["s3t0r0p0", "s2t0r0p0"]


def test_a_commit_counts_only_under_the_plans_key(make_lab: Callable[..., RunFolder]) -> None:
    """After a change of settings the plan holds new keys: old results of those rows are gone."""
    lab = make_lab(2)
    journal = lab.journal(lab.submit())
    lab.render(journal, 0)
    lab.render(journal, 1)
    make_plan_with_new_key(lab, row=1)
    assert statuses(lab) == ["ok", "pending"]


def make_plan_with_new_key(lab: RunFolder, row: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(lab.run.plan)
    keys = table["row_key"].to_pylist()
    keys[row] = "f" * 64
    place = table.column_names.index("row_key")
    lab.install_plan(table.set_column(place, "row_key", pa.array(keys)))


def test_missing_rows_tells_pending_from_failed_and_leaves_aliases_out(
    make_lab: Callable[..., RunFolder],
) -> None:
    lab = make_lab(6, aliases={4: 1, 5: 2})
    journal = lab.journal(lab.submit([0, 1, 2, 3]))
    lab.render(journal, 0)
    lab.fail(journal, 2)
    missing = missing_rows(lab.run)
    assert missing.pending.tolist() == [1, 3]
    assert missing.failed.tolist() == [2]
    assert missing.all.tolist() == [1, 2, 3]


def test_an_unreadable_intent_is_an_error_that_names_the_file(
    make_lab: Callable[..., RunFolder],
) -> None:
    lab = make_lab(1)
    lab.run.intent(lab.submit()).write_text(json.dumps({"number": 1}))
    with pytest.raises(RunStateError, match=r"intent\.json (cannot be read|is damaged)"):
        lab.submit()


def test_a_plan_that_is_missing_or_damaged_is_a_users_error(
    make_lab: Callable[..., RunFolder],
) -> None:
    lab = make_lab(1)
    lab.run.plan.write_bytes(b"PAR1 no")
    with pytest.raises(RunStateError, match=r"plan\.parquet: damaged plan"):
        missing_rows(lab.run)
    lab.run.plan.unlink()
    with pytest.raises(RunStateError, match=r"plan\.parquet: no plan"):
        missing_rows(lab.run)
