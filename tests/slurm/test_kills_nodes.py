"""The kill matrix, part two: what happens to nodes, time and Slurm itself. See KILLS.md."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pyarrow.parquet as pq
import pytest
from cli_calls import JobFolder
from slurm.campaign import NULL, Campaign, rows
from slurm.cluster import Cluster

from batchgen.ledger.blame.rows import read_blame
from batchgen.ledger.intent import journal_files
from batchgen.scheduler.commands import job_name

Make = Callable[..., JobFolder]
LONG_S = 2.0  # of a row: on a busy machine, too, a node is still at work when its turn has come


def restarts(run: Campaign) -> set[int]:
    return {attempt.restart for attempt, _ in journal_files(run.run)}


def ends(run: Campaign) -> set[str]:
    return {attempt.ended for attempt in run.status().attempts}


def test_03_a_node_loses_its_power(cluster: Cluster, new_job_folder: Make) -> None:
    """Slurm finds it out (NODE_FAIL) and starts the shard again elsewhere."""
    run = Campaign.submit(cluster, new_job_folder(rows(80, LONG_S)), *NULL)
    cluster.node_kill(run.busy_node(commits=1))
    run.wait(240)
    run.audit("3")  # its ranks may have ended while its power was cut
    assert 1 in restarts(run)


def test_04_an_admin_sets_a_node_down(cluster: Cluster, new_job_folder: Make) -> None:
    run = Campaign.submit(cluster, new_job_folder(rows(80, LONG_S)), *NULL)
    node = run.busy_node()
    cluster.call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    run.wait(240)
    run.audit("4")
    assert 1 in restarts(run)


def test_05_preemption(cluster: Cluster, new_job_folder: Make) -> None:
    """Rows in flight are saved within the grace time; Slurm's own requeue goes on with them."""
    run = Campaign.submit(cluster, new_job_folder(rows(80, LONG_S)), *NULL)
    run.until(lambda: len(run.rendering()) == 8)
    cluster.call(
        "sbatch", "--partition=high", "--nodes=2", "--exclusive", "--time=1", "--output=/dev/null",
        "--wrap=sleep 3",
    )  # fmt: skip
    run.wait(240)
    catalog = run.audit("5")
    assert 1 in restarts(run)
    assert "drained" in ends(run)
    assert (catalog.steps_restored > 0).sum() >= 2
    assert run.status().submission == 1  # nothing was left to the steward


@pytest.mark.timeout(500)
def test_06_wall_time_drained(cluster: Cluster, new_job_folder: Make) -> None:
    """The limit comes in the middle: nothing is started that does not fit, what is in flight is
    saved, and the steward submits the rest."""
    job_folder = new_job_folder(rows(36, 4.0))
    run = Campaign.submit(
        cluster,
        job_folder,
        *NULL,
        "slurm.timeout_min=1",
        "slurm.nodes=1",
        "slurm.signal_delay_s=40",
    )
    run.wait(400)
    catalog = run.audit("6")
    assert run.status().submission > 1
    assert "drained" in ends(run) and "" not in ends(run)
    assert catalog.tries.max() == 1
    runs = pq.read_table(run.run.catalog_runs).to_pandas()
    assert runs.rows_lost.sum() == 0 and runs.lost_s.sum() == 0


@pytest.mark.timeout(500)
def test_07_wall_time_signal_ignored(cluster: Cluster, new_job_folder: Make) -> None:
    """Ranks that are stuck in a write when the signal comes are killed at the limit (60 to 90 s on
    this cluster); their rows run again, alone."""
    job_folder = new_job_folder(rows(20))
    once = job_folder.folder / "once"
    with (job_folder.folder / "slurm" / "devcluster.yaml").open("a") as profile:
        stuck = "export BATCHGEN_FAILPOINT=journal.before_append:1:sleep300"
        profile.write(f"setup: ['[ -e {once} ] || {{ touch {once}; {stuck}; }}']\n")
    run = Campaign.submit(
        cluster,
        job_folder,
        *NULL,
        "slurm.start_up_s=10",  # one shard
        "slurm.timeout_min=1",
        "slurm.signal_delay_s=1",  # not within the first half of the minute: see the README there
        "slurm.watchdog_s=0",
    )
    run.wait(280)
    run.audit("7")
    assert run.status().submission >= 2
    deaths = read_blame(run.run).deaths
    assert len(deaths) == 2 and all(death.rows for death in deaths)


def test_10_external_requeue(cluster: Cluster, new_job_folder: Make) -> None:
    run = Campaign.submit(cluster, new_job_folder(rows(60, LONG_S)), *NULL)
    cluster.call("scontrol", "requeue", run.element(run.busy_node()))
    run.wait()
    catalog = run.audit("10")
    assert 1 in restarts(run)
    assert (catalog.steps_restored > 0).sum() >= 1


def test_13_the_controller_is_restarted(cluster: Cluster, new_job_folder: Make) -> None:
    """Ranks work on; status says that Slurm does not answer."""
    job_folder = new_job_folder(rows(60))
    run = Campaign.submit(cluster, job_folder, *NULL)
    run.until(lambda: len(run.rendering()) == 8)
    cluster.stop_ctld()
    shown = job_folder.call("status", str(run.run.root))
    assert shown.code == 1 and "queue     unknown" in shown.out
    refused = job_folder.call("resume", str(run.run.root), "--detach")
    assert refused.code != 0 and "squeue" in refused.err
    time.sleep(3)
    cluster.start_ctld()
    run.wait()
    run.audit("13")


def test_14_accounting_is_down(cluster: Cluster, new_job_folder: Make) -> None:
    """Nobody asks it: from submit to catalog without slurmdbd."""
    cluster.stop_dbd()
    run = Campaign.submit(cluster, new_job_folder(rows(40)), *NULL)
    run.until(lambda: len(run.rendering()) >= 4)
    os.kill(run.rendering()[0], 9)
    run.wait()
    run.audit("14")


def test_a_shard_that_slurm_holds_is_reported_and_does_not_stop_the_rest(
    cluster: Cluster, new_job_folder: Make
) -> None:
    job_folder = new_job_folder(rows(40))
    run = Campaign.submit(cluster, job_folder, *NULL, "slurm.nodes=1")
    name = job_name(run.run, 1)
    run.until(lambda: len(run.rendering()) == 2)
    waiting = [q.job for q in cluster.squeue(name) if q.state == "PENDING"]
    assert waiting
    cluster.call("scontrol", "hold", waiting[-1])
    shown = job_folder.call("status", str(run.run.root))
    assert f"held      {waiting[-1]}: JobHeldAdmin" in shown.out
    run.wait()
    run.audit("held")
    assert run.status().submission == 2
