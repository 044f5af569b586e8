"""A start line that has grown together with the line after it says nothing, and is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from run_folder import RunFolder

from batchgen.catalog.verify import verify
from batchgen.ledger.events import START
from batchgen.ledger.intent import read_fence
from batchgen.ledger.reading.scan import index_commits
from batchgen.ledger.restarts import fence_restart
from batchgen.ledger.status import read_status
from batchgen.records import Attempt


@pytest.fixture
def grown(make_run_folder: Callable[..., RunFolder]) -> RunFolder:
    """Three rows committed; the start line of the second lost its end, and the newline with it."""
    run_folder = make_run_folder(3)
    with run_folder.journal(run_folder.submit()) as journal:
        for row in range(3):
            run_folder.render(journal, row)
    lines = journal.path.read_bytes().splitlines(keepends=True)
    (place,) = [n for n, line in enumerate(lines) if (m := START.match(line)) and m[1] == b"1"]
    lines[place] = lines[place][:40]
    journal.path.write_bytes(b"".join(lines))
    assert START.match(lines[place] + lines[place + 1]), "it looks like a start line"
    run_folder.run.counters(Attempt(1, 0, 0, 0)).unlink()
    return run_folder


def test_scan_and_verify_name_it(grown: RunFolder) -> None:
    (facts,) = index_commits(grown.run).journals
    assert (facts.starts, facts.in_flight.rows, len(facts.bad_lines)) == (2, set(), 1)
    (damage,) = verify(grown.run).damage
    assert damage.kind == "journal" and f"byte {facts.bad_lines[0]}" in damage.detail


def test_status_says_what_the_scan_says(grown: RunFolder) -> None:
    status = read_status(grown.run)
    assert (status.ok, status.left) == (2, 1)
    assert status.attempts[0].started == 2, "the row is not in flight"


def test_a_restart_has_no_suspect_by_it(grown: RunFolder) -> None:
    again = Attempt(1, 0, 1, 0)
    assert fence_restart(grown.run, again) == {0: "ok", 2: "ok"}
    fence = read_fence(grown.run, again)
    assert fence is not None and (fence.suspects, fence.withheld) == ((), ())
