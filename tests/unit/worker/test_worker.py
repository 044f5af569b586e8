"""One rank of a shard as a process: signals, limits, deaths, suspects."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import warm
from planned_run import BEATING, PlannedRun, plan_run

from batchgen.config.schema import SlurmConfig
from batchgen.durable import write_json
from batchgen.engine.contract import Snapshot
from batchgen.ledger.blame.rows import read_blame
from batchgen.ledger.counts import read_counters
from batchgen.ledger.events import End, Phase, Saved, Signalled, Start
from batchgen.ledger.status import read_status
from batchgen.planning.plan import read_requests
from batchgen.processes import ProcessId
from batchgen.records import Attempt, Commit
from batchgen.worker.replica import beat_seconds
from batchgen.worker.states import RowStates


@contextmanager
def at_work(
    planned_run: PlannedRun, submission: int, row: int, **rank: object
) -> Iterator[warm.Process]:
    """A rank that has begun `row` a moment ago; killed in the end if it is still there."""
    process = planned_run.start(submission, BEATING, **rank)
    restart = int(str(rank.get("restart", 0)))
    try:
        planned_run.wait_for(
            lambda: row in [s.row_index for s in planned_run.of(Start, submission, restart)]
        )
        planned_run.wait_for_steps(submission, restart)
        yield process
    finally:
        process.kill()
        process.communicate()


def end_of(
    planned_run: PlannedRun, submission: int, restart: int = 0, replica: int = 0
) -> End | None:
    ends = planned_run.of(End, submission, restart, replica)
    return ends[0] if ends else None


def started(
    planned_run: PlannedRun, submission: int, restart: int = 0, replica: int = 0
) -> list[int]:
    return [s.row_index for s in planned_run.of(Start, submission, restart, replica)]


# ------------------------------------------------------------------------------------- signals
@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGUSR2, "drained"), (signal.SIGTERM, "terminated")]
)
def test_a_signal_saves_the_row_in_flight_and_the_next_start_goes_on(
    tmp_path: Path, number: signal.Signals, reason: str
) -> None:
    undisturbed = plan_run(tmp_path / "whole", [5, 100, 5])
    assert undisturbed.work(undisturbed.begin([0, 1, 2])) == 0
    planned_run = plan_run(tmp_path / "cut", [5, 100, 5])
    assert planned_run.begin([0, 1, 2]) == 1
    with at_work(planned_run, 1, 1) as rank:
        rank.send_signal(number)
        assert rank.wait(20) == 0
    end, (saved,) = end_of(planned_run, 1), planned_run.of(Saved, 1)
    assert end is not None and end.reason == reason
    assert saved.row_index == 1 and 0 < saved.step < 100
    assert saved.seconds == pytest.approx(saved.step * 0.01, abs=0.2)
    state = planned_run.run.row_state(1, 3)
    assert state.exists()
    assert planned_run.work(1, restart=1) == 0
    assert started(planned_run, 1, restart=1) == [1, 2]
    (first, *_) = planned_run.of(Commit, 1, restart=1)
    assert first.stats.steps_restored == saved.step
    assert first.stats.steps_computed == 100 - saved.step
    assert not state.exists()
    assert planned_run.frames(1) | planned_run.frames(1, restart=1) == undisturbed.frames(1)


def test_a_damaged_state_costs_the_steps_and_nothing_else(tmp_path: Path) -> None:
    planned_run = plan_run(tmp_path, [60])
    planned_run.begin([0])
    with at_work(planned_run, 1, 0) as rank:
        rank.send_signal(signal.SIGUSR2)
        rank.wait(20)
    state = planned_run.run.row_state(0, 1)
    state.write_bytes(state.read_bytes()[:-4])
    assert planned_run.work(1, restart=1) == 0
    (commit,) = planned_run.of(Commit, 1, restart=1)
    assert (commit.status, commit.stats.steps_restored) == ("ok", 0)
    assert not state.exists()


def test_a_later_submission_takes_the_rows_over(tmp_path: Path) -> None:
    planned_run = plan_run(tmp_path, [500, 500])
    planned_run.begin([0, 1])
    with at_work(planned_run, 1, 0) as rank:
        planned_run.begin([0, 1])
        assert rank.wait(20) == 0
    end = end_of(planned_run, 1)
    assert end is not None and end.reason == "superseded"


def test_a_preempted_rank_stays_to_be_started_again(tmp_path: Path) -> None:
    """Its journal is closed before: whoever kills it now leaves no suspects."""
    planned_run = plan_run(tmp_path, [500])
    planned_run.begin([0])
    with at_work(planned_run, 1, 0, ends=time.time() + 7200) as rank:
        rank.send_signal(signal.SIGUSR2)
        planned_run.wait_for(lambda: end_of(planned_run, 1))
        rank.send_signal(signal.SIGTERM)  # comes with the requeue
        with pytest.raises(subprocess.TimeoutExpired):
            rank.wait(1.0)
        planned_run.run.cancelled(1).touch()
        assert rank.wait(10) == 0


def test_a_rank_that_waits_for_the_queue_or_for_the_others_ends_too(tmp_path: Path) -> None:
    """Rank 2 comes alone; later rank 1 is done while rank 0 still draws."""
    planned_run = plan_run(tmp_path, [900, 1])
    planned_run.begin([0], alone=[1])
    early = planned_run.start(1, rank=2, world_size=3)
    planned_run.wait_for(lambda: planned_run.events(1, replica=2))
    early.send_signal(signal.SIGTERM)
    early.communicate(timeout=30)
    assert early.returncode == 0
    assert planned_run.of(Phase, 1, replica=2) == [], "it loads no model first"
    with at_work(planned_run, 1, 0, world_size=3) as rank:
        late = planned_run.start(1, rank=1, world_size=3)
        planned_run.wait_for(lambda: planned_run.events(1, replica=1))
        planned_run.wait_for(
            lambda: planned_run.of(Phase, 1, replica=1)
        )  # it has loaded, and waits
        assert started(planned_run, 1, replica=1) == []
        for process in (late, rank):
            process.send_signal(signal.SIGUSR2)
        late.communicate(timeout=30)
        assert late.returncode == rank.wait(30) == 0
    assert [end_of(planned_run, 1, replica=k).reason for k in (0, 1, 2)] == [  # type: ignore[union-attr]
        "drained", "drained", "terminated",
    ]  # fmt: skip


def test_a_rank_whose_queue_is_gone_loads_no_model(tmp_path: Path) -> None:
    planned_run = plan_run(tmp_path, [1, 1])
    planned_run.begin([0, 1])
    dead = subprocess.Popen(["true"])
    gone = ProcessId.of(dead.pid)
    dead.wait()
    address = planned_run.run.queue_address(Attempt(1, 0, 0, 0))
    address.parent.mkdir(parents=True)
    write_json(address, {"process": asdict(gone)})
    assert planned_run.work(1, rank=1, world_size=2) == 0
    end = end_of(planned_run, 1, replica=1)
    assert end is not None and end.reason == "queue-lost"
    assert planned_run.of(Phase, 1, replica=1) == []


def test_rank_zero_may_wait_for_the_others_longer_than_its_watchdog(tmp_path: Path) -> None:
    planned_run = plan_run(tmp_path, [200, 900], "slurm.watchdog_s=4")
    planned_run.begin([0, 1])
    ranks = [planned_run.start(1, rank=k, world_size=2) for k in range(2)]
    for rank in ranks:
        _, err = rank.communicate(timeout=60)
        assert rank.returncode == 0, err
    assert [list(planned_run.frames(1, replica=k)) for k in range(2)] == [[0], [1]]


# ---------------------------------------------------------------------------------- wall time
def test_rows_that_do_not_fit_before_the_limit_are_not_begun(tmp_path: Path) -> None:
    planned_run = plan_run(tmp_path, [60, 1000, 1000, 60, 1000, 5], "slurm.signal_delay_s=30")
    planned_run.begin(range(6))
    assert planned_run.work(1, ends=time.time() + 30 + 8) == 0
    assert started(planned_run, 1) == [0, 3, 5]
    assert sorted(planned_run.frames(1)) == [0, 3, 5]
    end = end_of(planned_run, 1)
    assert end is not None and end.reason == "drained"


def test_a_row_saved_near_its_end_fits_where_the_whole_row_would_not(tmp_path: Path) -> None:
    """It would take 80 s, its rest takes 2 s, and there are 60 s with what it takes to begin."""
    planned_run = plan_run(tmp_path, [5, 1000], "slurm.signal_delay_s=30")
    planned_run.begin([0, 1])
    state = Snapshot(975, 78.0, {"digest": np.zeros(32, np.uint8)})
    request = read_requests(planned_run.run.plan, [1])[0]
    RowStates(planned_run.run, 2, "strict", "none").save(request, state)
    slow = {"BATCHGEN_NULL_SLOW": "*=8"}
    assert planned_run.work(1, slow, ends=time.time() + 30 + 60) == 0
    commits = {commit.row_index: commit for commit in planned_run.of(Commit, 1)}
    assert sorted(commits) == [0, 1] and commits[1].stats.steps_restored == 975


# -------------------------------------------------------------------------------------- deaths
def test_a_hung_rank_is_killed(tmp_path: Path) -> None:
    planned_run = plan_run(tmp_path, [2, 40, 2], "slurm.watchdog_s=4")
    planned_run.begin([0, 1, 2])
    env = {"BATCHGEN_FAILPOINT": "row.row-2:1:stop"}
    assert planned_run.work(1, env) == -signal.SIGKILL
    assert 0 in planned_run.frames(1) and 2 not in planned_run.frames(1)
    assert end_of(planned_run, 1) is None


def test_a_row_that_kills_its_rank_comes_last_and_alone(tmp_path: Path) -> None:
    """So does the row that was being written meanwhile: nobody can tell which one it was."""
    planned_run = plan_run(tmp_path, [2] * 6)
    planned_run.begin(range(6))
    env = {"BATCHGEN_FAILPOINT": "row.row-2:1:kill"}
    assert planned_run.work(1, env) == -signal.SIGKILL
    assert planned_run.work(1, env, restart=1) == -signal.SIGKILL
    starts = planned_run.of(Start, 1, restart=1)
    assert [s.row_index for s in starts if not s.alone] == [3, 4, 5]
    suspects = [s.row_index for s in starts if s.alone]
    assert suspects == [*({0, 1} - planned_run.frames(1).keys()), 2]
    assert starts[-1].row_index == 2
    planned_run.begin([], alone=[2])
    assert planned_run.work(2) == 0
    assert [(s.row_index, s.alone) for s in planned_run.of(Start, 2)] == [(2, True)]
    done = [*planned_run.frames(1), *planned_run.frames(1, 1), *planned_run.frames(2)]
    assert sorted(done) == list(range(6))


def test_a_row_that_takes_its_node_down_takes_two(tmp_path: Path) -> None:
    """Slurm starts the task again elsewhere, and again: once the row has died alone it waits for
    the next submission, which judges it."""
    planned_run = plan_run(tmp_path, [2] * 4)
    planned_run.begin(range(4))
    env = {"BATCHGEN_FAILPOINT": "row.row-1:1:kill"}
    codes = [planned_run.work(1, env, restart=k, host=f"node{k}") for k in range(4)]
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0, 0]
    assert [1 in started(planned_run, 1, restart=k) for k in range(4)] == [True, True, False, False]
    assert planned_run.of(Phase, 1, restart=3) == [], "no model is loaded for no row"
    rendered = {row for k in range(4) for row in planned_run.frames(1, restart=k)}
    assert rendered == {0, 2, 3}
    status = read_status(planned_run.run)
    assert (status.ok, status.left, status.suspects, status.state) == (3, 1, 1, "stopped")
    assert read_blame(planned_run.run).convicted == ()
    planned_run.begin([], alone=[1])
    assert planned_run.work(2, env, host="node2") == -signal.SIGKILL
    blame = read_blame(planned_run.run)
    assert [(v.row_index, v.host) for v in blame.convicted] == [(1, "node2")]


def test_a_rank_that_is_killed_in_a_long_step_after_a_signal_tells_of_it(tmp_path: Path) -> None:
    """Else the kill would count as a death by its row."""
    planned_run = plan_run(tmp_path, [5])
    env = {"BATCHGEN_FAILPOINT": "row.row-0:1:sleep300"}
    for number, host in ((1, "node1"), (2, "node2")):
        planned_run.begin([], alone=[0])
        rank = planned_run.start(number, env, host=host)
        planned_run.wait_for(lambda n=number: started(planned_run, n))
        rank.send_signal(signal.SIGTERM)
        planned_run.wait_for(lambda n=number: planned_run.of(Signalled, n))
        rank.kill()
        rank.communicate()
    blame = read_blame(planned_run.run)
    assert [(d.host, d.rows, d.signalled) for d in blame.deaths] == [
        ("node1", (0,), True), ("node2", (0,), True),
    ]  # fmt: skip
    assert (blame.suspects.tolist(), blame.convicted, blame.bad_hosts) == ([0], (), {})


def intervals(
    planned_run: PlannedRun, submission: int, replica: int
) -> list[tuple[int, float, float, bool]]:
    """Row, start, commit, alone."""
    ends = {c.row_index: c.ended for c in planned_run.of(Commit, submission, replica=replica)}
    starts = planned_run.of(Start, submission, replica=replica)
    return [(s.row_index, s.t, ends[s.row_index], s.alone) for s in starts]


def test_suspects_have_the_whole_shard_to_themselves(tmp_path: Path) -> None:
    """Two ranks, one with a long row: no suspect begins before it is done, nor beside another."""
    planned_run = plan_run(tmp_path, [150, 2, 2, 30, 30, 30])
    planned_run.begin([0, 1, 2], alone=[3, 4, 5])
    ranks = [planned_run.start(1, rank=k, world_size=2) for k in range(2)]
    for rank in ranks:
        _, err = rank.communicate(timeout=60)
        assert rank.returncode == 0, err
    drawn = sorted(
        intervals(planned_run, 1, 0) + intervals(planned_run, 1, 1), key=lambda row: row[1]
    )
    assert sorted(row for row, *_ in drawn) == list(range(6))
    assert [alone for *_, alone in drawn] == [False] * 3 + [True] * 3
    for before, (_, begin, _, alone) in pairwise(drawn):
        assert not alone or begin >= before[2]
    others = [end for *_, end, alone in drawn if not alone]
    assert min(begin for _, begin, _, alone in drawn if alone) >= max(others)


def test_a_suspect_that_kills_one_rank_leaves_the_next_one_to_the_other(tmp_path: Path) -> None:
    """Rank 1 dies by whatever suspect it draws; rank 0 draws the rest."""
    planned_run = plan_run(tmp_path, [2, 2, 20, 20, 20, 20])
    planned_run.begin([0, 1], alone=[2, 3, 4, 5])
    kill = ",".join(f"row.row-{i}:1:kill" for i in (2, 3, 4, 5))
    ranks = [
        planned_run.start(1, env, rank=k, world_size=2)
        for k, env in enumerate(({}, {"BATCHGEN_FAILPOINT": kill}))
    ]
    for rank in ranks:
        rank.communicate(timeout=60)
    assert ranks[0].returncode == 0
    died = [s.row_index for s in planned_run.of(Start, 1, replica=1) if s.alone]
    drawn = {*planned_run.frames(1), *planned_run.frames(1, replica=1)}
    assert len(died) <= 1
    assert drawn == set(range(6)) - set(died)


# ------------------------------------------------------------------------------- broken machines
SMALL = ("row_defaults.width=32", "row_defaults.height=32", "row_defaults.num_frames=1")


def in_every_python(folder: Path, module: str, code: str) -> dict[str, str]:
    """Environment of a rank that finds this module before any other of its name."""
    folder.mkdir()
    (folder / f"{module}.py").write_text(code)
    return {"PYTHONPATH": str(folder)}


@pytest.mark.slow
def test_a_node_where_torch_cannot_be_imported_is_blamed(tmp_path: Path) -> None:
    """Whatever a broken driver does to a rank comes before its first row, but not before its
    journal."""
    planned_run = plan_run(tmp_path, [1, 1], *SMALL, model="tiny-wan")
    planned_run.begin([0])
    planned_run.begin([1])
    lacks = 'raise ImportError("libcuda.so.1: cannot open shared object file")'
    broken = in_every_python(tmp_path / "broken", "torch", lacks)
    for restart in range(2):
        assert planned_run.work(2, broken, host="node2", restart=restart) == 1
        (end,) = planned_run.of(End, 2, restart)
        assert (end.reason, end.error) == ("ImportError", lacks.split('"')[1])
        assert started(planned_run, 2, restart) == []
    assert planned_run.work(2, host="node1", restart=2) == 0
    assert sorted(planned_run.frames(2, restart=2)) == [1]
    assert list(read_blame(planned_run.run).bad_hosts) == ["node2"]
    assert [a.device for a in read_status(planned_run.run).attempts] == ["", "", "cpu"]


def test_the_worker_imports_no_torch() -> None:
    code = "import sys, batchgen.worker.replica; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------ watchdog
HANG = "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n"


@pytest.mark.parametrize("module", ["torch", "safetensors"])
def test_a_rank_that_hangs_before_it_has_loaded_is_killed(tmp_path: Path, module: str) -> None:
    """As a stuck driver or file system does it."""
    planned_run = plan_run(tmp_path, [1], "slurm.watchdog_s=5", *SMALL, model="tiny-wan")
    planned_run.begin([0])
    env = in_every_python(tmp_path / "hangs", module, HANG)
    assert planned_run.work(1, env) == -signal.SIGKILL
    assert bool(planned_run.events(1)) == (module == "torch")
    assert end_of(planned_run, 1) is None


def test_a_rank_that_hangs_as_its_process_ends_is_killed(tmp_path: Path) -> None:
    planned_run = plan_run(tmp_path, [1], "slurm.watchdog_s=4")
    planned_run.begin([0])
    code = "import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.SIGSTOP)\n"
    env = in_every_python(tmp_path / "hangs", "sitecustomize", code)
    assert planned_run.work(1, env) == -signal.SIGKILL
    end = end_of(planned_run, 1)
    assert end is not None and end.reason == "done"


def test_a_rank_inside_another_process_takes_its_watchdog_along(tmp_path: Path) -> None:
    """Of executor `inline`: whoever called goes on, for as long as it likes."""
    planned_run = plan_run(tmp_path, [1], "slurm.watchdog_s=60", "slurm.executor=inline")
    number = planned_run.begin([0])
    code = (
        "import os, sys; from pathlib import Path\n"
        "from batchgen.paths import RunPaths; from batchgen.records import RankInfo\n"
        "from batchgen.worker import work\n"
        "work(RunPaths(Path(sys.argv[1])), int(sys.argv[2]), RankInfo(0, 1, 0, 0, 0, 'node1'))\n"
        "sys.exit(bool(Path(f'/proc/self/task/{os.getpid()}/children').read_text()))"
    )
    command = [sys.executable, "-c", code, str(planned_run.run.root), str(number)]
    assert subprocess.run(command, timeout=60).returncode == 0, "it has left a process behind"
    assert list(planned_run.frames(1)) == [0]


def test_a_preempted_rank_may_linger_longer_than_its_watchdog(tmp_path: Path) -> None:
    planned_run = plan_run(tmp_path, [500], "slurm.watchdog_s=4")
    planned_run.begin([0])
    with at_work(planned_run, 1, 0, ends=time.time() + 7200) as rank:
        rank.send_signal(signal.SIGUSR2)
        planned_run.wait_for(lambda: end_of(planned_run, 1))
        with pytest.raises(subprocess.TimeoutExpired):
            rank.wait(5.0)
        planned_run.run.cancelled(1).touch()
        assert rank.wait(10) == 0


def test_a_killed_rank_leaves_no_watchdog_behind(tmp_path: Path) -> None:
    planned_run = plan_run(tmp_path, [500])
    planned_run.begin([0])
    with at_work(planned_run, 1, 0) as rank:
        with open(f"/proc/{rank.pid}/task/{rank.pid}/children") as file:
            (dog,) = map(int, file.read().split())
        rank.kill()
        rank.wait()
        planned_run.wait_for(lambda: not os.path.exists(f"/proc/{dog}"), 10)


# --------------------------------------------------------------------------------- storage
def test_ranks_that_the_disk_ends_convict_nobody(tmp_path: Path) -> None:
    """A suspect, alone, on two hosts, while no commit line can be written."""
    planned_run = plan_run(tmp_path, [1, 1])
    planned_run.begin([1])
    assert planned_run.work(1, host="good") == 0
    full = {"BATCHGEN_FAILPOINT": "journal.torn:*:enospc"}
    for number, host in ((2, "node1"), (3, "node2")):
        assert planned_run.begin([], alone=[0]) == number
        assert planned_run.work(number, full, host=host) == 1
        end = end_of(planned_run, number)
        assert end is not None and end.reason == "StorageError" and "No space left" in end.error
    blame = read_blame(planned_run.run)
    assert (blame.deaths, blame.convicted, blame.bad_hosts) == ((), (), {})
    assert not list(planned_run.run.counters_dir.rglob("*.reserve"))


@pytest.mark.parametrize("broken", ["folder", "full"])
def test_a_log_that_cannot_be_written_costs_no_row(tmp_path: Path, broken: str) -> None:
    planned_run = plan_run(tmp_path, [1, 1])
    planned_run.begin([0, 1])
    if broken == "folder":
        planned_run.run.logs.rmdir()
        planned_run.run.logs.touch()
    else:
        (planned_run.run.logs / "run-s1t0r0p0.log").symlink_to("/dev/full")
    assert planned_run.work(1) == 0
    assert sorted(planned_run.frames(1)) == [0, 1]


def test_many_ranks_beat_less_often() -> None:
    def beat(nodes: int, ranks: int) -> float:
        return beat_seconds(SlurmConfig(executor="slurm", nodes=nodes, ranks_per_node=ranks))

    assert (beat(1, 1), beat(64, 8), beat(250, 8)) == (2.5, 5.12, 10.0)


def test_a_rank_that_renders_one_long_row_beats(tmp_path: Path) -> None:
    """So what it was busy with is known if it is killed."""
    planned_run = plan_run(tmp_path, [1000])
    planned_run.begin([0])
    rank = planned_run.start(1)
    path = planned_run.run.counters(Attempt(1, 0, 0, 0))

    def busy() -> float:
        counters = read_counters(path)
        return counters.spent.busy if counters else 0.0

    planned_run.wait_for(lambda: busy() >= 1.0)
    rank.kill()
    rank.communicate()
    assert busy() < 8.0, "of ten"
