"""Where on the memory ladder an attempt starts: where earlier ones of the run have come to, on a
device of the same name."""

from __future__ import annotations

from collections.abc import Iterable

from batchgen.ledger.intent import read_fence, read_intent
from batchgen.paths import RunPaths
from batchgen.records import Attempt, Climb


def climbs_before(run: RunPaths, attempt: Attempt, device: str) -> tuple[Climb, ...]:
    """What is known when an attempt starts: of the submissions before its own, and of the earlier
    starts of its task."""
    records = read_intent(run, attempt.submission), read_fence(run, attempt)
    found = (record.climbs.get(device, ()) for record in records if record is not None)
    return steepest(climb for climbs in found for climb in climbs)


def steepest(climbs: Iterable[Climb]) -> tuple[Climb, ...]:
    """Each rung once, and of rung `smaller` the smallest pack of each bucket and stage, before and
    behind each time that weights left the device; in their order."""
    found: dict[tuple[str, str, str, tuple[str, ...]], Climb] = {}
    moved: tuple[str, ...] = ()
    for climb in climbs:
        smaller = climb.rung == "smaller"
        if not smaller and climb.rung not in moved:
            moved = (*moved, climb.rung)
        key = climb.rung, climb.stage * smaller, climb.bucket, moved * smaller
        if key not in found or climb.items < found[key].items:
            found[key] = climb
    return tuple(found.values())
