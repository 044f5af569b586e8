"""Every state of a scheduler ends in a right answer or a clear error: nothing is submitted twice,
nothing is lost, and who cannot know whether a run is at work leaves it alone.

The scheduler is a fake one (`fake_slurm`); what it runs are real ranks with the null engine.
"""

from __future__ import annotations

import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from cli_calls import rows_of
from fake_slurm import BUSY, POLICY, TIMED_OUT, UNREACHABLE, FakeSlurm
from login_node import JOB, TWO_SHARDS, LoginNode
from waiting import wait_for

from batchgen.ledger.intent import submission_numbers
from batchgen.ledger.upkeep.repair import void_rows
from batchgen.paths import RunPaths
from batchgen.runner import recover, steward
from batchgen.runner.executors import slurm as executor
from batchgen.runner.submit import without_hosts
from batchgen.scheduler import commands as scheduler
from batchgen.scheduler.commands import SchedulerError, job_name
from batchgen.scheduler.options import outside_any_job

pytestmark = pytest.mark.slurm  # they wait as much as those on real clusters, and run with them
HANG_S = 30  # far beyond PATIENCE_S


@pytest.fixture
def two_jobs(fake: FakeSlurm, tmp_path: Path) -> FakeSlurm:
    """An array of two named `mine`, one element at work, and one job `mine-too`."""
    for name, array in (("mine", "--array=0-1%2"), ("mine-too", "--time=1")):
        script = tmp_path / f"{name}.sh"
        script.write_text(f"#!/bin/bash\n#SBATCH --job-name={name}\n#SBATCH {array}\n")
        scheduler.order(script)
    fake.change("1001", state="RUNNING", node="node3", reason="None")
    return fake


# ------------------------------------------------------------------------------------------ squeue
def test_the_queue_is_read_by_name(two_jobs: FakeSlurm) -> None:
    first, second = scheduler.queue(["mine"])
    assert (first.task_id, first.job_id, first.array_id) == ("1001_0", "1001", "1001")
    assert (first.state, first.node, first.waits) == ("RUNNING", "node3", False)
    assert (second.task_id, second.state, second.reason) == ("1001_1", "PENDING", "Priority")
    assert [task.task_id for task in scheduler.queue(["mine-too", "other"])] == ["1003"]
    assert scheduler.queue(["other"]) == []


@pytest.mark.parametrize(
    "banner",
    [
        "*** Maintenance on Friday. Your jobs: see `squeue --me` ***",
        "Your job 7 of project mine is over its quota\n1|2|3",
        "\n\n",
    ],
)
def test_a_banner_before_the_list_is_not_in_the_way(two_jobs: FakeSlurm, banner: str) -> None:
    two_jobs.steer("squeue", "banner", banner)
    assert [task.task_id for task in scheduler.queue(["mine"])] == ["1001_0", "1001_1"]
    assert scheduler.queue(["other"]) == []


@pytest.mark.parametrize(
    ("do", "say", "told"),
    [
        ("hang", HANG_S, "no answer"),
        ("fail", UNREACHABLE, "Unable to contact slurm controller"),
        ("fail", "", "exit status 1"),
        ("garble", "", "squeue"),
        ("garble", "Slurm is down for maintenance until Friday", "squeue"),
        ("garble", "\x00\ufffd\x1b[0m|||||||", "squeue"),
        ("garble", "1001_0|1001", "squeue"),
    ],
)
def test_a_queue_that_cannot_be_read_is_an_error_and_not_empty(
    two_jobs: FakeSlurm, do: str, say: object, told: str
) -> None:
    two_jobs.steer("squeue", do, say)
    started = time.monotonic()
    with pytest.raises(SchedulerError, match=told):
        scheduler.queue(["mine"])
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("missing", range(1, 60, 2))
def test_a_list_that_breaks_off_loses_no_task_in_silence(two_jobs: FakeSlurm, missing: int) -> None:
    """Cut anywhere but between two lines, which cannot be seen."""
    two_jobs.steer("squeue", "cut", missing)
    try:
        found = scheduler.queue(["mine"])
    except SchedulerError as error:
        assert "squeue" in str(error)
    else:
        assert [(t.task_id, t.state) for t in found] == [
            ("1001_0", "RUNNING"), ("1001_1", "PENDING"),
        ]  # fmt: skip


def test_a_machine_without_slurm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SchedulerError, match="squeue: not found"):
        scheduler.queue(["mine"])


# ---------------------------------------------------------------------------- scontrol and scancel
def test_the_array_limit_is_read(fake: FakeSlurm) -> None:
    fake.steer("scontrol", "banner", "Welcome to node login1, MaxArraySize is what it is")
    assert scheduler.max_array_size() == 1001


