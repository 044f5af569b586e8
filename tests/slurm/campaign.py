"""A run on the development cluster that is disturbed, and what must hold of it afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from cli_calls import JobFolder, rows_of
from slurm.cluster import NODES, Cluster

from batchgen.catalog.frames import waste
from batchgen.ledger.intent import journal_files
from batchgen.ledger.status import RunStatus, live_attempts, read_status
from batchgen.paths import RunPaths
from batchgen.scheduler.commands import job_name, names

NULL = ("model=null-engine", "slurm.start_up_s=1")
# A rank that is killed has shown itself last as it began a row, or later when the one before was
# committed: what it was busy with in between, at least a write, is known to be lost.
WRITE_S = 0.0005
TABLE = "BATCHGEN_KILLS_TABLE"  # a file that gets one line of JSON per case: see KILLS.md


def rows(count: int, seconds: float = 1.0, **columns: Any) -> list[dict[str, Any]]:
    """Manifest rows that take so long each on the null engine (10 ms a step)."""
    steps = round(seconds * 100)
    return [
        {
            "row_id": f"row-{i:03d}",
            "prompt": f"prompt {i}",
            "seed": i,
            "num_steps": steps,
            **columns,
        }
        for i in range(count)
    ]


@dataclass(frozen=True)
class Campaign:
    """A submitted run."""

    cluster: Cluster
    job_folder: JobFolder
    run: RunPaths

    @classmethod
    def submit(
        cls,
        cluster: Cluster,
        job_folder: JobFolder,
        *overrides: str,
        env: dict[str, str] | None = None,
    ) -> Campaign:
        done = job_folder.call("submit", str(job_folder.job), *overrides, "--json", env=env)
        assert done.code == 0, done.err
        return cls(cluster, job_folder, RunPaths(Path(str(done.json["run"]))))

    # -------------------------------------------------------------------------------- while it runs
    def status(self) -> RunStatus:
        return read_status(self.run)

    def ranks(self, node: int | str = "") -> list[int]:
        """Pids of the run's ranks at work, of one node or all."""
        host = f"node{node}" if isinstance(node, int) else node
        live = [a for a in live_attempts(self.run) if a.process.alive()]
        return [a.process.pid for a in live if not host or a.host == host]

    def rendering(self, node: int | str = "", commits: int = 0) -> list[int]:
        """Pids of ranks that have rows in flight, and have committed so many."""
        host = f"node{node}" if isinstance(node, int) else node
        live = [a for a in live_attempts(self.run) if a.process.alive() and a.running]
        live = [a for a in live if a.commits >= commits]
        return [a.process.pid for a in live if not host or a.host == host]

    def busy_node(self, commits: int = 0) -> str:
        """A node with two ranks at work, as soon as there is one; each has committed so many."""
        found: list[str] = []

        def look() -> bool:
            found[:] = [n for n in NODES if len(self.rendering(n, commits)) == 2]
            return bool(found)

        self.until(look)
        return found[-1]

    def element(self, node: int | str) -> str:
        """The array element on a node, as Slurm's commands take it."""
        name = f"node{node}" if isinstance(node, int) else node
        found = [q for q in self.cluster.squeue(job_name(self.run, 1)) if q.node == name]
        return found[0].job

    def until(self, predicate: Callable[[], object], timeout_s: float = 60.0) -> None:
        self.cluster.wait_until(predicate, timeout_s)

    def until_committed(self, count: int) -> None:
        """Wait for so many rows, with all four nodes at work."""
        self.until(lambda: self.status().ok >= count)

    def wait(
        self, timeout_s: float = 150.0, meanwhile: Callable[[], object] = lambda: None
    ) -> None:
        """Until Slurm has nothing of the run any more, later submissions and stewards included."""
        prefix = job_name(self.run, 1).removesuffix("1")
        mine = re.compile(re.escape(prefix) + r"\d+(-steward)?")

        def is_over() -> bool:
            meanwhile()
            return not any(mine.fullmatch(queued.name) for queued in self.cluster.squeue())

        self.until(is_over, timeout_s)

    # ------------------------------------------------------------------------------------- after it
    def audit(
        self, case: str, *, quarantined: Sequence[str] = (), min_wasted: float = 0.0
    ) -> pd.DataFrame:
        """Every row once, media verified, nothing of a fenced attempt published, at least
        `min_wasted` seconds counted as waste. Writes what it cost where TABLE asks for it; returns
        the catalog that the run's steward has written."""
        assert self.run.catalog_rows.is_dir(), self.logs()
        catalog = rows_of(self.run)
        lost = int((~catalog.status.isin(["ok", "quarantined"])).sum())
        twice = int(catalog.row_id.duplicated().sum())
        left = catalog[catalog.status != "ok"][["row_id", "status", "error"]].head(5)
        assert (lost, twice) == (0, 0), f"{lost} lost:\n{left.to_string()}\n{self.logs()}"
        assert sorted(catalog[catalog.status == "quarantined"].row_id) == sorted(quarantined)
        verified = self.job_folder.call("verify", str(self.run.root))
        assert verified.code == 0, verified.out + verified.err
        wasted = float(waste(self.run.root).total)
        assert wasted >= min_wasted
        record = {
            "case": case,
            "rows": len(catalog),
            "lost": lost,
            "twice": twice,
            "attempts": len(journal_files(self.run)),
            "submissions": self.status().submission,
            "wasted_s": round(wasted, 3),
        }
        if TABLE in os.environ:
            with open(os.environ[TABLE], "a") as file:
                file.write(json.dumps(record) + "\n")
        return catalog

    def logs(self) -> str:
        """What the jobs printed, for the message of a failure."""
        files = sorted(self.run.root.glob("submissions/*/slurm/*/*.log"))
        return "\n".join(f"== {f.name}\n{f.read_text()[-1500:]}" for f in files if f.stat().st_size)

    def resume(self, *overrides: str, code: int = 0) -> None:
        done = self.job_folder.call("resume", str(self.run.root), "--detach", *overrides)
        assert done.code == code, done.err

    def stewards(self) -> list[str]:
        """Job ids of stewards that are at work."""
        wanted = names(self.run, self.status().submission)[1:]
        return [q.job for q in self.cluster.squeue() if q.name in wanted and q.state == "RUNNING"]


def is_stopped(pid: int) -> bool:
    """Whether a process is held by SIGSTOP."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "T"


def stopped_of(cluster: Cluster, name: str) -> list[int]:
    """Processes of a job, by its name, that are held by SIGSTOP."""
    nodes = [q.node for q in cluster.squeue(name) if q.node]
    return [pid for node in nodes for pid in cluster.processes_on(node, name) if is_stopped(pid)]


def cut_off(cluster: Cluster, node: int, spared: Sequence[int]) -> None:
    """All that Slurm has on a node dies, but the ranks that it started live on."""
    for pid in cluster.everything_on(node):
        if pid not in spared and not is_child_of(pid, spared):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def is_child_of(pid: int, parents: Sequence[int]) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return int(stat.rpartition(")")[2].split()[1]) in parents
