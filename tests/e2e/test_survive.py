"""Kill anything, any time: every row once, the same pixels, nothing torn."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cli_calls import AT_ONCE, NULL, SLOW_ROWS, JobFolder, published, recorded, rows_of
from waiting import process_state, wait_for

from batchgen.catalog.frames import snapshot
from batchgen.ledger.status import live_attempts, read_status
from batchgen.paths import RunPaths
from batchgen.planning.plan import read_plan
from batchgen.runfile import read_run
from batchgen.runner.jobs import is_alive


def ranks(run: RunPaths) -> list[int]:
    """Pids of the ranks at work."""
    return [attempt.process.pid for attempt in live_attempts(run)]


def wait_for_ranks(run: RunPaths, timeout_s: float = 60.0) -> list[int]:
    """Pids of the ranks of the last submission once there are any; none if it has ended."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := ranks(run):
            return found
        if not is_alive(run):
            return []
        time.sleep(0.02)
    raise AssertionError("no rank came up")


def settle(run: RunPaths, timeout_s: float = 120.0) -> None:
    """Wait until nothing of the run is at work; a row that is done renews the patience."""
    left, since = -1, time.monotonic()
    while is_alive(run):
        if (now := read_status(run).left) != left:
            left, since = now, time.monotonic()
        assert time.monotonic() < since + timeout_s, "the run does not end"
        time.sleep(0.05)


STEPS = "row_defaults.num_steps=10"  # long enough rows that most kills find some in flight


def torment(work: JobFolder, kills: int, seed: int) -> RunPaths:
    """Submit; kill random ranks at random moments, resume on another rank count, and again."""
    dice = random.Random(seed)
    started = work.call(
        "submit", str(work.job), "slurm.executor=local", "slurm.ranks_per_node=2", STEPS, "--json"
    )
    assert started.code == 0, started.err
    run, done = started.run, 0
    while True:
        while done < kills and (alive := wait_for_ranks(run)):
            time.sleep(dice.uniform(0.0, 1.5))
            for pid in dice.sample(alive, k=dice.randint(1, len(alive))):
                done += kill(pid)
        settle(run)
        ranks = f"slurm.ranks_per_node={dice.choice((1, 2, 3))}"
        if read_status(run).left:
            again = work.call("resume", str(run.root), ranks, "--detach")
        elif done < kills:  # a fast machine: render finished rows again
            again = work.call("retry", str(run.root), "--rows", work.row_ids(), "--detach")
        else:
            break
        assert again.code == 0, again.err
    rows = snapshot(run.root)
    if shot := list(rows[rows.status == "quarantined"].row_id):  # killed twice while alone
        again = work.call("retry", str(run.root), "--rows", ",".join(shot))
        assert again.code == 0, again.err
    assert work.call("collect", str(run.root)).code == 0
    return run


def kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def audit(work: JobFolder, run: RunPaths) -> None:
    """Catalog equal as a set to the undisturbed run's, media verified."""
    undisturbed = work.run(STEPS)
    assert undisturbed.code == 0, undisturbed.err
    assert recorded(run) == recorded(undisturbed.run)
    checked = work.call("verify", str(run.root), "--json")
    assert checked.code == 0, checked.out


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_kills_lose_nothing_and_repeat_nothing(new_job_folder) -> None:
    work = new_job_folder(40)
    run = torment(work, kills=10, seed=1)
    audit(work, run)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_hundred_kills(new_job_folder) -> None:
    work = new_job_folder(300)
    run = torment(work, kills=100, seed=2)
    audit(work, run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "point",
    [
        "media.before_write", "media.after_write", "media.before_rename", "media.after_rename",
        "journal.before_append", "journal.torn", "journal.after_append",
    ],
)  # fmt: skip
def test_a_kill_at_each_step_of_a_commit(new_job_folder, point: str) -> None:
    work = new_job_folder(3)
    killed = work.run("slurm.max_attempts=1", env={"BATCHGEN_FAILPOINT": f"{point}:2:kill"})
    assert killed.code == -signal.SIGKILL
    run = RunPaths(next(work.root.glob("job-*")))
    before = read_status(run)
    expected = 2 if point == "journal.after_append" else 1
    assert (before.ok, before.left) == (expected, 3 - expected)
    done = work.call("resume", str(run.root), "--json")
    assert done.code == 0, done.err
    assert len(published(run)) == 3
    checked = work.call("verify", str(run.root), "--repair", "--json")
    assert checked.code == 0, checked.out


def test_a_stopped_rank_keeps_others_out_and_two_resumes_cannot_both_win(new_job_folder) -> None:
    work = new_job_folder(6)
    env = {"BATCHGEN_FAILPOINT": "journal.before_append:2:stop"}
    started = work.call("submit", str(work.job), NULL, "slurm.executor=local", "--json", env=env)
    run = started.run
    (pid,) = wait_for_ranks(run)
    wait_for(lambda: process_state(pid) == "T")
    refused = work.here("resume", str(run.root))
    assert refused.code == 2 and "is at work" in refused.err
    os.kill(pid, signal.SIGKILL)
    settle(run)
    first, second = (work.start("resume", str(run.root), "--json") for _ in range(2))
    results = [(p.communicate(timeout=120), p.returncode) for p in (first, second)]
    codes = sorted(code for _, code in results)
    assert codes == [0, 2], results
    assert len(published(run)) == 6


