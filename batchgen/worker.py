"""One rank of one shard: requests -> engine -> media -> journal. The only handshake between the
runner, which knows jobs, and the engine, which knows tensors."""

from __future__ import annotations

import errno
import logging
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import FrameType

import numpy as np

from batchgen.config.build import build
from batchgen.config.schema import JobConfig, OutputConfig
from batchgen.engine.engine import Engine
from batchgen.errors import MediaError, NonFiniteOutput, PromptTooLong, StorageError
from batchgen.ledger.attempts import accept_restart, committed_rows, shard_rows
from batchgen.ledger.journal import AttemptHeader, JournalWriter
from batchgen.media.durable import write_media
from batchgen.paths import RunPaths
from batchgen.planning.plan import read_requests
from batchgen.records import Attempt, Commit, RankInfo, Rendered, Request, RowStats
from batchgen.runfile import read_run, submission_settings
from batchgen.tickets import QueueLost, TicketClient, TicketServer

log = logging.getLogger(__name__)
Judge = Callable[[np.ndarray, str], float | None]
FINAL_ERRORS = (PromptTooLong, NonFiniteOutput)  # the same again however often it is tried
STORAGE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
FULL_ROWS_BEFORE_STOP = 3
DRAIN_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


@dataclass(slots=True)
class ShardSource:
    """Pulls this replica's rows from the shard's queue, skipping what is committed already."""

    run: RunPaths
    rows: np.ndarray  # row_index of the shard, in order
    done: set[int]
    tickets: TicketClient
    lost: bool = False

    def take(self, room: int) -> list[Request]:
        while not self.lost:
            try:
                granted = self.tickets.take(room)
            except QueueLost as error:
                log.warning("%s", error)
                self.lost = True
                break
            if not granted:
                return []
            wanted = [int(i) for i in self.rows[granted.start : granted.stop]]
            if fresh := [i for i in wanted if i not in self.done]:
                return read_requests(self.run.plan, fresh)
        return []


@dataclass(slots=True)
class ListSource:
    """Rows that are tried again, after the queue is empty."""

    requests: list[Request]

    def take(self, room: int) -> list[Request]:
        taken, self.requests = self.requests[:room], self.requests[room:]
        return taken


@dataclass(frozen=True, slots=True)
class RowPolicy:
    """Who commits, and how often a row may be tried."""

    attempt: Attempt
    host: str
    total_rows: int
    row_retries: int


class RowSink:
    """Makes rows durable: media first, then the one journal line that publishes or fails them.

    `failed` rows are kept for another try until their budget is spent. Called from the engine's
    main and background threads.
    """

    def __init__(
        self, run: RunPaths, journal: JournalWriter, policy: RowPolicy, judge: Judge | None
    ) -> None:
        self._run, self._journal, self._policy, self._judge = run, journal, policy, judge
        self._started: dict[int, float] = {}
        self._tries: Counter[int] = Counter()
        self._again: list[Request] = []
        self._full_in_a_row = 0
        self._lock = threading.Lock()

    def started(self, request: Request) -> None:
        with self._lock:
            self._started.setdefault(request.row_index, time.time())
            self._tries[request.row_index] += 1
        self._journal.start(request.row_index, request.row_id)

    def finished(self, rendered: Rendered) -> None:
        """Write and commit; a media file that cannot be written is the row's own failure."""
        began = time.perf_counter()
        try:
            media = write_media(rendered, self._run, self._policy.attempt, self._policy.total_rows)
        except MediaError as error:
            self._media_failed(rendered, error)
            return
        self._full_in_a_row = 0
        wrote = time.perf_counter() - began
        stats = replace(rendered.stats, stages=replace(rendered.stats.stages, write=wrote))
        score = self._judge(rendered.frames, rendered.request.prompt) if self._judge else None
        commit = self._commit(rendered.request, stats)
        self._journal.commit(replace(commit, media=media, score=score))

    def _media_failed(self, rendered: Rendered, error: MediaError) -> None:
        """One row's failure, unless the folder is plainly full: then rendering on is waste."""
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in STORAGE_ERRNOS:
            self._full_in_a_row += 1
            if self._full_in_a_row > FULL_ROWS_BEFORE_STOP:
                raise StorageError(f"{self._run.root} cannot be written: {error}") from error
        self.failed(rendered.request, error, rendered.stats)

    def failed(self, request: Request, error: Exception, stats: RowStats) -> None:
        """Keep the row for another try, or record its class, message and traceback."""
        with self._lock:
            tries = max(1, self._tries[request.row_index])
            if tries <= self._policy.row_retries and not isinstance(error, FINAL_ERRORS):
                self._tries[request.row_index] = tries
                self._again.append(request)
                log.warning("row %s failed, try %d: %r", request.row_id, tries, error)
                return
        text = "".join(traceback.format_exception(error))
        commit = self._commit(request, stats)
        self._journal.commit(
            replace(
                commit,
                status="failed",
                error_type=type(error).__name__,
                error=str(error),
                traceback=text,
            )
        )
        log.error("row %s failed: %s: %s", request.row_id, type(error).__name__, error)

    def _commit(self, request: Request, stats: RowStats) -> Commit:
        now = time.time()
        return Commit(
            row_index=request.row_index,
            row_id=request.row_id,
            row_key=request.row_key,
            status="ok",
            attempt=self._policy.attempt.tag,
            shard=self._policy.attempt.task,
            host=self._policy.host,
            started=self._started.get(request.row_index, now),
            ended=now,
            tries=max(1, self._tries[request.row_index]),
            stats=stats,
        )

    def to_retry(self) -> list[Request]:
        """Rows with tries left; forgets them."""
        with self._lock:
            again, self._again = self._again, []
        return again


