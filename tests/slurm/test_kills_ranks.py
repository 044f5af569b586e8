"""The kill matrix, part one: what happens to ranks, rows and the run's own jobs. See KILLS.md."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from cli_calls import JobFolder
from slurm.campaign import NULL, WRITE_S, Campaign, cut_off, rows, stopped_of
from slurm.cluster import Cluster

from batchgen.ledger.blame.rows import read_blame
from batchgen.ledger.intent import read_intent
from batchgen.ledger.reading.scan import index_commits
from batchgen.scheduler.commands import job_name

Make = Callable[..., JobFolder]


def test_01_one_rank_is_killed(cluster: Cluster, new_job_folder: Make) -> None:
    run = Campaign.submit(cluster, new_job_folder(rows(60)), *NULL)
    run.until_committed(8)
    run.until(lambda: run.rendering(commits=1))
    os.kill(run.rendering(commits=1)[-1], signal.SIGKILL)
    run.wait()
    run.audit("1", min_wasted=WRITE_S)
    assert len(read_blame(run.run).deaths) == 1


def test_02_all_ranks_of_a_node_are_killed(cluster: Cluster, new_job_folder: Make) -> None:
    run = Campaign.submit(cluster, new_job_folder(rows(60)), *NULL)
    for pid in run.ranks(run.busy_node(commits=1)):
        os.kill(pid, signal.SIGKILL)
    run.wait()
    run.audit("2", min_wasted=2 * WRITE_S)
    assert len(read_blame(run.run).deaths) == 2


def test_08_the_steward_is_killed(cluster: Cluster, new_job_folder: Make) -> None:
    """It asks Slurm for another start; the chain goes on."""
    job_folder = new_job_folder(rows(40))
    run = Campaign.submit(cluster, job_folder, *NULL, env={"BATCHGEN_FAILPOINT": "steward:1:stop"})
    name = job_name(run.run, 1, steward=True)
    run.until(lambda: stopped_of(cluster, name), 120)
    os.kill(stopped_of(cluster, name)[0], signal.SIGKILL)
    run.until(lambda: not stopped_of(cluster, name))
    run.until(lambda: stopped_of(cluster, name), 120)
    os.kill(stopped_of(cluster, name)[0], signal.SIGCONT)
    run.wait()
    run.audit("8a")
    assert "Restarts=1" in cluster.call("scontrol", "show", "job", _job_of(cluster, name))


@pytest.mark.parametrize("point", ["submit.after_intent", "slurm.after_sbatch"])
def test_08_the_steward_is_killed_while_it_submits(
    cluster: Cluster, new_job_folder: Make, point: str
) -> None:
    """Before Slurm knows of the next submission, or before its steward does: the next start of the
    steward finds out which, and the chain goes on."""
    job_folder = new_job_folder(rows(40))
    with (job_folder.folder / "slurm" / "devcluster.yaml").open("a") as profile:
        die = f"export BATCHGEN_FAILPOINT={point}:1:kill"  # at its first start alone
        which = "$SLURM_JOB_NAME$SLURM_RESTART_COUNT in *-s1-steward"
        profile.write(f"setup: ['case {which}) {die};; esac']\n")
    run = Campaign.submit(cluster, job_folder, *NULL)
    run.until_committed(4)
    os.kill(run.rendering()[-1], signal.SIGKILL)  # so that something is left to submit
    run.wait()
    run.audit({"submit.after_intent": "8b", "slurm.after_sbatch": "8c"}[point])
    name = job_name(run.run, 1, steward=True)
    assert "Restarts=1" in cluster.call("scontrol", "show", "job", _job_of(cluster, name))
    assert run.status().submission == (3 if point == "submit.after_intent" else 2)


def _job_of(cluster: Cluster, name: str) -> str:
    return cluster.call("squeue", "-h", "-t", "all", f"--name={name}", "--format=%A").split()[-1]


def test_09_submit_is_killed_before_slurm_knows_of_it(
    cluster: Cluster, new_job_folder: Make
) -> None:
    job_folder = new_job_folder(rows(24))
    died = job_folder.call(
        "submit",
        str(job_folder.job),
        *NULL,
        env={"BATCHGEN_FAILPOINT": "submit.after_intent:1:kill"},
    )
    assert died.code == -signal.SIGKILL
    run = _only_run(cluster, job_folder)
    assert run.status().state == "submitted"
    shown = job_folder.call("status", str(run.run.root))
    assert "stopped" in shown.out and "batchgen resume" in shown.out
    run.resume()
    run.wait()
    run.audit("9a")


def test_09_submit_is_killed_between_sbatch_and_ids(cluster: Cluster, new_job_folder: Make) -> None:
    """Its tasks are found by their name, are not started twice, and get a steward."""
    job_folder = new_job_folder(rows(40))
    died = job_folder.call(
        "submit",
        str(job_folder.job),
        *NULL,
        env={"BATCHGEN_FAILPOINT": "slurm.after_sbatch:1:kill"},
    )
    assert died.code == -signal.SIGKILL
    run = _only_run(cluster, job_folder)
    assert not run.run.jobs(1).exists()
    shown = job_folder.call("status", str(run.run.root))
    assert "no steward" in shown.out
    resumed = job_folder.call("resume", str(run.run.root), "--detach")
    assert resumed.code == 0 and "found with Slurm" in resumed.out
    run.wait()
    catalog = run.audit("9b")
    assert set(catalog.attempt.str.partition("t")[0]) == {"s1"}


def _only_run(cluster: Cluster, job_folder: JobFolder) -> Campaign:
    from batchgen.paths import RunPaths

    (root,) = job_folder.root.glob("*/run.json")
    return Campaign(cluster, job_folder, RunPaths(root.parent))


def test_11_one_array_element_is_cancelled(cluster: Cluster, new_job_folder: Make) -> None:
    """Somebody's scancel ends the element, not the run: its rows in flight are saved and go on."""
    run = Campaign.submit(cluster, new_job_folder(rows(60)), *NULL)
    cluster.call("scancel", run.element(run.busy_node()))
    run.wait()
    catalog = run.audit("11")
    assert (catalog.steps_restored > 0).sum() >= 1


