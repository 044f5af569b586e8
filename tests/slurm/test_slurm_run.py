"""A run on a real Slurm as a user sees it: submit, look, resume, cancel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from cli_calls import JobFolder, rows_of
from slurm.campaign import NULL, Campaign, rows
from slurm.cluster import Cluster, ClusterUnavailable

from batchgen.bench.schedule import simulate as simulated
from batchgen.ledger.intent import journal_files
from batchgen.paths import RunPaths
from batchgen.scheduler.commands import job_name

Make = Callable[..., JobFolder]


def test_pending_running_and_finished_are_told(cluster: Cluster, new_job_folder: Make) -> None:
    job_folder = new_job_folder(rows(40))
    block = cluster.call(
        "sbatch", "--parsable", "--partition=high", "--nodes=4", "--exclusive", "--time=5",
        "--output=/dev/null", "--wrap=sleep 60",
    )  # fmt: skip
    run = Campaign.submit(cluster, job_folder, *NULL)
    name = str(run.run.root)
    run.until(lambda: "Resources" in job_folder.call("status", name).out, 20)
    waiting = job_folder.call("status", name, "--json").json
    assert waiting["state"] == "submitted" and waiting["queue"]["running"] == 0
    assert "no rank has started yet" in job_folder.call("status", name, "--offline").out
    assert waiting["queue"]["pending"] >= 4
    assert waiting["queue"]["steward"].startswith("waits")  # and why, if not for the tasks
    cluster.call("scancel", block)
    run.until(lambda: run.rendering())
    running = job_folder.call("status", name, "--json").json
    assert running["state"] == "running" and running["queue"]["running"] >= 1
    offline = job_folder.call("status", name, "--offline", "--json").json
    assert offline["state"] == "running" and offline["queue"] is None
    watched = job_folder.call("status", name, "--watch", "--json")
    assert watched.code == 0 and watched.json["state"] == "finished"
    assert watched.json["ok"] == 40 and "catalog " in watched.out
    run.audit("undisturbed")


def most_hosts_at_once(runs: pd.DataFrame) -> int:
    """Slurm may take another node for the next element, while the one before is being cleaned."""
    at_work = (runs[(runs.started <= t) & (t < runs.ended)] for t in runs.started)
    return max(part.host.nunique() for part in at_work)


def test_resume_on_three_nodes_then_two_renders_nothing_twice(
    cluster: Cluster, new_job_folder: Make
) -> None:
    job_folder = new_job_folder(rows(90))
    run = Campaign.submit(cluster, job_folder, *NULL)
    name = str(run.run.root)
    for nodes in (3, 2):
        before = run.status().ok
        run.until(lambda before=before: run.status().ok >= before + 15)
        cancelled = job_folder.call("cancel", name)
        assert cancelled.code == 0, cancelled.err
        assert not [q for q in cluster.squeue() if q.name.startswith("bg-")]
        run.resume(f"slurm.nodes={nodes}")
    run.wait()
    run.audit("resumed on 3, then 2 nodes")
    runs = pq.read_table(run.run.catalog_runs).to_pandas()
    assert runs.rows_ok.sum() == 90 and runs.rows_wasted.sum() == 0
    assert runs.retried_s.sum() == 0  # nothing that was finished was computed again
    for number, nodes in ((2, 3), (3, 2)):
        assert most_hosts_at_once(runs[runs.submission == number]) == nodes


def test_a_path_reaches_slurm_as_it_is(cluster: Cluster, new_job_folder: Make) -> None:
    """Scripts, logs and the steward, also as it submits what killed ranks have left. A backslash
    is refused before anything is made: Slurm drops it."""
    job_folder = new_job_folder(rows(12, 0.5))
    root = job_folder.folder / "it's q\"x #h $(x) `y` %j%% %A_%a ü节;& [1]"
    run = Campaign.submit(cluster, job_folder, *NULL, "slurm.nodes=1", f"output.root_dir={root}")
    run.until(lambda: run.rendering(commits=1))
    for pid in run.ranks():
        os.kill(pid, signal.SIGKILL)
    run.wait()
    run.audit("a path of many characters")
    assert [path.name for path in root.iterdir()] == [run.run.root.name]
    assert {path.name for path in job_folder.folder.iterdir() if path.is_dir()} == {
        "slurm",
        root.name,
    }
    tasks, *_ = (p for p in run.run.printed(1) if p.parent.name != "steward")
    assert "Killed" in tasks.read_text()
    stewards = [p.read_text() for p in run.run.printed(2) if p.parent.name == "steward"]
    assert len(stewards) == 1 and "catalog: 12 of 12 rows ok" in stewards[0]
    shown = job_folder.call("logs", str(run.run.root))
    assert shown.code == 0 and "steward" in shown.out
    refused = job_folder.call("submit", str(job_folder.job), *NULL, "output.root_dir=back\\slash")
    assert refused.code == 2 and "a path with a backslash in it" in refused.err
    assert not (job_folder.folder / "back\\slash").exists()


def test_changed_keys_are_refused_by_name(cluster: Cluster, new_job_folder: Make) -> None:
    job_folder = new_job_folder(rows(16, 0.1))
    run = Campaign.submit(cluster, job_folder, *NULL)
    run.wait()
    refused = job_folder.call("resume", str(run.run.root), "output.quality=3", "row_defaults.fps=4")
    assert refused.code == 2
    assert "16 finished rows would change" in refused.err
    assert "output.quality" in refused.err and "row_defaults.fps" in refused.err


def test_an_array_above_the_limit_is_cut_into_windows(
    new_job_folder: Make, small_arrays: Cluster
) -> None:
    """MaxArraySize=3: a submission of more shards is several arrays, as many side by side as there
    are nodes."""
    job_folder = new_job_folder(rows(90, 0.3))
    run = Campaign.submit(small_arrays, job_folder, *NULL, "slurm.start_up_s=0.2", "slurm.nodes=2")
    jobs = json.loads(run.run.jobs(1).read_text())["jobs"]
    assert len(jobs) >= 3
    assert [job["task"] for job in jobs] == list(range(len(jobs)))
    assert {job["stride"] for job in jobs} == {len(jobs)}
    most = 0
    beside: set[frozenset[str]] = set()

    def look() -> None:
        nonlocal most
        running = [q for q in small_arrays.squeue(job_name(run.run, 1)) if q.state == "RUNNING"]
        most = max(most, len(running))
        beside.add(frozenset(q.job.split("_")[0] for q in running))

    run.wait(200, meanwhile=look)
    run.audit("windows")
    assert 1 <= most <= 2  # the cap of nodes holds over all windows
    assert max(map(len, beside)) == 2  # and they do not wait for each other
    tasks = {attempt.task for attempt, _ in journal_files(run.run)}
    assert tasks == set(range(max(tasks) + 1)) and len(tasks) > 6


@pytest.fixture
def small_arrays(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    try:
        cluster = Cluster.boot("small-arrays", EXTRA="MaxArraySize=3")
    except ClusterUnavailable as error:
        pytest.skip(f"no Slurm: {error}")
    monkeypatch.setenv("SLURM_CONF", cluster.conf)
    yield cluster
    cluster.reset()


def test_a_cluster_that_was_wiped_does_not_matter(
    new_job_folder: Make, small_arrays: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Job ids begin anew and nobody knows the old ones; the run folder does."""
    job_folder = new_job_folder(rows(40))
    run = Campaign.submit(small_arrays, job_folder, *NULL)
    run.until_committed(8)
    small_arrays.reset()
    small_arrays.script("up")
    shown = job_folder.call("status", str(run.run.root), "--json").json
    assert shown["state"] == "stopped" and shown["queue"]["pending"] == 0
    run.resume()
    run.wait()
    run.audit("wiped")


