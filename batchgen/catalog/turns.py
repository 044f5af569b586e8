"""One publisher at a time, without a lock that could be left behind.

A turn is a numbered folder, made by exclusive mkdir; whoever made the highest number may publish.
Once the holder is done or gone, the next process makes the next number. So nothing has to be
removed after a kill, and when two processes find that a holder is gone, only one of them gets the
next turn.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from batchgen.durable import write_json
from batchgen.errors import BatchgenError, RunStateError
from batchgen.ledger.events import from_plain
from batchgen.processes import ProcessId
from batchgen.regular import read_control

NAMELESS_S = 5.0  # longest time from mkdir to the holder's name for a holder that is alive
ELSEWHERE_S = 60.0  # a turn takes seconds: a holder on another machine is taken for gone after this
PATIENCE_S = 60.0  # how long to wait for a holder that is alive
LOOK_S = 0.02


class Overtaken(BatchgenError):
    """Another process took the next turn, because it found this one gone."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The right to publish."""

    folder: Path
    number: int

    def check(self) -> None:
        """Raise Overtaken if a later turn has been taken."""
        if _path(self.folder, self.number + 1).exists():
            raise Overtaken(f"{self.folder}: turn {self.number} is over")

    def end(self) -> None:
        """Let the next process publish, and delete the turns before this one."""
        own = _path(self.folder, self.number)
        with suppress(OSError):
            _holder(own).rename(own / "done")  # a rename works on a full disk too
        for number in _numbers(self.folder):
            if number < self.number:
                shutil.rmtree(_path(self.folder, number), ignore_errors=True)


@contextmanager
def turn_of(folder: Path) -> Iterator[Turn]:
    """Wait for a turn to publish in `folder`, and hold it. RunStateError if the holder is alive and
    does not finish within PATIENCE_S; OSError if the folder cannot be written."""
    folder.mkdir(exist_ok=True)
    turn = _take(folder)
    try:
        yield turn
    finally:
        turn.end()


def _take(folder: Path) -> Turn:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        last = max(_numbers(folder), default=0)
        if last and not _is_over(_path(folder, last)):
            if time.monotonic() > deadline:
                raise RunStateError(f"{folder}: {_name(_path(folder, last))} does not end its turn")
            time.sleep(LOOK_S)
            continue
        turn = Turn(folder, last + 1)
        with suppress(FileExistsError, FileNotFoundError):  # another process was quicker
            _path(folder, turn.number).mkdir()
            write_json(_holder(_path(folder, turn.number)), asdict(ProcessId.current()))
            return turn


def _is_over(turn: Path) -> bool:
    try:
        if (turn / "done").exists():
            return True
        age = time.time() - turn.stat().st_mtime
    except FileNotFoundError:
        return True
    holder = _read(turn)
    if holder is None:
        return age > NAMELESS_S
    alive = holder.alive()
    return age > ELSEWHERE_S if alive is None else not alive


def _name(turn: Path) -> str:
    holder = _read(turn)
    return f"process {holder.pid} on {holder.host}" if holder else "another process"


def _read(turn: Path) -> ProcessId | None:
    with suppress(RunStateError, ValueError):
        if named := read_control(_holder(turn)):
            return from_plain(ProcessId, named)
    return None


def _holder(turn: Path) -> Path:
    return turn / "holder.json"


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}"


def _numbers(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
