"""The ranks of a replica: one leads, all do the same.

What the leader decides and encodes goes to its followers over plain connections, not by
collectives: who waits at a connection can tell a leader that is slow (it says that it moves) from
one that is gone (the connection is closed) or stopped (it says nothing). Collectives are used
inside forwards alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from batchgen.engine.ranks.collective import Failure, collective_of, is_short
from batchgen.engine.ranks.orders import Orders
from batchgen.engine.ranks.peer import Gone, Kind, Peer, from_bytes, to_bytes
from batchgen.errors import DividedForwardFailed, ReplicaFailed
from batchgen.failpoints import failpoint

T = TypeVar("T")
Lost = tuple[tuple[int, str], ...]  # rows by their number in the render, and why
POLL_S = 0.2  # how often whoever waits for others looks up
BEAT_EVERY_S = 1.0
BLAME_S = 5.0  # how long the leader asks around who failed first


def uneven(ranks: Sequence[Lost]) -> dict[int, str]:
    """What some ranks have lost and others not, with the first reason."""
    lost = [dict(rank) for rank in ranks]
    numbers = {number for rank in lost for number in rank}
    return {
        number: next(rank[number] for rank in lost if number in rank)
        for number in sorted(numbers)
        if not all(number in rank for rank in lost)
    }


class Team(Protocol):
    """How the ranks of a replica keep together."""

    rank: int
    size: int
    address: str  # of this rank, a number that others have reached
    patience_s: float  # with a rank that says nothing

    @property
    def leads(self) -> bool: ...

    def share(self, orders: Orders | None) -> Orders:
        """The leader's orders, on every rank; the others bring none."""

    def result(self, work: Callable[[], T]) -> T:
        """What `work` gives on the leader, on every rank; only there it is done."""

    def reports(self, lost: Lost) -> Sequence[Lost]:
        """Orders are applied: tell the leader which rows were lost as they were, and as the leader
        hear what the others lost. No rank waits but the leader."""

    def together(self, rows: Callable[[], str]) -> AbstractContextManager[None]:
        """What all ranks do with each other, about `rows` (in words): whatever is raised becomes
        ReplicaFailed."""

    def beat(self) -> None:
        """Say to the others that this rank moves; cheap enough for every tick, on any thread."""

    def listen(self) -> None:
        """Take in what the others have said meanwhile. ReplicaFailed if one of them failed."""


class Alone:
    """A replica of one rank."""

    rank, size, leads, address, patience_s = 0, 1, True, "", 0.0

    def share(self, orders: Orders | None) -> Orders:
        """The orders themselves."""
        assert orders is not None
        return orders

    def result(self, work: Callable[[], T]) -> T:
        return work()

    def reports(self, lost: Lost) -> Sequence[Lost]:
        return ()

    def together(self, rows: Callable[[], str]) -> AbstractContextManager[None]:
        return nullcontext()

    def beat(self) -> None:
        return

    def listen(self) -> None:
        return


class Dismissed(Exception):
    """The leader needs its followers no more."""


class _Ranks:
    """What leader and followers have in common."""

    def __init__(
        self,
        rank: int,
        peers: Sequence[Peer],
        size: int,
        host: str,
        patience_s: float,
    ) -> None:
        self.rank, self.size, self.host = rank, size, host
        self.address = peers[-1].own_address  # the last one is the farthest away
        self.peers, self.patience_s = tuple(peers), patience_s
        self.name = f"rank {rank} of {size} on {host}"
        self.rows = ""  # of the last forward, in words
        self._beaten = 0.0

    @property
    def about(self) -> str:
        """The rows of the last forward, in words."""
        return self.rows or "before its first forward"

    def beat(self) -> None:
        """See `Team`."""
        now = time.monotonic()
        if now - self._beaten >= BEAT_EVERY_S:
            self._beaten = now
            for peer in self.peers:
                peer.beat()

    def _failure(self, error: BaseException) -> Failure:
        if isinstance(error, ReplicaFailed):  # it says all
            return Failure(str(error), here=True, short=error.out_of_memory)
        collective = collective_of(error)
        if isinstance(error, DividedForwardFailed):
            text = f"{error} (on {self.host})"
            return Failure(text, here=not collective, short=is_short(error))
        where = f"in {collective}" if collective else "outside a collective"
        text = f"{self.name}, {self.about}, {where}: {type(error).__name__}: {error}"
        return Failure(text, here=not collective, short=is_short(error))

    def close(self) -> None:
        for peer in self.peers:
            peer.close()


