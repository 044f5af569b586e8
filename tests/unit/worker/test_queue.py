"""The shard's queue: every position once, in order, whoever dies."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from waiting import wait_for

from batchgen.engine.contract import never
from batchgen.errors import StorageError
from batchgen.worker.meetings import address as module
from batchgen.worker.meetings.address import announce
from batchgen.worker.queue import QueueLost, TicketClient, Tickets, TicketServer


def take_all(client: TicketClient, room: int) -> list[int]:
    taken: list[int] = []
    while granted := client.take(room, never):
        taken += granted
    return taken


@pytest.mark.parametrize(
    ("total", "takers", "room"), [(0, 1, 4), (1, 3, 8), (100, 1, 7), (97, 4, 16)]
)
def test_every_position_is_handed_out_once_in_order(total: int, takers: int, room: int) -> None:
    tickets = Tickets(total, takers)
    handed = []
    while granted := tickets.take(room):
        assert len(granted) <= room
        handed += granted
    assert handed == list(range(total))


def test_grants_shrink_towards_the_end_so_that_replicas_end_together() -> None:
    tickets = Tickets(64, takers=4)
    sizes = []
    while granted := tickets.take(32):
        sizes.append(len(granted))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 8 and sizes[-1] == 1


def test_two_replicas_share_all_positions(tmp_path: Path) -> None:
    address = tmp_path / "queue.json"
    server = TicketServer(200, 0, 2, address, "127.0.0.1")
    clients = [TicketClient(address) for _ in range(2)]
    taken: list[list[int]] = [[], []]
    threads = [
        threading.Thread(target=lambda k=k: taken[k].extend(take_all(clients[k], 5)))
        for k in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    server.close()
    assert sorted(taken[0] + taken[1]) == list(range(200))


def test_the_serving_process_shares_the_same_queue(tmp_path: Path) -> None:
    server = TicketServer(10, 2, 2, tmp_path / "queue.json", "127.0.0.1")
    here, there = server.here(), TicketClient(tmp_path / "queue.json")
    taken = [i for room in (2, 9) for end in (here, there) for i in end.take(room, never)]
    assert taken == list(range(len(taken)))
    while more := here.take(9, never):
        taken += more
    assert taken == list(range(10))
    assert not here.take_alone(lambda: True)  # the other one may still draw
    there.close()
    assert [list(here.take_alone(lambda: False)) for _ in range(3)] == [[0], [1], []]
    here.close()
    server.close()


def test_suspects_are_handed_out_when_nobody_else_draws(tmp_path: Path) -> None:
    """Three replicas; each that has drawn one waits for the next until all others wait too."""
    server = TicketServer(0, 20, 3, tmp_path / "queue.json", "127.0.0.1")
    clients = [server.here(), *(TicketClient(tmp_path / "queue.json") for _ in range(2))]
    for client in clients:
        assert not client.take(1, never)
    asking, at_work, most, drawn = 3, 0, 0, []

    def met() -> bool:
        """The others ask, or have been let in."""
        return asking == 2 or at_work > 1

    def draw(k: int) -> None:
        nonlocal asking, at_work, most
        while granted := clients[k].take_alone(lambda: False):
            asking -= 1
            at_work += 1
            wait_for(met)
            most = max(most, at_work)
            drawn.extend(granted)
            at_work -= 1
            asking += 1

    threads = [threading.Thread(target=draw, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    server.close()
    assert sorted(drawn) == list(range(20)) and most == 1


def test_the_server_says_that_it_waits_for_the_others(tmp_path: Path) -> None:
    """Its process is not stuck then."""
    server = TicketServer(1, 0, 2, tmp_path / "queue.json", "127.0.0.1")
    client = TicketClient(tmp_path / "queue.json")
    assert client.take(1, never)
    told: list[float] = []

    def waiting() -> None:
        told.append(time.monotonic())
        if len(told) == 3:
            client.close()

    server.close(waiting)
    assert len(told) >= 3 and told[2] - told[0] < 2


def test_a_wrong_token_gets_nothing(tmp_path: Path) -> None:
    address = tmp_path / "queue.json"
    server = TicketServer(4, 0, 1, address, "127.0.0.1")
    address.write_text(address.read_text().replace('"token": "', '"token": "0'))
    client = TicketClient(address)
    with pytest.raises(QueueLost):
        client.take(1, never)
    client.close()
    server.close()


def test_a_killed_replica_does_not_hold_up_the_server(tmp_path: Path) -> None:
    address = tmp_path / "queue.json"
    server = TicketServer(10, 0, 2, address, "127.0.0.1")
    code = (
        "import signal, sys; from pathlib import Path\n"
        "from batchgen.worker.queue import TicketClient\n"
        "c = TicketClient(Path(sys.argv[1])); print(len(c.take(4, bool)), flush=True)\n"
        "signal.pause()"
    )
    peer = subprocess.Popen([sys.executable, "-c", code, str(address)], stdout=subprocess.PIPE)
    assert peer.stdout is not None and peer.stdout.readline()
    survivor = TicketClient(address)
    os.kill(peer.pid, signal.SIGKILL)
    peer.wait()
    peer.stdout.close()
    assert take_all(survivor, 4)[-1] == 9
    survivor.close()
    server.close()  # returns: the dead peer's socket is closed


def test_a_dead_server_is_said_not_waited_for(tmp_path: Path) -> None:
    code = (
        "import signal, sys; from pathlib import Path\n"
        "from batchgen.worker.queue import TicketServer\n"
        "TicketServer(10, 0, 1, Path(sys.argv[1]), '127.0.0.1'); signal.pause()"
    )
    address = tmp_path / "queue.json"
    server = subprocess.Popen([sys.executable, "-c", code, str(address)])
    client = TicketClient(address)
    assert client.take(1, never)
    server.kill()
    server.wait()
    with pytest.raises(QueueLost, match=r"gone|answer"):
        client.take(1, never)
    client.close()
    with pytest.raises(QueueLost, match="no queue"):
        TicketClient(address)


def test_whoever_waits_for_a_server_that_is_stuck_hears_the_signal(tmp_path: Path) -> None:
    address = tmp_path / "queue.json"
    with socket.create_server(("127.0.0.1", 0)) as stuck:  # nobody accepts
        port = stuck.getsockname()[1]
        address.write_text(json.dumps({"host": "127.0.0.1", "port": port, "token": "t"}))
        client = TicketClient(address)
        asked: list[float] = []

        def stop() -> bool:
            asked.append(time.monotonic())
            return len(asked) > 2

        assert not client.take(1, stop)
        assert len(asked) == 3 and asked[2] - asked[0] < 5
        client.close()


def test_whoever_cannot_connect_hears_the_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that drops what it gets: nothing comes back for minutes."""
    monkeypatch.setattr(module, "CONNECT_S", 0.2)
    address = tmp_path / "queue.json"
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        socket.create_connection(full.getsockname()),  # nobody else gets in
    ):
        host, port = full.getsockname()
        address.write_text(json.dumps({"host": host, "port": port, "token": "t"}))
        asked = iter([False, False, False, True])
        with pytest.raises(QueueLost, match="no queue"):
            TicketClient(address, stop=lambda: next(asked))
        assert not list(asked)