@pytest.mark.slow
def test_ranks_do_not_wait_for_a_queue_whose_server_died_in_its_start_up(new_job_folder) -> None:
    work = new_job_folder(4)
    started = work.call(
        "submit", str(work.job), "slurm.executor=local", "slurm.ranks_per_node=2",
        "slurm.max_attempts=1", "--json",
        env={"BATCHGEN_FAILPOINT": "queue.before_address:1:kill"},
    )  # fmt: skip
    settle(started.run, 30.0)  # far less than the patience with a server that lives
    ends = {a.attempt.replica: a.ended for a in read_status(started.run).attempts}
    assert ends == {0: "", 1: "queue-lost"}
    done = work.call("resume", str(started.run.root), "--json")
    assert done.code == 0, done.err
    assert len(published(started.run)) == 4


def test_cancel_drains_and_resume_goes_on_with_other_ranks(new_job_folder) -> None:
    work = new_job_folder(16)
    started = work.call(
        "submit", str(work.job), NULL, "slurm.executor=local", "slurm.ranks_per_node=2",
        *SLOW_ROWS, "--json",
    )  # fmt: skip
    run = started.run
    wait_for(lambda: read_status(run).ok >= 2)
    cancelled = work.here("cancel", str(run.root), "--json")
    assert cancelled.code == 0, cancelled.err
    status = read_status(run)
    assert not status.alive and 2 <= status.ok < 16
    done = work.call("resume", str(run.root), "slurm.ranks_per_node=1", "--json", env=AT_ONCE)
    assert done.code == 0, done.err
    assert len(published(run)) == 16


@pytest.mark.slow
@pytest.mark.parametrize("point", ["replan.before_plan", "replan.after_plan"])
def test_a_crash_while_a_new_plan_is_installed_leaves_plan_and_header_of_one_mind(
    new_job_folder, point: str
) -> None:
    work = new_job_folder(2)
    run = work.run().run
    before = published(run)
    change = ("resume", str(run.root), "row_defaults.num_steps=4", "--rerender-changed", "--json")
    crashed = work.call(*change, env={"BATCHGEN_FAILPOINT": f"{point}:1:kill"})
    assert crashed.code == -signal.SIGKILL
    plain = work.call("resume", str(run.root), "--json")
    assert plain.code == 0, plain.err
    assert read_plan(run.plan).plan_id == read_run(run).plan_id
    assert (published(run) == before) == (point == "replan.before_plan")
    again = work.call(*change)
    assert again.code == 0, again.err
    steps = 4
    assert set(rows_of(run).num_steps) == {steps}
    assert read_run(run).config["row_defaults"]["num_steps"] == steps
    assert published(run) == published(work.run(f"row_defaults.num_steps={steps}").run)


def test_retry_of_a_row_leaves_other_unfinished_rows_alone(new_job_folder) -> None:
    work = new_job_folder(3)
    killed = work.run(NULL, env={"BATCHGEN_FAILPOINT": "journal.before_append:2:kill"})
    assert killed.code == -signal.SIGKILL
    run = RunPaths(next(work.root.glob("job-*")))
    (done,) = [r.row_id for r in snapshot(run.root).itertuples() if r.status == "ok"]
    retried = work.here("retry", str(run.root), "--rows", done, "--json")
    assert retried.code == 1, retried.err
    assert (retried.json["ok"], retried.json["left"]) == (1, 2)


def test_settings_in_the_row_key_are_refused_or_rerendered(new_job_folder) -> None:
    work = new_job_folder([
        {"row_id": "own-steps", "prompt": "a red circle", "num_steps": 3},
        {"row_id": "default", "prompt": "a blue ring", "num_steps": None},
    ])  # fmt: skip
    run = work.run_here().run
    before = published(run)
    refused = work.here("resume", str(run.root), "row_defaults.num_steps=4")
    assert refused.code == 2 and "row_defaults.num_steps" in refused.err
    assert published(run) == before
    again = work.here(
        "resume", str(run.root), "row_defaults.num_steps=4", "--rerender-changed", "--json"
    )
    assert again.code == 0, again.err
    after = published(run)
    assert after["own-steps"] == before["own-steps"]
    assert after["default"] != before["default"]


def test_retry_renders_named_rows_again_with_the_same_pixels(new_job_folder) -> None:
    work = new_job_folder(2)
    run = work.run_here().run
    before = published(run)
    done = work.here("retry", str(run.root), "--rows", "row-001", "--json")
    assert done.code == 0, done.err
    assert published(run) == before
    unknown = work.here("retry", str(run.root), "--rows", "row-01")
    assert unknown.code == 2 and "row-001" in unknown.err


@pytest.fixture
def small_disk(tmp_path: Path):
    """A tmpfs of 300 KiB, for root only."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)])
    if mounted.returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_said_and_resume_works_after_room_is_made(
    new_job_folder, small_disk
) -> None:
    work = new_job_folder(40)
    full = work.here(
        "run", str(work.job), NULL, f"output.root_dir={small_disk}", "output.format=npy",
        "slurm.max_attempts=1", "--json",
    )  # fmt: skip
    assert full.code == 1, full.err
    assert "No space left" in full.out + full.err
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    run = RunPaths(next(small_disk.glob("job-*")))
    assert read_status(run).left + read_status(run).failed > 0
    done = work.here("resume", str(run.root), "--json")
    assert done.code == 0, done.err
    assert len(published(run)) == 40


def test_a_read_only_folder_is_said_and_harms_nothing(new_job_folder, small_disk) -> None:
    work = new_job_folder(2)
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    run = work.run_here(NULL, f"output.root_dir={small_disk}").run
    before = published(run)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused = work.here("retry", str(run.root), "--rows", "row-001")
    assert refused.code != 0 and "ead-only" in refused.err
    assert "Traceback" not in refused.err
    assert json.loads(run.run_json.read_text())["rows"] == 2
    assert work.here("status", str(run.root)).code == 0
    assert published(run) == before