@pytest.mark.parametrize(
    ("do", "say"),
    [("hang", HANG_S), ("fail", UNREACHABLE), ("garble", "MaxArraySize = (null)"), ("garble", "")],
)
def test_an_array_limit_that_is_not_told_is_an_error(fake: FakeSlurm, do: str, say: object) -> None:
    fake.steer("scontrol", do, say)
    with pytest.raises(SchedulerError, match="scontrol"):
        scheduler.max_array_size()


NO_SOURCE = (
    "error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host\n"
    "scontrol: error: fetch_config: DNS SRV lookup failed\n"
    "scontrol: fatal: Could not establish a configuration source"
)


@pytest.mark.parametrize("say", [UNREACHABLE, NO_SOURCE])
def test_a_machine_without_a_controller_is_told_in_one_line_what_to_do(
    login_node: LoginNode, say: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(login_node.job_folder.folder)
    Path("slurm").mkdir()
    Path("slurm/there.yaml").write_text("executor: slurm\n")
    login_node.fake.steer("scontrol", "fail", say)
    begun = (("submit", str(login_node.job_folder.job), *JOB), ("slurm", "init", "mine"))
    for argv in (*begun, ("slurm", "check", "there")):
        assert login_node.call(*argv) == 1
        assert re.fullmatch(
            r"batchgen \w+: scontrol: no controller of Slurm answers this machine "
            r"\((slurm_load|Could not)[^;]*\); go on where `scontrol ping` says that it is up.*\n",
            login_node.err,
        )
        assert login_node.out == ""
    assert login_node.fake.calls("sbatch") == 0


def test_cancel_ends_just_the_jobs_of_its_names(two_jobs: FakeSlurm) -> None:
    scheduler.cancel(["mine"], pending_only=True)
    assert [job["state"] for job in two_jobs.jobs()] == ["RUNNING", "CANCELLED", "PENDING"]
    scheduler.cancel(["mine"])
    assert [job["state"] for job in two_jobs.jobs()] == ["CANCELLED", "CANCELLED", "PENDING"]


@pytest.mark.parametrize(("do", "say"), [("hang", HANG_S), ("fail", UNREACHABLE)])
def test_a_cancel_that_was_not_heard_is_an_error(two_jobs: FakeSlurm, do: str, say: object) -> None:
    two_jobs.steer("scancel", do, say)
    with pytest.raises(SchedulerError, match="scancel"):
        scheduler.cancel(["mine"])


# ------------------------------------------------------------------------------------------- submit
def test_a_run_from_submit_to_catalog_asks_accounting_nothing(login_node: LoginNode) -> None:
    """Also the plain twin of all that follows; accounting lags by minutes."""
    login_node.fake.steer("sacct", "blind", 300)
    assert login_node.submit() == 0
    assert login_node.names() == {"s1": 2, "s1-steward": 1}
    assert login_node.on_run("status") == 1
    assert "2 pending (Priority x2), steward waits" in login_node.out
    assert login_node.on_run("resume", "--detach") == 2
    assert "is at work" in login_node.err
    assert login_node.fake.work() == 3
    login_node.assert_every_row_once()
    assert login_node.on_run("status") == 0
    assert "queue     empty" in login_node.out
    login_node.fake.steer("squeue", "fail", UNREACHABLE)
    assert login_node.on_run("status") == 0  # every row is ok, whatever the queue
    assert "queue     unknown" in login_node.out
    assert login_node.fake.calls("sacct") == 0
    assert login_node.fake.calls("sbatch") == 2


def test_a_banner_of_sbatch_is_not_taken_for_the_job_id(login_node: LoginNode) -> None:
    """The steward waits for what was submitted, not for the job that the banner talks about."""
    login_node.fake.steer(
        "sbatch", "banner", "Note: job 7 and job 8 are over the quota\n99 of 100 hours"
    )
    assert login_node.submit() == 0
    (steward_job,) = login_node.fake.jobs(job_name(login_node.run, 1, steward=True))
    assert steward_job["after"] == ["1001"]
    assert json.loads(login_node.run.jobs(1).read_text())["jobs"][0]["job_id"] == "1001"


@pytest.mark.parametrize("refusal", [BUSY, POLICY])
def test_a_scheduler_that_takes_nothing_is_told_and_the_run_can_be_resumed(
    login_node: LoginNode, refusal: str
) -> None:
    login_node.fake.steer("sbatch", "fail", refusal)
    assert login_node.submit() == 1
    assert refusal.splitlines()[-1].removeprefix("sbatch: error: ") in login_node.err
    assert login_node.fake.jobs() == []
    assert login_node.on_run("status") == 1
    assert "4 left" in login_node.out and "queue     empty" in login_node.out
    login_node.fake.heal()
    assert login_node.on_run("resume", "--detach") == 0
    assert login_node.names() == {"s2": 2, "s2-steward": 1}


def test_the_steward_submits_what_a_limit_on_jobs_kept_out(login_node: LoginNode) -> None:
    """Arrays of one element; the second is refused, the steward is not."""
    login_node.fake.steer("scontrol", "garble", "MaxArraySize = 1")
    login_node.fake.steer("sbatch", "fail", BUSY, skip=1, calls=1)
    assert login_node.submit() == 0
    assert login_node.names() == {"s1": 1, "s1-steward": 1}
    assert "the steward will submit the rest" in (login_node.run.logs / "launch.log").read_text()
    login_node.fake.heal()
    login_node.fake.work()
    login_node.assert_every_row_once()


def test_arrays_without_a_steward_get_one_by_resume(login_node: LoginNode) -> None:
    """The limit was reached just before the steward."""
    login_node.fake.steer("sbatch", "fail", POLICY, skip=1)
    assert login_node.submit() == 0
    assert login_node.names() == {"s1": 2}
    assert "no steward" in (login_node.run.logs / "launch.log").read_text()
    assert login_node.on_run("status") == 1
    assert "no steward" in login_node.out
    login_node.fake.heal()
    assert login_node.on_run("resume", "--detach") == 0
    assert login_node.names() == {"s1": 2, "s1-steward": 1}


# ---------------------------------------------------------------------------------- several arrays
def launch(
    login_node: LoginNode, shards: int, nodes: int, window: int
) -> list[list[dict[str, Any]]]:
    """Submit this many shards on a cluster with arrays of at most `window`; the elements of each
    array that Slurm was given, the steward's last."""
    login_node.fake.steer("sbatch", "fail", TIMED_OUT, calls=1)
    assert login_node.submit() == 1
    login_node.fake.steer("scontrol", "garble", f"MaxArraySize = {window}", calls=1)
    executor.launch(login_node.run, 1, shards, replace(_profile(login_node.run), nodes=nodes))
    return [list(same) for _, same in groupby(login_node.fake.jobs(), lambda job: job["array"])]


def shards_of(array: list[dict[str, Any]]) -> list[int]:
    """What its elements render, by their command line."""
    first, stride = map(int, re.findall(r" task \S+ 1 (\d+) (\d+)$", array[0]["script"], re.M)[0])
    return [first + stride * (job["element"] or 0) for job in array]


@pytest.mark.parametrize(
    ("shards", "window", "nodes", "throttles", "behind"),
    [
        (5, 5, 2, [2], {}),
        (8, 3, 8, [2, 2, 2, 2], {}),  # three would leave nodes idle in the end
        (40, 20, 21, [11, 10], {}),
        (7, 3, 3, [1, 1, 1], {}),
        (9, 2, 2, [1] * 6, {2: 0, 3: 1, 4: 2, 5: 3}),
        (4, 1, 3, [1, 1, 1, 1], {3: 0}),  # arrays are switched off
    ],
)
def test_arrays_run_side_by_side_and_share_the_nodes(
    login_node: LoginNode,
    shards: int,
    window: int,
    nodes: int,
    throttles: list[int],
    behind: dict[int, int],
) -> None:
    """One after the other, an element that waits or is long would leave the other nodes idle."""
    *arrays, steward_jobs = launch(login_node, shards, nodes, window)
    assert [array[0]["throttle"] for array in arrays] == throttles
    ids = [array[0]["array"] for array in arrays]
    for number, array in enumerate(arrays):
        assert len(array) <= window
        assert array[0]["after"] == ([ids[behind[number]]] if number in behind else [])
        assert shards_of(array) == list(range(number, shards, len(arrays)))  # long ones first
    assert steward_jobs[0]["after"] == ids
    assert sum(throttles[: nodes if behind else None]) == nodes


def test_every_element_of_several_arrays_renders_its_shard(login_node: LoginNode) -> None:
    """And what a submit that was cut off leaves behind is noted as what it is."""
    login_node.fake.steer("scontrol", "garble", "MaxArraySize = 2")
    login_node.fake.steer("sbatch", "fail", BUSY, skip=2)
    more = ("slurm.nodes=4", "slurm.start_up_s=0.01")
    done = login_node.job_folder.call(
        "submit", str(login_node.job_folder.job), *JOB, *more
    )  # its maker is gone
    assert done.code == 0, done.err
    arrays = login_node.fake.jobs()
    assert [job["element"] for job in arrays] == [0, 1, 0, 1]
    noted = login_node.run.jobs(1).read_text()
    first, second = json.loads(noted)["jobs"]
    assert (first["task"], first["stride"], second["task"], second["stride"]) == (0, 2, 1, 2)
    login_node.run.jobs(1).unlink()
    login_node.fake.heal()
    login_node.fake.steer("scontrol", "garble", "MaxArraySize = 2")
    assert login_node.on_run("resume", "--detach") == 0
    assert login_node.run.jobs(1).read_text() == noted
    login_node.fake.work()
    login_node.assert_every_row_once()
    assert login_node.names() == {"s1": 4, "s1-steward": 1}


def test_what_each_element_prints_is_found(
    login_node: LoginNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that sbatch is told is there, and `logs` looks into it."""
    login_node.fake.steer("scontrol", "garble", "MaxArraySize = 2")
    assert login_node.submit("slurm.nodes=4", "slurm.start_up_s=0.01") == 0
    for job in login_node.fake.jobs():
        (output,) = re.findall(r"^#SBATCH --output=(\S+)$", job["script"], re.M)
        file = output.replace("%A_%a", f"{job['array']}_{job['element']}")
        Path(file.replace("%j", job["job_id"])).write_text(f"said by {job['job_id']}\n")
    assert login_node.on_run("logs") == 0
    said = [f"said by {job['job_id']}" for job in login_node.fake.jobs()]
    assert len(said) == 5 and all(words in login_node.out for words in said)
    monkeypatch.setenv("BATCHGEN_FAILPOINT", "journal.before_append:1:enospc")
    login_node.fake.work(job_name(login_node.run, 1))
    assert login_node.on_run("logs", "--failed") == 0
    told = re.findall(r"==> s1t(\d).*\n(.*)", login_node.out)
    firsts = json.loads(login_node.run.jobs(1).read_text())["jobs"]
    ids = [int(job["job_id"]) for job in firsts]
    wanted = {shard: ids[shard % 2] + shard // 2 for shard in range(4)}  # two arrays of two
    assert {int(task): words for task, words in told} == {
        shard: f"said by {job_id}" for shard, job_id in wanted.items()
    }


def test_arrays_that_were_taken_get_the_nodes_of_those_that_were_not(login_node: LoginNode) -> None:
    login_node.fake.steer("sbatch", "fail", TIMED_OUT, skip=3, calls=1)
    first, second, _ = launch(login_node, 6, 6, window=2)
    assert [first[0]["throttle"], second[0]["throttle"]] == [3, 3]
    assert shards_of(first) + shards_of(second) == [0, 3, 1, 4]


# ------------------------------------------------------------------------- limits on submitted jobs
@pytest.mark.parametrize(
    ("limit", "window", "taken", "gone"),
    [
        (5, 8, [[0, 1, 2, 3]], []),
        (4, 8, [[0, 1, 2, 3]], [2, 3]),  # full without the steward
        (2, 8, [[0, 1]], [1]),
        (7, 4, [[0, 2, 4, 6], [1, 3]], []),
        (6, 4, [[0, 2, 4, 6], [1, 3]], [6, 3]),
        (5, 4, [[0, 2, 4, 6], [1]], [6, 1]),
        (4, 1, [[0], [1], [2], [3]], [2, 3]),  # arrays are switched off
    ],
)
def test_below_a_limit_on_submitted_jobs_a_part_is_submitted(
    login_node: LoginNode, limit: int, window: int, taken: list[list[int]], gone: list[int]
) -> None:
    """Slurm takes an array as a whole or not at all. The steward follows whatever was taken, and
    what makes way for it are the shortest shards of that."""
    login_node.fake.limit(limit)
    *arrays, steward_jobs = launch(login_node, 8, 4, window)
    assert [shards_of(array) for array in arrays] == taken
    assert steward_jobs[0]["after"] == [array[0]["array"] for array in arrays]
    assert [
        shard
        for array in arrays
        for shard, job in zip(shards_of(array), array, strict=True)
        if job["state"] == "CANCELLED"
    ] == gone
    noted = (login_node.run.logs / "launch.log").read_text()
    assert "the steward will submit the rest" in noted and "no steward" not in noted


def test_a_run_below_a_limit_on_submitted_jobs_comes_to_its_end(login_node: LoginNode) -> None:
    login_node.fake.limit(3)
    assert login_node.submit("slurm.nodes=4", "slurm.start_up_s=0.01") == 0
    assert login_node.names() == {"s1": 2, "s1-steward": 1}
    login_node.fake.work()
    login_node.assert_every_row_once()


@pytest.mark.parametrize(("refusals", "taken"), [(0, 16), (1, 4), (2, 1)])
def test_where_the_cluster_is_full_a_quarter_is_tried(
    login_node: LoginNode, refusals: int, taken: int
) -> None:
    """MaxJobCount may be below one array, which then never fits as a whole. sbatch itself tries
    for two minutes, so there are few tries."""
    login_node.fake.steer("sbatch", "fail", TIMED_OUT, calls=1)
    assert login_node.submit() == 1
    login_node.fake.steer("sbatch", "fail", BUSY, calls=refusals)
    executor.launch(login_node.run, 1, 16, replace(_profile(login_node.run), nodes=4))
    *tasks, steward_job = login_node.fake.jobs()
    assert len(tasks) == taken
    assert steward_job["after"] == [tasks[0]["array"]]
    noted = login_node.run.logs / "launch.log"
    assert noted.exists() == (taken < 16)


def test_a_limit_that_leaves_one_task_and_no_steward_is_told(login_node: LoginNode) -> None:
    """Nothing is cancelled for it: there would be nothing to follow."""
    login_node.fake.limit(1)
    assert login_node.submit() == 0
    assert [job["state"] for job in login_node.fake.jobs()] == ["PENDING"]
    assert "no steward" in (login_node.run.logs / "launch.log").read_text()


@pytest.mark.parametrize(
    "refusal",
    [
        "Batch job submission failed: Invalid partition name specified",
        POLICY.replace("AssocMaxSubmitJobLimit", "QOSMaxWallDurationPerJobLimit"),
        TIMED_OUT,
    ],
)
def test_other_refusals_are_not_met_with_fewer_tasks(login_node: LoginNode, refusal: str) -> None:
    login_node.fake.steer("sbatch", "fail", refusal)
    assert login_node.submit() == 1
    assert login_node.fake.calls("sbatch") == 1
    login_node.fake.heal()
    login_node.fake.steer("sbatch", "fail", refusal, skip=1)
    assert login_node.on_run("resume", "--detach") == 0
    assert [job["state"] for job in login_node.fake.jobs()] == ["PENDING"] * 2
    assert "no steward" in (login_node.run.logs / "launch.log").read_text()


# ----------------------------------------------------------------- submitted, and nobody was told
@pytest.mark.parametrize(("do", "say"), [("die", ""), ("lose", TIMED_OUT)])
@pytest.mark.parametrize("which", [0, 1])
def test_what_slurm_took_without_saying_so_is_not_submitted_again(
    login_node: LoginNode, do: str, say: str, which: int
) -> None:
    """`which`: the tasks' sbatch, or the steward's."""
    login_node.fake.steer("sbatch", do, say, skip=which, calls=1)
    assert login_node.submit() == 0
    assert login_node.names() == {"s1": 2, "s1-steward": 1}
    (steward_job,) = login_node.fake.jobs(job_name(login_node.run, 1, steward=True))
    assert steward_job["after"] == ["1001"]
    assert login_node.run.jobs(1).exists()


def test_another_try_does_not_submit_again_what_the_first_did(login_node: LoginNode) -> None:
    """A steward is patient: it tries again after a refusal, which was none."""
    login_node.fake.steer("scontrol", "garble", "MaxArraySize = 1")
    login_node.fake.steer("sbatch", "fail", BUSY)
    assert login_node.submit() == 1
    login_node.fake.heal()
    login_node.fake.steer("scontrol", "garble", "MaxArraySize = 1")
    login_node.fake.steer("sbatch", "lose", TIMED_OUT, calls=3)
    assert steward.follow_up(login_node.run, 1) == 0
    assert login_node.names() == {"s2": 2, "s2-steward": 1}
    assert login_node.fake.jobs()[2]["after"] == ["1001", "1002"]


def test_a_sbatch_that_hangs_is_an_error(login_node: LoginNode) -> None:
    login_node.fake.steer("sbatch", "hang", HANG_S, calls=1)
    started = time.monotonic()
    assert login_node.submit() == 1
    assert "sbatch gave no answer" in login_node.err
    assert time.monotonic() - started < 20
    assert login_node.on_run("resume", "--detach") == 0
    assert login_node.names() == {"s2": 2, "s2-steward": 1}


def test_tasks_that_nobody_knew_of_are_adopted_once_they_show(login_node: LoginNode) -> None:
    """sbatch is killed after the job was taken, and the queue does not list it yet."""
    login_node.fake.steer("sbatch", "die", calls=1)
    login_node.fake.steer("squeue", "blind", 3600)
    done = login_node.job_folder.call(
        "submit", str(login_node.job_folder.job), *JOB, *TWO_SHARDS
    )  # its maker is gone
    assert done.code == 1
    assert "sbatch" in done.err
    login_node.fake.heal()
    assert login_node.on_run("resume", "--detach") == 0
    assert "2 tasks found with Slurm" in login_node.out
    assert login_node.names() == {"s1": 2, "s1-steward": 1}
    login_node.fake.work()
    login_node.assert_every_row_once()


def test_two_submissions_of_one_run_publish_every_row_once(login_node: LoginNode) -> None:
    """Worst of all: the queue lists nothing long after sbatch, and somebody resumes. Both are with
    Slurm then; the earlier one steps back."""
    assert login_node.submit() == 0
    login_node.fake.steer("squeue", "blind", 3600)
    assert login_node.on_run("resume", "--detach") == 0
    login_node.fake.heal()
    assert login_node.names() == {"s1": 2, "s1-steward": 1, "s2": 2, "s2-steward": 1}
    login_node.fake.work()
    login_node.assert_every_row_once()
    assert set(rows_of(login_node.run).attempt.str[:2]) == {"s2"}


# ----------------------------------------------------------------- a scheduler that does not answer
SILENT = [
    ("hang", HANG_S, "no answer"),
    ("fail", UNREACHABLE, "Unable to contact slurm controller"),
    ("garble", "Slurm is down for maintenance", "squeue"),
    ("cut", 25, "squeue"),
]


@pytest.mark.parametrize(("do", "say", "told"), SILENT)
def test_status_works_from_the_run_folder_alone(
    login_node: LoginNode, do: str, say: object, told: str
) -> None:
    assert login_node.submit() == 0
    login_node.fake.steer("squeue", do, say)
    asked = login_node.fake.calls("squeue")
    assert login_node.on_run("status", "--json") == 1  # rows are left
    assert login_node.fake.calls("squeue") == asked + 1
    assert "4 left" in login_node.out
    assert "queue     unknown" in login_node.out and told in login_node.out
    found = json.loads(login_node.out.splitlines()[-1])
    assert told in found["queue"]["problem"]
    assert login_node.on_run("status", "--offline") == 1
    assert "queue" not in login_node.out
    assert login_node.fake.calls("squeue") == asked + 1


def test_watching_offline_asks_nobody(login_node: LoginNode) -> None:
    assert login_node.submit() == 0
    asked = len(login_node.fake.asked())
    assert login_node.on_run("status", "--watch", "--offline") == 1
    assert "4 left" in login_node.out and len(login_node.fake.asked()) == asked


@pytest.mark.parametrize(("do", "say", "told"), SILENT)
def test_who_cannot_know_does_nothing(
    login_node: LoginNode, do: str, say: object, told: str
) -> None:
    """Resume, retry and cancel refuse; the run is as it was."""
    assert login_node.submit() == 0
    login_node.fake.steer("squeue", do, say)
    for verb in (("resume", "--detach"), ("retry", "--rows", "row-000"), ("cancel",)):
        assert login_node.on_run(*verb) == 1
        assert told in login_node.err, verb
        assert "nothing is at work" not in login_node.out
    assert submission_numbers(login_node.run) == [1]
    assert login_node.names() == {"s1": 2, "s1-steward": 1}
    assert login_node.run.cancelled(1).exists()  # for the ranks: they need no Slurm to see it


@pytest.mark.parametrize(("do", "say", "told"), SILENT[1:])
def test_a_steward_waits_for_an_answer(
    login_node: LoginNode, do: str, say: object, told: str
) -> None:
    """One that gave up would end the chain: rows left, and no catalog."""
    login_node.fake.steer("sbatch", "fail", BUSY)
    assert login_node.submit() == 1
    login_node.fake.heal()
    login_node.fake.steer("squeue", do, say, calls=4)
    login_node.fake.steer("scontrol", "fail", UNREACHABLE, calls=2)
    login_node.fake.steer("sbatch", "fail", TIMED_OUT, calls=3)
    assert steward.follow_up(login_node.run, 1) == 0
    assert login_node.names() == {"s2": 2, "s2-steward": 1}


def test_a_cancel_that_is_not_heard_leaves_the_mark_and_says_so(login_node: LoginNode) -> None:
    """The tasks find the mark in the run folder when they start."""
    assert login_node.submit() == 0
    login_node.fake.steer("scancel", "fail", UNREACHABLE)
    assert login_node.on_run("cancel") == 1
    assert "scancel" in login_node.err and "Unable to contact" in login_node.err
    assert login_node.run.cancelled(1).exists()
    login_node.fake.work(job_name(login_node.run, 1))
    assert login_node.on_run("status") == 1
    assert "0 ok" in login_node.out


# ------------------------------------------------------------------ settings of sbatch of one's own
def test_a_users_own_settings_of_sbatch_do_not_win_over_the_profile(
    login_node: LoginNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But a site's defaults hold where the profile says nothing, and the steward passes them on."""
    mine = {"JOB_NAME": "x", "WAIT": "1", "TIMELIMIT": "1", "ARRAY_INX": "0", "EXPORT": "NONE",
            "ACCOUNT": "vision", "PARTITION": "gpu", "QOS": "high"}  # fmt: skip
    for name, value in mine.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    more = ("slurm.partition=main", "slurm.extra={reservation: mine}")
    monkeypatch.setenv("SBATCH_RESERVATION", "other")
    assert login_node.submit(*more) == 0
    *tasks, steward_job = login_node.fake.jobs()
    for job in (*tasks, steward_job):
        assert job["wishes"] == {"SBATCH_ACCOUNT": "vision", "SBATCH_QOS": "high"}
    assert "export SBATCH_PARTITION=gpu\n" in steward_job["script"]


def test_a_token_of_the_user_reaches_sbatch(
    login_node: LoginNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clusters with auth/jwt take nothing without it."""
    monkeypatch.setenv("SLURM_JWT", "token")
    monkeypatch.setenv("SLURM_JOB_NAME", "outer")
    with outside_any_job(()):
        assert os.environ.get("SLURM_JWT") == "token" and "SLURM_JOB_NAME" not in os.environ
    assert os.environ["SLURM_JOB_NAME"] == "outer"


# -------------------------------------------------------------------------------------- wild queues
@pytest.mark.parametrize(
    ("reason", "released"),
    [
        ("launch failed requeued held", True),
        ("JobHeldAdmin", True),
        ("JobHeldUser", False),
        ("Resources", False),
    ],
)
def test_what_is_held_is_shown_and_known_by_who_holds_it(
    login_node: LoginNode, reason: str, released: bool
) -> None:
    assert login_node.submit() == 0
    login_node.fake.change("1002", reason=reason)
    (task,) = (t for t in scheduler.queue([job_name(login_node.run, 1)]) if t.task_id == "1001_1")
    assert task.held_by_slurm == released
    login_node.on_run("status")
    if task.held:
        held, told = f"held      1001_1: {reason}; ", login_node.out
        if reason == "JobHeldAdmin":
            assert f"{held}only an administrator can release it" in told
            assert "scontrol release" not in told
        else:
            assert f"{held}`scontrol release 1001_1` lets it go" in told
    else:
        assert reason == "Resources"
        assert "Priority x1, Resources x1" in login_node.out


def test_launch_gives_up_in_time(login_node: LoginNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience ends: with an error for the first array, and the ids of what was taken after it."""
    login_node.fake.steer("sbatch", "fail", BUSY)
    assert login_node.submit() == 1
    profile = _profile(login_node.run)
    started = time.monotonic()
    with pytest.raises(SchedulerError, match="Resource temporarily unavailable"):
        executor.launch(login_node.run, 1, 2, profile, patience_s=0.5)
    assert 0.4 < time.monotonic() - started < 5


def _profile(run: RunPaths):  # type: ignore[no-untyped-def]
    from batchgen.config.build import build
    from batchgen.config.schema import JobConfig
    from batchgen.runfile import read_run

    return build(JobConfig, read_run(run).config).slurm


# ---------------------------------------------------------------- nothing is hidden, nothing blocks
def test_a_users_own_settings_of_the_list_do_not_hide_jobs(
    two_jobs: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    monkeypatch.setenv("SLURM_CONF", "/here")
    assert len(scheduler.queue(["mine"])) == 2
    (call,) = (c for c in two_jobs.asked() if c[0] == "squeue")
    assert "--all" in call, "a job in a hidden partition is not listed without it"
    seen = scheduler.ask("sh", "-c", "env")
    assert "SLURM_CONF=/here" in seen and "SQUEUE_PARTITION" not in seen


@pytest.mark.parametrize(
    ("second", "freed"), [("launch failed requeued held", True), ("Dependency", True),
                          ("Priority", False), ("JobHeldUser", False)],
)  # fmt: skip
def test_what_slurm_holds_does_not_block_the_rest(
    login_node: LoginNode, monkeypatch: pytest.MonkeyPatch, second: str, freed: bool
) -> None:
    """Another array and the steward wait behind it: the last task to end lets them go."""
    monkeypatch.setattr(recover, "LOOK_AGAIN_S", 0.0)
    assert login_node.submit() == 0
    login_node.fake.change("1001", reason="launch failed requeued held")
    login_node.fake.change("1002", reason=second)
    ended = recover.free_the_steward(login_node.run)
    assert ("1001_0" in [task.task_id for task in ended]) == freed
    assert all(task.task_id != "1001_1" or "held" in task.reason for task in ended)
    states = [job["state"] for job in login_node.fake.jobs(job_name(login_node.run, 1))]
    assert states[0] == ("CANCELLED" if freed else "PENDING")


def test_the_last_tasks_of_all_see_each_other_end(
    login_node: LoginNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert login_node.submit() == 0
    login_node.fake.change("1001", reason="launch failed requeued held")
    login_node.fake.change("1002", state="RUNNING", reason="None")
    monkeypatch.setattr(recover, "LOOK_AGAIN_S", 1.0)
    before = login_node.fake.calls("squeue")
    with ThreadPoolExecutor() as pool:
        freed = pool.submit(recover.free_the_steward, login_node.run)
        wait_for(lambda: login_node.fake.calls("squeue") > before)
        login_node.fake.change("1002", state="COMPLETED")
        assert [task.task_id for task in freed.result(30)] == ["1001_0"]


def test_a_steward_on_hold_is_shown_and_a_resume_goes_on_without_it(login_node: LoginNode) -> None:
    assert login_node.submit() == 0
    login_node.fake.work(job_name(login_node.run, 1))
    (steward_job,) = login_node.fake.jobs(job_name(login_node.run, 1, steward=True))
    login_node.fake.change(steward_job["job_id"], reason="launch failed requeued held")
    login_node.on_run("status")
    assert "steward waits (launch failed requeued held)" in login_node.out
    assert f"`scontrol release {steward_job['array']}` lets it go" in login_node.out
    assert login_node.on_run("resume", "--json") == 0
    login_node.assert_every_row_once()


def test_logs_are_those_of_the_last_tasks(login_node: LoginNode) -> None:
    """Verdicts and repairs are submissions without any."""
    assert login_node.submit() == 0
    login_node.fake.work()
    script = next(login_node.run.submission(1).glob("slurm/*/1001.sh"))
    (script.parent / "1001_0.log").write_text("what the tasks printed\n")
    void_rows(login_node.run, [(0, "media/row-000.png", "damaged")])
    assert login_node.on_run("logs") == 0
    assert "what the tasks printed" in login_node.out


def test_a_run_whose_rows_are_asked_for_again_is_not_finished(login_node: LoginNode) -> None:
    assert login_node.submit() == 0
    login_node.fake.work()
    assert login_node.on_run("status", "--json") == 0
    assert json.loads(login_node.out.splitlines()[-1])["state"] == "finished"
    assert login_node.on_run("retry", "--rows", "row-001", "--detach") == 0
    login_node.on_run("status", "--json")
    assert json.loads(login_node.out.splitlines()[-1])["state"] == "submitted"
    login_node.on_run("status", "--json", "--offline")
    assert json.loads(login_node.out.splitlines()[-1])["state"] == "submitted"
    login_node.fake.work()
    assert login_node.on_run("status", "--json") == 0
    assert json.loads(login_node.out.splitlines()[-1])["state"] == "finished"


def test_a_steward_that_stops_leaves_no_verdict_unsaid(
    login_node: LoginNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row has just killed its process alone, and no submission follows that would say so."""
    monkeypatch.setenv("BATCHGEN_FAILPOINT", "row.row-000:*:kill")
    assert login_node.submit("slurm.max_attempts=1", "slurm.nodes=1") == 0
    login_node.fake.work()
    for _ in range(2):
        assert rows_of(login_node.run).status[0] == "pending"
        assert login_node.on_run("resume", "--detach") == 0
        login_node.fake.work()
    assert list(rows_of(login_node.run).status) == ["quarantined", "ok", "ok", "ok"]
    assert {"s3", "s3-steward"} <= login_node.names().keys() and "s4" not in login_node.names()


# --------------------------------------------------------------------------------- odd environments
def test_a_steward_without_slurms_commands_writes_the_catalog_at_once(
    login_node: LoginNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a container, say: to ask again for a quarter of an hour would be in vain."""
    assert login_node.submit() == 0
    monkeypatch.setenv("PATH", "/nowhere")
    started = time.monotonic()
    assert steward.follow_up(login_node.run, 1) == 1
    assert time.monotonic() - started < 10
    assert "slurm.steward_python" in caplog.text
    assert list(rows_of(login_node.run).status) == ["pending"] * 4


def test_a_steward_may_stay_outside_the_container(login_node: LoginNode) -> None:
    contained = ("slurm.python=python3", "slurm.srun_args=['--container-image=x.sqsh']")
    assert login_node.submit(*contained, "slurm.steward_python=/project/python", "--dry-run") == 0
    *_, task, behind = json.loads(login_node.out.splitlines()[-1])["scripts"]
    assert "--container-image=x.sqsh" in task and "python3 -u -m batchgen.runner.task task" in task
    assert "container" not in behind
    assert "/project/python -u -m batchgen.runner.task steward" in behind


@pytest.mark.parametrize("where", ["no commands", "no answer"])
def test_a_dry_run_needs_no_slurm(
    login_node: LoginNode, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """It says what it had to assume, and nothing of how Slurm is looked for."""
    if where == "no commands":
        monkeypatch.setenv("PATH", "/nowhere")
    login_node.fake.steer("scontrol", "fail", "error: resolve_ctls_from_dns_srv: Unknown host")
    assert login_node.submit("--dry-run") == 0
    assert (
        "MaxArraySize=1001 is assumed" in login_node.out
        and "dns" not in login_node.out + login_node.err
    )
    shown = json.loads(login_node.out.splitlines()[-1])
    assert shown["max_array_size"] == 1001 and len(shown["scripts"]) == 2


def test_a_dry_run_asks_the_cluster_for_its_limit(login_node: LoginNode) -> None:
    login_node.fake.steer("scontrol", "garble", "MaxArraySize = 1")
    assert login_node.submit("--dry-run") == 0
    assert "is assumed" not in login_node.out
    assert len(json.loads(login_node.out.splitlines()[-1])["scripts"]) == 3
    assert login_node.fake.jobs() == [] and not login_node.job_folder.root.exists()


def test_only_hosts_of_the_cluster_are_excluded(login_node: LoginNode, fake: FakeSlurm) -> None:
    """Slurm refuses a job that excludes a node which it does not know."""
    assert login_node.submit() == 0
    profile = replace(_profile(login_node.run), exclude="node4")
    assert without_hosts(profile, ["login1", "node2"]).exclude == "node4,node2"
    fake.steer("sinfo", "fail", UNREACHABLE)
    assert without_hosts(profile, ["node2"]).exclude == "node4,node2"
