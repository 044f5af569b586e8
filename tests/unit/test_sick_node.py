"""One rank of a shard whose first rows fail, because of its machine or of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from shift import make_shift

from batchgen.ledger.events import End
from batchgen.ledger.status import read_status
from batchgen.ledger.winners import missing_rows
from batchgen.records import Commit

ELSEWHERE = "slurm.executor=slurm"  # other machines could draw a row too


@pytest.mark.parametrize("retries", [0, 1])
def test_a_node_on_which_every_row_fails_ends_at_once(tmp_path: Path, retries: int) -> None:
    """The rows that it tried have a verdict; the rest is left for others."""
    shift = make_shift(tmp_path, [1] * 12, ELSEWHERE, f"slurm.row_retries={retries}")
    shift.begin(range(12))
    assert shift.work(1, {"BATCHGEN_FAILPOINT": "host.node1:*:raise"}) == 1
    end = shift.of(End, 1)[0]
    assert end.reason == "SickNode"
    assert "first 5 rows on node1 all failed" in end.error and "failpoint host.node1" in end.error
    commits = shift.of(Commit, 1)
    assert [c.row_index for c in commits] == [0, 1, 2, 3, 4]
    assert {(c.status, c.host, c.error_type, c.tries) for c in commits} == {
        ("failed", "node1", "RuntimeError", 1)
    }
    assert all("host.node1" in c.error and "Traceback" in c.traceback for c in commits)
    assert missing_rows(shift.run).pending.tolist() == list(range(5, 12))


def test_bad_rows_at_the_head_of_a_shard_do_not_keep_the_others_from_being_drawn(
    tmp_path: Path,
) -> None:
    """The longest ones come first and are too much for any machine: in the next submission the
    others have their turn."""
    shift = make_shift(tmp_path, [1] * 20, ELSEWHERE)
    env = {"BATCHGEN_FAILPOINT": ",".join(f"row.row-{i}:*:raise" for i in range(5))}
    shift.begin(range(20))
    assert shift.work(1, env) == 1
    shift.begin(missing_rows(shift.run).pending.tolist())
    assert shift.work(2, env) == 0
    status = read_status(shift.run)
    assert (status.ok, status.failed, status.left) == (15, 5, 0)


def test_where_there_is_no_other_machine_none_is_sick(tmp_path: Path) -> None:
    shift = make_shift(tmp_path, [1] * 10)
    shift.begin(range(10))
    env = {"BATCHGEN_FAILPOINT": ",".join(f"row.row-{i}:*:raise" for i in range(6))}
    assert shift.work(1, env) == 0
    status = read_status(shift.run)
    assert (status.ok, status.failed, status.left) == (4, 6, 0)


def test_bad_rows_after_a_good_one_are_their_own_fault(tmp_path: Path) -> None:
    shift = make_shift(tmp_path, [1] * 8, ELSEWHERE)
    shift.begin(range(8))
    env = {"BATCHGEN_FAILPOINT": ",".join(f"row.row-{i}:*:raise" for i in range(1, 7))}
    assert shift.work(1, env) == 0
    assert sorted(shift.frames(1)) == [0, 7]
    failed = [c for c in shift.of(Commit, 1) if c.status == "failed"]
    assert sorted(c.row_index for c in failed) == [1, 2, 3, 4, 5, 6]
    assert {c.tries for c in failed} == {2}
