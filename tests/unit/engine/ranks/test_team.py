"""The ranks of a replica: what the leader says reaches all, and whoever is missed is named."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from own_number import own_number
from quick_cases import first_quick
from ranks import Ranks
from toy_engine import Keeper, ListSource, request, system
from toy_team import (
    PATIENCE_S,
    draw,
    draw_short,
    draw_tiled,
    fail_before_a_collective,
    in_a_team,
    meeting,
    spec_of,
    unheard,
)
from waiting import wait_for

import batchgen.worker.meetings.meeting
from batchgen.config.capability import served_by
from batchgen.config.degrees import Degrees
from batchgen.config.schema import VaeConfig
from batchgen.engine.encoding.prompts import EncodedRow
from batchgen.engine.engine import Engine
from batchgen.engine.parallel.meet import interface_of
from batchgen.engine.ranks.orders import Orders, Pack
from batchgen.engine.ranks.peer import Peer
from batchgen.engine.ranks.team import Dismissed, Follower, Leader, uneven
from batchgen.errors import PromptTooLong, ReplicaFailed
from batchgen.worker.meetings.address import Address, listen, publish
from batchgen.worker.meetings.meeting import following, leading

Pair = Callable[..., tuple[Leader, Follower]]


def connected() -> tuple[socket.socket, socket.socket]:
    """The two ends of a connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    return ours, theirs


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Makes a leader and a follower with a connection between them; both tell `moved`."""
    made: list[Leader | Follower] = []

    def make(
        patience_s: float = PATIENCE_S,
        moved: Callable[[], object] = unheard,
        signalled: Callable[[str], object] = unheard,
        signal: Callable[[], str] = lambda: "",
    ) -> tuple[Leader, Follower]:
        ours, theirs = connected()
        common: dict[str, Any] = {"patience_s": patience_s, "moved": moved}
        leader = Leader(
            [Peer(ours, "rank 1 of 2 on b", patience_s)], host="a", signalled=signalled, **common
        )
        peer = Peer(theirs, "rank 0 of 2 on a", patience_s)
        follower = Follower(1, 2, peer, host="b", signalled=signal, **common)
        made.extend((leader, follower))
        return leader, follower

    yield make
    for each in made:
        each.close()


# ------------------------------------------------------------------------------------- what is said


def test_what_the_leader_shares_is_what_followers_get(pair: Pair) -> None:
    leader, follower = pair()
    condition = (torch.randn(1, 3, 4).bfloat16(), torch.arange(6).view(2, 3)[:, ::2])
    rows = [
        EncodedRow(request(0), (condition,), 3, False, 0.1),
        EncodedRow(request(1), (), 0, False, 0.1, PromptTooLong("9 tokens")),
    ]
    leader.share(Orders(use=("transformer",), packs=(Pack(((0, 1),)),)))
    assert leader.result(lambda: rows) is rows
    orders = follower.share(None)
    assert (orders.use, orders.packs, orders.over) == (("transformer",), (Pack(((0, 1),)),), False)
    first, second = follower.result(lambda: pytest.fail("the leader's work alone"))
    assert first.request == rows[0].request
    for found, sent in zip(first.conditions[0], condition, strict=True):
        assert found.dtype == sent.dtype and torch.equal(found, sent)
    assert "PromptTooLong: 9 tokens" in str(second.error)


def test_reports_and_signals_of_followers_reach_the_leader(pair: Pair) -> None:
    heard: list[str] = []
    leader, follower = pair(signalled=heard.append, signal=lambda: "SIGUSR2")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(follower.share, None)  # says what it was told as it waits
        follower_lost = ((4, "MemoryError: of this rank"),)
        while not heard:
            leader.listen()
        leader.share(Orders(over=True))
        assert waiting.result(PATIENCE_S).over
    follower.reports(follower_lost)
    assert leader.reports(()) == [follower_lost]
    assert heard == ["SIGUSR2"]


def test_rows_that_only_some_ranks_lost_are_uneven() -> None:
    both, one, other = (1, "both"), (2, "here"), (3, "there")
    assert uneven([(both, one), (both, other)]) == {2: "here", 3: "there"}
    assert uneven([(both,), (both,)]) == {}


# ----------------------------------------------------------------------------------- who is missed
def test_a_rank_that_is_gone_is_named_with_the_rows(pair: Pair) -> None:
    leader, follower = pair()
    with leader.together(lambda: "rows row-1, row-2"):
        pass
    follower.close()
    with pytest.raises(ReplicaFailed, match=r"rank 1 of 2 on b is gone.*row-1, row-2"):
        leader.reports(())


def test_a_follower_whose_leader_is_gone_ends(pair: Pair) -> None:
    leader, follower = pair()
    leader.close()
    with pytest.raises(ReplicaFailed, match="rank 0 of 2 on a is gone"):
        follower.share(None)


def test_silence_is_waited_for_so_long_and_beats_are_no_silence(pair: Pair) -> None:
    kicks: list[float] = []
    leader, follower = pair(patience_s=1.0, moved=lambda: kicks.append(time.monotonic()))
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(follower.share, None)
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            leader._beaten = 0.0  # more often than in earnest
            leader.beat()
            time.sleep(0.02)
        assert not waiting.done() and kicks
        with pytest.raises(ReplicaFailed, match="rank 0 of 2 on a says nothing"):
            waiting.result(PATIENCE_S)
        with pytest.raises(ReplicaFailed, match=r"rank 1 of 2 on b.*says nothing"):
            leader.reports(())


def test_a_rank_that_takes_nothing_in_is_given_up_for_good(pair: Pair) -> None:
    """Nothing more is sent behind half a message, and whoever reads it does not wait for the
    rest."""
    leader, follower = pair(patience_s=0.5)
    with pytest.raises(ReplicaFailed, match=r"rank 1 of 2 on b takes nothing in") as failed:
        leader.result(lambda: bytes(64 << 20))  # more than a connection holds
    leader.fail(failed.value)
    with pytest.raises(ReplicaFailed, match="rank 0 of 2 on a is gone"):
        follower.share(None)


def test_a_leader_that_waits_for_one_rank_hears_that_another_failed() -> None:
    ends = [connected() for _ in range(2)]
    peers = [Peer(ours, f"rank {n} of 3", PATIENCE_S) for n, (ours, _) in enumerate(ends, 1)]
    common: dict[str, Any] = {"patience_s": PATIENCE_S, "moved": unheard}
    leader = Leader(peers, host="a", signalled=unheard, **common)
    other = Follower(
        2, 3, Peer(ends[1][1], "rank 0", PATIENCE_S), host="c", signalled=str, **common
    )
    other.fail(MemoryError("full"))
    with pytest.raises(ReplicaFailed, match=r"rank 2 of 3 on c.*MemoryError: full"):
        leader.reports(())
    for team in (leader, other):
        team.close()
    ends[0][1].close()


def test_a_dismissed_follower_and_one_whose_leader_fails_know_it(pair: Pair) -> None:
    leader, follower = pair()
    leader.dismiss()
    with pytest.raises(Dismissed):
        follower.share(None)
    leader, follower = pair()
    leader.fail(ValueError("a reason"))
    with pytest.raises(ReplicaFailed, match=r"rank 0 of 2 on a.*ValueError: a reason"):
        follower.share(None)


def test_the_leader_says_what_a_follower_met(pair: Pair) -> None:
    leader, follower = pair()
    with pytest.raises(ReplicaFailed), follower.together(lambda: "row row-7"):
        raise MemoryError("full")
    follower.fail(ReplicaFailed("said already"))
    with pytest.raises(ReplicaFailed, match=r"rank 1 of 2 on b, row row-7.*MemoryError: full"):
        leader.listen()


# ------------------------------------------------------------------------------------- the meeting
def lead(folder: Path, patience_s: float = PATIENCE_S, stop: Callable[[], bool] = bool) -> Any:
    return leading(meeting(folder, 0, patience_s), stop=stop, moved=unheard, signalled=unheard)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path


def test_ranks_meet_whatever_strangers_come(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batchgen.worker.meetings.meeting, "HELLO_S", 1.0)
    kicks: list[str] = []

    def follow() -> None:
        place = meeting(folder, 1)
        with following(place, moved=lambda: kicks.append("follower"), signalled=lambda: "") as team:
            assert kicks  # it may have waited long
            assert team.share(None).over
            team.share(None)  # is dismissed

    def stranger() -> None:
        file = meeting(folder, 1).file
        wait_for(file.exists)
        address = json.loads(file.read_text())
        for said in (b"token 1 host\n", f"{address['token']} 2 host\n".encode()):
            with socket.create_connection((address["host"], address["port"])) as connection:
                connection.sendall(said)
        slow = socket.create_connection((address["host"], address["port"]))
        with slow, suppress(OSError):  # is turned away
            while True:
                slow.sendall(b"x")
                time.sleep(0.05)

    with ThreadPoolExecutor() as pool:
        foreign = pool.submit(stranger)
        other = pool.submit(lambda: (foreign.result(PATIENCE_S), follow()))
        with lead(folder) as team:
            assert team is not None and team.size == 2
            team.share(Orders(over=True))
        other.result(PATIENCE_S)


def test_a_follower_that_never_comes_is_given_up_in_time(folder: Path) -> None:
    with pytest.raises(ReplicaFailed, match="no rank 1 came"), lead(folder, patience_s=0.3):
        pytest.fail("there is no team")
    with lead(folder, stop=lambda: True) as team:
        assert team is None


def test_a_leader_that_never_comes_is_given_up_in_time(folder: Path) -> None:
    never = following(meeting(folder, 1, 0.3), moved=unheard, signalled=lambda: "")
    with pytest.raises(ReplicaFailed, match="leader of replica 0"), never:
        pytest.fail("there is no team")


def test_a_leader_that_is_gone_when_a_rank_comes_is_named(folder: Path) -> None:
    place = meeting(folder, 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    place.file.parent.parent.mkdir()
    publish(place.file, Address("127.0.0.1", port, "token"))
    late = following(place, moved=unheard, signalled=lambda: "")
    named = f"replica 0 on 127.0.0.1, port {port}: .*refused"
    with pytest.raises(ReplicaFailed, match=named), late:
        pytest.fail("there is no team")


def test_a_leader_whose_address_is_not_its_own_says_so(folder: Path) -> None:
    place = meeting(folder, 0)
    elsewhere = replace(place, info=replace(place.info, address="240.0.0.1"))
    never = leading(elsewhere, stop=bool, moved=unheard, signalled=unheard)
    with pytest.raises(ReplicaFailed, match=r"the leader cannot listen on 240\.0\.0\.1"), never:
        pytest.fail("there is no team")


def test_a_name_that_means_another_number_elsewhere_is_served_on_all() -> None:
    with listen("localhost", 1) as server:
        assert server.getsockname()[0] in ("0.0.0.0", "::")
    with listen("127.0.0.1", 1) as server:
        assert server.getsockname()[0] == "127.0.0.1"


def test_the_network_to_compute_on_is_the_one_where_ranks_have_met() -> None:
    own = own_number()
    names = {name for _, name in socket.if_nameindex()}
    assert (interface_of(own) in names) if own else True
    assert interface_of("127.0.0.1") == interface_of("240.0.0.1") == ""


# ----------------------------------------------------------------------------------- two processes
@pytest.mark.parametrize("culprit", [0, 1])
def test_an_error_before_a_collective_is_the_error_that_is_told(
    ranks: Ranks, tmp_path: Path, culprit: int
) -> None:
    told = ranks.run(Degrees(cfg=2), in_a_team, tmp_path, fail_before_a_collective, culprit)
    expected = f"rank {culprit} of 2 on host{culprit}, rows row-3, row-4, outside a collective"
    assert expected in told[0] and "MemoryError: full" in told[0]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("one expert", {"cfg": 2}),
        ("one expert", {"ulysses": 2}),
        ("one expert", {"ulysses": 2, "memory": "model"}),
        ("two experts", {"cfg": 2}),
        ("two experts", {"ulysses": 2, "memory": "model"}),
        ("one expert", {"ulysses": 2, "memory": "stream"}),
        ("two experts", {"cfg": 2, "memory": "stream"}),
    ],
    ids=str,
)
def test_two_ranks_draw_what_one_draws_and_lose_a_row_together(
    ranks: Ranks, tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    """Two renders of rows with and without guidance, of two shapes; the second has a row that one
    of the ranks alone cannot open. Where components take turns, followers have no texts to encode
    and nothing to decode."""
    rows = [
        request(i, num_steps=2 + i % 2, guidance_scale=1.0 + i % 2, num_frames=5 - 4 * (i % 3 == 2))
        for i in range(6)
    ]
    (frames, errors), loaded = ranks.run(
        Degrees(cfg=2), in_a_team, tmp_path, draw, kind, changes, rows, "row-4"
    )
    assert loaded == ["transformer", "transformer_2"][: 1 + (kind == "two experts")]
    assert set(errors) == {"row-4"} and "MemoryError: on this rank" in errors["row-4"]
    alone = Keeper()
    Engine.load(spec_of(kind), system(), "cpu").render(ListSource(rows), alone)
    assert set(frames) == set(alone.frames) - {"row-4"}
    for name, drawn in frames.items():
        assert (drawn == alone.frames[name]).all(), name


def test_a_leader_that_is_short_of_memory_where_it_works_alone_climbs_alone(
    ranks: Ranks, tmp_path: Path
) -> None:
    """It decodes with the transformer out; what the ranks share goes on as before."""
    rows = [request(i, num_steps=2 + i % 2) for i in range(4)]
    (frames, rung), follower_is_resident = ranks.run(
        Degrees(ulysses=2), in_a_team, tmp_path, draw_short, {"ulysses": 2}, rows
    )
    assert rung == "model" and follower_is_resident
    alone = Keeper()
    Engine.load(spec_of("one expert"), system(), "cpu").render(ListSource(rows), alone)
    assert frames.keys() == alone.frames.keys()
    for name, drawn in frames.items():
        assert (drawn == alone.frames[name]).all(), name


@pytest.mark.parametrize(
    "changes",
    first_quick(
        [{"ulysses": 2}, {"cfg": 2, "memory": "model"}, {"ulysses": 2, "memory": "stream"}], 1
    ),
    ids=str,
)
def test_ranks_that_share_the_tiles_of_a_decode_draw_what_one_draws(
    ranks: Ranks, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Rows of three tiles, and one of a single one, which the leader decodes alone; one of them
    comes to nothing finite."""
    shape = {"width": 48, "height": 160, "num_frames": 5, "num_steps": 1}
    rows = [request(i, **(shape if i else {})) for i in range(3)]
    rows.append(request(3, **shape | {"num_steps": 2}, guidance_scale=3e38))
    spec = spec_of("one expert")
    cut = served_by(spec).tiles
    assert cut is not None
    tiles = cut.resolved(VaeConfig(tiled=True, stride=64))
    found = ranks.run(
        Degrees(cfg=2), in_a_team, tmp_path, draw_tiled, "one expert", changes, rows, tiles
    )
    (frames, errors, stats, _, _, spent), (_, _, _, loaded, sent, helped) = found
    assert loaded == ["transformer", "vae"]
    pixel = 3 * 4 * shape["num_frames"] * shape["width"]
    assert sent == 2 * pixel * (160 - 48)  # two tiles of each of two rows
    alone = Keeper()
    engine = Engine.load(spec, system(vae=tiles), "cpu")
    engine.render(ListSource(rows), alone)
    assert frames.keys() == alone.frames.keys() == {"row-0", "row-1", "row-2"}
    assert errors.keys() == alone.errors.keys() == {"row-3"}
    for name, drawn in frames.items():
        assert (drawn == alone.frames[name]).all(), name
        assert stats[name].stages.decode > 0
    shared = sum(stats[f"row-{n}"].stages.decode for n in (1, 2))
    assert 0 < spent.shared_decode <= shared
    assert helped.shared_decode > shared / 2  # and no waiting: both have tiles all the while
    rows_busy = sum(each.stages.encode + each.stages.denoise for each in stats.values())
    assert spent.busy == pytest.approx(rows_busy, rel=0.05, abs=0.02)
