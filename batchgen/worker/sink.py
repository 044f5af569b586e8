"""Makes rows durable: media first, then the one journal line that publishes or fails them."""

from __future__ import annotations

import errno
import logging
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, replace

from batchgen.anchor import gone
from batchgen.engine.contract import Snapshot
from batchgen.errors import FINAL_ERRORS, PromptTooLong, Rejected, SickNode, StorageError
from batchgen.ledger.journal import JournalWriter
from batchgen.media.cut import cut_to
from batchgen.media.note import Origin, note_of
from batchgen.media.pack import TarPack
from batchgen.media.publish import write_media
from batchgen.media.stored import file_of
from batchgen.notices import Notices
from batchgen.paths import RunPaths
from batchgen.records import Attempt, Commit, Media, Rendered, RowStats
from batchgen.request import Bucket, Request
from batchgen.worker.admission import Admission
from batchgen.worker.judging import Judges, Verdict, seed_of_retry
from batchgen.worker.states import States

log = logging.getLogger(__name__)
STORAGE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
FULL_ROWS_BEFORE_STOP = 3
# Distinct rows that fail one after the other: a sick node, at once or after it rendered some.
FAILED_ROWS_BEFORE_STOP, FAILED_ROWS_BETWEEN = 5, 10


@dataclass(frozen=True, slots=True)
class Redraw:
    """A row that judges want with another seed."""

    seed: int  # of the plan
    retry: int  # from 1


@dataclass(frozen=True, slots=True)
class RowPolicy:
    """Who commits, how often a row may be tried, and whether another machine could try it too."""

    attempt: Attempt
    host: str
    total_rows: int
    row_retries: int
    origin: Origin
    elsewhere: bool = False


