"""One rank of one shard: requests -> engine -> media -> journal. The only handshake between the
runner, which knows jobs, and the engine, which knows tensors."""

from __future__ import annotations

import errno
import json
import logging
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import numpy as np

from batchgen.config.build import build
from batchgen.config.schema import JobConfig, OutputConfig
from batchgen.engine.contract import EngineReport
from batchgen.engine.device import device_name, device_of_rank, pick_device
from batchgen.engine.engine import Engine
from batchgen.errors import FINAL_ERRORS, RunStateError, StorageError
from batchgen.ledger.attempts import accept_restart, read_shard
from batchgen.ledger.events import AttemptHeader, End
from batchgen.ledger.intent import read_fence, read_intent
from batchgen.ledger.journal import JournalWriter
from batchgen.media.durable import write_media
from batchgen.paths import RunPaths
from batchgen.planning.plan import read_requests
from batchgen.processes import ProcessId
from batchgen.records import Attempt, Commit, RankInfo, Rendered, Request, RowStats
from batchgen.runfile import read_run
from batchgen.tickets import QueueLost, TicketClient, TicketServer

log = logging.getLogger(__name__)
Judge = Callable[[np.ndarray, str], float | None]
STORAGE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
FULL_ROWS_BEFORE_STOP = 3
DRAIN_SIGNALS = {signal.SIGTERM: "cancelled", signal.SIGUSR2: "drained"}  # reason to end


@dataclass(slots=True)
class ShardSource:
    """Pulls this replica's rows from the shard's queue, skipping what is committed already."""

    run: RunPaths
    rows: np.ndarray  # row_index of the shard, in order
    done: set[int]
    tickets: TicketClient | None  # None: the queue is gone

    def take(self, room: int) -> list[Request]:
        while self.tickets is not None:
            try:
                granted = self.tickets.take(room)
            except QueueLost as error:
                log.warning("%s", error)
                self.tickets = None
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
        self.last_commit = 0.0  # unix seconds
        self._lock = threading.Lock()

    def started(self, request: Request) -> None:
        with self._lock:
            self._started.setdefault(request.row_index, time.time())
            self._tries[request.row_index] += 1
        self._journal.start(request.row_index, request.row_id)

    def finished(self, rendered: Rendered) -> None:
        """Write and commit. Whatever keeps the media from being written is the row's own failure;
        a journal that cannot be written is not, and ends the attempt."""
        began = time.perf_counter()
        try:
            media = write_media(rendered, self._run, self._policy.attempt, self._policy.total_rows)
        except Exception as error:
            self._media_failed(rendered, error)
            return
        self._full_in_a_row = 0
        wrote = time.perf_counter() - began
        stats = replace(rendered.stats, stages=replace(rendered.stats.stages, write=wrote))
        commit = replace(self._commit(rendered.request, stats), score=self._score(rendered))
        self._journal.commit(replace(commit, media=media))
        log.info("row %s ok: %s, %d bytes", commit.row_id, media.path, media.bytes)

    def _score(self, rendered: Rendered) -> float | None:
        return self._judge(rendered.frames, rendered.request.prompt) if self._judge else None

    def _media_failed(self, rendered: Rendered, error: Exception) -> None:
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
        now = self.last_commit = time.time()
        return Commit(
            row_index=request.row_index,
            row_id=request.row_id,
            row_key=request.row_key,
            status="ok",
            attempt=self._policy.attempt.tag,
            shard=self._policy.attempt.task,
            host=self._policy.host,
            started=self._started.pop(request.row_index, now),
            ended=now,
            tries=max(1, self._tries.pop(request.row_index, 1)),
            stats=stats,
        )

    def to_retry(self) -> list[Request]:
        """Rows with tries left; forgets them."""
        with self._lock:
            again, self._again = self._again, []
        return again


class Drain:
    """Whether this rank is to end: a signal came, or the submission was cancelled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark
        self._looked = 0.0
        self.reason = ""

    def __enter__(self) -> Drain:
        """Signals are the main thread's; elsewhere (a test) nobody sends any."""
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._handle) for s in DRAIN_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.reason = DRAIN_SIGNALS[signal.Signals(number)]

    def __call__(self) -> bool:
        """Cheap enough for every tick: looks for the mark twice a second."""
        now = time.monotonic()
        if not self.reason and now - self._looked > 0.5:
            self._looked = now
            if self._mark.exists():
                self.reason = "cancelled"
        return bool(self.reason)