class Leader(_Ranks):
    """See `Team`."""

    leads = True

    def __init__(
        self,
        peers: Sequence[Peer],
        *,
        host: str,
        patience_s: float,
        moved: Callable[[], object],
        signalled: Callable[[str], object],
    ) -> None:
        """`peers`: to ranks 1, 2, ... `moved` is told while others move that this one waits for,
        `signalled` of the signal that one of them was sent. A rank that says nothing for
        `patience_s` is taken for lost."""
        super().__init__(0, peers, 1 + len(peers), host, patience_s)
        self._moved, self._signalled = moved, signalled
        self._kept: dict[Peer, list[Lost]] = {peer: [] for peer in self.peers}

    def share(self, orders: Orders | None) -> Orders:
        assert orders is not None
        self._send(orders)
        return orders

    def result(self, work: Callable[[], T]) -> T:
        found = work()
        self._send(found)
        return found

    def reports(self, lost: Lost) -> Sequence[Lost]:
        failpoint("report.0")
        return [self._report(peer) for peer in self.peers]

    def listen(self) -> None:
        """See `Team`; for the one thread that renders."""
        self._hear(self.peers)

    @contextmanager
    def together(self, rows: Callable[[], str]) -> Iterator[None]:
        self.rows = rows()
        try:
            yield
        except Exception as error:
            raise self._blame(self._failure(error)).error from error

    def dismiss(self) -> None:
        """Let the followers go."""
        for peer in self.peers:
            with suppress(Gone):  # then it is gone
                peer.send(Kind.OVER)

    def fail(self, error: BaseException) -> None:
        """Tell the followers what ends them all."""
        failure = to_bytes(self._failure(error))
        for peer in self.peers:
            with suppress(Gone):
                peer.send(Kind.FAILED, failure)

    def _send(self, message: object) -> None:
        payload = to_bytes(message)
        for peer in self.peers:
            try:
                peer.send(Kind.SHARED, payload)
            except Gone as gone:
                raise ReplicaFailed(self._gone(gone)) from gone

    def _report(self, peer: Peer) -> Lost:
        heard = time.monotonic()
        while not self._kept[peer]:
            if self._take(peer, POLL_S):
                heard = time.monotonic()
                continue
            # this one may wait for another, which has failed
            self._hear([other for other in self.peers if other is not peer])
            if time.monotonic() - heard > self.patience_s:
                raise ReplicaFailed(self._silent(peer))
        return self._kept[peer].pop(0)

    def _hear(self, peers: Sequence[Peer]) -> None:
        for peer in peers:
            while self._take(peer, 0.0):
                pass

    def _take(self, peer: Peer, wait_s: float) -> bool:
        """One message; False if there is none."""
        try:
            message = peer.receive(wait_s)
        except Gone as gone:
            raise ReplicaFailed(self._gone(gone)) from gone
        if message is None:
            return False
        kind, payload = message
        if kind == Kind.FAILED:
            raise from_bytes(payload).error
        if kind == Kind.REPORT:
            self._kept[peer].append(from_bytes(payload))
        elif kind == Kind.SIGNALLED:
            self._signalled(payload.decode())
        self._moved()
        return True

    def _gone(self, gone: Gone) -> str:
        return f"{gone}, {self.about}, outside a collective"

    def _silent(self, peer: Peer) -> str:
        return f"{peer.name}, {self.about}, says nothing for {self.patience_s:.0f} s"

    def _blame(self, mine: Failure) -> Failure:
        """Who failed first. An error met in a collective says little: whoever left it says more, or
        is gone."""
        if mine.here:
            return mine
        until, others = time.monotonic() + min(BLAME_S, self.patience_s), dict[Peer, Failure]()
        while time.monotonic() < until and len(others) < len(self.peers):
            for peer in set(self.peers) - others.keys():
                found = _last_words(peer)
                if isinstance(found, Gone):
                    return replace(mine, text=f"{found}, met by {mine.text}")
                if found is not None:
                    others[peer] = found
                    if found.here:
                        return found
        silent = [peer.name for peer in self.peers if peer not in others]
        who = f"{', '.join(silent)} said nothing, met by " if silent else ""
        return replace(mine, text=who + mine.text)


