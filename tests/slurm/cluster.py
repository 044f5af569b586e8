"""A development cluster for tests: boots, breaks and heals it. See slurm/devcluster/README.md."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "slurm" / "devcluster" / "devcluster.sh"
PROFILE = SCRIPT.parents[1] / "devcluster.yaml"
NODES = ("node1", "node2", "node3", "node4")
_HOME = Path("/tmp")  # not the test's folder: a socket's path may have 107 characters at most
_PREFIX = "batchgen-test-cluster-"
_USED_PORTS = (6, 17, 19, 21, 22, 23, 24)  # from the base, as in the script
_STEP_S = 0.1


class ClusterUnavailable(Exception):
    """Slurm is not installed and cannot be."""


@dataclass(frozen=True, slots=True)
class Queued:
    """One line of `squeue`: an array element or a job."""

    job: str  # as Slurm's commands take it: 123_4
    name: str
    state: str  # PENDING, RUNNING, COMPLETING ...
    node: str
    reason: str


@dataclass(frozen=True)
class Cluster:
    """One running development cluster. Nodes are numbers from 1 to 4, or their names."""

    folder: Path
    port: int
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def conf(self) -> str:
        """Value of SLURM_CONF."""
        return str(self.folder / "etc" / "slurm.conf")

    # ------------------------------------------------------------------------------ up and down
    @classmethod
    def boot(cls, label: str, **settings: str) -> Cluster:
        """A fresh cluster; `settings` are the script's knobs (EXTRA="MaxArraySize=5").

        Raises ClusterUnavailable, with the reason, where Slurm cannot be had.
        """
        installed = subprocess.run([SCRIPT, "install"], capture_output=True, text=True)
        if installed.returncode:
            raise ClusterUnavailable((installed.stdout + installed.stderr).strip())
        folder = _HOME / f"{_PREFIX}{os.getpid()}-{label}"
        with (_HOME / f"{_PREFIX}boot.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one at a time: sweeping, ports, a database
            sweep()
            cluster = cls(folder, free_port_base(), settings)
            cluster.script("up")
        return cluster

    def reset(self) -> None:
        """Stop it and delete it."""
        self.script("reset")

    def script(self, *argv: str) -> str:
        """Run devcluster.sh for this cluster; its output."""
        knobs = {"DIR": str(self.folder), "PORT": str(self.port), **self.settings}
        env = {**os.environ, **{f"BATCHGEN_DEVCLUSTER_{k}": v for k, v in knobs.items()}}
        # to a file: daemons keep what they inherit open, and a pipe would never end
        said = self.folder.with_suffix(".said")
        with said.open("w+") as file:
            done = subprocess.run([SCRIPT, *argv], env=env, stdout=file, stderr=file, timeout=120)
        text = said.read_text()
        said.unlink(missing_ok=True)
        assert done.returncode == 0, f"devcluster.sh {' '.join(argv)}: {text}"
        return text

    def heal(self) -> None:
        """Every daemon and node up and no job left, whatever the test before did."""
        self.start_dbd()
        self.start_ctld()
        for k in range(1, len(NODES) + 1):
            if not self._daemon(f"slurmd.node{k}"):
                self.node_up(k)
        self.call("scancel", "--quiet", f"--user={os.getuid()}")
        self.wait_until(lambda: not self.squeue(), 60)
        self.wait_until(self._all_idle, 60)
        if not self._takes_jobs():
            self.reset()
            self.script("up")
        self.wait_until(self._all_idle, 60)  # the trial job's nodes are completing for a moment

    def _takes_jobs(self) -> bool:
        """Whether every node runs a job with all its GPUs: a controller of this version may keep
        those of a job that died with its node."""
        argv = [
            "srun",
            "-N4",
            "--ntasks-per-node=1",
            "--gpus-per-node=2",
            "--mem=50",
            "-t1",
            "true",
        ]
        env = {**os.environ, "SLURM_CONF": self.conf}
        try:
            return subprocess.run(argv, env=env, capture_output=True, timeout=20).returncode == 0
        except subprocess.TimeoutExpired:
            self.call("scancel", f"--user={os.getuid()}")
            return False

    def _all_idle(self) -> bool:
        """Whether all nodes are; those that are down or drained are asked to come back."""
        states = self.node_states()
        for node, state in states.items():
            if state.startswith(("down", "drain", "unknown")):
                self.call("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        return set(states.values()) == {"idle"}

    # ---------------------------------------------------------------------------------- looking
    def call(self, *argv: str, check: bool = True) -> str:
        """Standard output of a scheduler command."""
        env = {**os.environ, "SLURM_CONF": self.conf}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{' '.join(argv)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def accepts(self, *argv: str) -> bool:
        """Whether a scheduler command did what it was asked for, without a word of complaint."""
        env = {**os.environ, "SLURM_CONF": self.conf}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)
        return done.returncode == 0 and not done.stderr

    def squeue(self, name: str = "") -> list[Queued]:
        """Jobs and array elements that are queued, running or ending, of one job name or all."""
        only = [f"--name={name}"] if name else []
        lines = self.call("squeue", "--noheader", "--array", "--format=%i|%j|%T|%N|%r", *only)
        return [Queued(*line.split("|", 4)) for line in lines.splitlines()]

    def node_state(self, node: int | str) -> str:
        """As sinfo says: idle, mixed, down* ..."""
        return self.node_states()[_name(node)]

    def node_states(self) -> dict[str, str]:
        """Of all nodes: asked for one, the controller may tell an old state for minutes."""
        lines = self.call("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").splitlines()
        return dict(line.split(" ", 1) for line in lines)

    def processes_on(self, node: int | str, name: str = "") -> list[int]:
        """Rank processes on a node, in order of rank; of one job name, or of all but stewards.

        Known by their environment; the batch script and the children of ranks are left out.
        """
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            env = _environment(folder)
            if env.get("SLURM_CONF") != self.conf or env.get("SLURMD_NODENAME") != _name(node):
                continue
            job = env.get("SLURM_JOB_NAME", "")
            wanted = job == name if name else not job.endswith("-steward")
            if wanted and "SLURM_STEP_ID" in env and _parent_name(folder) == "slurmstepd":
                found.append((int(env.get("SLURM_PROCID", "0")), int(folder.name)))
        return [pid for _, pid in sorted(found)]

    def everything_on(self, node: int | str) -> list[int]:
        """All that runs for a node: slurmd, the daemons of its steps, and their jobs' processes."""
        log = self.folder / "log" / f"slurmd.{_name(node)}.log"
        found = [pid for pid in (self._daemon(f"slurmd.{_name(node)}"),) if pid]
        for folder in Path("/proc").glob("[0-9]*"):
            env = _environment(folder)
            ours = env.get("SLURM_CONF") == self.conf
            if (ours and env.get("SLURMD_NODENAME") == _name(node)) or _has_open(folder, log):
                found.append(int(folder.name))
        return sorted(set(found))

    def wait_until(self, predicate: Callable[[], object], timeout_s: float) -> None:
        """Poll until the predicate holds; fails after `timeout_s` and says what the queue was."""
        deadline = time.monotonic() + timeout_s
        while not predicate():
            if time.monotonic() > deadline:
                nodes = self.call("sinfo", "-N", "-p", "main", "-o", "%N %T %E")
                raise AssertionError(f"not within {timeout_s} s: {self.squeue()}\n{nodes}")
            time.sleep(_STEP_S)

    # --------------------------------------------------------------------------------- breaking
    def node_kill(self, node: int | str) -> None:
        """A power loss: slurmd and all processes of its jobs die at once."""
        self.script("node-kill", _name(node).removeprefix("node"))

    def node_up(self, node: int | str) -> None:
        self.script("node-up", _name(node).removeprefix("node"))

    def stop_dbd(self) -> None:
        self.script("stop", "slurmdbd")

    def start_dbd(self) -> None:
        if not self._daemon("slurmdbd"):
            self.script("start", "slurmdbd")

    def stop_ctld(self) -> None:
        self.script("stop", "slurmctld")

    def kill_ctld(self) -> None:
        """The controller dies without saving its state; jobs are as of a few seconds before."""
        pid = self._daemon("slurmctld")
        if pid:
            os.kill(pid, signal.SIGKILL)

    def start_ctld(self) -> None:
        if not self._daemon("slurmctld"):
            self.script("start", "slurmctld")

    def restart_ctld(self, after_s: float) -> None:
        """The controller dies and is back `after_s` seconds later."""
        self.kill_ctld()
        time.sleep(after_s)
        self.start_ctld()

    def _daemon(self, name: str) -> int | None:
        """Process of a daemon, by the name of its pid file; None when it does not run."""
        try:
            pid = int((self.folder / "run" / f"{name}.pid").read_text())
            comm = Path(f"/proc/{pid}/comm").read_text().strip()
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, ValueError):
            return None
        return pid if comm == name.partition(".")[0] and state != "Z" else None


