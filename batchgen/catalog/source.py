"""What a catalog is made from: a plan with its header, and a ledger up to some extent."""

from __future__ import annotations

from dataclasses import dataclass

from batchgen.errors import RunStateError
from batchgen.ledger.extent import Extent
from batchgen.ledger.intent import refuse_lost_intent
from batchgen.paths import RunPaths
from batchgen.planfile import plan_header
from batchgen.runfile import RunFile, read_header, read_run

COLLECT_KEY = b"batchgen.collect"  # a number of its own, in every part


@dataclass(frozen=True, slots=True)
class RunSource:
    """Taken before the journals and the plan are read; `is_current` is asked after that."""

    header: RunFile
    plan: tuple[int, int, int]  # inode, bytes and time of the plan file: a replan replaces it
    extent: Extent

    @classmethod
    def of(cls, run: RunPaths) -> RunSource:
        """RunStateError if there is no run or no plan, or if the ledger has no answer."""
        refuse_lost_intent(run)
        return cls(_header(run), _plan_file(run), Extent.of(run))

    def is_current(self, run: RunPaths) -> bool:
        """Whether the plan is still the same; the ledger may have grown."""
        return (self.header.plan_id, self.plan) == (_header(run).plan_id, _plan_file(run))


def _plan_file(run: RunPaths) -> tuple[int, int, int]:
    try:
        stat = run.plan.stat()
    except OSError as error:
        raise RunStateError(f"{run.plan} cannot be read as a plan: {error}") from error
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _header(run: RunPaths) -> RunFile:
    """The header of the plan that lies there: while a new one is installed, or if that was cut off,
    run.json may still be the old one's."""
    header = read_run(run)
    try:
        new = read_header(run.next_run_json)
        planned = plan_header(run.plan).get("plan_id")
    except RunStateError:
        return header
    return new if new is not None and new.plan_id == planned else header
