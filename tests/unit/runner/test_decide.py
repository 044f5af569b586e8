"""What follows a submission that has ended: judged from the journals of real ranks."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_calls import make_job_folder, rows_of
from planned_run import BEATING, PlannedRun, plan_run

from batchgen.durable import write_bytes_atomic
from batchgen.ledger.blame.rows import read_blame
from batchgen.ledger.events import AttemptHeader, End
from batchgen.ledger.journal import JournalWriter
from batchgen.ledger.submissions import SubmissionInfo, SubmissionRows, begin_submission
from batchgen.records import Attempt
from batchgen.runner.decide import Move, next_move
from batchgen.runner.submit import Settings

Make = Callable[..., PlannedRun]
SLURM = "slurm.executor=slurm"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A run of `count` rows of 10 ms."""
    return lambda count, *overrides: plan_run(
        tmp_path, [1] * count, *overrides, model="null-engine"
    )


def killed_at(row: int) -> dict[str, str]:
    return {"BATCHGEN_FAILPOINT": f"row.row-{row}:*:kill"}


def follow(planned_run: PlannedRun, move: Move) -> int:
    """Begin the submission of a move."""
    return begin(planned_run, move, np.zeros(len(move.rows), np.int32))


def begin(
    planned_run: PlannedRun, move: Move, shard: np.ndarray, alone: np.ndarray | None = None
) -> int:
    """The same in shards, some rows alone."""
    rows, settings = move.rows, move.settings
    shards = SubmissionRows(rows, shard, np.arange(len(rows)), alone)
    info = SubmissionInfo(config=settings.resolved, attempt=settings.attempt)
    return begin_submission(planned_run.run, shards, info)


def test_nothing_follows_a_run_that_is_done_or_cancelled_or_was_never_begun(make: Make) -> None:
    planned_run = make(4)
    assert next_move(planned_run.run) is None
    number = planned_run.begin(range(4))
    write_bytes_atomic(planned_run.run.cancelled(number), b"")
    assert next_move(planned_run.run) is None
    planned_run.run.cancelled(number).unlink()
    assert next_move(planned_run.run) is not None
    assert planned_run.work(number) == 0
    assert next_move(planned_run.run) is None


def test_only_rows_of_the_last_submission_follow(make: Make) -> None:
    """Somebody asked for two rows: the others are not rendered on the way."""
    planned_run = make(6)
    planned_run.begin([1, 2])
    move = next_move(planned_run.run)
    assert move is not None and move.rows.tolist() == [1, 2]


def test_progress_costs_no_attempt_and_its_lack_ends_the_chain(make: Make) -> None:
    planned_run = make(20, "slurm.max_attempts=2")
    planned_run.work(planned_run.begin(range(20)), killed_at(15))
    first = next_move(planned_run.run)
    assert first is not None and first.settings.attempt == 1 and len(first.rows) < 20
    number = follow(planned_run, first)
    planned_run.work(number, killed_at(int(first.rows[0])))
    second = next_move(planned_run.run)
    assert second is not None and second.settings.attempt == 2
    number = follow(planned_run, second)
    planned_run.work(number, killed_at(int(second.rows[0])))
    assert next_move(planned_run.run) is None


def test_attempts_are_counted_in_a_row(make: Make) -> None:
    """A submission that finishes a good part makes up for one before it."""
    planned_run = make(20, "slurm.max_attempts=2")
    planned_run.work(planned_run.begin(range(20)), killed_at(0))
    first = next_move(planned_run.run)
    assert first is not None and first.settings.attempt == 2
    planned_run.work(follow(planned_run, first), killed_at(int(first.rows[10])))
    second = next_move(planned_run.run)
    assert second is not None and second.settings.attempt == 1


def test_progress_is_measured_by_what_was_started(make: Make) -> None:
    """A limit on submitted jobs lets in one shard of many at a time."""
    planned_run = make(20, "slurm.max_attempts=2")
    move = Move(np.arange(20), Settings(planned_run.config, []))
    for done in (1, 2, 3):
        shard = np.minimum(np.arange(len(move.rows)), 1)
        assert planned_run.work(begin(planned_run, move, shard)) == 0
        following = next_move(planned_run.run)
        assert following is not None and following.settings.attempt == 1
        move = following
        assert move.rows.tolist() == list(range(done, 20))
    begin(planned_run, move, np.zeros(len(move.rows), np.int32))
    following = next_move(planned_run.run)
    assert following is not None and following.settings.attempt == 2, "nothing was started"
    begin(planned_run, following, np.zeros(len(move.rows), np.int32))
    assert next_move(planned_run.run) is None