def test_a_missing_address_file_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(QueueLost, match="did not appear"):
        TicketClient(tmp_path / "never.json", patience_s=0.2)
    with pytest.raises(QueueLost, match="told to end"):
        TicketClient(tmp_path / "never.json", stop=lambda: True)


def test_a_server_that_dies_before_it_serves_is_not_waited_for(tmp_path: Path) -> None:
    code = (
        "import signal, sys; from pathlib import Path\n"
        "from batchgen.worker.meetings.address import announce\n"
        "announce(Path(sys.argv[1])); signal.pause()"
    )
    address = tmp_path / "queue.json"
    server = subprocess.Popen([sys.executable, "-c", code, str(address)])
    asked = 0

    def stop() -> bool:
        nonlocal asked
        if address.exists():
            asked += 1
        if asked == 3:  # it was alive until now, and waited for
            server.kill()
            server.wait()
        return False

    with pytest.raises(QueueLost, match="died before it served"):
        TicketClient(address, stop=stop)
    assert asked >= 3


def test_an_address_that_cannot_be_written_is_the_storages_fault(tmp_path: Path) -> None:
    (tmp_path / "no-folder").touch()
    address = tmp_path / "no-folder" / "queue.json"
    with pytest.raises(StorageError, match=r"queue\.json cannot be written"):
        announce(address)
    with pytest.raises(StorageError, match=r"queue\.json cannot be written"):
        TicketServer(1, 0, 1, address, "127.0.0.1")


def test_a_server_that_dies_as_it_is_told_the_token_is_said(tmp_path: Path) -> None:
    address = tmp_path / "queue.json"
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as pool:
        host, port = server.getsockname()
        token = "t" * (16 << 20)  # more than fits on the way
        address.write_text(json.dumps({"host": host, "port": port, "token": token}))
        client = pool.submit(TicketClient, address)
        connection, _ = server.accept()
        with connection:
            assert connection.recv(1) == b"t"
        with pytest.raises(QueueLost, match="no queue"):
            client.result(30)


def test_an_announced_server_is_waited_for(tmp_path: Path) -> None:
    address = tmp_path / "queue.json"
    announce(address)
    with ThreadPoolExecutor() as pool:
        looks = itertools.count()
        client = pool.submit(TicketClient, address, stop=lambda: next(looks) < 0)
        wait_for(lambda: next(looks) > 5)
        assert not client.done()
        server = TicketServer(1, 0, 1, address, "127.0.0.1")
        assert take_all(client.result(10), 4) == [0]
        client.result().close()
    server.close()
