"""Texts through the layers of an encoder side by side: a layer that has to be brought to the device
is brought once for all of them.

Each is encoded on a thread of its own, of which one runs at a time: up to its next layer, where it
is another's turn. So each computes what it computes alone, whatever is beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from threading import Semaphore, Thread
from typing import Generic, TypeVar

import torch

from batchgen.engine.isolation import Failed, attempt

T = TypeVar("T")


class Abreast:
    """Work that goes on layer by layer."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._running: _Turns | None = None  # whose turn it is

    def pause(self) -> None:
        """Said in front of each layer, before it is brought; outside of `run` it says nothing."""
        if self._running is not None:
            self._running.hand_on()

    def run(self, works: Sequence[Callable[[], T]]) -> list[T | Failed]:
        """What each piece of work comes to, as `isolation.attempt` of it."""
        turns: list[_Turns[T]] = []
        try:
            for work in works:
                turns.append(_Turns(work, self._device))
            going = turns
            while going:
                for self._running in going:
                    self._running.go_on()
                going = [one for one in going if not one.over]
        finally:
            self._running = None
            for one in turns:
                one.leave()
        return [one.result() for one in turns]


class _Left(BaseException):
    """Nobody waits for this work any more."""


class _Turns(Generic[T]):
    """One piece of work, on its thread from turn to turn."""

    def __init__(self, work: Callable[[], T], device: torch.device) -> None:
        self._work, self._device = work, device
        self._mine, self._others = Semaphore(0), Semaphore(0)  # whose turn it is
        self._left = False
        self._found: T | Failed | None = None
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="batchgen-encode", daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        return self._found is not None or self._error is not None

    def go_on(self) -> None:
        """A turn: until it hands on, or its end."""
        self._mine.release()
        self._others.acquire()

    def hand_on(self) -> None:
        """On its own thread: wait for the next turn."""
        self._others.release()
        self._mine.acquire()
        if self._left:
            raise _Left

    def leave(self) -> None:
        """End the thread, wherever it is."""
        self._left = True
        self._mine.release()
        self._thread.join()

    def result(self) -> T | Failed:
        if self._error is not None:
            raise self._error
        assert self._found is not None
        return self._found

    def _run(self) -> None:
        self._mine.acquire()
        card = torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()
        try:
            if not self._left:
                with torch.no_grad(), card:  # both are a thread's own
                    self._found = attempt(self._work)
        except BaseException as error:  # carried over to the calling thread, never swallowed
            self._error = error
        self._others.release()