@contextmanager
def _heartbeat(journal: JournalWriter) -> Iterator[None]:
    """Say every second that this rank is at work: another machine cannot look at the process."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(1.0):
            journal.beat()

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def work(root: RunPaths, submission: int, rank: RankInfo) -> None:
    """Render this rank's part of shard `rank.task` of `submission`.

    Raises what ends the attempt (weights, storage); rows that fail are recorded instead. The last
    line of the journal says how it ended: done, drained, queue-lost, or the class of the error.
    """
    run_file = read_run(root)
    config = _settings(root, submission)
    attempt = Attempt(submission, rank.task, rank.restart, rank.rank)
    if rank.rank == 0:
        accept_restart(root, attempt)
    device = device_of_rank(rank.local_rank)
    header = AttemptHeader(
        attempt=attempt,
        rank=rank.rank,
        world_size=rank.world_size,
        host=rank.host,
        job_id=rank.job_id,
        device=device_name(pick_device(device)),
        versions=tuple(sorted(run_file.versions.items())),
        process=ProcessId.current(rank.host),
    )
    with (
        _run_log(root, config.output, attempt),
        Drain(root.cancelled(submission)) as drain,
        JournalWriter.open(root, header) as journal,
        _last_line(journal) as ending,
        _heartbeat(journal),
        _open_source(root, submission, rank, attempt) as source,
    ):
        engine = Engine.load(config.model, config.system, device)
        journal.phase("load", engine.load_seconds)
        log.info(
            "rank %d of %d, shard of %d rows: %s on %s, loaded in %.1f s",
            rank.rank, rank.world_size, len(source.rows), config.model.name, header.device,
            engine.load_seconds,
        )  # fmt: skip
        policy = RowPolicy(attempt, rank.host, run_file.rows, config.slurm.row_retries)
        sink = RowSink(root, journal, policy, _judge(config))
        ending.add(engine.render(source, sink, stop=drain))
        while not drain() and (again := sink.to_retry()):
            ending.add(engine.render(ListSource(again), sink, stop=drain))
        ending.last_row_at = sink.last_commit
        ending.reason = drain.reason or ("queue-lost" if source.tickets is None else "done")
        log.info("ended: %s", ending.reason)


def _settings(root: RunPaths, submission: int) -> JobConfig:
    """The configuration that this submission was begun under."""
    intent = read_intent(root, submission)
    if intent is None:
        raise RunStateError(f"{root.intent(submission)} is missing")
    return build(JobConfig, json.loads(intent.config))


@dataclass(slots=True)
class Ending:
    """What the last line of the journal will say."""

    reports: list[EngineReport]
    reason: str = ""
    error: str = ""
    last_row_at: float = 0.0

    def add(self, report: EngineReport) -> None:
        self.reports.append(report)

    def line(self) -> End:
        def total(name: str) -> float:
            return float(sum(getattr(report, name) for report in self.reports))

        return End(
            reason=self.reason,
            error=self.error,
            busy_s=total("encode_s") + total("denoise_s"),
            idle_s=total("idle_s"),
            tail_s=time.time() - self.last_row_at if self.last_row_at else 0.0,
            encode_s=total("encode_s"),
            denoise_s=total("denoise_s"),
            decode_s=total("decode_s"),
            forwards=int(total("forwards")),
            items=int(total("items")),
            unique_texts_encoded=int(total("unique_texts_encoded")),
            text_encoder_calls=int(total("text_encoder_calls")),
            component_moves=int(total("component_moves")),
            device_syncs=int(total("device_syncs")),
            windows=int(total("windows")),
            peak_mem_gib=max((r.peak_mem_gib for r in self.reports), default=0.0),
            self_test=self.reports[0].self_test if self.reports else "",
        )


@contextmanager
def _last_line(journal: JournalWriter) -> Iterator[Ending]:
    """Close the journal with how the attempt ended, also when it ends by an error."""
    ending = Ending([])
    try:
        yield ending
    except BaseException as error:  # Ctrl-C too: the journal says how its attempt ended
        ending.reason, ending.error = type(error).__name__, str(error) or repr(error)
        log.exception("the attempt ends")
        with suppress(StorageError):  # the first error is the one to tell
            journal.end(ending.line())
        raise
    journal.end(ending.line())


@contextmanager
def _open_source(
    root: RunPaths, submission: int, rank: RankInfo, attempt: Attempt
) -> Iterator[ShardSource]:
    """Join the shard's queue; rank 0 serves it until every replica that came has let go."""
    rows = read_shard(root, submission, rank.task).all
    address = root.queue_address(attempt)
    with ExitStack() as stack:
        if rank.rank == 0:
            server = TicketServer(len(rows), rank.world_size, address, rank.address)
            stack.callback(server.close)
        tickets = _join_queue(address)
        if tickets is not None:
            stack.callback(tickets.close)  # before the server waits for its clients
        fence = read_fence(root, attempt)  # rank 0 wrote it before it opened the queue
        done = set(fence.statuses) if fence else set()
        yield ShardSource(root, rows, done, tickets)


def _join_queue(address: Path) -> TicketClient | None:
    """None when rank 0 is gone: it died, or the others have rendered everything meanwhile."""
    try:
        return TicketClient(address)
    except QueueLost as error:
        log.warning("%s", error)
        return None


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
        try:
            verdict = score(frames, prompt)
        except Exception:  # an opinion on a row must not cost the row
            log.exception("no score for %r", prompt)
            return None
        return None if verdict is None else verdict.fraction

    return judge
