"""The last line of an attempt's journal: how it ended and what its seconds went to."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from batchgen.engine.clock import Clock
from batchgen.engine.contract import EngineReport
from batchgen.errors import StorageError
from batchgen.ledger.events import End
from batchgen.ledger.journal import JournalWriter

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Ending:
    """What the last line of the journal will say."""

    clock: Clock
    reports: list[EngineReport] = field(default_factory=list)
    reason: str = ""
    error: str = ""

    def add(self, report: EngineReport) -> None:
        self.reports.append(report)

    def line(self) -> End:
        def total(name: str) -> float:
            return float(sum(getattr(report, name) for report in self.reports))

        spent = self.clock.read()
        return End(
            reason=self.reason,
            error=self.error,
            load_s=spent.load,
            move_s=spent.move,
            busy_s=spent.busy,
            idle_s=spent.idle,
            tail_s=spent.tail,
            lost_s=spent.open,
            encode_s=spent.encode,
            denoise_s=spent.denoise,
            decode_s=total("decode_s"),
            forwards=int(total("forwards")),
            items=int(total("items")),
            unique_texts_encoded=int(total("unique_texts_encoded")),
            text_encoder_calls=int(total("text_encoder_calls")),
            component_moves=int(total("component_moves")),
            device_syncs=int(total("device_syncs")),
            windows=int(total("windows")),
            peak_mem_gib=max(
                (r.peak_mem_gib for r in self.reports if r.peak_mem_gib), default=None
            ),
            host_rss_gib=max((r.host_rss_gib for r in self.reports), default=0.0),
            self_test=self.reports[0].self_test if self.reports else "",
        )


@contextmanager
def last_line(journal: JournalWriter, clock: Clock) -> Iterator[Ending]:
    """Close the journal with how the attempt ended, also when it ends by an error."""
    ending = Ending(clock)
    try:
        yield ending
    except BaseException as error:  # Ctrl-C too: the journal says how its attempt ended
        ending.reason, ending.error = type(error).__name__, str(error) or repr(error)
        log.exception("the attempt ends")
        with suppress(StorageError):  # the first error is the one to tell
            journal.end(ending.line())
        raise
    journal.end(ending.line())