def test_what_leads_to_a_conviction_is_progress(tmp_path: Path) -> None:
    """The innocent row that died with the convicted one is still to be rendered."""
    planned_run = plan_run(tmp_path, [200] * 2, SLURM, "slurm.max_attempts=2", model="null-engine")
    planned_run.work(planned_run.begin(range(2)), killed_at(1))
    move = next_move(planned_run.run)
    assert move is not None and move.settings.attempt == 2
    assert read_blame(planned_run.run, all_gone=True).suspects.tolist() == [0, 1]
    for host in ("node2", "node3"):
        assert read_blame(planned_run.run, all_gone=True).convicted == ()
        number = begin(planned_run, move, np.zeros(2, np.int32), np.ones(2, bool))
        planned_run.work(number, killed_at(0), host=host)
        move = next_move(planned_run.run)
        assert move is not None and move.settings.attempt == 1 and len(move.rows) == 2
    assert [v.row_index for v in read_blame(planned_run.run, all_gone=True).convicted] == [0]


def test_a_chain_that_stops_leaves_no_verdict_unsaid(tmp_path: Path) -> None:
    """One attempt each, by hand: the catalog says of a row that it was convicted just now."""
    work = make_job_folder(tmp_path, 3)
    env = {"BATCHGEN_FAILPOINT": "row.row-000:*:kill"}
    once = ("slurm.executor=local", "slurm.max_attempts=1")
    done = work.run("model=null-engine", *once, env=env)
    for _ in range(2):
        assert rows_of(done.run).status[0] == "pending"
        done = work.call("resume", str(done.run.root), "--json", env=env)
    assert done.code == 1, done.err
    assert list(rows_of(done.run).status) == ["quarantined", "ok", "ok"]
    assert "died again when it was alone" in rows_of(done.run).error[0]


def test_a_retry_that_was_cut_off_goes_on(make: Make) -> None:
    """Rows that somebody asked for again have an older result; they are left all the same."""
    planned_run = make(6)
    assert planned_run.work(planned_run.begin(range(6))) == 0
    planned_run.work(planned_run.begin([1, 2, 3]), killed_at(2))
    move = next_move(planned_run.run)
    assert move is not None and 2 in move.rows and set(move.rows) <= {1, 2, 3}


def test_a_row_longer_than_the_limit_is_carried_on(tmp_path: Path) -> None:
    """Each submission saves a part of it: that is progress, though nothing is finished."""
    planned_run = plan_run(tmp_path, [300], SLURM, "slurm.max_attempts=2", model="null-engine")
    number = planned_run.begin([0])
    for _ in range(3):
        rank = planned_run.start(number, BEATING)
        planned_run.wait_for_steps(number, busy_s=0.5)  # of three
        rank.send_signal(signal.SIGUSR2)
        rank.communicate(timeout=60)
        move = next_move(planned_run.run)
        assert move is not None and move.settings.attempt == 1
        number = follow(planned_run, move)


def test_a_host_that_is_found_bad_last_does_not_end_the_chain(make: Make) -> None:
    planned_run = make(20, SLURM, "slurm.row_retries=0")
    assert planned_run.work(planned_run.begin(range(10))) == 0
    number = planned_run.begin(range(10, 20))
    planned_run.work(number, {"BATCHGEN_FAILPOINT": "host.node2:*:raise"}, host="node2")
    move = next_move(planned_run.run)
    assert move is not None and set(move.settings.excluded) == {"node2"}


