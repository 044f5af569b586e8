"""The ordered queue of one shard, from which its replicas pull rows.

Rank 0 serves positions of the shard's row list over TCP; every replica holds one connection, so
a dead peer is seen at once by its closed socket and nobody waits for it. Only positions travel:
which rows they are is in the plan. There is no static split: a slow device takes fewer tickets.

Suspects come last, one at a time: a replica that asks for one says by it that it has nothing in
flight, and it gets one when all replicas that are connected have said so.
"""

from __future__ import annotations

import secrets
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from batchgen.errors import BatchgenError
from batchgen.failpoints import failpoint
from batchgen.worker.meetings.address import (
    Address,
    Unreachable,
    connect,
    listen,
    publish,
    wait_for,
)

TOKEN_S = 30.0  # patience with a stray connection
ALONE = "alone"  # what a replica says that wants a suspect
POLL_S = 0.2  # how often whoever waits for others looks up


class QueueLost(BatchgenError):
    """The rank that serves the shard's queue is gone; the rows left wait for the next attempt."""


@dataclass(slots=True)
class Tickets:
    """Positions 0..total-1, handed out in order, fewer at a time towards the end."""

    total: int
    takers: int
    handed: int = 0

    def take(self, room: int) -> range:
        """The next positions: at most `room`, and at most half of a fair share of what is left, so
        that the replicas end together."""
        left = self.total - self.handed
        count = min(room, max(1, left // (2 * self.takers)), left) if self.takers > 1 else room
        start = self.handed
        self.handed = min(self.total, start + count)
        return range(start, self.handed)


class Turns:
    """Who of the connected replicas may take the next suspect: one, when all others wait."""

    def __init__(self, total: int) -> None:
        self._left = iter(range(total))
        self._busy: set[int] = set()  # replicas that may have something in flight
        self._changed = threading.Condition()

    def join(self, who: int) -> None:
        with self._changed:
            self._busy.add(who)

    def leave(self, who: int) -> None:
        with self._changed:
            self._busy.discard(who)
            self._changed.notify_all()

    def take(self, who: int, gone: Callable[[], bool]) -> range:
        """Wait for the turn of `who`; empty when no suspect is left or `gone` says that nobody
        waits for the answer."""
        with self._changed:
            self._busy.discard(who)
            self._changed.notify_all()
            while self._busy and not gone():
                self._changed.wait(POLL_S)
            position = None if gone() else next(self._left, None)
            if position is None:
                return range(0)
            self._busy.add(who)
            return range(position, position + 1)


class TicketServer:
    """Serves one shard's tickets to `takers` replicas until the last connection closes."""

    def __init__(
        self, total: int, suspects: int, takers: int, address_file: Path, host: str
    ) -> None:
        self._tickets = Tickets(total, takers)
        self._turns = Turns(suspects)
        self._lock = threading.Lock()
        self._token = secrets.token_hex(16)
        self._socket = listen(host, takers)
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, name="tickets", daemon=True)
        self._acceptor.start()
        port = self._socket.getsockname()[1]
        failpoint("queue.before_address")
        publish(address_file, Address(host, port, self._token))

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # close(): a rank that never came is not waited for
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        who = id(connection)
        with connection, connection.makefile("rwb") as stream:
            try:
                connection.settimeout(TOKEN_S)
                if stream.readline().decode().strip() != self._token:
                    return
                connection.settimeout(None)
                self._turns.join(who)
                for line in stream:
                    granted = self._grant(line.decode().strip(), who, connection)
                    stream.write(f"{granted.start} {granted.stop}\n".encode())
                    stream.flush()
            except OSError:  # the peer died; its rows stay uncommitted
                return
            finally:
                self._turns.leave(who)

    def _grant(self, wanted: str, who: int, connection: socket.socket) -> range:
        if wanted == ALONE:
            return self._turns.take(who, lambda: _is_readable(connection, 0.0))
        return self._take(int(wanted))

    def _take(self, room: int) -> range:
        with self._lock:
            return self._tickets.take(room)

    def here(self) -> Queue:
        """The end of the replica in whose process the server is: without a connection, so that it
        waits for no other thread."""
        return _Here(self._take, self._turns)

    def close(self, waiting: Callable[[], object] = lambda: None) -> None:
        """Wait until every replica that connected has let go, then stop. `waiting` is told several
        times a second."""
        for thread in list(self._threads):
            while thread.is_alive():
                thread.join(POLL_S)
                waiting()
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._acceptor.join()
        self._socket.close()


class Queue(Protocol):
    """One replica's end of the queue. Raises QueueLost when the server is gone."""

    def take(self, room: int, stop: Callable[[], bool]) -> range:
        """Up to `room` positions; empty when the shard is exhausted, or when `stop`, which is asked
        several times a second, ends the waiting: then this end is done for."""

    def take_alone(self, stop: Callable[[], bool]) -> range:
        """The position of one suspect, once no other replica has anything in flight; empty when
        there is none left, or when `stop` ends the waiting, as above."""

    def close(self) -> None:
        """Let go: nothing is in flight here any more."""


class _Here:
    """See `Queue`."""

    def __init__(self, take: Callable[[int], range], turns: Turns) -> None:
        self._take, self._turns = take, turns
        self._turns.join(id(self))

    def take(self, room: int, stop: Callable[[], bool]) -> range:
        return self._take(room)  # waits for nobody

    def take_alone(self, stop: Callable[[], bool]) -> range:
        return self._turns.take(id(self), stop)

    def close(self) -> None:
        self._turns.leave(id(self))


class TicketClient:
    """See `Queue`: over a connection to the rank that serves."""

    def __init__(
        self,
        address_file: Path,
        patience_s: float = 300.0,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        try:
            address = wait_for(address_file, "the shard's queue", patience_s, stop)
        except Unreachable as error:
            raise QueueLost(str(error)) from error
        try:
            self._connection = connect(address, patience_s, stop)
        except OSError as error:
            raise QueueLost(f"no queue at {address_file}: {error}") from error
        self._stream = self._connection.makefile("rwb")
        try:
            self._send(address.token)
        except OSError as error:
            self.close()
            raise QueueLost(f"no queue at {address_file}: {error}") from error

    def _send(self, line: str) -> None:
        self._stream.write(f"{line}\n".encode())
        self._stream.flush()

    def take(self, room: int, stop: Callable[[], bool]) -> range:
        return self._ask(str(room), stop)

    def take_alone(self, stop: Callable[[], bool]) -> range:
        return self._ask(ALONE, stop)

    def _ask(self, what: str, stop: Callable[[], bool]) -> range:
        try:
            self._send(what)
            while not _is_readable(self._connection, POLL_S):
                if stop():
                    return range(0)
            reply = self._stream.readline().split()
        except OSError as error:
            raise QueueLost(f"the shard's queue does not answer: {error}") from error
        if len(reply) != 2:
            raise QueueLost("the rank that serves the shard's queue is gone")
        return range(int(reply[0]), int(reply[1]))

    def close(self) -> None:
        with suppress(OSError):  # what it could not send before it cannot send now
            self._stream.close()
        self._connection.close()


def _is_readable(connection: socket.socket, patience_s: float) -> bool:
    """Whether something has come, or the other end is closed."""
    return bool(select.select([connection], [], [], patience_s)[0])
