"""Where a rank's rows come from: the shard's queue, or a list of rows to try again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from batchgen.engine.contract import Snapshot
from batchgen.failpoints import failpoint
from batchgen.ledger.intent import read_fence
from batchgen.ledger.submissions import ShardRows, read_shard
from batchgen.paths import RunPaths
from batchgen.planfile import check_plan
from batchgen.planning.identity import KeyContext, check_keys
from batchgen.planning.plan import read_requests
from batchgen.records import Attempt, RankInfo
from batchgen.request import Request
from batchgen.runfile import read_run
from batchgen.worker.admission import Admission
from batchgen.worker.queue import Queue, QueueLost, TicketClient, TicketServer
from batchgen.worker.states import States

PAGE_ROWS = 4096  # as many as the plan keeps together
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RowStart:
    """What happens as a row begins, in any engine."""

    host: str
    states: States

    def __call__(self, request: Request) -> Snapshot | None:
        """What the row goes on from."""
        failpoint(f"host.{self.host}")
        failpoint(f"row.{request.row_id}")
        return self.states.load(request)


def rows_to_draw(run: RunPaths, attempt: Attempt) -> ShardRows:
    """The shard without what earlier starts of its task have committed, or died of alone; rows that
    were in flight when one of them died go to the end. Rank 0 has written the fence before anyone
    comes here."""
    shard = read_shard(run, attempt.submission, attempt.task)
    fence = read_fence(run, attempt)
    if fence is None:
        return shard
    gone = {*fence.statuses, *fence.withheld}
    left = np.array([r for r in shard.all.tolist() if r not in gone], np.int64)
    alone = np.isin(left, shard.suspects) | np.isin(left, np.array(fence.suspects, np.int64))
    return ShardRows(left[~alone], left[alone])


class Pages:
    """Requests by their position in a list of rows, read from the plan a block at a time: to find
    one row takes as long as to find thousands. Every key is made anew: RunStateError where it is
    not the plan's."""

    def __init__(self, plan: Path, context: KeyContext, rows: np.ndarray) -> None:
        self._plan, self._context, self._rows = plan, context, rows
        self._first, self._page = 0, list[Request]()

    def read(self, positions: range) -> list[Request]:
        return [self._at(position) for position in positions]

    def _at(self, position: int) -> Request:
        if not self._first <= position < self._first + len(self._page):
            self._first = position // PAGE_ROWS * PAGE_ROWS
            rows = self._rows[self._first : self._first + PAGE_ROWS]
            page = read_requests(self._plan, rows.tolist())
            check_keys(self._context, page, self._plan)
            self._page = page
        return self._page[position - self._first]


class ShardSource:
    """Pulls this replica's rows from the shard's queue."""

    def __init__(
        self,
        pages: Callable[[np.ndarray], Pages],
        shard_rows: ShardRows,
        admission: Admission,
        start: RowStart,
        queue: Queue | None,
        stop: Callable[[], bool],
    ) -> None:
        """`stop` is asked several times a second while the queue does not answer."""
        self.shard_rows, self.admission, self.start = shard_rows, admission, start
        self.stop, self.queue = stop, queue  # None: the queue is gone
        self.held_back = False  # `take` said no more for as long as this rank has rows at work
        self._rows, self._suspects = pages(shard_rows.rows), pages(shard_rows.suspects)

    @property
    def is_over(self) -> bool:
        """No row will come: the queue is gone, or there was nothing to draw from the start."""
        return self.queue is None or self.shard_rows.size == 0

    def take(self, room: int) -> list[Request]:
        """The next rows that fit. Behind rows at work it asks once: what does not fit here may fit
        a rank that is idle. Only an idle rank looks through the whole queue."""
        self.held_back = False
        while (
            not self.admission.is_over
            and (granted := self._grant(lambda queue: queue.take(room, self.stop))) is not None
        ):
            if fitting := self._fitting(self._rows.read(granted)):
                return fitting
            if self.admission.busy:
                self.held_back = True
                return []
        return []

    def take_alone(self) -> Request | None:
        """The next suspect, when nobody else of the shard has a row in flight; None: no more, or
        `stop` says so."""
        while (
            not self.admission.is_over
            and (granted := self._grant(lambda queue: queue.take_alone(self.stop))) is not None
        ):
            if fitting := self._fitting(self._suspects.read(granted)):
                return fitting[0]
        return None

    def restore(self, request: Request) -> Snapshot | None:
        return self.start(request)

    def again(self, requests: list[Request]) -> ListSource:
        """These rows, under the same rules."""
        fitting = [] if self.admission.is_over else self._fitting(requests)
        return ListSource(fitting, self.start)

    def _grant(self, ask: Callable[[Queue], range]) -> range | None:
        if self.queue is None:
            return None
        try:
            return ask(self.queue) or None
        except QueueLost as error:
            log.warning("%s", error)
            self.queue = None
            return None

    def _fitting(self, requests: list[Request]) -> list[Request]:
        return [request for request in requests if self.admission.admits(request)]


@dataclass(slots=True)
class ListSource:
    """A few rows, known beforehand."""

    requests: list[Request]
    start: RowStart

    def take(self, room: int) -> list[Request]:
        taken, self.requests = self.requests[:room], self.requests[room:]
        return taken

    def restore(self, request: Request) -> Snapshot | None:
        return self.start(request)


@contextmanager
def open_source(
    run: RunPaths,
    attempt: Attempt,
    rank: RankInfo,
    admission: Admission,
    start: RowStart,
    stop: Callable[[], bool],
    replicas: int,
) -> Iterator[ShardSource]:
    """Join the shard's queue, as one of so many; rank 0 serves it until every replica that came has
    let go. `stop` is asked while it waits for them too, so that the watchdog sees it move.
    RunStateError if the plan is not that of the run."""
    header = read_run(run)
    check_plan(run, header, whole=False)
    pages = partial(Pages, run.plan, KeyContext.from_json(header.key_context))
    address = run.queue_address(attempt)
    with ExitStack() as stack:
        queue: Queue | None
        if rank.rank == 0:
            shard_rows = rows_to_draw(run, attempt)
            sizes = len(shard_rows.rows), len(shard_rows.suspects)
            server = TicketServer(*sizes, replicas, address, rank.address)
            stack.callback(server.close, stop)
            queue = server.here()
        else:
            queue = _join_queue(address, stop)
            shard_rows = rows_to_draw(run, attempt)
        if queue is not None:
            stack.callback(queue.close)  # before the server waits for the others
        yield ShardSource(pages, shard_rows, admission, start, queue, stop)


def _join_queue(address: Path, stop: Callable[[], bool]) -> Queue | None:
    """None when rank 0 is gone: it died, or the others have rendered everything meanwhile."""
    try:
        return TicketClient(address, stop=stop)
    except QueueLost as error:
        log.warning("%s", error)
        return None
