"""What the engine asks of its caller, and what it tells afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from batchgen.records import Rendered, Request, RowStats

SelfTest = Literal["passed", "failed", "not needed"]


class Source(Protocol):
    """Where rows come from."""

    def take(self, room: int) -> list[Request]:
        """Up to `room` further rows, in the order to draw them; an empty list means no more.
        Called on the thread that called `render`; must not block for long."""


class Sink(Protocol):
    """Where rows go. An exception raised here ends `render` and comes out of it."""

    def started(self, request: Request) -> None:
        """The row joins the rows in flight. Called on the thread that called `render`."""

    def finished(self, rendered: Rendered) -> None:
        """The row is drawn. Called on one background thread, row after row; may be slow."""

    def failed(self, request: Request, error: Exception, stats: RowStats) -> None:
        """This row cannot be drawn; the others go on. Called on the thread of `finished`."""


@dataclass(frozen=True, slots=True)
class EngineReport:
    """Counters and busy seconds of one `render`."""

    rows_finished: int = 0
    rows_failed: int = 0
    rows_abandoned: int = 0  # in flight or waiting when `stop` said so
    windows: int = 0
    wall_s: float = 0.0
    encode_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0  # with the copy to the host; behind the ticks unless serial
    deliver_s: float = 0.0  # inside the sink's finished and failed
    idle_s: float = 0.0  # the calling thread neither encoded nor denoised
    ticks: int = 0
    forwards: int = 0
    items: int = 0  # branches of rows over all forwards
    unique_texts_encoded: int = 0
    text_encoder_calls: int = 0
    component_moves: int = 0
    device_syncs: int = 0  # explicit waits for an accelerator
    peak_mem_gib: float = 0.0
    self_test: SelfTest = "not needed"
    pack_sizes: tuple[tuple[str, int], ...] = ()  # (bucket, items per forward) as found


def never() -> bool:
    """The `stop` of a render that runs to its end."""
    return False
