"""The part of `slurm check` that runs on the nodes: what a rank sees, and what two nodes see of
each other's files.

`python -m batchgen.scheduler.setup.probe FOLDER` runs as every rank of a job of two nodes. Each
rank leaves `rank-<n>.json`, the first of each node also `node-<a or b>.json`; the login node judges
these. The nodes talk only by files in FOLDER, since the folder is what is tested.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import batchgen
from batchgen.config.build import build
from batchgen.config.schema import SlurmConfig
from batchgen.durable import write_bytes_atomic, write_json
from batchgen.records import RankInfo
from batchgen.scheduler.options import outside_any_job
from batchgen.scheduler.rank import rank_from_environment

MEET_S = 90.0  # a network file system may take a minute to show a new file
RACES = 100
REPLACES = 100
LINES = 5
_POLL_S = 0.02
_GIB = 1024**3


@dataclass(frozen=True, slots=True)
class RankReport:
    """What one rank found. `device` is the uuid of its GPU, or empty; `figures` are those of
    engine.figures with `name`, and `problem` says why there are none."""

    rank: int
    world_size: int
    local_rank: int
    host: str
    python: str
    python_version: str
    package: str  # folder of the imported batchgen
    version: str
    torch: str = ""
    visible: str = ""  # CUDA_VISIBLE_DEVICES
    device: str = ""
    figures: dict[str, Any] | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What one node found. Times are in seconds, sizes in GiB."""

    host: str
    scratch: str
    scratch_gib: float
    shared_gib: float
    sbatch: str  # why no job can be submitted from here; empty if one can
    races_won: tuple[int, ...] = ()
    reads: int = 0  # number of reads of a file that the other node keeps replacing
    torn: int = 0  # how many of them gave neither an old nor a new content
    append_s: tuple[float, ...] = ()  # from fsync here to the other node's answer
    problem: str = ""  # error that ended the file tests early


@dataclass(frozen=True, slots=True)
class Environment:
    """What must be the same on the login node and all nodes."""

    python: str
    python_version: str
    package: str
    version: str

    @classmethod
    def here(cls) -> Environment:
        return cls(
            python=sys.executable,
            python_version=platform.python_version(),
            package=str(Path(batchgen.__file__).parent),
            version=batchgen.__version__,
        )


class NotSeen(Exception):
    """The other node's file did not appear in time."""


class Table:
    """The folder in which two nodes meet; `side` is a or b."""

    def __init__(self, folder: Path, side: str, patience_s: float = MEET_S) -> None:
        self.folder, self.side, self._patience_s = folder, side, patience_s
        self.other = "b" if side == "a" else "a"

    def put(self, what: str, text: str = "") -> None:
        write_bytes_atomic(self.folder / f"{what}.{self.side}", text.encode())

    def take(self, what: str, side: str = "") -> str:
        """The other side's text (or that of `side`), once it is there; NotSeen if it does not
        come."""
        path = self.folder / f"{what}.{side or self.other}"
        return self.wait(lambda: path.read_text() if self._there(path) else None, path.name)

    def meet(self, what: str) -> None:
        """Returns on both sides at about the same time."""
        self.put(what)
        self.take(what)

    def wait(self, look: Callable[[], str | None], what: str) -> str:
        """What `look` returns; NotSeen if that stays None."""
        deadline = time.monotonic() + self._patience_s
        while (found := look()) is None:
            if time.monotonic() > deadline:
                raise NotSeen(f"{what} was not seen within {self._patience_s:.0f} s")
            time.sleep(_POLL_S)
        return found

    def _there(self, path: Path) -> bool:
        """Whether the file exists. NFS remembers a missing file until the folder changes."""
        if not path.exists():
            touched = self.folder / f".look.{self.side}"
            touched.touch()
            touched.unlink()
        return path.exists()


def main(folder: str) -> int:
    """One rank of the probe."""
    place, rank = Path(folder), rank_from_environment(0)
    if rank.local_rank == 0:
        side = "a" if rank.rank == 0 else "b"
        write_json(place / f"node-{side}.json", asdict(_node(Table(place, side), rank)))
    write_json(place / f"rank-{rank.rank}.json", asdict(_rank(rank)))
    return 0