def sweep() -> None:
    """Remove clusters of test processes that were killed and could not do it themselves."""
    for folder in _HOME.glob(f"{_PREFIX}*"):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if folder.is_dir() and owner.isdigit() and not Path(f"/proc/{owner}").exists():
            Cluster(folder, 0).script("reset")
            shutil.rmtree(folder, ignore_errors=True)


def free_port_base() -> int:
    """A base whose ports are all free; starts at another place in each process, below the ports
    that the system hands out."""
    start = os.getpid() * 50 % 12000
    for offset in range(0, 12000, 50):
        base = 20000 + (start + offset) % 12000
        if all(_free(base + port) for port in _USED_PORTS):
            return base
    raise ClusterUnavailable("no free ports between 20000 and 32000")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _name(node: int | str) -> str:
    return node if isinstance(node, str) else f"node{node}"


def _environment(process: Path) -> dict[str, str]:
    try:
        text = (process / "environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(item.partition("=")[::2] for item in text.split("\0") if "=" in item)


def _has_open(process: Path, file: Path) -> bool:
    try:
        return any(fd.readlink() == file for fd in (process / "fd").iterdir())
    except OSError:
        return False


def _parent_name(process: Path) -> str:
    try:
        parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
        return Path(f"/proc/{parent}/comm").read_text().strip()
    except OSError:
        return ""
