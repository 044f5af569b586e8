"""The finishing lane: decode, copy to the host and delivery behind the next ticks.

One thread, a bounded queue, and a serial twin that does the same work on the calling thread. Rows
come out in the order they went in, several at a time where the work takes several. Whoever has to
wait for many of them is not stuck: `moved` is told of each time. An error of the lane's work ends
it: later jobs are dropped, and the next call into the lane raises the error on the calling
thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from threading import Condition, Thread
from types import TracebackType
from typing import Generic, TypeVar

from batchgen.engine.contract import unheard

Job = TypeVar("Job")
DEPTH = 4  # rows that wait, each with its latents


def one_by_one(waiting: Sequence[object]) -> int:
    return 1


class Lane(Generic[Job]):
    """A context: leaving it finishes what was put in, unless an exception is on its way out."""

    def __init__(
        self,
        work: Callable[[Sequence[Job]], object],
        *,
        overlap: bool,
        depth: int = DEPTH,
        moved: Callable[[], object] = unheard,
        together: Callable[[Sequence[Job]], int] = one_by_one,
    ) -> None:
        """`together`: how many of the jobs that wait, from the first on, are worked on at once."""
        self._work, self._moved, self._together, self._depth = work, moved, together, depth
        self._waiting: deque[Job] = deque()
        self._changed = Condition()  # of what waits or is worked on
        self._at_work = self._closed = self._dropping = False
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="batchgen-finish") if overlap else None

    def __enter__(self) -> Lane[Job]:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._dropping = kind is not None
        if self._thread is not None:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            self._thread.join()
        if kind is None:
            self.check()

    def check(self) -> None:
        """Raise the error of a job that failed on the thread."""
        if self._error is not None:
            self._dropping = True
            error, self._error = self._error, None
            raise error

    def put(self, *jobs: Job) -> None:
        """Hand over jobs, which may then be worked on together; waits while the queue is full."""
        self.check()
        if self._thread is None:
            for job in jobs:
                self._work([job])
                self._moved()
            return
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < self._depth)
            self._waiting.extend(jobs)
            self._changed.notify_all()

    def drain(self) -> None:
        """Wait until all jobs are done."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._waiting or self._at_work))
        self.check()

    def _run(self) -> None:
        while jobs := self._take():
            try:
                if self._error is None and not self._dropping:
                    self._work(jobs)
                    self._moved()
            except BaseException as error:  # carried over to the calling thread, never swallowed
                self._error = error
            finally:
                del jobs
                with self._changed:
                    self._at_work = False
                    self._changed.notify_all()

    def _take(self) -> list[Job]:
        """The next jobs to work on together; none when the lane is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return []
            count = self._together(self._waiting)
            self._at_work = True
            jobs = [self._waiting.popleft() for _ in range(count)]
            self._changed.notify_all()
            return jobs