class Drain:
    """Turns the drain signals into a flag that the engine polls every tick."""

    def __init__(self) -> None:
        self.signal_name = ""

    def install(self) -> None:
        """Signals are the main thread's; elsewhere (a test) nobody sends any."""
        if threading.current_thread() is threading.main_thread():
            for number in DRAIN_SIGNALS:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name

    def __call__(self) -> bool:
        return bool(self.signal_name)


def work(root: RunPaths, submission: int, rank: RankInfo) -> None:
    """Render this rank's part of shard `rank.task` of `submission`.

    Raises what ends the attempt (weights, storage); rows that fail are recorded instead. The exit
    reason is the journal's last line: done, drained, queue-lost, or the class of the error.
    """
    run_file = read_run(root)
    config = build(JobConfig, submission_settings(root, submission))
    attempt = Attempt(submission, rank.task, rank.restart, rank.rank)
    drain = Drain()
    drain.install()
    if rank.rank == 0:
        accept_restart(root, attempt)
    header = AttemptHeader.of(attempt, rank, run_file.versions)
    with (
        _run_log(root, config.output, attempt),
        JournalWriter.open(root, attempt, header) as journal,
        ExitStack() as stack,
    ):
        source = _open_source(root, submission, rank, attempt, stack)
        engine = Engine.load(config.model, config.system, local_rank=rank.local_rank)
        journal.phase("load", engine.load_seconds)
        policy = RowPolicy(attempt, rank.host, run_file.rows, config.slurm.row_retries)
        sink = RowSink(root, journal, policy, _judge(config))
        engine.render(source, sink, stop=drain)
        while not drain() and (again := sink.to_retry()):
            engine.render(ListSource(again), sink, stop=drain)
        journal.end("drained" if drain() else "queue-lost" if source.lost else "done")


def _open_source(
    root: RunPaths, submission: int, rank: RankInfo, attempt: Attempt, stack: ExitStack
) -> ShardSource:
    """Join the shard's queue; rank 0 serves it until every replica that came has let go."""
    rows = shard_rows(root, submission, rank.task)
    address = root.queue_address(attempt)
    if rank.rank == 0:
        server = TicketServer(len(rows), rank.world_size, address, rank.address)
        stack.callback(server.close)
    tickets = TicketClient(address)
    stack.callback(tickets.close)  # before the server waits for its clients
    return ShardSource(root, rows, committed_rows(root, submission, rank.task), tickets)


@contextmanager
def _run_log(root: RunPaths, output: OutputConfig, attempt: Attempt) -> Iterator[None]:
    """Log to `logs/` for the ranks that the job asks to hear."""
    if not output.enable_run_log or attempt.replica not in output.log_ranks:
        yield
        return
    root.logs.mkdir(exist_ok=True)
    handler = logging.FileHandler(root.logs / f"run-{attempt.tag}.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("batchgen")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def _judge(config: JobConfig) -> Judge | None:
    """The embedded model's clips are judged from their pixels; others have no judge."""
    if config.model.weights != "embedded":
        return None
    from batchgen.tiny.score import score

    def judge(frames: np.ndarray, prompt: str) -> float | None:
        verdict = score(frames, prompt)
        return None if verdict is None else verdict.fraction

    return judge
