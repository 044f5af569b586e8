"""One rank of a shard whose rows fail, because of its machine or of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from planned_run import plan_run
from run_folder import render

from batchgen.errors import NonFiniteOutput, PromptTooLong, SickNode
from batchgen.ledger.blame.rows import read_blame
from batchgen.ledger.events import AttemptHeader, End
from batchgen.ledger.journal import JournalWriter
from batchgen.ledger.reading.left import missing_rows
from batchgen.ledger.status import read_status
from batchgen.media.note import Origin
from batchgen.notices import Notices
from batchgen.planning.plan import read_requests
from batchgen.records import Attempt, Commit, RowStats
from batchgen.worker.admission import Admission
from batchgen.worker.judging import Judges
from batchgen.worker.sink import RowPolicy, RowSink
from batchgen.worker.states import RowStates

ELSEWHERE = "slurm.executor=slurm"  # other machines could draw a row too


@pytest.mark.parametrize("retries", [0, 1])
def test_a_node_on_which_every_row_fails_ends_at_once(tmp_path: Path, retries: int) -> None:
    """The rows that it tried have a verdict; the rest is left for others."""
    planned_run = plan_run(tmp_path, [1] * 12, ELSEWHERE, f"slurm.row_retries={retries}")
    planned_run.begin(range(12))
    assert planned_run.work(1, {"BATCHGEN_FAILPOINT": "host.node1:*:raise"}) == 1
    end = planned_run.of(End, 1)[0]
    assert end.reason == "SickNode"
    assert "first 5 rows on node1 all failed" in end.error and "failpoint host.node1" in end.error
    commits = planned_run.of(Commit, 1)
    assert [c.row_index for c in commits] == [0, 1, 2, 3, 4]
    assert {(c.status, c.host, c.error_type, c.tries) for c in commits} == {
        ("failed", "node1", "RuntimeError", 1)
    }
    assert all("host.node1" in c.error and "Traceback" in c.traceback for c in commits)
    assert missing_rows(planned_run.run).pending.tolist() == list(range(5, 12))


def test_bad_rows_at_the_head_of_a_shard_do_not_keep_the_others_from_being_drawn(
    tmp_path: Path,
) -> None:
    """The longest ones come first and are too much for any machine: in the next submission the
    others have their turn."""
    planned_run = plan_run(tmp_path, [1] * 20, ELSEWHERE)
    env = {"BATCHGEN_FAILPOINT": ",".join(f"row.row-{i}:*:raise" for i in range(5))}
    planned_run.begin(range(20))
    assert planned_run.work(1, env) == 1
    planned_run.begin(missing_rows(planned_run.run).pending.tolist())
    assert planned_run.work(2, env) == 0
    status = read_status(planned_run.run)
    assert (status.ok, status.failed, status.left) == (15, 5, 0)


def test_where_there_is_no_other_machine_none_is_sick(tmp_path: Path) -> None:
    planned_run = plan_run(tmp_path, [1] * 10)
    planned_run.begin(range(10))
    env = {"BATCHGEN_FAILPOINT": ",".join(f"row.row-{i}:*:raise" for i in range(6))}
    assert planned_run.work(1, env) == 0
    status = read_status(planned_run.run)
    assert (status.ok, status.failed, status.left) == (4, 6, 0)


def test_a_few_bad_rows_after_a_good_one_are_their_own_fault(tmp_path: Path) -> None:
    """Nine in a row, a good one, and nine again."""
    bad = [*range(1, 10), *range(11, 20)]
    planned_run = plan_run(tmp_path, [1] * 21, ELSEWHERE, "slurm.row_retries=0")
    planned_run.begin(range(21))
    env = {"BATCHGEN_FAILPOINT": ",".join(f"row.row-{i}:*:raise" for i in bad)}
    assert planned_run.work(1, env) == 0
    assert sorted(planned_run.frames(1)) == [0, 10, 20]
    failed = [c for c in planned_run.of(Commit, 1) if c.status == "failed"]
    assert sorted(c.row_index for c in failed) == bad


@pytest.mark.parametrize("retries", [0, 1])
def test_a_device_that_breaks_after_good_rows_ends_the_rank(tmp_path: Path, retries: int) -> None:
    """It fails faster than others render: the queue would soon be empty. What it failed on is tried
    elsewhere, and it gets no more rows."""
    planned_run = plan_run(tmp_path, [1] * 16, ELSEWHERE, f"slurm.row_retries={retries}")
    planned_run.begin(range(15))
    env = {"BATCHGEN_FAILPOINT": ",".join(f"row.row-{i}:*:raise" for i in range(2, 15))}
    assert planned_run.work(1, env) == 1
    end = planned_run.of(End, 1)[0]
    assert end.reason == "SickNode"
    assert "10 rows in a row failed on node1" in end.error and "failpoint row.row-11" in end.error
    failed = [c.row_index for c in planned_run.of(Commit, 1) if c.status == "failed"]
    assert (sorted(planned_run.frames(1)), failed) == ([0, 1], list(range(2, 12)))
    assert missing_rows(planned_run.run).pending.tolist() == [12, 13, 14, 15]
    planned_run.begin([15])
    assert planned_run.work(2, host="node2") == 0
    found = read_blame(planned_run.run)
    assert "rows rendered there: 2, on other hosts: 1" in found.bad_hosts["node1"]
    assert found.rows_failed_on(found.bad_hosts).tolist() == failed


def test_a_device_that_computes_nan_is_sick_too(tmp_path: Path) -> None:
    """Each row keeps its verdict, without another try here; texts that are too long say nothing."""
    run = plan_run(tmp_path, [1] * 24).run
    requests, attempt = read_requests(run.plan, list(range(24))), Attempt(1, 0, 0, 0)
    policy = RowPolicy(attempt, "n1", 24, 1, Origin("null", ""), elsewhere=True)
    with JournalWriter.open(run, AttemptHeader(attempt=attempt, host="n1")) as journal:
        states = RowStates(run, 24, "strict", "none")
        sink = RowSink(run, journal, policy, states, Admission(None), Judges(), Notices(run, None))

        def fail(row: int, error: Exception) -> None:
            sink.started(requests[row])
            sink.failed(requests[row], error, RowStats())

        sink.started(requests[0])
        sink.finished(render(requests[0]))
        for row in range(1, 12):
            fail(row, PromptTooLong("600 tokens"))
        for row in range(12, 21):
            fail(row, NonFiniteOutput("NaN"))
        with pytest.raises(SickNode, match="10 rows in a row failed on n1"):
            fail(21, NonFiniteOutput("NaN"))
        assert sink.to_retry() == []
    failed = missing_rows(run).failed.tolist()
    assert failed == list(range(1, 22))