# --------------------------------------------------------------------------------------------- node
def _node(table: Table, rank: RankInfo) -> NodeReport:
    facts: dict[str, Any] = {
        "host": rank.host,
        "scratch": tempfile.gettempdir(),
        "scratch_gib": shutil.disk_usage(tempfile.gettempdir()).free / _GIB,
        "shared_gib": shutil.disk_usage(table.folder).free / _GIB,
    }
    config = json.loads((table.folder / "probe.json").read_text())
    try:
        _answer_clock(table)
        if config["nodes"] > 1:
            table.meet("hello")
            facts["races_won"] = _race(table)
            facts["append_s"] = _append(table)
            facts["reads"], facts["torn"] = _replace(table)
    except (OSError, NotSeen) as error:
        facts["problem"] = f"{rank.host}: {error}"
    facts["sbatch"] = sbatch_problem(build(SlurmConfig, config["slurm"], "slurm"))
    return NodeReport(**facts)


def _answer_clock(table: Table) -> None:
    """Give the login node this node's time as soon as it asks."""
    table.put("ready")
    table.take("clock", "login")
    table.put("time", repr(time.time()))


def _race(table: Table) -> tuple[int, ...]:
    """Both nodes make the same folders at once; exactly one may succeed for each. Returns those of
    this node."""
    won = []
    table.meet("race")
    for number in range(RACES):
        try:
            (table.folder / f"race-{number}").mkdir()
            won.append(number)
        except FileExistsError:
            pass
    return tuple(won)


def _append(table: Table) -> tuple[float, ...]:
    """Each node appends lines to its own journal, and waits until the other has read each. Returns
    the seconds of each line."""
    seconds = []
    with (table.folder / f"journal.{table.side}").open("ab", buffering=0) as own:
        for number in range(LINES):
            begun = time.monotonic()
            own.write(f"line {number}\n".encode())
            os.fsync(own.fileno())
            table.wait(partial(_read_line, table, number), f"line {number} of the other node")
            table.meet(f"read-{number}")
            seconds.append(time.monotonic() - begun)
    return tuple(seconds)


def _read_line(table: Table, number: int) -> str | None:
    """Line `number` of the other node's journal if it is whole. Opens the file anew each time."""
    try:
        lines = (table.folder / f"journal.{table.other}").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return None
    return lines[number] if len(lines) > number and lines[number] == f"line {number}\n" else None


def _replace(table: Table) -> tuple[int, int]:
    """Node a replaces a file by rename again and again while node b reads it. Returns reads and
    torn reads."""
    path = table.folder / "replaced"
    if table.side == "a":
        write_bytes_atomic(path, _content(0))
        table.meet("replace")
        for number in range(REPLACES):
            write_bytes_atomic(path, _content(number))
        table.meet("replaced")
        return 0, 0
    table.meet("replace")
    reads = torn = 0
    while not (table.folder / "replaced.a").exists() and reads < 100 * REPLACES:
        try:
            text = path.read_bytes()
        except OSError:  # missing, or a stale NFS handle
            text = b""
        reads, torn = reads + 1, torn + (not _whole(text))
    table.meet("replaced")
    return reads, torn


def _content(number: int) -> bytes:
    return f"{number:06d}".encode() * 4000


def _whole(text: bytes) -> bool:
    return len(text) == 24000 and text == text[:6] * 4000


def sbatch_problem(slurm: SlurmConfig) -> str:
    """Why the steward could not submit from this node; empty if it can. Nothing is submitted."""
    partition = slurm.steward_partition or slurm.partition
    wishes = {"partition": partition, "account": slurm.account, "qos": slurm.qos}
    wishes = {key: value for key, value in wishes.items() if value is not None}
    options = [f"--{key}={value}" for key, value in wishes.items()]
    command = ["sbatch", "--test-only", "--time=1", "--ntasks=1", *options, "--wrap=true"]
    try:
        with outside_any_job(wishes):
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else (done.stderr or done.stdout).strip()


# --------------------------------------------------------------------------------------------- rank
def _rank(rank: RankInfo) -> RankReport:
    here = Environment.here()
    facts: dict[str, Any] = {
        **asdict(here),
        "rank": rank.rank,
        "world_size": rank.world_size,
        "local_rank": rank.local_rank,
        "host": rank.host,
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
    }
    try:
        facts |= _device(rank)
    except Exception as error:  # a broken driver may raise anything; the report says so
        facts["problem"] = f"{type(error).__name__}: {error}"
    return RankReport(**facts)


def _device(rank: RankInfo) -> dict[str, Any]:
    import torch

    from batchgen.engine.device import device_of_rank
    from batchgen.engine.figures import measure

    device = torch.device(device_of_rank(rank.local_rank))
    cuda = device.type == "cuda"
    uuid = str(torch.cuda.get_device_properties(device).uuid) if cuda else ""
    return {"torch": torch.__version__, "device": uuid, "figures": asdict(measure(device))}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