def test_replicas_that_have_never_worked_convict_no_row_after_the_other(make: Make) -> None:
    """Rows die with them one at a time, but nothing shows that it is the rows."""
    planned_run = make(6, "slurm.executor=local")
    move, counts = None, []
    number = planned_run.begin([], alone=range(6))
    while not counts or move is not None:
        replica_fails(planned_run, number, row=len(counts) // 2)
        move = next_move(planned_run.run)
        if move is not None:
            counts.append(move.settings.attempt)
            number = begin(planned_run, move, np.zeros(len(move.rows), np.int32), move.rows >= 0)
    assert counts == [2, 3]


def replica_fails(planned_run: PlannedRun, number: int, row: int) -> None:
    """A row is begun alone, and the replica ends by an error of one of its ranks."""
    attempt = Attempt(number, 0, 0, 0)
    with JournalWriter.open(
        planned_run.run, AttemptHeader(attempt=attempt, host="node1")
    ) as journal:
        journal.device("cpu", "")
        journal.start(row, f"row-{row}", True)
        journal.end(End(reason="ReplicaFailed", error="rank 1 of 2: OutOfMemoryError"))


def test_one_attempt_means_one(make: Make) -> None:
    planned_run = make(20, "slurm.max_attempts=1")
    planned_run.work(planned_run.begin(range(20)), killed_at(15))
    assert next_move(planned_run.run) is None


def test_an_error_that_every_rank_meets_at_once_is_not_tried_again(make: Make) -> None:
    planned_run = make(4)
    assert (
        planned_run.work(planned_run.begin(range(4)), {"BATCHGEN_NULL_SLOW": "node1=nonsense"}) != 0
    )
    assert next_move(planned_run.run) is None


def test_the_last_shard_on_a_node_where_nothing_starts_goes_elsewhere(make: Make) -> None:
    """All its ranks meet the same error at once, but others have rendered rows."""
    planned_run = make(20, SLURM)
    assert planned_run.work(planned_run.begin(range(10))) == 0
    number = planned_run.begin(range(10, 20))
    assert planned_run.work(number, {"BATCHGEN_NULL_SLOW": "node2=nonsense"}, host="node2") != 0
    move = next_move(planned_run.run)
    assert move is not None and len(move.rows) == 10
    assert "ended there at once" in move.settings.excluded["node2"]


def test_what_changed_behind_the_run_is_not_tried_again(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Although rows were rendered before it did; and no machine is to blame."""
    planned_run = make(20, SLURM)
    number = planned_run.begin(range(20))
    planned_run.work(number, killed_at(15))
    header = json.loads(planned_run.run.run_json.read_text())
    header["key_context"]["numerics_version"] = 0
    planned_run.run.run_json.write_text(json.dumps(header))
    assert planned_run.work(number, restart=1, host="node2") != 0
    with caplog.at_level(logging.WARNING):
        assert next_move(planned_run.run) is None
    assert "the numerics version of model.family changed since" in caplog.text
    assert read_blame(planned_run.run).bad_hosts == {}


@pytest.mark.parametrize(("overrides", "goes_on"), [((), False), ((SLURM,), True)])
def test_a_rank_that_somebody_ended(
    tmp_path: Path, overrides: tuple[str, ...], goes_on: bool
) -> None:
    """On this machine a person did it; on a cluster it was one array element of many."""
    planned_run = plan_run(tmp_path, [100] * 4, *overrides, model="null-engine")
    number = planned_run.begin(range(4))
    rank = planned_run.start(number)
    planned_run.wait_for(lambda: len(planned_run.events(number)) >= 3)
    rank.send_signal(signal.SIGTERM)
    rank.communicate(timeout=60)
    assert (next_move(planned_run.run) is not None) == goes_on


def test_rows_that_failed_on_a_bad_host_are_tried_elsewhere(make: Make) -> None:
    planned_run = make(12, SLURM, "slurm.ranks_per_node=2", "slurm.row_retries=0")
    number = planned_run.begin(range(12))
    pair = {"world_size": 2}
    bad = planned_run.start(
        number, {"BATCHGEN_FAILPOINT": "host.node2:*:raise"}, rank=1, host="node2", **pair
    )
    good = planned_run.start(number, {"BATCHGEN_NULL_SLOW": "node1=20"}, host="node1", **pair)
    for rank in (bad, good):
        rank.communicate(timeout=60)
    move = next_move(planned_run.run)
    assert move is not None and set(move.settings.excluded) == {"node2"}
    assert len(move.rows) >= 3
    kept = replace(move.settings, excluded={})
    assert kept.resolved == planned_run.config
