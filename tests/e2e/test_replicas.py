"""Replicas of several ranks: the pixels of one rank; whoever dies or stops, every row once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from cli_calls import make_job_folder, published, recorded
from waiting import wait_for

from batchgen.ledger.blame.rows import read_blame
from batchgen.ledger.status import AttemptStatus, read_status
from batchgen.paths import RunPaths
from batchgen.processes import ProcessId, children_of
from batchgen.runner.jobs import is_alive, jobs_of

TWO = ("slurm.executor=local", "slurm.ranks_per_node=2", "system.parallel.ulysses=2")
ROWS = 5


def ended(run: RunPaths, submission: int = 1) -> AttemptStatus:
    """The one attempt of a submission."""
    (found,) = [a for a in read_status(run).attempts if a.attempt.submission == submission]
    return found


def followers(run: RunPaths) -> list[ProcessId]:
    """Processes of the last submission's tasks that write no journal."""
    status = read_status(run)
    leaders = {a.process.pid for a in status.attempts}
    controllers = [job.process for job in jobs_of(run, status.submission) if job.process]
    found = [child for process in controllers for child in children_of(process)]
    return [process for process in found if process.pid not in leaders]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[object, ...]]:
    """What one rank makes of the rows."""
    return recorded(make_job_folder(tmp_path_factory.mktemp("alone"), ROWS).run().run)


@pytest.mark.slow
def test_two_ranks_that_share_the_tokens_draw_what_one_draws(
    new_job_folder, alone: set[tuple[object, ...]]
) -> None:
    done = new_job_folder(ROWS).run(*TWO)
    assert done.code == 0, done.err
    assert recorded(done.run) == alone
    attempt = ended(done.run)
    assert (attempt.ended, attempt.devices, attempt.commits) == ("done", 2, ROWS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        ("slurm.ranks_per_node=2", "system.parallel.cfg=2"),
        ("slurm.ranks_per_node=4", "system.parallel.cfg=2", "system.parallel.ulysses=2"),
        ("slurm.ranks_per_node=4", "system.parallel.dp=2", "system.parallel.ulysses=2"),
    ],
)
def test_layouts_draw_what_one_rank_draws(
    new_job_folder, alone: set[tuple[object, ...]], layout: tuple[str, ...]
) -> None:
    done = new_job_folder(ROWS).run("slurm.executor=local", *layout)
    assert done.code == 0, done.err
    assert recorded(done.run) == alone
    replicas = [a.attempt.replica for a in read_status(done.run).attempts]
    assert sorted(replicas) == ([0, 1] if "system.parallel.dp=2" in layout else [0])


@pytest.mark.slow
def test_more_replicas_than_rows(new_job_folder) -> None:
    """One of them has nothing to draw, and nobody waits for it."""
    done = new_job_folder(1).run(
        "slurm.executor=local", "slurm.ranks_per_node=4", "system.parallel.cfg=2"
    )
    assert done.code == 0, done.err
    assert sorted(a.commits for a in read_status(done.run).attempts) == [0, 1]
    assert {a.ended for a in read_status(done.run).attempts} <= {"done", "queue-lost"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "says"),
    [
        ("forward.1:2:raise", "rank 1 of 2 on"),  # before a collective
        ("collective.1:9:raise", "rank 1 of 2"),  # between two of a forward
        ("report.1:4:raise", "rank 1 of 2 on"),  # after
        ("forward.0:2:raise", "rank 0 of 2 on"),
        ("collective.0:9:raise", "rank 0 of 2"),
        ("report.0:4:raise", ""),  # the leader, between ticks: an error of its own
        ("forward.1:2:kill", "rank 1 of 2 on"),
        ("collective.1:9:kill", "rank 1 of 2 on"),
        ("forward.0:2:kill", ""),
        ("collective.1:9:stop", "rank 1 of 2 on"),
        ("collective.0:9:stop", ""),
        ("meet.1:1:kill", "no rank 1 came"),
        ("meet.1:1:stop", "no rank 1 came"),
    ],
)
def test_a_rank_that_fails_ends_its_replica_and_every_row_is_drawn_once(
    new_job_folder, alone: set[tuple[object, ...]], point: str, says: str
) -> None:
    """Whoever is gone is missed at once; whoever is stopped, or never came, in the watchdog's time,
    which has to be longer than the import of torch takes on a busy machine."""
    work, watchdog_s = (
        new_job_folder(ROWS),
        90 if point.endswith("stop") or "meet" in point else 1800,
    )
    failed = work.run(
        *TWO, "slurm.max_attempts=1", f"slurm.watchdog_s={watchdog_s}",
        env={"BATCHGEN_FAILPOINT": point},
    )  # fmt: skip
    assert failed.code == 1, failed.err
    run = RunPaths(next(work.root.glob("job-*")))
    attempt = ended(run)
    if says:
        assert attempt.ended == "ReplicaFailed" and says in attempt.error
        if point.startswith(("forward", "collective")):
            assert "row-00" in attempt.error
    assert read_blame(run).convicted == ()
    done = work.call("resume", str(run.root), "--json")
    assert done.code == 0, done.err
    assert recorded(run) == alone


@pytest.mark.slow
@pytest.mark.parametrize("told", ["leader", "follower"])
def test_a_signal_to_either_rank_saves_rows_that_go_on_elsewhere(new_job_folder, told: str) -> None:
    """On the same layout and on one rank: the pixels of an undisturbed run."""
    work = new_job_folder(2)
    long = ("row_defaults.num_steps=60", "system.batch.max_rows_in_flight=1")
    started = work.call("submit", str(work.job), *TWO, *long, "--json")
    assert started.code == 0, started.err
    run = started.run
    wait_for(lambda: read_status(run).running)
    pid = ended(run).process.pid if told == "leader" else followers(run)[0].pid
    os.kill(pid, signal.SIGUSR2)
    wait_for(lambda: not is_alive(run), timeout_s=120.0)
    attempt = ended(run)
    assert attempt.ended == "drained", attempt.error
    assert Path(run.root / "state").exists() and any((run.root / "state").rglob("*.safetensors"))
    other = () if told == "leader" else ("slurm.ranks_per_node=1", "system.parallel.ulysses=1")
    done = work.call("resume", str(run.root), *other, "--json")
    assert done.code == 0, done.err
    assert published(run) == published(work.run(*long).run)
