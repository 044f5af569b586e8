"""What a replica does when its device is out of memory: rung by rung it takes less, until the work
fits. Nothing that it does changes a bit of a row.

`free`: wait for the decoder, forget what can be computed again, give back what torch keeps.
`smaller`: halve the pack, down to one item; rows that are decoded together, too. `model`:
components come in for their stage alone. `stream`: their blocks come around their forwards. Behind
these two there is more room, and packs are tried whole once more. Nobody climbs down: rows that
come later, and later attempts, start on the rung that was reached.

Whoever runs a pack or a decode halves it (`forwards`, `finish`); all else is here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

import torch

from batchgen.engine.contract import Ascent, unheard
from batchgen.engine.devices.device import let_go
from batchgen.engine.isolation import Failed, attempt, is_short
from batchgen.engine.memory.residency import Residency
from batchgen.engine.reuse.recall import Recall
from batchgen.errors import OutOfMemory
from batchgen.families.family import Stage
from batchgen.records import RUNGS, Climb, Rung
from batchgen.request import Bucket

T = TypeVar("T")
Place = Literal["model", "stream"]
PLACES: tuple[Place, ...] = ("model", "stream")  # the rungs that move components
log = logging.getLogger(__name__)


class Ladder:
    """Of one replica; climbed on the thread that ticks."""

    def __init__(
        self,
        residency: Residency,
        recall: Recall,
        device: torch.device,
        ascent: Ascent,
        *,
        streams: bool,
    ) -> None:
        """`streams`: blocks may, so that rung `stream` is there."""
        self.residency, self.recall, self.device = residency, recall, device
        self.tell = ascent.tell
        self.places = PLACES if streams else PLACES[:1]
        self.settled: Callable[[], object] = unheard  # waits for what is at work behind the ticks
        self.roomier: list[Callable[[], None]] = []  # told when weights have left the device
        self._before = ascent.before
        self._reached = {climb.rung for climb in ascent.before}
        self._told = {*ascent.before}

    @property
    def rung(self) -> Rung | None:
        """The highest that was reached."""
        return max(self._reached, key=RUNGS.index, default=None)

    def allowed(self, stage: Stage, *, alone: bool) -> Iterator[tuple[Bucket, int]]:
        """Shape and number of the items for which there was room before, in one forward or in one
        decode: since weights have left the device, if the replica is of one rank. Of several it
        would take an attempt to find each of them again."""
        moves = [at for at, climb in enumerate(self._before) if climb.rung in PLACES]
        for climb in self._before[moves[-1] if moves and alone else 0 :]:
            if climb.rung == "smaller" and (climb.stage == "decode") == (stage == "decode"):
                yield Bucket.parse(climb.bucket), climb.items

    def load(self) -> None:
        """Bring what stays on the device, from the rung that was reached before; OutOfMemory if it
        has no room for the model."""
        for place in self.places:
            if place in self._reached and self.residency.tighten(place):
                self.recall.keep_no_texts()
        self.require(self.residency.settle, "load")

    def require(self, work: Callable[[], T], stage: Stage | Literal["load"]) -> T:
        """As `attempt`, of what no row can do without: raises what it comes to."""
        found = self.attempt(work, stage)
        if isinstance(found, Failed):
            raise found.error
        return found

    def attempt(self, work: Callable[[], T], stage: Stage | Literal["load"]) -> T | Failed:
        """As `isolation.attempt`, on every rung until there is room; OutOfMemory if there is none.
        After a climb the work itself has to bring the components that it needs."""
        found = self.retry(work)
        for place in self.places:
            if is_short(found) and self.climb(place, stage):
                found = attempt(work)
        return self.told(found, stage) if isinstance(found, Failed) else found

    def retry(self, work: Callable[[], T]) -> T | Failed:
        """As `isolation.attempt`, and once more on rung `free`."""
        found = attempt(work)
        if is_short(found):
            self.settled()
            self.recall.free()
            let_go(self.device)
            self.reach(Climb("free", ""))
            found = attempt(work)
        return found

    def told(self, failed: Failed, stage: str) -> Failed:
        """A failure, where memory was short with all that was tried."""
        if not is_short(failed):
            return failed
        tried = ", ".join(rung for rung in RUNGS if rung in self._reached)
        error = OutOfMemory(f"{stage}: the device is out of memory, tried {tried}: {failed.error}")
        error.__cause__ = failed.error
        return Failed(error, failed.seconds)

    @property
    def left(self) -> Place | None:
        """The next rung that moves components; None if there is none."""
        plan = self.residency.plan
        return next((place for place in self.places if plan.tightened(place) != plan), None)

    def reach(self, climb: Climb) -> None:
        """Note that a rung was reached; on any thread."""
        self._reached.add(climb.rung)
        if climb.rung != "free" and climb not in self._told:  # the next attempt has nothing to free
            self._told.add(climb)
            log.warning("out of device memory at %s: %s", climb.stage, _words(climb))
            self.tell(climb)

    def climb(self, place: Place, stage: str) -> bool:
        """False if components are there already, or farther away."""
        self.settled()
        if not self.residency.tighten(place):
            return False
        self.recall.keep_no_texts()
        let_go(self.device)
        self.reach(Climb(place, stage))
        self._told = {climb for climb in self._told if climb.rung != "smaller"}
        for forget in self.roomier:
            forget()
        return True

    # ----------------------------------------------------------------------- work of several ranks
    def leave_word(self, stage: Stage, bucket: str = "", items: int = 1) -> bool:
        """It cannot be tried again, since other ranks wait in it: tell what the next attempt
        starts with, after a forward of so many items or a decode. False if it could take no
        less."""
        if items > 1:
            self.reach(Climb("smaller", stage, bucket, items // 2))
        elif place := self.left:
            self.reach(Climb(place, stage))
        else:
            return False
        return True


def _words(climb: Climb) -> str:
    if climb.rung != "smaller":
        return f"memory is {climb.rung} from now on"
    what = "rows a decode" if climb.stage == "decode" else "items a forward"
    return f"at most {climb.items} {what} of {climb.bucket} from now on"