@pytest.mark.parametrize("cpus", [4])
def test_submit_and_run_inside_an_allocation(
    cluster: Cluster, new_job_folder: Make, cpus: int
) -> None:
    """The variables of somebody's own job are no wishes for ours."""
    job_folder = new_job_folder(rows(12, 0.1))
    inside = ("srun", "--ntasks=1", f"--cpus-per-task={cpus}", "--mem=1500", "--time=5")
    for verb, extra in (("submit", ()), ("run", ("slurm=local", "slurm.ranks_per_node=2"))):
        argv = [
            sys.executable,
            "-m",
            "batchgen",
            verb,
            str(job_folder.job),
            *NULL,
            *extra,
            "--json",
        ]
        done = subprocess.run(
            [*inside, *argv], cwd=job_folder.folder, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        data = json.loads(done.stdout.splitlines()[-1])
        run = Campaign(cluster, job_folder, RunPaths(Path(data["run"])))
        if verb == "submit":
            run.wait()
        run.audit(f"{verb} inside an allocation")
        replicas = {attempt.replica for attempt, _ in journal_files(run.run)}
        assert replicas == {0, 1}


@pytest.mark.parametrize("own", ["extra", "variable"])
def test_ranks_know_their_places_under_export_none(
    cluster: Cluster, new_job_folder: Make, own: str
) -> None:
    """Asked for by the profile or by the user's own variable: srun hands on the batch script's
    environment, which says who started the ranks."""
    asked = ("slurm.extra={export: NONE}",) if own == "extra" else ()
    env = {"SBATCH_EXPORT": "NONE", "SBATCH_JOB_NAME": "mine"} if own == "variable" else {}
    job_folder = new_job_folder(rows(12, 0.3))
    run = Campaign.submit(cluster, job_folder, *NULL, "slurm.nodes=1", *asked, env=env)
    run.wait()
    catalog = run.audit(f"export none by {own}")
    assert list(catalog.status) == ["ok"] * 12
    runs = pq.read_table(run.run.catalog_runs).to_pandas()
    assert sorted(runs["rank"]) == [0, 1] and set(runs.world_size) == {2}
    assert (runs.rows_ok > 0).all()


def test_shards_by_cost_leave_a_slow_node_less_to_do(
    cluster: Cluster, new_job_folder: Make
) -> None:
    """What `bench schedule` says of one node at half speed and rows that differ tenfold holds for
    the shards of a real run, from what each of its tasks rendered. No seconds of the wall are
    compared: they are the machine's."""
    dice = np.random.default_rng(5)
    steps = np.sort(np.round(20 * 10 ** dice.uniform(0, 1, 160)).astype(int))  # as manifests are
    manifest = [row | {"num_steps": int(n)} for row, n in zip(rows(160), steps, strict=True)]
    job_folder = new_job_folder(manifest)
    slow = {"BATCHGEN_NULL_SLOW": "node3=2.0"}
    settings = ("slurm.start_up_s=1", "slurm.ranks_per_node=1", "slurm.cpus_per_rank=3")
    run = Campaign.submit(cluster, job_folder, *NULL, *settings, env=slow)
    run.wait(240)

    catalog = rows_of(run.run)
    shard = catalog.attempt.str.extract(r"^s1t(\d+)").astype(int)[0].to_numpy()
    count, costs = int(shard.max()) + 1, catalog.num_steps.to_numpy() / 100
    work = np.bincount(shard, weights=costs)
    assert count > 4 and (np.diff(work) < 0.5).all()  # the longest begin first
    done = catalog.groupby("host").num_steps.sum()
    assert len(done) == 4 and done["node3"] < done.drop("node3").min()

    equal = np.arange(len(costs)) * count // len(costs)
    assert longest_run(costs, shard) < 0.97 * longest_run(costs, equal)


def longest_run(costs: np.ndarray, shard: np.ndarray) -> float:
    """Simulated seconds, with the slow node first or last in the queue."""
    places = ((0.5, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 0.5))
    clusters = (simulated.Cluster(speeds, ranks=1, start_up_s=1.0) for speeds in places)
    return max(simulated.simulate(costs, shard, cluster).makespan_s for cluster in clusters)
