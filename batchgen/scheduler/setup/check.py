"""`slurm check`: submit the probe with the parameters of real tasks, wait for it, judge its
reports."""

from __future__ import annotations

import json
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from batchgen.config.schema import SlurmConfig
from batchgen.durable import write_bytes_atomic, write_json
from batchgen.scheduler import commands as scheduler
from batchgen.scheduler.batch import Batch, parameters
from batchgen.scheduler.commands import SchedulerError
from batchgen.scheduler.options import check_folder
from batchgen.scheduler.setup.findings import CheckLine, NodeClock, judge
from batchgen.scheduler.setup.probe import Environment, NodeReport, RankReport
from batchgen.words import duration

TIME_LIMIT_MIN = 10
_POLL_S = 0.25
_ASK_S = 2.0  # seconds between two questions to Slurm
_LATE_S = 10.0  # a shared file system may show the last reports after the job has ended


@dataclass(frozen=True, slots=True)
class Checked:
    """Findings, the ranks' reports, and where the probe's files are (None: deleted)."""

    findings: tuple[CheckLine, ...]
    ranks: tuple[RankReport, ...]
    folder: Path | None

    @property
    def failed(self) -> bool:
        return any(finding.verdict == "fail" for finding in self.findings)


def check(
    slurm: SlurmConfig,
    root: Path,
    *,
    nodes: int = 2,
    wait_s: float = 900.0,
    say: Callable[[str], None] = print,
) -> Checked:
    """Run the probe on `nodes` nodes, with its files below `root`, where runs are kept.

    SchedulerError if Slurm refuses the job or does not start it within `wait_s`; the job is then
    cancelled, as on an interrupt. The probe's files are kept if something failed.
    """
    word = secrets.token_hex(3)
    folder = root.absolute() / f"slurm-check-{word}"
    check_folder(slurm.executor, folder)
    folder.mkdir(parents=True)
    write_json(folder / "probe.json", {"nodes": nodes, "slurm": asdict(slurm)})
    probe = _Probe(folder, f"bg-check-{word}", slurm, nodes, say)
    try:
        probe.submit()
        probe.wait(wait_s)
    except BaseException:
        probe.cancel()
        raise
    checked = probe.judged()
    if checked.failed:
        return checked
    shutil.rmtree(folder, ignore_errors=True)
    return replace(checked, folder=None)


def probe_batch(folder: Path, name: str, slurm: SlurmConfig, nodes: int) -> Batch:
    """The probe as a job, with the profile's parameters except for a short wall time."""
    short = replace(slurm, timeout_min=min(slurm.timeout_min, TIME_LIMIT_MIN))
    wishes = {**parameters(short, name, drains=False), "nodes": nodes}
    python = slurm.python or shlex.quote(sys.executable)
    command = f"{python} -u -m batchgen.scheduler.setup.probe {shlex.quote(str(folder))}"
    return Batch(folder / "logs", command, wishes)


class _Probe:
    """One probe job."""

    def __init__(
        self, folder: Path, name: str, slurm: SlurmConfig, nodes: int, say: Callable[[str], None]
    ) -> None:
        self.folder, self.name, self.slurm, self.nodes, self.say = folder, name, slurm, nodes, say
        self.clocks: dict[str, NodeClock] = {}
        self._asked = 0.0

    def submit(self) -> None:
        try:
            job = probe_batch(self.folder, self.name, self.slurm, self.nodes).submit()
        except SchedulerError:
            shutil.rmtree(self.folder, ignore_errors=True)  # it holds only this probe's question
            raise
        self.say(f"job {job} on {self.nodes} nodes ({self.folder})")

    def cancel(self) -> None:
        try:
            scheduler.cancel([self.name])
        except SchedulerError as error:
            self.say(f"the probe was not cancelled: {error}")

    def wait(self, seconds: float) -> None:
        """Wait until all reports are there or the job is gone; SchedulerError if it does not
        start."""
        deadline, ask_at, said = time.monotonic() + seconds, 0.0, ""
        gone_at: float | None = None
        while not self._complete() and (gone_at is None or time.monotonic() < gone_at + _LATE_S):
            self._compare_clocks()
            if time.monotonic() >= ask_at and gone_at is None:
                ask_at = time.monotonic() + _ASK_S
                state = self._state()
                gone_at = None if state else time.monotonic()
                if state != said:
                    said = state
                    self.say(state or "the job has ended")
                if state.startswith("waits") and time.monotonic() > deadline:
                    raise SchedulerError(
                        f"the probe did not start in {duration(seconds)}: it {state}"
                    )
            time.sleep(_POLL_S)

    def _state(self) -> str:
        """State of the job in the queue; empty if it is gone."""
        tasks = scheduler.patiently(lambda: scheduler.queue([self.name]), 30.0)
        if not tasks:
            return ""
        task = tasks[0]
        why = "" if task.reason in ("", "None") else f" ({task.reason})"  # "None": not judged yet
        return f"waits{why}" if task.waits else f"runs on {task.node}"

    def _complete(self) -> bool:
        ranks = self.slurm.ranks_per_node * self.nodes
        return all((self.folder / f"rank-{n}.json").exists() for n in range(ranks))

    def _compare_clocks(self) -> None:
        """Ask every node for its time once all nodes are there, and read each answer as soon as it
        comes."""
        sides = "ab"[: self.nodes]
        if not self._asked:
            if not all((self.folder / f"ready.{side}").exists() for side in sides):
                return
            self._asked = time.time()
            write_bytes_atomic(self.folder / "clock.login", b"")
        for side in sides:
            answer = self.folder / f"time.{side}"
            if side not in self.clocks and answer.exists():
                told = float(answer.read_text())
                self.clocks[side] = NodeClock("", self._asked, told, time.time())

    def judged(self) -> Checked:
        ranks = [RankReport(**_read(file)) for file in self.folder.glob("rank-*.json")]
        files = {side: self.folder / f"node-{side}.json" for side in "ab"[: self.nodes]}
        nodes = {s: NodeReport(**_read(file)) for s, file in files.items() if file.exists()}
        if not ranks or len(nodes) < self.nodes:
            said = f"{len(nodes)} of {self.nodes} nodes sent a report; {self._last_words()}"
            advice = "does the profile's python, with batchgen, work there, and see this folder?"
            return Checked((CheckLine("fail", "start", said, advice),), tuple(ranks), self.folder)
        clocks = [replace(clock, host=nodes[side].host) for side, clock in self.clocks.items()]
        here = Environment.here()
        findings = judge(self.slurm, here, ranks, list(nodes.values()), clocks)
        return Checked(tuple(findings), tuple(ranks), self.folder)

    def _last_words(self) -> str:
        """The last line that the job wrote: it often says why the job ended."""
        logs = sorted(file for file in (self.folder / "logs").glob("*") if file.suffix != ".sh")
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
        lines = [line.strip() for line in lines if line.strip()]
        own = [line for line in lines if not line.startswith("srun: ")] or lines
        return f"last of its output: {own[-1]!r}" if own else "it wrote nothing"


def _read(file: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(file.read_text())
    return read
