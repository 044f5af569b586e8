"""Random kills all the way through a run: the catalog and its media come out as if undisturbed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import pyarrow.parquet as pq
import pytest
from harness import Bench, published
from slurm.campaign import Campaign, rows
from slurm.cluster import Cluster

from batchgen.ledger.intent import journal_files
from batchgen.paths import RunPaths

Make = Callable[..., Bench]
SETTINGS = (
    "slurm.ranks_per_node=1",
    "slurm.start_up_s=2",
    "slurm.max_attempts=50",
    "row_defaults.num_steps=6",
    "system.batch.max_rows_in_flight=2",
)


class Monkey:
    """Breaks one thing at a time, by the dice of a seed."""

    def __init__(self, run: Campaign, seed: int, weights: dict[str, int]) -> None:
        self.run, self.dice = run, random.Random(seed)
        self.weights = weights
        self.done: list[str] = []
        self.dark: list[str] = []  # nodes without power

    def strike(self) -> None:
        """Do one thing if there is a rank to do it to."""
        attempts = [a for a in self.run.status().attempts if a.life == "running"]
        if not attempts:
            return
        attempt = self.dice.choice(attempts)
        what = self.dice.choices(list(self.weights), list(self.weights.values()))[0]
        for node in self.dark:
            self.run.cluster.node_up(node)
        self.dark.clear()
        with suppress(ProcessLookupError, StopIteration):  # it has just ended
            getattr(self, f"_{what}")(attempt.host, attempt.process.pid)
            self.done.append(what)

    def _rank(self, host: str, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def _node(self, host: str, pid: int) -> None:
        for rank in self.run.ranks(host):
            os.kill(rank, signal.SIGKILL)

    def _power(self, host: str, pid: int) -> None:
        self.run.cluster.node_kill(host)
        self.dark.append(host)

    def _requeue(self, host: str, pid: int) -> None:
        self.run.cluster.call("scontrol", "requeue", self._element(host), check=False)

    def _scancel(self, host: str, pid: int) -> None:
        self.run.cluster.call("scancel", self._element(host), check=False)

    def _preempt(self, host: str, pid: int) -> None:
        """As Slurm does it: a signal, some time, the end and another start."""
        element = self._element(host)
        self.run.cluster.call("scancel", "--signal=USR2", element, check=False)
        time.sleep(1)
        self.run.cluster.call("scontrol", "requeue", element, check=False)

    def _element(self, host: str) -> str:
        wanted = (q for q in self.run.cluster.squeue() if q.node == host and "_" in q.job)
        return next(q.job for q in wanted if q.state == "RUNNING")


def chaos(run: Campaign, monkey: Monkey, count: int, kills: int) -> None:
    """Strike every time another share of the rows is done, until the run is over."""

    def meanwhile() -> None:
        if run.status().ok >= len(monkey.done) * count / (kills + 1):
            monkey.strike()

    run.wait(1500, meanwhile=meanwhile)


def undisturbed(bench: Bench) -> dict[str, tuple[str, str]]:
    """The same rows in one quiet process on this machine."""
    done = bench.run("slurm=inline", *SETTINGS[3:])
    assert done.code == 0, done.err
    return published(RunPaths(bench.root / str(done.json["run"])))


def hold_against(run: Campaign, expected: dict[str, tuple[str, str]]) -> None:
    """Rows that were shot twice while they ran alone are quarantined, as any killer would be; a
    person looks at them and asks for them again. Then all is as if nothing had happened."""
    catalog = pq.read_table(run.run.catalog_rows).to_pandas()
    if shot := list(catalog[catalog.status == "quarantined"].row_id):
        again = run.bench.call("retry", str(run.run.root), "--rows", ",".join(shot), "slurm=inline")
        assert again.code == 0, again.err
    run.audit(f"chaos, {len(shot)} rows quarantined and retried")
    assert published(run.run) == expected
    runs = pq.read_table(run.run.catalog_runs).to_pandas()
    assert len(runs) == len(journal_files(run.run))
    parts = runs[["load_s", "compile_s", "warmup_s", "busy_s", "idle_s"]].sum(axis=1)
    assert (runs.wall_s - parts).abs().max() <= 2 + 0.01 * runs.wall_s.max()
    split = runs[["useful_s", "retried_s", "saved_s", "lost_s"]].sum(axis=1)
    assert (runs.busy_s - split).abs().max() <= 2 + 0.01 * runs.wall_s.max()


@pytest.mark.timeout(900)
def test_a_short_storm(cluster: Cluster, job_bench: Make) -> None:
    bench = job_bench(rows(60, 0.06))
    expected = undisturbed(bench)
    run = Campaign.submit(cluster, bench, *SETTINGS)
    monkey = Monkey(run, 1, {"rank": 3, "node": 1, "requeue": 1, "scancel": 1, "preempt": 1})
    chaos(run, monkey, 60, 8)
    assert len(monkey.done) >= 8, monkey.done
    hold_against(run, expected)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_chaos(cluster: Cluster, job_bench: Make) -> None:
    """400 rows over four nodes, 40 kills and more."""
    bench = job_bench(rows(400, 0.06))
    expected = undisturbed(bench)
    run = Campaign.submit(cluster, bench, *SETTINGS)
    monkey = Monkey(
        run, 2, {"rank": 8, "node": 3, "power": 1, "requeue": 3, "scancel": 2, "preempt": 2}
    )
    chaos(run, monkey, 400, 44)
    assert len(monkey.done) >= 40, monkey.done
    hold_against(run, expected)