def _last_words(peer: Peer) -> Failure | Gone | None:
    """What ended the other end, as far as is known."""
    try:
        message = peer.receive(POLL_S)
    except Gone as gone:
        return gone
    if message is None or message[0] != Kind.FAILED:
        return None
    failure = from_bytes(message[1])
    assert isinstance(failure, Failure)
    return failure


class Follower(_Ranks):
    """See `Team`."""

    leads = False

    def __init__(
        self,
        rank: int,
        size: int,
        peer: Peer,
        *,
        host: str,
        patience_s: float,
        moved: Callable[[], object],
        signalled: Callable[[], str],
    ) -> None:
        """`moved` is told while the leader moves that this one waits for; `signalled` says the
        signal that this process was sent, if any."""
        super().__init__(rank, (peer,), size, host, patience_s)
        self._leader, self._moved, self._signalled = peer, moved, signalled
        self._passed_on = False

    def share(self, orders: Orders | None) -> Orders:
        found = self._next()
        assert isinstance(found, Orders)
        return found

    def result(self, work: Callable[[], T]) -> T:
        found: T = self._next()
        return found

    def reports(self, lost: Lost) -> Sequence[Lost]:
        failpoint(f"report.{self.rank}")
        self._send(Kind.REPORT, to_bytes(lost))
        return ()

    @contextmanager
    def together(self, rows: Callable[[], str]) -> Iterator[None]:
        self.rows = rows()
        try:
            yield
        except Exception as error:
            failure = self._failure(error)
            with suppress(Gone):
                self._leader.send(Kind.FAILED, to_bytes(failure))
            raise failure.error from error

    def listen(self) -> None:
        """What the leader says is orders, which are waited for."""

    def fail(self, error: BaseException) -> None:
        """Tell the leader what ends this rank."""
        if not isinstance(error, ReplicaFailed):  # it knows, or it is gone
            with suppress(Gone):
                self._leader.send(Kind.FAILED, to_bytes(self._failure(error)))

    def _send(self, kind: Kind, payload: bytes) -> None:
        try:
            self._leader.send(kind, payload)
        except Gone as gone:
            raise ReplicaFailed(str(gone)) from gone

    def _next(self) -> Any:
        """What the leader shares next. Dismissed if nothing, ReplicaFailed if it failed."""
        heard = time.monotonic()
        while True:
            self._pass_on()
            try:
                message = self._leader.receive(POLL_S)
            except Gone as gone:
                raise ReplicaFailed(str(gone)) from gone
            if message is not None:
                heard = time.monotonic()
                self._moved()
                if message[0] != Kind.BEAT:
                    return _content(*message)
            elif time.monotonic() - heard > self.patience_s:
                raise ReplicaFailed(f"{self._leader.name} says nothing for {self.patience_s:.0f} s")

    def _pass_on(self) -> None:
        """A signal that came here is the leader's to answer."""
        if not self._passed_on and (name := self._signalled()):
            self._passed_on = True
            self._send(Kind.SIGNALLED, name.encode())


def _content(kind: Kind, payload: bytes) -> Any:
    if kind == Kind.OVER:
        raise Dismissed
    found = from_bytes(payload)
    if kind == Kind.FAILED:
        raise found.error
    return found
