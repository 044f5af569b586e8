"""What a restarted task does first: it draws the fence before its earlier starts."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from batchgen.durable import make_folder, write_json
from batchgen.errors import StorageError
from batchgen.ledger.climbs import steepest
from batchgen.ledger.events import CLIMBED, DEVICE, END, HEAD, SIGNALLED, Climbed, from_plain
from batchgen.ledger.intent import Fence, fences, journal_files, sealed
from batchgen.ledger.journal import durable_length, whole_lines
from batchgen.ledger.reading.fold import InFlight, is_death
from batchgen.paths import RunPaths
from batchgen.records import Attempt, Climb


def fence_restart(run: RunPaths, attempt: Attempt) -> dict[int, str]:
    """Draw the fence before the earlier starts of a restarted task, durably.

    The task's leader calls this once, before any row is given out. Returns row_index -> status of
    the rows that the earlier starts committed before the fence; those that are ok need not be
    rendered again. A first start (restart 0) draws no fence and gets an empty mapping.

    The fence names the suspects too: rows in flight when an earlier start died. A suspect that was
    alone at the death is withheld: Slurm restarts a task whose node is lost, so such a row could
    take down one node after the other.
    """
    if attempt.restart == 0:
        return {}
    earlier = fences(run, attempt.submission).get(attempt.task)
    accepted: dict[str, int] = {}
    past = _Past()
    for other, path in journal_files(run):
        if (other.submission, other.task) != (attempt.submission, attempt.task):
            continue
        if other.restart >= attempt.restart:
            continue
        name = path.relative_to(run.journals).as_posix()
        if earlier is not None and other.restart < earlier[0]:
            accepted[name] = earlier[1].accepted.get(name, 0)
        else:
            accepted[name] = durable_length(path)
        past.add(path, accepted[name])
    _write_fence(run, run.fence(attempt), past.fence(accepted))
    return past.statuses


def _write_fence(run: RunPaths, path: Path, fence: Fence) -> None:
    try:
        make_folder(path.parent, run.root)
        write_json(path, sealed(fence))
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error


@dataclass(slots=True)
class _Past:
    """What the earlier starts of a task left behind."""

    statuses: dict[int, str] = field(default_factory=dict)  # row_index -> status
    suspects: set[int] = field(default_factory=set)  # in flight when a start died
    died_alone: set[int] = field(default_factory=set)  # suspects that died alone, without a signal
    climbs: dict[str, list[Climb]] = field(default_factory=dict)  # by device

    def fence(self, accepted: dict[str, int]) -> Fence:
        """The fence behind which it ends; `accepted`: journal -> bytes that count."""
        return Fence(
            accepted=accepted,
            statuses=self.statuses,
            suspects=tuple(sorted(self.suspects - self.statuses.keys())),
            withheld=tuple(sorted(self.died_alone - self.statuses.keys())),
            created=time.time(),
            climbs={device: steepest(found) for device, found in self.climbs.items()},
        )

    def add(self, path: Path, limit: int) -> None:
        """Read the first `limit` bytes of one journal."""
        in_flight, signalled, device = InFlight(), False, ""
        for line in whole_lines(path, limit):
            found = in_flight.take_in(line)
            if found is not None and found.re is HEAD:
                row, status = int(found[2]), found[3].decode()
                if self.statuses.get(row) != "ok":
                    self.statuses[row] = status
            elif line.startswith(DEVICE):
                device = json.loads(line)["name"]
            elif line.startswith(CLIMBED):
                climbed = from_plain(Climbed, json.loads(line))
                self.climbs.setdefault(device, []).append(climbed.climb)
            elif line.startswith(END) and not is_death(json.loads(line)["reason"]):
                return
            signalled = signalled or line.startswith(SIGNALLED)
        self.suspects |= in_flight.suspects
        if in_flight.died_alone and not signalled:
            self.died_alone.add(in_flight.alone)
