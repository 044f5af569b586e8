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
from batchgen.ledger.intent import fenced_journals, last_intent, read_intent, submission_numbers
from batchgen.ledger.reading.left import missing_rows
from batchgen.ledger.reading.scan import STATUS_NAMES
from batchgen.ledger.reading.winners import winners
from batchgen.ledger.restarts import fence_restart
from batchgen.ledger.status import read_status
from batchgen.ledger.submissions import read_shard
from batchgen.processes import ProcessId
from batchgen.records import Attempt


def statuses(run_folder: RunFolder) -> list[str]:
    return [STATUS_NAMES[code] for code in winners(run_folder.run).status.tolist()]


def winning_attempts(run_folder: RunFolder) -> list[str]:
    found = winners(run_folder.run)
    journals = [facts.journal.attempt.tag for facts in found.index.journals]
    return [journals[found.index.journal[n]] if n >= 0 else "" for n in found.line.tolist()]


def test_a_submission_is_numbered_and_says_who_made_it(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(3)
    assert [run_folder.submit(), run_folder.submit()] == [1, 2]
    intent = read_intent(run_folder.run, 2)
    assert intent is not None
    assert intent.made_by == ProcessId.current()
    assert intent.made_by.alive()
    assert (intent.rows, intent.shards, intent.manifest_rows) == (3, 1, 3)


def test_shards_keep_their_rows_in_order(make_run_folder: Callable[..., RunFolder]) -> None:
    from batchgen.ledger.submissions import SubmissionInfo, SubmissionRows, begin_submission

    run_folder = make_run_folder(5)
    rows = SubmissionRows(np.array([0, 1, 2, 3, 4]), np.array([1, 0, 1, 0, 1]), np.arange(5)[::-1])
    number = begin_submission(run_folder.run, rows, SubmissionInfo())
    assert read_shard(run_folder.run, number, 0).rows.tolist() == [3, 1]
    assert read_shard(run_folder.run, number, 1).all.tolist() == [4, 2, 0]


def test_what_a_zombie_commits_after_its_successor_began_is_waste(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(3)
    zombie = run_folder.journal(run_folder.submit())
    run_folder.render(zombie, 0)
    second = run_folder.submit([1, 2])
    run_folder.render(zombie, 1)  # too late
    assert statuses(run_folder) == ["ok", "pending", "pending"]
    assert missing_rows(run_folder.run).pending.tolist() == [1, 2]
    successor = run_folder.journal(second)
    run_folder.render(successor, 1)
    assert winning_attempts(run_folder) == ["s1t0r0p0", "s2t0r0p0", ""]
    run_folder.render(zombie, 2)
    assert statuses(run_folder) == ["ok", "ok", "pending"]


def test_a_zombie_stays_fenced_off_for_ever(make_run_folder: Callable[..., RunFolder]) -> None:
    """A third submission copies the second's limits; it does not measure the journal again."""
    run_folder = make_run_folder(3)
    zombie = run_folder.journal(run_folder.submit())
    run_folder.render(zombie, 0)
    run_folder.submit([1, 2])
    run_folder.render(zombie, 1)
    run_folder.submit([1, 2])
    assert statuses(run_folder) == ["ok", "pending", "pending"]
    run_folder.submit([1, 2])
    assert statuses(run_folder) == ["ok", "pending", "pending"]


def test_an_attempt_that_begins_after_it_was_fenced_off_publishes_nothing(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """A task of the first submission that waited in a queue until the second had begun."""
    run_folder = make_run_folder(2)
    first = run_folder.submit()
    run_folder.submit()
    late = run_folder.journal(first)
    run_folder.render(late, 0)
    assert statuses(run_folder) == ["pending", "pending"]
    run_folder.submit()
    assert statuses(run_folder) == ["pending", "pending"]


def test_a_torn_line_is_not_accepted_when_it_is_completed_later(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """The limit is the last newline, not the file's length."""
    run_folder = make_run_folder(2)
    journal = run_folder.journal(run_folder.submit())
    run_folder.render(journal, 0)
    run_folder.render(journal, 1)
    journal.close()
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-5])
    run_folder.run.counters(Attempt(1, 0, 0, 0)).unlink()  # it was not counted as written, either
    run_folder.submit([1])
    journal.path.write_bytes(whole)
    assert statuses(run_folder) == ["ok", "pending"]


def test_a_crash_before_the_intent_uses_up_a_number_and_no_more(
    make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder = make_run_folder(2)
    journal = run_folder.journal(run_folder.submit())
    run_folder.render(journal, 0)
    for point in ("submission.after_mkdir", "submission.before_intent"):
        monkeypatch.setenv("BATCHGEN_FAILPOINT", f"{point}:*:raise")
        with pytest.raises(RuntimeError):
            run_folder.submit()
    monkeypatch.delenv("BATCHGEN_FAILPOINT")
    assert submission_numbers(run_folder.run) == [1, 2, 3]
    intent = last_intent(run_folder.run)
    assert intent is not None
    assert intent.number == 1
    run_folder.render(journal, 1)  # not fenced off: the crashed submissions count as empty
    assert statuses(run_folder) == ["ok", "ok"]
    assert read_status(run_folder.run).ok == 2
    assert run_folder.submit() == 4
    assert statuses(run_folder) == ["ok", "ok"]


def test_of_two_that_begin_at_once_one_is_refused_and_told_by_whom(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """Two processes stop right before they take the number, then go on together."""
    run_folder = make_run_folder(2)
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
    command = [sys.executable, "-c", code, str(run_folder.run.root)]
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
    assert submission_numbers(run_folder.run) == [1]


def test_a_submission_that_is_half_begun_keeps_others_out_while_its_maker_lives(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """Its folder is made, its intent is not: the next number would render the same rows."""
    run_folder = make_run_folder(2)
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
        [sys.executable, "-c", code, str(run_folder.run.root)],
        env={**os.environ, "BATCHGEN_FAILPOINT": "submission.before_intent:1:stop"},
    )
    wait_for(lambda: process_state(maker.pid) == "T")
    with pytest.raises(RunStateError, match=rf"process {maker.pid} on .* began submission 1"):
        run_folder.submit()
    assert read_status(run_folder.run).state == "planned"
    maker.kill()
    maker.wait()
    assert run_folder.submit() == 2


def test_one_that_was_waited_for_has_won(make_run_folder: Callable[..., RunFolder]) -> None:
    """The other's intent arrives while we wait: its rows are ours, so we are refused."""
    run_folder = make_run_folder(2)
    run_folder.submit()
    path = run_folder.run.intent(1)
    text = path.read_text()
    path.unlink()
    maker = json.loads(text)["made_by"] | {"pid": 1, "start": ProcessId.of(1).start}
    (path.parent / "maker.json").write_text(json.dumps(maker))
    theirs = json.dumps(json.loads(text) | {"made_by": maker, "sha256": None})
    timer = threading.Timer(0.1, lambda: path.write_text(theirs))
    timer.start()
    with pytest.raises(RunStateError, match="process 1 on"):
        run_folder.submit()
    timer.join()


def test_a_restart_accepts_what_its_task_committed_and_fences_off_the_rest(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(4)
    number = run_folder.submit()
    first = run_folder.journal(number, task=0)
    other = run_folder.journal(number, task=1)
    run_folder.render(first, 0)
    run_folder.fail(first, 1)
    assert fence_restart(run_folder.run, Attempt(number, 0, 1, 0)) == {0: "ok", 1: "failed"}
    run_folder.render(first, 2)  # a zombie's
    run_folder.render(other, 3)  # another task is not touched
    assert statuses(run_folder) == ["ok", "failed", "pending", "ok"]
    again = run_folder.journal(number, task=0, restart=1)
    run_folder.render(again, 1)
    assert statuses(run_folder) == ["ok", "ok", "pending", "ok"]
    status = read_status(run_folder.run)
    assert (status.ok, status.failed, status.left) == (3, 0, 1)


def test_a_second_restart_copies_the_limits_of_the_first(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(3)
    number = run_folder.submit()
    zombie = run_folder.journal(number)
    run_folder.render(zombie, 0)
    fence_restart(run_folder.run, Attempt(number, 0, 1, 0))
    run_folder.render(zombie, 1)
    assert fence_restart(run_folder.run, Attempt(number, 0, 2, 0)) == {0: "ok"}
    assert statuses(run_folder) == ["ok", "pending", "pending"]
    run_folder.submit([1, 2])
    assert statuses(run_folder) == ["ok", "pending", "pending"]


def test_a_first_start_accepts_nothing(make_run_folder: Callable[..., RunFolder]) -> None:
    run_folder = make_run_folder(1)
    number = run_folder.submit()
    assert fence_restart(run_folder.run, Attempt(number, 0, 0, 0)) == {}
    assert not run_folder.run.fence(Attempt(number, 0, 0, 0)).exists()


def test_limits_name_the_fenced_journals_only(make_run_folder: Callable[..., RunFolder]) -> None:
    run_folder = make_run_folder(2)
    old = run_folder.journal(run_folder.submit())
    run_folder.render(old, 0)
    size = old.path.stat().st_size
    new = run_folder.journal(run_folder.submit([1]))
    limits = {journal.path: journal.limit for journal in fenced_journals(run_folder.run)}
    assert limits == {old.path: size, new.path: None}


def test_an_ok_row_keeps_its_media_when_a_retry_fails(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(2)
    first = run_folder.journal(run_folder.submit())
    run_folder.render(first, 0)
    run_folder.fail(first, 1)
    second = run_folder.journal(run_folder.submit([0, 1]))
    run_folder.fail(second, 0)
    run_folder.fail(second, 1, "again")
    assert statuses(run_folder) == ["ok", "failed"]
    assert winning_attempts(run_folder) == ["s1t0r0p0", "s2t0r0p0"]
    third = run_folder.journal(run_folder.submit([0]))
    run_folder.render(third, 0)
    assert winning_attempts(run_folder) == ["s3t0r0p0", "s2t0r0p0"]


def test_a_commit_counts_only_under_the_plans_key(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """After a change of settings the plan holds new keys: old results of those rows are gone."""
    run_folder = make_run_folder(2)
    journal = run_folder.journal(run_folder.submit())
    run_folder.render(journal, 0)
    run_folder.render(journal, 1)
    make_plan_with_new_key(run_folder, row=1)
    assert statuses(run_folder) == ["ok", "pending"]


def make_plan_with_new_key(run_folder: RunFolder, row: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(run_folder.run.plan)
    keys = table["row_key"].to_pylist()
    keys[row] = "f" * 64
    place = table.column_names.index("row_key")
    run_folder.install_plan(table.set_column(place, "row_key", pa.array(keys)))


def test_missing_rows_tells_pending_from_failed_and_leaves_aliases_out(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(6, aliases={4: 1, 5: 2})
    journal = run_folder.journal(run_folder.submit([0, 1, 2, 3]))
    run_folder.render(journal, 0)
    run_folder.fail(journal, 2)
    missing = missing_rows(run_folder.run)
    assert missing.pending.tolist() == [1, 3]
    assert missing.failed.tolist() == [2]
    assert missing.all.tolist() == [1, 2, 3]


def test_an_unreadable_intent_is_an_error_that_names_the_file(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(1)
    run_folder.run.intent(run_folder.submit()).write_text(json.dumps({"number": 1}))
    with pytest.raises(RunStateError, match=r"intent\.json (cannot be read|is damaged)"):
        run_folder.submit()


def test_a_plan_that_is_missing_or_damaged_is_a_users_error(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(1)
    run_folder.run.plan.write_bytes(b"PAR1 no")
    with pytest.raises(RunStateError, match=r"plan\.parquet: damaged plan"):
        missing_rows(run_folder.run)
    run_folder.run.plan.unlink()
    with pytest.raises(RunStateError, match=r"plan\.parquet: no plan"):
        missing_rows(run_folder.run)
