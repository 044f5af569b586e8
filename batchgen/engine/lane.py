"""The finishing lane: decode, copy to the host and delivery behind the next ticks.

One thread, a bounded queue, and a serial twin that does the same work on the calling thread. Rows
come out in the order they went in. Whoever has to wait for several of them is not stuck: `moved` is
told of each. An error of the lane's work ends it: later jobs are dropped, and the next call into
the lane raises the error on the calling thread."""

from __future__ import annotations

from collections.abc import Callable
from queue import Queue
from threading import Thread
from types import TracebackType
from typing import Generic, TypeVar

from batchgen.engine.contract import unheard

Job = TypeVar("Job")
DEPTH = 4  # rows that wait, each with its latents


class Lane(Generic[Job]):
    """A context: leaving it finishes what was put in, unless an exception is on its way out."""

    def __init__(
        self,
        work: Callable[[Job], None],
        *,
        overlap: bool,
        depth: int = DEPTH,
        moved: Callable[[], object] = unheard,
    ) -> None:
        self._work, self._moved = work, moved
        self._queue: Queue[Job | None] = Queue(maxsize=depth)
        self._error: BaseException | None = None
        self._dropping = False
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
            self._queue.put(None)
            self._thread.join()
        if kind is None:
            self.check()

    def check(self) -> None:
        """Raise the error of a job that failed on the thread."""
        if self._error is not None:
            self._dropping = True
            error, self._error = self._error, None
            raise error

    def put(self, job: Job) -> None:
        """Hand over a job; waits while the queue is full."""
        self.check()
        if self._thread is None:
            self._work(job)
            self._moved()
        else:
            self._queue.put(job)

    def drain(self) -> None:
        """Wait until all jobs are done."""
        self._queue.join()
        self.check()

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                if self._error is None and not self._dropping:
                    self._work(job)
                    self._moved()
            except BaseException as error:  # carried over to the calling thread, never swallowed
                self._error = error
            finally:
                self._queue.task_done()
                del job
