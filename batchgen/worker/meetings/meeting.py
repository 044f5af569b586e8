"""How the ranks of a replica find each other: the leader listens, as a file in the run folder says.

Nothing is asked of whoever started the ranks but their numbers. A rank that does not come ends the
attempt in time.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from batchgen.engine.ranks.peer import Peer
from batchgen.engine.ranks.team import Alone, Dismissed, Follower, Leader, Team
from batchgen.errors import ReplicaFailed
from batchgen.failpoints import failpoint
from batchgen.records import RankInfo
from batchgen.worker.meetings.address import (
    Address,
    Unreachable,
    connect,
    listen,
    publish,
    wait_for,
)
from batchgen.worker.meetings.place import RankPlace

LONGEST_MEETING_S = 300.0  # ranks are started together
HELLO_S = 10.0  # patience with a stray connection
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Meeting:
    """What a rank needs to meet the others of its replica."""

    file: Path  # where the leader says that it listens
    info: RankInfo
    place: RankPlace
    patience_s: float  # with a rank that says nothing

    @property
    def within_s(self) -> float:
        return min(LONGEST_MEETING_S, self.patience_s)


@contextmanager
def leading(
    meeting: Meeting,
    *,
    stop: Callable[[], bool],
    moved: Callable[[], object],
    signalled: Callable[[str], object],
) -> Iterator[Team | None]:
    """Wait for the other ranks of the replica, and let them go in the end; an error ends them too.
    For `moved` and `signalled` see `Leader`. ReplicaFailed if one does not come; None if `stop`,
    which is asked meanwhile, says that nobody is needed."""
    if meeting.place.size == 1:
        yield Alone()
        return
    peers = _gather(meeting, stop)
    if peers is None:
        yield None
        return
    moved()
    team = Leader(
        peers,
        host=meeting.info.host,
        patience_s=meeting.patience_s,
        moved=moved,
        signalled=signalled,
    )
    try:
        yield team
        team.dismiss()
    except BaseException as error:
        team.fail(error)
        raise
    finally:
        team.close()


@contextmanager
def following(
    meeting: Meeting, *, moved: Callable[[], object], signalled: Callable[[], str]
) -> Iterator[Follower]:
    """Join the leader, until it dismisses this rank. For `moved` and `signalled` see `Follower`.
    ReplicaFailed if the leader is not there."""
    info, place = meeting.info, meeting.place
    failpoint(f"meet.{place.rank}")
    leader = _greet(meeting)
    moved()
    team = Follower(
        place.rank,
        place.size,
        leader,
        host=info.host,
        patience_s=meeting.patience_s,
        moved=moved,
        signalled=signalled,
    )
    try:
        yield team
    except Dismissed:
        pass
    except BaseException as error:
        team.fail(error)
        raise
    finally:
        team.close()


def _gather(meeting: Meeting, stop: Callable[[], bool]) -> list[Peer] | None:
    """In the order of their ranks; None if told to stop."""
    peers, until = dict[int, Peer](), time.monotonic() + meeting.within_s
    token, host = secrets.token_hex(16), meeting.info.address
    with _server(host, meeting.place.size) as server:
        publish(meeting.file, Address(host, server.getsockname()[1], token))
        server.settimeout(POLL_S)
        while missing := set(range(1, meeting.place.size)) - peers.keys():
            names = ", ".join(map(str, sorted(missing)))
            if time.monotonic() > until:
                raise ReplicaFailed(f"no rank {names} came within {meeting.within_s:.0f} s")
            if stop():
                return None
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            if found := _welcome(connection, token, meeting):
                peers[found[0]] = found[1]
    return [peers[rank] for rank in sorted(peers)]


def _server(host: str, backlog: int) -> socket.socket:
    try:
        return listen(host, backlog)
    except OSError as error:
        raise ReplicaFailed(f"the leader cannot listen on {host}: {error}") from error


def _welcome(connection: socket.socket, token: str, meeting: Meeting) -> tuple[int, Peer] | None:
    """Who it is; None for a stranger."""
    try:
        line = _read_line(connection)
    except OSError:
        line = ""
    said, _, rest = line.partition(" ")
    number, _, host = rest.partition(" ")
    if said != token or number not in map(str, range(1, meeting.place.size)):
        connection.close()
        return None
    name = f"rank {number} of {meeting.place.size} on {host}"
    return int(number), Peer(connection, name, meeting.patience_s)


def _read_line(connection: socket.socket) -> str:
    """One line and not a byte more: messages follow. TimeoutError if it takes longer than
    HELLO_S."""
    line, until = b"", time.monotonic() + HELLO_S
    while not line.endswith(b"\n") and len(line) < 1024:
        connection.settimeout(max(0.001, until - time.monotonic()))
        if not (byte := connection.recv(1)):
            break
        line += byte
    return line.decode(errors="replace").strip()


def _greet(meeting: Meeting) -> Peer:
    info, place, where = meeting.info, meeting.place, ""
    until = time.monotonic() + meeting.within_s
    try:
        address = wait_for(meeting.file, "its replica", meeting.within_s, lambda: False)
        where = f" on {address.host}, port {address.port}"
        connection = connect(address, max(HELLO_S, until - time.monotonic()), lambda: False)
        connection.sendall(f"{address.token} {place.rank} {info.host}\n".encode())
    except (Unreachable, OSError) as error:
        raise ReplicaFailed(f"the leader of replica {place.replica}{where}: {error}") from error
    return Peer(connection, f"rank 0 of {place.size} on {address.host}", meeting.patience_s)