class RowSink:
    """`failed` rows are kept for another try until their budget is spent. Called from the engine's
    main and background threads."""

    def __init__(
        self,
        run: RunPaths,
        journal: JournalWriter,
        policy: RowPolicy,
        states: States,
        admission: Admission,
        judges: Judges,
        notices: Notices,
        pack: TarPack | None = None,
    ) -> None:
        """`pack`: where media go; None: a file of its own for each row."""
        self._run, self._journal, self._policy, self._judges = run, journal, policy, judges
        self._states, self._admission, self._notices = states, admission, notices
        self._pack = pack
        self._started: dict[int, float] = {}  # by time.perf_counter: clocks are set
        self._tries: Counter[int] = Counter()
        self._failures: Counter[int] = Counter()
        self._again: list[tuple[Request, Exception]] = []
        self._redraws: dict[int, Redraw] = {}  # by row_index
        self._to_redraw: list[Request] = []
        self._full_in_a_row = 0
        self._bad_in_a_row: set[int] = set()  # rows that failed since the last one that did not
        self._most_bad = FAILED_ROWS_BEFORE_STOP
        self.alone = False  # rows that start now have the shard to themselves
        self._lock = threading.Lock()

    def where_it_was(self, request: Request) -> Request:
        """A row as it is to be begun: with the seed that an attempt before was at when it was told
        to end. Those before it were refused, and would be again."""
        if request.row_index in self._redraws:
            return request
        for retry in range(self._judges.most_retries, 0, -1):
            redrawn = replace(request, seed=seed_of_retry(request.seed, retry))
            if self._states.share_left(redrawn) < 1.0:
                self._redraws[request.row_index] = Redraw(request.seed, retry)
                self._tries[request.row_index] = retry  # one with each seed before
                return redrawn
        return request

    def started(self, request: Request) -> None:
        with self._lock:
            self._started.setdefault(request.row_index, time.perf_counter())
            self._tries[request.row_index] += 1
        self._journal.start(request.row_index, request.row_id, self.alone)

    def finished(self, rendered: Rendered) -> None:
        """Write and commit. Whatever keeps the media from being written is the row's own failure; a
        journal that cannot be written, or a run folder that went away, is not and ends the attempt.
        """
        self._journal.check_place()
        size, undecoded = rendered.request.media_size, rendered.request.undecoded
        if size is not None and not undecoded:
            rendered = replace(rendered, frames=cut_to(rendered.frames, Bucket.parse(size)))
        verdict, rendered = self._judged(rendered)
        if verdict.fails or verdict.retries is not None:
            self._reject(rendered, verdict)
            return
        began = time.perf_counter()
        try:
            media = self._write(rendered)
        except Exception as error:
            self._media_failed(rendered, error)
            return
        self._full_in_a_row = 0
        self._none_bad()
        wrote = time.perf_counter() - began
        stats = replace(rendered.stats, stages=replace(rendered.stats.stages, write=wrote))
        commit = self._commit(rendered.request, stats, verdict)
        if not (file := self._run.root / file_of(media.path)).exists():
            raise StorageError(gone(file))
        self._journal.commit(replace(commit, media=media))
        self._admission.rendered(rendered.request, stats)
        self._states.drop(rendered.request)
        log.info("row %s ok: %s, %d bytes", commit.row_id, media.path, media.bytes)

    def _judged(self, rendered: Rendered) -> tuple[Verdict, Rendered]:
        """What judges say, and the row with the seconds that it took; latents are not judged."""
        if rendered.request.undecoded:
            return Verdict(), rendered
        began = time.perf_counter()
        verdict = self._judges(rendered.frames, rendered.request)
        took = time.perf_counter() - began
        stages = replace(rendered.stats.stages, judge=took)
        return verdict, replace(rendered, stats=replace(rendered.stats, stages=stages))

    def _reject(self, rendered: Rendered, verdict: Verdict) -> None:
        """Keep the row for another seed while its judges allow one; else it has failed. The machine
        has done its part."""
        request, stats = rendered.request, rendered.stats
        self._none_bad()
        self._admission.rendered(request, stats)
        with self._lock:
            last = self._redraws.get(request.row_index, Redraw(request.seed, 0))
            error = Rejected(verdict.notes)
            if verdict.fails or last.retry >= (verdict.retries or 0):
                again = None
            else:
                again = replace(last, retry=last.retry + 1)
                self._redraws[request.row_index] = again
                seed = seed_of_retry(again.seed, again.retry)
                self._to_redraw.append(replace(request, seed=seed))
        if again is None:
            self._give_up(request, error, stats, verdict)
            return
        self._states.drop(request)  # what is saved of the row is of the seed that is done with
        self._journal.tried(request.row_index, stats.busy, error)
        log.info("row %s, seed %d: %s", request.row_id, request.seed, error)

    def _none_bad(self) -> None:
        """A row was drawn."""
        self._bad_in_a_row.clear()
        self._most_bad = FAILED_ROWS_BETWEEN

    def _write(self, rendered: Rendered) -> Media:
        request, policy = rendered.request, self._policy
        note = note_of(request, policy.origin) if request.embed_metadata else ""
        if self._pack is not None:
            return self._pack.write(rendered, note)
        return write_media(rendered, self._run, policy.attempt, policy.total_rows, note)

    def saved(self, request: Request, snapshot: Snapshot) -> None:
        """Keep a row in flight for whoever draws it next; if it cannot be, it starts anew there."""
        try:
            self._states.save(request, snapshot)
        except OSError as error:
            log.warning("row %s cannot be saved: %s", request.row_id, error)
            return
        self._journal.saved(request.row_index, snapshot.step, snapshot.seconds)
        log.info("row %s saved after step %d", request.row_id, snapshot.step)

    def failed(self, request: Request, error: Exception, stats: RowStats) -> None:
        """Keep the row for another try, or record its class, message and traceback. SickNode if
        row after row fails where other machines could draw them."""
        self._admission.dropped(request)
        final = isinstance(error, FINAL_ERRORS)
        if final or not self._keep(request, error, stats):
            self._give_up(request, error, stats)
        if self._policy.elsewhere and not isinstance(error, PromptTooLong):
            self._count_bad(request, error)

    def to_retry(self) -> list[Request]:
        """Rows with tries or seeds left; forgets them."""
        with self._lock:
            redrawn, self._to_redraw = self._to_redraw, []
        return [*(request for request, _ in self._take_again()), *redrawn]

    def _keep(self, request: Request, error: Exception, stats: RowStats) -> bool:
        """For another try; False if there is none left."""
        with self._lock:
            failures = self._failures[request.row_index] + 1
            if failures > self._policy.row_retries:
                return False
            self._failures[request.row_index] = failures
            self._again.append((request, error))
        self._journal.tried(request.row_index, stats.busy, error)
        log.warning("row %s failed, try %d: %r", request.row_id, failures, error)
        return True

    def _take_again(self) -> list[tuple[Request, Exception]]:
        with self._lock:
            again, self._again = self._again, []
        return again

    def _give_up(
        self, request: Request, error: Exception, stats: RowStats, verdict: Verdict | None = None
    ) -> None:
        text = "".join(traceback.format_exception(error))
        commit = replace(
            self._commit(request, stats, verdict),
            status="failed",
            error_type=type(error).__name__,
            error=str(error),
            traceback=text,
        )
        self._journal.commit(commit)
        self._notices.row_failed(commit)
        self._states.drop(request)
        log.error("row %s failed: %s: %s", request.row_id, type(error).__name__, error)

    def _media_failed(self, rendered: Rendered, error: Exception) -> None:
        """One row's failure, unless the folder is plainly full: then rendering on is waste."""
        self._journal.check_place()
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in STORAGE_ERRNOS:
            self._full_in_a_row += 1
            if self._full_in_a_row > FULL_ROWS_BEFORE_STOP:
                raise StorageError(f"{self._run.root} cannot be written: {error}") from error
        self.failed(rendered.request, error, rendered.stats)

    def _count_bad(self, request: Request, error: Exception) -> None:
        """When rows fail one after the other, the machine may be to blame, even if a NaN is final
        for its row. Or they are: so they get their verdict, lest the next attempt meets the same
        ones first."""
        self._bad_in_a_row.add(request.row_index)
        bad = len(self._bad_in_a_row)
        if bad < self._most_bad:
            return
        for row, cause in self._take_again():
            self._give_up(row, cause, RowStats())  # its seconds were told with the try
        host, last = self._policy.host, f"the last one with {type(error).__name__}: {error}"
        if self._most_bad == FAILED_ROWS_BEFORE_STOP:
            raise SickNode(f"the first {bad} rows on {host} all failed, {last}") from error
        raise SickNode(f"{bad} rows in a row failed on {host}, {last}") from error

    def _commit(self, request: Request, stats: RowStats, verdict: Verdict | None) -> Commit:
        now, verdict = time.time(), verdict or Verdict()
        clock = time.perf_counter()
        redrawn = self._redraws.pop(request.row_index, None)
        self._failures.pop(request.row_index, None)
        return Commit(
            row_index=request.row_index,
            row_id=request.row_id,
            row_key=request.row_key,
            status="ok",
            attempt=self._policy.attempt.tag,
            shard=self._policy.attempt.task,
            host=self._policy.host,
            started=now - (clock - self._started.pop(request.row_index, clock)),
            ended=now,
            tries=max(1, self._tries.pop(request.row_index, 1)),
            stats=stats,
            seed=request.seed if redrawn else None,
            metrics=verdict.metrics,
            judge_notes=verdict.notes,
        )
