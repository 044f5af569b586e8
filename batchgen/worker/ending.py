"""The last line of an attempt's journal: how it ended and what its seconds went to."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field

from batchgen.engine.clock import Clock
from batchgen.engine.contract import EngineReport
from batchgen.errors import StorageError
from batchgen.ledger.events import End
from batchgen.ledger.journal import JournalWriter
from batchgen.records import add_counters

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
            shared_decode_s=spent.shared_decode,
            **asdict(add_counters(self.reports)),
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
