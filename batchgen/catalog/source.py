"""What a catalog is made from: a plan with its header, and a ledger of some extent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batchgen.errors import RunStateError
from batchgen.ledger.intent import refuse_lost_intent
from batchgen.ledger.upkeep.extent import Extent
from batchgen.paths import RunPaths
from batchgen.planfile import plan_header
from batchgen.runfile import RunFile, read_header, read_run

# Keys in the metadata of parts.
COLLECT_KEY = b"batchgen.collect"  # of every part: the number of the collect that wrote it
PARTS_KEY = b"batchgen.parts"  # of the first: these numbers of all parts, as a JSON list


def are_together(parts: Sequence[Mapping[bytes, bytes] | None]) -> bool:
    """Whether parts, given by their metadata in order, make up one catalog: a later collect leaves
    parts as they are in which nothing has changed, and the first part, which it writes in any case,
    lists the number of each. One without a list (of an older version) is of a single collect."""
    numbers = [(metadata or {}).get(COLLECT_KEY, b"").decode() for metadata in parts]
    listed = (parts[0] or {}).get(PARTS_KEY) if parts else None
    return numbers == json.loads(listed) if listed else len({*numbers}) <= 1


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
