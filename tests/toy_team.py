"""Ranks that are a team: what each does, in a module that other processes can import."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from toy_engine import Keeper, ListSource, small_spec, system, two_experts
from toy_flux import flux_spec

from batchgen.config.schema import ModelSpec, VaeConfig
from batchgen.engine.clock import Clock
from batchgen.engine.devices.device import lone_layout
from batchgen.engine.engine import Engine
from batchgen.engine.parallel.mesh import Mesh, leave
from batchgen.engine.ranks.team import Dismissed
from batchgen.errors import ReplicaFailed
from batchgen.records import RankInfo
from batchgen.worker.audit import Twins
from batchgen.worker.meetings.meeting import Meeting, following, leading
from batchgen.worker.meetings.place import RankPlace

PATIENCE_S = 20.0


def unheard(*_: object) -> None:
    return


def meeting(folder: Path, rank: int, patience_s: float = PATIENCE_S, *, size: int = 2) -> Meeting:
    """Of one replica with so many ranks."""
    info, place = RankInfo(rank, size, rank, 0, 0, f"host{rank}"), RankPlace(0, rank, size, 1)
    return Meeting(folder / "queues" / "0" / "team.json", info, place, patience_s)


def in_a_team(mesh: Mesh, folder: Path, play: Callable[..., Any], *args: Any) -> Any:
    """`play(mesh, team, *args)` on all ranks; the text of what ended it."""
    place = meeting(folder, mesh.rank, size=mesh.degrees.replica)
    try:
        if mesh.rank == 0:
            with leading(place, stop=bool, moved=unheard, signalled=unheard) as team:
                return play(mesh, team, *args)
        with following(place, moved=unheard, signalled=lambda: "") as team:
            return play(mesh, team, *args)
    except ReplicaFailed as error:
        return str(error)


def fail_before_a_collective(mesh: Mesh, team: Any, culprit: int) -> None:
    with team.together(lambda: "rows row-3, row-4"):
        if mesh.rank == culprit:
            raise MemoryError("full")
        dist.all_reduce(torch.zeros(4))


def spec_of(kind: str) -> ModelSpec:
    """A model with one expert or with two, or an image model."""
    if kind == "flux":
        return flux_spec("random")
    one = small_spec("random")
    return two_experts(one) if kind == "two experts" else one


def draw(
    mesh: Mesh, team: Any, kind: str, changes: dict[str, Any], rows: list[Any], lost: str
) -> Any:
    """Frames on the leader; of a follower, what it has loaded. `changes` are the layout's; `lost`
    fails on the follower."""
    model = spec_of(kind)
    layout = replace(lone_layout(model, system(), torch.device("cpu")), **changes)
    leave()  # the engine's ranks meet by themselves
    engine = Engine.load(model, system(), "cpu", layout=layout, team=team)
    family = engine.family
    if not team.leads:
        schedule = family.schedule

        def without_one(row: Any) -> Any:
            if row.row_id == lost:
                raise MemoryError("on this rank")
            return schedule(row)

        family.schedule = without_one  # type: ignore[method-assign]
        loaded = sorted(family.modules)
        try:
            engine.follow()
        except Dismissed:
            return loaded
    keeper = Keeper()
    for some in (rows[:3], rows[3:]):
        engine.render(ListSource(some), keeper)
    return keeper.frames, {name: str(error) for name, error in keeper.errors.items()}


def draw_with_noise(
    mesh: Mesh, team: Any, kind: str, changes: dict[str, Any], rows: list[Any]
) -> tuple[int, dict[str, float]]:
    """How often this rank ran the model, where each velocity of a follower is off by a little, each
    time and on each rank by something else; on the leader also what was computed of each row."""
    model = spec_of(kind)
    layout = replace(lone_layout(model, system(), torch.device("cpu")), **changes)
    leave()
    engine, calls = Engine.load(model, system(), "cpu", layout=layout, team=team), 0
    torch.manual_seed(mesh.rank)
    forward = engine.family.forward

    def noisy(items: Any) -> Any:
        nonlocal calls
        calls += items[0].request.row_id != "self-test"  # which the leader alone makes
        velocities = forward(items)
        if team.leads:
            return velocities
        return [velocity + 0.1 * torch.randn_like(velocity) for velocity in velocities]

    engine.family.forward = noisy  # type: ignore[method-assign]
    keeper = Keeper()
    if team.leads:
        engine.render(ListSource(rows), keeper)
        assert not keeper.errors
    else:
        with suppress(Dismissed):
            engine.follow()
    return calls, {name: stats.steps_computed for name, stats in keeper.stats.items()}


def audit_all(engine: Engine, rows: list[Any]) -> dict[str, tuple[Any, float, float, float | None]]:
    """Of each row its frames, the evaluations of it and of its twin without a cache, and the PSNR
    between them."""
    keeper = Keeper()
    twins = Twins(ListSource(rows), keeper, 1, clock := Clock())
    engine.render(twins, twins, clock=clock)
    twins.settle()
    assert not keeper.errors
    found = {}
    for name, frames in keeper.frames.items():
        stats = keeper.stats[name]
        assert stats.audit is not None
        found[name] = frames, stats.steps_computed, stats.audit.steps, stats.audit.psnr
    return found


def draw_short(mesh: Mesh, team: Any, changes: dict[str, Any], rows: list[Any]) -> Any:
    """Frames on the leader, whose device decodes nothing beside the transformer; and its rung."""
    model = spec_of("one expert")
    layout = replace(lone_layout(model, system(), torch.device("cpu")), **changes)
    leave()
    engine = Engine.load(model, system(), "cpu", layout=layout, team=team)
    if not team.leads:
        with suppress(Dismissed):
            engine.follow()
        return engine.replica.residency.plan.resident
    family: Any = engine.family
    decode, residency = family.decode, engine.replica.residency

    def short(latents: Any, bucket: Any) -> Any:
        if "transformer" in residency.inside:
            raise torch.OutOfMemoryError("beside the transformer")
        return decode(latents, bucket)

    family.decode = short
    keeper = Keeper()
    engine.render(ListSource(rows), keeper)
    assert not keeper.errors
    return keeper.frames, engine.replica.ladder.rung


def draw_tiled(
    mesh: Mesh, team: Any, kind: str, changes: dict[str, Any], rows: list[Any], tiles: VaeConfig
) -> Any:
    """Frames, stats and errors on the leader, in two renders; of each rank what it has loaded, the
    bytes of pixels that it has sent, and its seconds."""
    model = spec_of(kind)
    layout = replace(lone_layout(model, system(), torch.device("cpu")), **changes)
    leave()
    engine = Engine.load(model, system(vae=tiles), "cpu", layout=layout, team=team)
    keeper, clock = Keeper(), Clock()
    if team.leads:
        for some in (rows[:2], rows[2:]):
            engine.render(ListSource(some), keeper, clock=clock)
    else:
        with suppress(Dismissed):
            engine.follow(clock=clock)
    split = engine.replica.split
    assert split is not None
    sent = split.mesh.wire.sent["all-to-all over tiles"]
    here = sorted(engine.family.modules), sent, clock.read()
    return keeper.frames, keeper.errors, keeper.stats, *here


def draw_audited(mesh: Mesh, team: Any, changes: dict[str, Any], rows: list[Any]) -> Any:
    """`audit_all` on the leader."""
    model = spec_of("one expert")
    layout = replace(lone_layout(model, system(), torch.device("cpu")), **changes)
    leave()
    engine = Engine.load(model, system(), "cpu", layout=layout, team=team)
    if team.leads:
        return audit_all(engine, rows)
    with suppress(Dismissed):
        engine.follow()
    return None
