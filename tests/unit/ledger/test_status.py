"""`status`: exact, at once, from the folder alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from run_folder import RunFolder
from waiting import process_state, wait_for

from batchgen.catalog.collect import collect
from batchgen.cli import status as status_command
from batchgen.cli.main import main
from batchgen.errors import RunStateError
from batchgen.ledger import journal as journal_module
from batchgen.ledger import submissions as attempts
from batchgen.ledger.blame.deaths import find_deaths
from batchgen.ledger.counts import read_counters
from batchgen.ledger.events import AttemptHeader, End, to_plain
from batchgen.ledger.journal import JournalWriter
from batchgen.ledger.reading.scan import CommitIndex, index_commits
from batchgen.ledger.status import RunStatus, live_attempts, read_status
from batchgen.paths import RunPaths
from batchgen.records import Attempt, RankSeconds


def figures(status: RunStatus) -> tuple[int, int, int]:
    assert status.ok + status.failed + status.quarantined + status.left == status.rows
    return status.ok, status.failed, status.left


def test_a_run_goes_through_its_states(make_run_folder: Callable[..., RunFolder]) -> None:
    run_folder = make_run_folder(2)
    assert read_status(run_folder.run).state == "planned"
    number = run_folder.submit()
    assert read_status(run_folder.run).state == "submitted"
    with run_folder.journal(number) as journal:
        assert (read_status(run_folder.run).state, read_status(run_folder.run).alive) == (
            "running",
            1,
        )
        assert read_status(run_folder.run).attempts[0].phase == "load"
        journal.phase("load", 0.1)
        assert read_status(run_folder.run).attempts[0].phase == "render"
        run_folder.render(journal, 0)
        journal.start(1, "row0001")
        status = read_status(run_folder.run)
        assert (figures(status), status.running) == ((1, 0, 1), 1)
        journal.end(End(reason="drained"))
    status = read_status(run_folder.run)
    assert (status.state, status.running, status.eta_s) == ("stopped", 0, None)
    assert status.attempts[0].ended == "drained"
    with run_folder.journal(run_folder.submit([1])) as journal:
        run_folder.render(journal, 1)
        journal.end(End(reason="done"))
    assert read_status(run_folder.run).state == "finished"


def test_aliases_count_as_manifest_rows(make_run_folder: Callable[..., RunFolder]) -> None:
    """Rows 3, 4 and 5 equal row 1: one rendering finishes four rows of the manifest."""
    run_folder = make_run_folder(6, aliases={3: 1, 4: 1, 5: 1})
    journal = run_folder.journal(run_folder.submit([0, 1, 2]))
    run_folder.render(journal, 1)
    assert figures(read_status(run_folder.run)) == (4, 0, 2)
    run_folder.fail(journal, 2)
    assert figures(read_status(run_folder.run)) == (4, 1, 1)
    status = read_status(run_folder.run)
    assert (status.rows, status.unique_rows, status.aliases) == (6, 3, 3)
    second = run_folder.journal(run_folder.submit([0, 2]))
    assert figures(read_status(run_folder.run)) == (4, 1, 1)
    run_folder.render(second, 0)
    assert figures(read_status(run_folder.run)) == (5, 1, 0)
    run_folder.render(second, 2)
    assert figures(read_status(run_folder.run)) == (6, 0, 0)


def test_a_failed_alias_original_fails_all_its_rows(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(3, aliases={2: 0})
    run_folder.fail(run_folder.journal(run_folder.submit([0, 1])), 0)
    assert figures(read_status(run_folder.run)) == (0, 2, 1)
    assert collect(run_folder.run).failed == 2


def test_figures_agree_with_the_catalog_whatever_happened(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """Failures, retries that succeed and fail, a zombie, a restart, aliases."""
    from batchgen.ledger.restarts import fence_restart

    run_folder = make_run_folder(10, aliases={8: 0, 9: 3})
    first = run_folder.journal(run_folder.submit(list(range(8))))

    def check() -> None:
        status, summary = read_status(run_folder.run), collect(run_folder.run)
        assert figures(status) == (summary.ok, summary.failed, summary.pending)

    for row in (0, 1, 2):
        run_folder.render(first, row)
    run_folder.fail(first, 3)
    run_folder.fail(first, 4)
    check()
    second = run_folder.journal(run_folder.submit([0, 3, 4, 5, 6, 7]))
    run_folder.render(first, 5)  # waste
    check()
    run_folder.fail(second, 0)
    run_folder.render(second, 3)
    run_folder.fail(second, 4)
    run_folder.fail(second, 5)
    check()
    fence_restart(run_folder.run, Attempt(2, 0, 1, 0))
    run_folder.render(second, 6)  # waste
    check()
    again = run_folder.journal(2, restart=1)
    run_folder.render(again, 5)
    run_folder.render(again, 6)
    check()
    assert figures(read_status(run_folder.run)) == (8, 1, 1)


def test_a_commit_in_the_middle_of_a_new_submission_is_not_counted(
    make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It arrives after the lengths were taken and before the journals were read."""
    run_folder = make_run_folder(3)
    zombie = run_folder.journal(run_folder.submit())
    run_folder.render(zombie, 0)
    real = attempts.index_commits

    def late(run: RunPaths) -> CommitIndex:
        run_folder.render(zombie, 1)
        return real(run)

    monkeypatch.setattr(attempts, "index_commits", late)
    run_folder.submit([1, 2])
    assert figures(read_status(run_folder.run)) == (1, 0, 2)
    assert collect(run_folder.run).ok == 1


