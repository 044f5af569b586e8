"""The ranks of a replica: what the leader says reaches all, and whoever is missed is named."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks
from toy_engine import Keeper, ListSource, request, small_spec, system
from toy_team import PATIENCE_S, draw, fail_before_a_collective, in_a_team, meeting, unheard
from waiting import wait_for

from batchgen.config.degrees import Degrees
from batchgen.engine.engine import Engine
from batchgen.engine.orders import Orders
from batchgen.engine.peer import Peer
from batchgen.engine.prompts import EncodedRow
from batchgen.engine.team import Dismissed, Follower, Leader, uneven
from batchgen.errors import PromptTooLong, ReplicaFailed
from batchgen.worker.meeting import following, leading

Pair = Callable[..., tuple[Leader, Follower]]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Makes a leader and a follower with a connection between them; both tell `moved`."""
    made: list[Leader | Follower] = []

    def make(
        patience_s: float = PATIENCE_S,
        moved: Callable[[], object] = unheard,
        told: Callable[[str], object] = unheard,
        signal: Callable[[], str] = lambda: "",
    ) -> tuple[Leader, Follower]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname())
            theirs, _ = server.accept()
        common: dict[str, Any] = {"address": "127.0.0.1", "patience_s": patience_s, "moved": moved}
        leader = Leader([Peer(ours, "rank 1 of 2 on b", patience_s)], host="a", told=told, **common)
        peer = Peer(theirs, "rank 0 of 2 on a", patience_s)
        follower = Follower(1, 2, peer, host="b", told=signal, **common)
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
    leader.share(Orders(use=("transformer",), packs=(((0, 1),),)))
    assert leader.result(lambda: rows) is rows
    orders = follower.share(None)
    assert (orders.use, orders.packs, orders.over) == (("transformer",), (((0, 1),),), False)
    first, second = follower.result(lambda: pytest.fail("the leader's work alone"))
    assert first.request == rows[0].request
    for found, sent in zip(first.conditions[0], condition, strict=True):
        assert found.dtype == sent.dtype and torch.equal(found, sent)
    assert "PromptTooLong: 9 tokens" in str(second.error)


def test_reports_and_signals_of_followers_reach_the_leader(pair: Pair) -> None:
    heard: list[str] = []
    leader, follower = pair(told=heard.append, signal=lambda: "SIGUSR2")
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
    return leading(meeting(folder, 0, patience_s), stop=stop, moved=unheard, told=unheard)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path


def test_ranks_meet_whatever_strangers_come(folder: Path) -> None:
    def follow() -> None:
        place = meeting(folder, 1)
        with following(place, moved=unheard, told=lambda: "") as team:
            assert team.share(None).over
            team.share(None)  # is dismissed

    def stranger() -> None:
        file = meeting(folder, 1).file
        wait_for(file.exists)
        address = json.loads(file.read_text())
        with socket.create_connection((address["host"], address["port"])) as connection:
            connection.sendall(b"token 1 host\n")

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
    never = following(meeting(folder, 1, 0.3), moved=unheard, told=lambda: "")
    with pytest.raises(ReplicaFailed, match="leader of replica 0"), never:
        pytest.fail("there is no team")


# ----------------------------------------------------------------------------------- two processes
@pytest.mark.parametrize("culprit", [0, 1])
def test_an_error_before_a_collective_is_the_error_that_is_told(
    ranks: Ranks, tmp_path: Path, culprit: int
) -> None:
    told = ranks.run(Degrees(cfg=2), in_a_team, tmp_path, fail_before_a_collective, culprit)
    expected = f"rank {culprit} of 2 on host{culprit}, rows row-3, row-4, outside a collective"
    assert expected in told[0] and "MemoryError: full" in told[0]


@pytest.mark.parametrize("axis", ["cfg", "ulysses"])
def test_two_ranks_draw_what_one_draws_and_lose_a_row_together(
    ranks: Ranks, tmp_path: Path, axis: str
) -> None:
    """Two renders; the second has a row that one of the ranks alone cannot open."""
    rows = [request(i, num_steps=2 + i % 2, guidance_scale=1.0 + i % 2) for i in range(6)]
    (frames, errors), loaded = ranks.run(
        Degrees(cfg=2), in_a_team, tmp_path, draw, {axis: 2}, rows, "row-4"
    )
    assert loaded == ["transformer"]
    assert set(errors) == {"row-4"} and "MemoryError: on this rank" in errors["row-4"]
    alone = Keeper()
    Engine.load(small_spec("random"), system(), "cpu").render(ListSource(rows), alone)
    assert set(frames) == set(alone.frames) - {"row-4"}
    for name, drawn in frames.items():
        assert (drawn == alone.frames[name]).all(), name
