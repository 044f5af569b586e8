"""What a catalog is made from: a plan with its header, and a ledger of some extent."""

from __future__ import annotations

from dataclasses import dataclass

from batchgen.errors import RunStateError
from batchgen.ledger.extent import Extent
from batchgen.ledger.intent import refuse_lost_intent
from batchgen.paths import RunPaths
from batchgen.planfile import plan_header
from batchgen.runfile import RunFile, read_header, read_run

COLLECT_KEY = b"batchgen.collect"  # key in the metadata of every part: the number of its collect


@dataclass(frozen=True, slots=True)
class RunSource:
    """The plan and ledger of a run at one moment. Taken before they are read; `is_current` is asked
    afterwards."""

    header: RunFile
    plan: tuple[int, int, int]  # inode, bytes and time of the plan file: a replan replaces it
    extent: Extent

    @classmethod
    def of(cls, run: RunPaths) -> RunSource:
        """The source as it is now. RunStateError without a run or plan, or if the ledger does not
        say which rows count."""
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
    """The header of the present plan. While a new one is installed, or after a crash during that,
    run.json may still be the old one's."""
    header = read_run(run)
    try:
        new = read_header(run.next_run_json)
        planned = plan_header(run.plan).get("plan_id")
    except RunStateError:
        return header
    return new if new is not None and new.plan_id == planned else header