def test_12_out_of_memory(cluster: Cluster, new_job_folder: Make) -> None:
    """Slurm kills the step of the row that takes too much; its mates are rendered, and in the end
    it alone is quarantined."""
    run = Campaign.submit(
        cluster,
        new_job_folder(rows(24)),
        *NULL,
        "slurm.mem_gb=1",
        env={"BATCHGEN_FAILPOINT": "row.row-005:*:hog"},
    )
    run.wait()
    catalog = run.audit("12", quarantined=["row-005"])
    error = catalog.set_index("row_id").error["row-005"]
    assert "died again when it was alone" in error
    assert len({death.host for death in read_blame(run.run).deaths}) >= 2  # not the same node twice


def test_15_a_hung_rank_is_ended_by_its_watchdog(cluster: Cluster, new_job_folder: Make) -> None:
    run = Campaign.submit(cluster, new_job_folder(rows(60)), *NULL, "slurm.watchdog_s=5")
    run.until_committed(8)
    run.until(lambda: run.rendering(commits=1))
    os.kill(run.rendering(commits=1)[0], signal.SIGSTOP)
    run.wait()
    run.audit("15", min_wasted=WRITE_S)


def test_16_a_zombie_of_an_earlier_start_publishes_nothing(
    cluster: Cluster, new_job_folder: Make
) -> None:
    """A node is cut off from its controller: its ranks live on, each about to commit a row, while
    Slurm starts the shard again elsewhere. What they then commit is waste."""
    job_folder = new_job_folder(rows(48, 0.5))
    go = job_folder.folder / "go"
    with (job_folder.folder / "slurm" / "devcluster.yaml").open("a") as profile:
        late = f'export BATCHGEN_FAILPOINT="journal.before_append:3:until{go}"'
        profile.write(f"setup: ['[ $SLURMD_NODENAME != node2 ] || {late}']\n")
    run = Campaign.submit(cluster, job_folder, *NULL, "slurm.nodes=2")
    run.until(lambda: [a.commits for a in run.status().attempts if a.host == "node2"] == [2, 2])
    zombies = run.ranks(2)
    cut_off(cluster, 2, zombies)
    try:
        run.until(lambda: any(a.attempt.restart and a.commits for a in run.status().attempts), 280)
    finally:
        go.touch()  # they are not to stay
    run.wait(280)
    run.until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in zombies))
    run.job_folder.call("collect", str(run.run.root))  # the last of them came after the steward
    catalog = run.audit("16", min_wasted=2 * 0.45)  # two rows of half a second that came too late
    index = index_commits(run.run)
    late = index.row_index[~index.accepted].tolist()
    assert len(late) >= 2  # each zombie did commit its row, and those behind it
    published = catalog.set_index("row_id").attempt
    assert all("r0" not in published[f"row-{row:03d}"] for row in late)


