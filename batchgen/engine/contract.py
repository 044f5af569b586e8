"""What the engine asks of its caller, and what it tells afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from batchgen.engine.clock import Clock
from batchgen.records import Climb, EngineCounters, Rendered, RowStats
from batchgen.request import Request

if TYPE_CHECKING:
    import numpy as np

SelfTest = Literal["passed", "failed", "not needed"]  # as in `EngineCounters.self_test`


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A row in flight between two steps: a function of the row and `step` alone, so that it can go
    on anywhere."""

    step: int  # solver steps taken, over all attempts
    seconds: float  # busy seconds that this attempt has spent on the row
    arrays: Mapping[str, np.ndarray]  # on the host; what they mean is the engine's own business


class Source(Protocol):
    """Where rows come from."""

    def take(self, room: int) -> list[Request]:
        """Up to `room` further rows, in the order to draw them; an empty list means no more.
        Called on the thread that called `render`; must not block for long."""

    def restore(self, request: Request) -> Snapshot | None:
        """The row begins (`started` was told): what it goes on from, or None for its first step.
        What is raised here fails this row alone."""


class Sink(Protocol):
    """Where rows go. An exception raised here ends `render` and comes out of it."""

    def started(self, request: Request) -> None:
        """The row joins the rows in flight. Called on the thread that called `render`."""

    def finished(self, rendered: Rendered) -> None:
        """The row is drawn. Called on one background thread, row after row; may be slow."""

    def failed(self, request: Request, error: Exception, stats: RowStats) -> None:
        """This row cannot be drawn; the others go on. Called on the thread of `finished`."""

    def saved(self, request: Request, snapshot: Snapshot) -> None:
        """The row was in flight when `stop` said so, or after its last step waited to be decoded:
        then `finished` or `failed` may still follow. Called on the thread that called `render`."""


class Renderer(Protocol):
    """An engine."""

    def render(
        self,
        source: Source,
        sink: Sink,
        *,
        stop: Callable[[], bool],
        moved: Callable[[], object],
        clock: Clock | None,
    ) -> EngineReport:
        """Draw every row of `source` into `sink` and say what it took; `clock` says so meanwhile.

        `stop` is asked once per tick, and while a window is decoded; when it is true, rows in
        flight or still to be decoded are saved, rows already denoised are still delivered, and the
        report comes back. A row that fails goes to `sink.failed` and the others go on. `moved` is
        told, on any thread, of what is done between two ticks, which may take long: a text encoded,
        a row finished. Exceptions of source and sink come out of here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport(EngineCounters):
    """Counters and busy seconds of one `render`."""

    rows_finished: int = 0
    rows_failed: int = 0
    rows_abandoned: int = 0  # in flight or waiting when `stop` said so
    rows_saved: int = 0  # handed to the sink as they stood: in flight, or still to be decoded
    ticks: int = 0
    wall_s: float = 0.0
    encode_s: float = 0.0
    denoise_s: float = 0.0
    deliver_s: float = 0.0  # inside the sink's finished and failed
    move_s: float = 0.0  # components on their way to the device and from it
    shared_decode_s: float = 0.0  # decoding with other ranks, on the calling thread
    idle_s: float = 0.0  # the calling thread did none of these
    self_test: str = "not needed"
    split_test: str = "not needed"
    pack_sizes: tuple[tuple[str, int], ...] = ()  # (bucket, items per forward) as found


def never() -> bool:
    """The `stop` of a render that runs to its end."""
    return False


def unheard() -> None:
    """The `moved` where nobody listens."""


def untold(climb: Climb) -> None:
    """Nobody keeps it."""


@dataclass(frozen=True, slots=True)
class Ascent:
    """The climbs of the memory ladder that attempts before have made, and who is told of those to
    come, on any thread."""

    before: tuple[Climb, ...] = ()
    tell: Callable[[Climb], object] = untold


class KeptTexts(Protocol):
    """Encoded texts by name, kept beyond this process; nothing is an error."""

    @property
    def context(self) -> str:
        """All that an encoding depends on beside its text and the device."""

    def get(self, name: str) -> bytes | None:
        """None if it is not kept."""

    def put(self, name: str, data: bytes) -> None:
        """Keep it, if there is room."""
