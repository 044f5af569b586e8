"""Random kills all the way through a run: the catalog and its media come out as if undisturbed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from cli_calls import JobFolder, recorded, rows_of
from slurm.campaign import Campaign, rows
from slurm.cluster import Cluster

from batchgen.catalog.accounts import BUSY_PARTS, WALL_PARTS
from batchgen.ledger.blame.rows import read_blame
from batchgen.ledger.intent import journal_files
from batchgen.paths import RunPaths

Make = Callable[..., JobFolder]
SETTINGS = (
    "slurm.ranks_per_node=1",
    "slurm.max_attempts=50",
    "row_defaults.num_steps=6",
    "system.batch.max_rows_in_flight=2",
)


class Monkey:
    """Breaks one thing at a time, by the dice of a seed."""

    def __init__(self, run: Campaign, seed: int, weights: dict[str, int]) -> None:
        self.run, self.dice = run, random.Random(seed)
        self.weights = weights
        self.done: list[str] = []  # what the kernel or Slurm has accepted
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
        if getattr(self, f"_{what}")(attempt.host, attempt.process.pid):
            self.done.append(what)

    def _rank(self, host: str, pid: int) -> bool:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # it has just ended
            return False
        return True

    def _node(self, host: str, pid: int) -> bool:
        return any([self._rank(host, rank) for rank in self.run.ranks(host)])

    def _power(self, host: str, pid: int) -> bool:
        self.run.cluster.node_kill(host)
        self.dark.append(host)
        return True

    def _requeue(self, host: str, pid: int) -> bool:
        return self._tell(host, "scontrol", "requeue")

    def _scancel(self, host: str, pid: int) -> bool:
        return self._tell(host, "scancel")

    def _preempt(self, host: str, pid: int) -> bool:
        """As Slurm does it: a signal, some time, the end and another start."""
        if not self._tell(host, "scancel", "--signal=USR2"):
            return False
        time.sleep(1)
        return self._requeue(host, pid)

    def _tell(self, host: str, *command: str) -> bool:
        """Give Slurm a command about the element on a node; False if it has just ended."""
        found = [q for q in self.run.cluster.squeue() if not q.name.endswith("-steward")]
        running = [q.job for q in found if q.node == host and q.state == "RUNNING"]
        return bool(running) and self.run.cluster.accepts(*command, running[0])


def chaos(run: Campaign, monkey: Monkey, count: int, kills: int) -> None:
    """Strike every time another share of the rows is done, until the run is over."""

    def meanwhile() -> None:
        if run.status().ok >= len(monkey.done) * count / (kills + 1):
            monkey.strike()

    run.wait(1500, meanwhile=meanwhile)


def undisturbed(job_folder: JobFolder) -> set[tuple[Any, ...]]:
    """The same rows in one quiet process on this machine."""
    done = job_folder.run("slurm=inline", *SETTINGS[2:])
    assert done.code == 0, done.err
    return recorded(RunPaths(job_folder.root / str(done.json["run"])))


def hold_against(run: Campaign, expected: set[tuple[Any, ...]], most_shot: int) -> None:
    """Rows that were shot on two nodes while they ran alone are quarantined, as any killer would
    be; a person looks at them and asks for them again. Then all is as if nothing had happened."""
    shot = rows_of(run.run).query("status == 'quarantined'")
    deaths = read_blame(run.run, all_gone=True).deaths
    for row in shot.itertuples():
        mine = [death for death in deaths if row.row_index in death.rows]
        assert len({death.place for death in mine if death.alone}) >= 2, (row.row_id, mine)
    assert len(shot) <= most_shot, shot.error.tolist()
    if len(shot):
        ids = ",".join(shot.row_id)
        again = run.job_folder.call("retry", str(run.run.root), "--rows", ids, "slurm=inline")
        assert again.code == 0, again.err
    run.audit(f"chaos, {len(shot)} rows quarantined and retried")
    assert recorded(run.run) == expected
    runs = pd.read_parquet(run.run.catalog_runs)
    assert len(runs) == len(journal_files(run.run))
    for _, attempt in runs.iterrows():
        closes(attempt)


def closes(run: pd.Series) -> None:
    """The ledger of one attempt."""
    told, slack = run.to_string(), 2 + 0.01 * run.wall_s
    assert abs(run.wall_s - run[[*WALL_PARTS]].sum()) <= slack, told
    assert abs(run.busy_s - run[[*BUSY_PARTS]].sum()) <= slack, told
    if run.exit_reason == "done":
        assert run.lost_s <= slack, told


@pytest.mark.timeout(900)
def test_a_short_storm(cluster: Cluster, new_job_folder: Make) -> None:
    job_folder = new_job_folder(rows(60, 0.06))
    expected = undisturbed(job_folder)
    run = Campaign.submit(cluster, job_folder, *SETTINGS, "slurm.start_up_s=0.3")  # several shards
    monkey = Monkey(run, 1, {"rank": 3, "node": 1, "requeue": 1, "scancel": 1, "preempt": 1})
    chaos(run, monkey, 60, 8)
    assert len(monkey.done) >= 8, monkey.done
    hold_against(run, expected, most_shot=1)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_chaos(cluster: Cluster, new_job_folder: Make) -> None:
    """400 rows over four nodes, 40 kills and more."""
    job_folder = new_job_folder(rows(400, 0.06))
    expected = undisturbed(job_folder)
    run = Campaign.submit(cluster, job_folder, *SETTINGS, "slurm.start_up_s=1")
    monkey = Monkey(
        run, 2, {"rank": 8, "node": 3, "power": 1, "requeue": 3, "scancel": 2, "preempt": 2}
    )
    chaos(run, monkey, 400, 44)
    assert len(monkey.done) >= 40, monkey.done
    hold_against(run, expected, most_shot=3)