def test_17_a_row_that_kills_its_process(cluster: Cluster, new_job_folder: Make) -> None:
    """It is quarantined once it has killed again alone and elsewhere; its mates finish."""
    run = Campaign.submit(
        cluster,
        new_job_folder(rows(48, 0.5)),
        *NULL,
        env={"BATCHGEN_FAILPOINT": "row.row-007:*:kill"},
    )
    run.wait()
    run.audit("17", quarantined=["row-007"], min_wasted=WRITE_S)
    deaths = read_blame(run.run).deaths
    assert len(deaths) <= 3 and len({death.host for death in deaths}) >= 2
    again = run.job_folder.call("retry", str(run.run.root), "--rows", "row-007")
    assert again.code == 0, again.err
    run.audit("17, retried without the cause")


def test_18_a_node_on_which_every_row_fails(cluster: Cluster, new_job_folder: Make) -> None:
    """It is excluded from the next submission, and its rows are rendered elsewhere."""
    run = Campaign.submit(
        cluster,
        new_job_folder(rows(80)),
        *NULL,
        env={"BATCHGEN_FAILPOINT": "host.node2:*:raise"},
    )
    run.wait()
    catalog = run.audit("18")
    assert "node2" not in set(catalog.host)
    intent = read_intent(run.run, run.status().submission)
    assert intent is not None and set(intent.excluded) == {"node2"}
    scripts = [f.read_text() for f in run.run.submission(intent.number).glob("slurm/*/*.sh")]
    assert any("--exclude=node2" in script for script in scripts)


def test_a_node_on_which_nothing_starts_takes_few_elements(
    cluster: Cluster, new_job_folder: Make
) -> None:
    """It is always free: what is pending keeps away from it as soon as others have rendered."""
    job_folder = new_job_folder(rows(120))
    with (job_folder.folder / "slurm" / "devcluster.yaml").open("a") as profile:
        broken = "export BATCHGEN_NULL_SLOW=nonsense"  # no engine loads with it
        profile.write(f"setup: ['[ $SLURMD_NODENAME != node3 ] || {broken}']\n")
    run = Campaign.submit(cluster, job_folder, "model=null-engine", "slurm.start_up_s=0.2")
    run.wait()
    run.audit("a node on which nothing starts")
    intent = read_intent(run.run, 1)
    assert intent is not None
    first = [a for a in run.status().attempts if a.attempt.submission == 1]
    taken = {a.attempt.task for a in first if a.host == "node3"}
    assert 1 <= len(taken) <= 6 < intent.shards
    told = job_folder.call("logs", str(run.run.root), "--failed")
    # not the traceback's last line as one: srun labels it in the pieces that it gets
    assert told.code == 0 and "pace_of" in told.out
    assert "ConfigError" in told.out and "BATCHGEN_NULL_SLOW: 'nonsense'" in told.out
    assert "srun: error: node3" in told.out  # what its job printed