def test_a_rank_that_begins_before_its_task_has_drawn_the_line_counts_right(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """Rank 0 draws it while the others open their journals."""
    from batchgen.ledger.restarts import fence_restart

    run_folder = make_run_folder(4)
    first = run_folder.journal(number := run_folder.submit())
    run_folder.fail(first, 0)
    for row in (1, 2):
        first.start(row, f"row{row:04d}")
    first.close()
    with run_folder.journal(number, restart=1, replica=1) as journal:
        fence_restart(run_folder.run, Attempt(number, 0, 1, 0))
        assert read_status(run_folder.run).suspects == 2
        run_folder.render(journal, 1)
        run_folder.render(journal, 0)
        journal.end(End(reason="done"))
    status = read_status(run_folder.run)
    assert (figures(status), status.suspects) == ((2, 0, 2), 1)


@pytest.mark.parametrize("state", ["fresh", "stale", "missing", "damaged", "beyond", "ahead"])
def test_figures_are_exact_whatever_the_counters_say(
    state: str, make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counters lag behind by up to half a second, and may be lost; the journal decides."""
    monkeypatch.setattr(journal_module, "COUNTERS_EVERY_S", 0.0 if state != "stale" else 1e9)
    run_folder = make_run_folder(4, aliases={3: 0})
    journal = run_folder.journal(run_folder.submit([0, 1, 2]))
    run_folder.render(journal, 0)
    limit = journal.path.stat().st_size
    run_folder.fail(journal, 1, "out of luck")
    path = run_folder.run.counters(Attempt(1, 0, 0, 0))
    if state == "missing":
        path.unlink()
    elif state == "damaged":
        path.write_text("[1]")
    elif state == "beyond":  # a task that restarted accepts less than was counted
        from batchgen.ledger.intent import Fence

        fence = Fence(accepted={"0001/0-r0-0.jsonl": limit}, statuses={0: "ok"})
        run_folder.run.fence(Attempt(1, 0, 1, 0)).write_text(json.dumps(to_plain(fence)))
        assert figures(read_status(run_folder.run)) == (2, 0, 2)
        return
    elif state == "ahead":  # a power cut took the end of the journal, but not the counters
        journal.path.write_bytes(journal.path.read_bytes()[:limit])
        assert figures(read_status(run_folder.run)) == (2, 0, 2)
        return
    status = read_status(run_folder.run)
    assert figures(status) == (2, 1, 1)
    assert status.last_error == "NonFiniteOutput: out of luck"
    assert (status.attempts[0].started, status.attempts[0].commits) == (2, 2)


def test_a_process_is_alive_until_it_is_gone_and_never_again(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """Also when it was killed before anybody waited for it, and when its pid is used again."""
    run_folder = make_run_folder(200)
    rank = run_folder.start_rank(
        run_folder.submit(), list(range(200)), "journal.after_append:20:stop"
    )
    wait_for(lambda: read_status(run_folder.run).ok == 20)
    assert [a.attempt.tag for a in live_attempts(run_folder.run)] == ["s1t0r0p0"]
    rank.kill()
    wait_for(lambda: process_state(rank.pid) == "Z")
    assert read_status(run_folder.run).attempts[0].life == "dead"
    rank.wait()
    status = read_status(run_folder.run)
    assert (status.ok, status.running, status.state) == (20, 0, "stopped")
    counters = run_folder.run.counters(Attempt(1, 0, 0, 0))
    known = read_counters(counters)
    assert known is not None
    imposter = replace(known, process=replace(known.process, pid=os.getpid()))
    counters.write_text(json.dumps(to_plain(imposter)))
    assert read_status(run_folder.run).attempts[0].life == "dead"


@pytest.mark.parametrize("followed", [True, False])
def test_a_row_that_is_tried_again_is_in_flight_once(
    followed: bool, make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by the writer, or by a reader of lines after the counters were written."""
    run_folder = make_run_folder(3)
    journal = run_folder.journal(run_folder.submit())
    monkeypatch.setattr(journal_module, "COUNTERS_EVERY_S", 1e9 if followed else 0.0)

    def rows() -> tuple[int, int, int]:
        status = read_status(run_folder.run)
        (attempt,) = status.attempts
        return attempt.started, attempt.commits, status.running

    for row in (0, 1):
        journal.start(row, f"row{row:04d}")
    assert rows() == (2, 0, 2)
    run_folder.fail(journal, 0)
    journal.start(1, "row0001")
    assert rows() == (2, 1, 1)
    journal.beat()
    monkeypatch.setattr(journal_module, "COUNTERS_EVERY_S", 1e9)
    journal.start(1, "row0001")  # one that the counters know already
    assert rows() == (2, 1, 1)
    run_folder.render(journal, 1)
    run_folder.render(journal, 2)
    assert rows() == (3, 3, 0)


@pytest.mark.parametrize("counted", [True, False])
def test_an_attempt_that_ends_by_an_error_says_which(
    counted: bool, make_run_folder: Callable[..., RunFolder]
) -> None:
    run_folder = make_run_folder(2)
    ends = {"drained": "", "WeightsError": "no such folder /weights", "MemoryError": "too large"}
    for reason, error in ends.items():
        with run_folder.journal(run_folder.submit()) as journal:
            run_folder.fail(journal, 0)
            journal.end(End(reason=reason, error=error))
    if not counted:
        run_folder.run.counters(Attempt(3, 0, 0, 0)).unlink()
    status = read_status(run_folder.run)
    assert status.last_error == "MemoryError: too large"
    assert {a.ended: a.error for a in status.attempts} == ends


@pytest.mark.parametrize("counted", [True, False])
def test_the_device_is_known_from_the_line_that_names_it(
    counted: bool, make_run_folder: Callable[..., RunFolder]
) -> None:
    """Not from the first one, which comes before anything that may fail; in older journals it is
    there."""
    run_folder = make_run_folder(2)
    attempt = Attempt(run_folder.submit(), 0, 0, 0)
    journal = JournalWriter.open(run_folder.run, AttemptHeader(attempt=attempt, host="n1"))

    def device() -> str:
        if not counted:
            run_folder.run.counters(attempt).unlink(missing_ok=True)
        (status,) = read_status(run_folder.run).attempts
        assert status.phase == "load"
        return status.device

    assert device() == ""
    journal.device("NVIDIA H100")
    assert device() == "NVIDIA H100"
    journal.phase("load", 1.0)
    run_folder.render(journal, 0)
    journal.start(1, "row0001")
    journal.close()
    with run_folder.journal(run_folder.submit([1])) as older:  # names the CPU in its first line
        run_folder.render(older, 1)
        older.end(End(reason="done"))
    index = index_commits(run_folder.run)
    assert [death.device for death in find_deaths(run_folder.run, index, set())] == ["NVIDIA H100"]
    collect(run_folder.run)
    assert pd.read_parquet(run_folder.run.catalog_runs)["device"].tolist() == ["NVIDIA H100", "cpu"]


def test_an_attempt_on_another_machine_lives_by_its_heartbeat(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(1)
    run_folder.journal(run_folder.submit()).close()
    path = run_folder.run.counters(Attempt(1, 0, 0, 0))
    known = read_counters(path)
    assert known is not None
    away = replace(known, process=replace(known.process, place="another boot"))
    path.write_text(json.dumps(to_plain(away)))
    assert read_status(run_folder.run, known.t + 59).attempts[0].life == "running"
    assert read_status(run_folder.run, known.t + 61).attempts[0].life == "dead"


def test_the_heartbeat_goes_on_without_commits(
    make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder = make_run_folder(1)
    journal = run_folder.journal(run_folder.submit())
    path = run_folder.run.counters(Attempt(1, 0, 0, 0))
    written = path.read_bytes()
    journal.beat()
    assert path.read_bytes() == written, "at most twice a second"
    monkeypatch.setattr(journal_module, "COUNTERS_EVERY_S", 0.0)
    before = read_counters(path)
    journal.beat()
    counters = read_counters(path)
    assert before is not None and counters is not None
    assert counters.t > before.t


def test_the_heartbeat_goes_on_where_the_clock_is_set_back(
    make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a rank that lives is taken for dead, or one that died for alive, for hours."""
    run_folder = make_run_folder(1)
    journal = run_folder.journal(run_folder.submit())
    monkeypatch.setattr(journal_module, "COUNTERS_EVERY_S", 0.0)
    now = time.time() - 3600
    monkeypatch.setattr(time, "time", lambda: now)
    journal.beat()
    counters = read_counters(run_folder.run.counters(Attempt(1, 0, 0, 0)))
    assert counters is not None and counters.t == now


def test_the_rate_is_no_wonder_where_the_clock_is_set_back(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(1)
    journal = run_folder.journal(run_folder.submit())
    run_folder.render(journal, 0)
    journal.close()
    path = run_folder.run.counters(Attempt(1, 0, 0, 0))
    known = read_counters(path)
    assert known is not None
    now = known.began - 3600
    for recent in (1, journal_module.RECENT):
        set_back = replace(known, t=now, commits=recent, recent=known.recent * recent)
        path.write_text(json.dumps(to_plain(replace(set_back, spent=RankSeconds(denoise=50.0)))))
        assert read_status(run_folder.run, now).rate_per_s == pytest.approx(recent / 50)


def test_rate_and_eta_come_from_live_attempts(make_run_folder: Callable[..., RunFolder]) -> None:
    run_folder = make_run_folder(6)
    journal = run_folder.journal(run_folder.submit())
    for row in (0, 1):
        run_folder.render(journal, row)
    began = read_status(run_folder.run).attempts[0]
    now = time.time() + 10
    status = read_status(run_folder.run, now)
    wall = now - (now - began.wall_s - 10)
    assert status.rate_per_s == pytest.approx(2 / wall, rel=0.05)
    assert status.eta_s == pytest.approx(4 / status.rate_per_s)
    assert status.gpu_hours == pytest.approx(wall / 3600, rel=0.05)
    journal.end(End(reason="done"))
    journal.close()
    assert (read_status(run_folder.run).rate_per_s, read_status(run_folder.run).eta_s) == (
        0.0,
        None,
    )


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunStateError, match="is not a run folder"):
        read_status(RunPaths(tmp_path))


def test_status_is_light_and_quick(make_run_folder: Callable[..., RunFolder]) -> None:
    """No package outside the standard library, also when journals are read."""
    run_folder = make_run_folder(3)
    journal = run_folder.journal(run_folder.submit())
    run_folder.render(journal, 0)
    code = f"""
import sys
from pathlib import Path
from batchgen.paths import RunPaths
from batchgen.ledger.status import read_status
assert read_status(RunPaths(Path({str(run_folder.run.root)!r}))).ok == 1
heavy = {{"numpy", "pandas", "pyarrow", "torch", "PIL", "imageio_ffmpeg", "hydra", "rich"}}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_of_an_attempt_that_ended_the_counters_alone_are_read(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """A large run has thousands of them: their journals are listed, not opened. A later start of
    the task accepts less of one of them, which is therefore counted anew."""
    from batchgen.ledger.intent import Fence

    run_folder, number = make_run_folder(4), 0
    for row in range(4):
        number = number if row > 1 else run_folder.submit([row, 2, 3])
        with run_folder.journal(number, task=row) as journal:
            journal.phase("load", 0.1)
            limit = journal.path.stat().st_size
            run_folder.render(journal, row)
            journal.end(End(reason="done"))
    fence = Fence(accepted={f"{number:04d}/3-r0-0.jsonl": limit}, statuses={})
    run_folder.run.fence(Attempt(number, 3, 1, 0)).write_text(json.dumps(to_plain(fence)))
    code = f"""
import sys
from pathlib import Path
from batchgen.paths import RunPaths
from batchgen.ledger.status import read_status
run, opened = RunPaths(Path({str(run_folder.run.root)!r})), []
sys.addaudithook(lambda name, args: opened.append(str(args[0])) if name == "open" else None)
status = read_status(run)
files = [Path(path) for path in opened]
counters = sorted(f.name for f in files if run.counters_dir in f.parents)
print(status.ok, {{f.name for f in files if f.suffix == ".jsonl"}}, counters)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    counters = ["0-r0-0.json", "1-r0-0.json", "2-r0-0.json", "3-r0-0.json"]
    assert done.stdout.strip() == f"3 {{'3-r0-0.jsonl'}} {counters}"


def test_json_names_the_attempts_that_run_and_the_last_that_ended(
    make_run_folder: Callable[..., RunFolder],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(status_command, "JSON_ENDED", 3)
    run_folder = make_run_folder(1)
    number = run_folder.submit()
    live = run_folder.journal(number)
    for task in (5, 4, 3, 2, 1):
        with run_folder.journal(number, task) as journal:
            journal.end(End(reason="done", t=time.time() - task))
    assert main(["status", str(run_folder.run.root), "--offline", "--json"]) == 1
    data = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (data["attempts_total"], data["alive"]) == (6, 1)
    assert [a["attempt"]["task"] for a in data["attempts"]] == [0, 1, 2, 3]
    live.close()
