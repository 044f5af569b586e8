"""Orders say everything: whoever applies them, with neither source nor sink, has the same rows."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from quick_cases import first_quick
from toy_engine import Keeper, ListSource, request, small_spec, system, two_experts

from batchgen.config.schema import ModelSpec
from batchgen.engine.clock import Clock
from batchgen.engine.contract import unheard
from batchgen.engine.engine import Engine
from batchgen.engine.ranks.orders import Orders
from batchgen.engine.ranks.team import Alone
from batchgen.engine.rows.flight import Flight, RowState
from batchgen.request import Request


class Telling(Alone):
    """Writes down what goes to the others of a team."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def share(self, orders: Orders | None) -> Orders:
        self.sent.append(pickle.dumps(orders))
        return super().share(orders)


def lead(model: ModelSpec, rows: list[Request], source: Any, **changes: Any) -> Telling:
    """Render, and return the orders."""
    engine, team = Engine.load(model, system(**changes), "cpu"), Telling()
    engine = Engine(replace(engine.replica, team=team))
    engine.render(source, Keeper())
    return team


def follow(model: ModelSpec, team: Telling, **changes: Any) -> dict[str, RowState | Exception]:
    """What another rank makes of them."""
    replica = Engine.load(model, system(**changes), "cpu").replica
    flight, found = Flight(replica, Clock(), unheard), dict[str, RowState | Exception]()
    *orders, last = [pickle.loads(message) for message in team.sent]
    assert last.over and not any(message.over for message in orders)
    with torch.no_grad():
        for message in orders:
            outcome = flight.apply(message)
            found |= {state.request.row_id: state for state in outcome.done}
            found |= {row.row_id: error for row, _, error in outcome.failed}
    assert not flight.rows and not flight.waiting
    return found


@pytest.mark.parametrize(
    ("mode", "experts"),
    first_quick([("resident", 1), ("model", 2), ("resident", 2), ("model", 1)], 2),
)
def test_another_rank_that_applies_the_orders_has_the_same_rows(
    one_thread: None, mode: str, experts: int
) -> None:
    """Rows that join late, one that goes on from a snapshot, some that fail at every stage."""
    model = small_spec("random") if experts == 1 else two_experts(small_spec("random"))
    config = {"memory": {"mode": mode}, "batch": {"max_rows_in_flight": 3, "window": 4}}
    rows = [request(i, num_steps=2 + i % 4, sigma_shift=6.0) for i in range(7)]
    rows += [request(7, solver="heun"), request(8, width=16 * 65, height=16, num_frames=1)]
    engine, first, asked = Engine.load(model, system(**config), "cpu"), Keeper(), iter(range(9))
    engine.render(ListSource([rows[3]]), first, stop=lambda: next(asked) >= 2)
    assert first.states["row-3"].step == 2

    class Source(ListSource):
        def restore(self, row: Request) -> Any:
            if row.row_id == "row-5":
                raise OSError("its state cannot be read")
            return super().restore(row)

    team = lead(model, rows, Source(rows, first.states), **config)
    found = follow(model, team, **config)
    plain = Keeper()
    engine = Engine.load(model, system(**config), "cpu")
    latents: dict[str, torch.Tensor] = {}
    leave = Flight.apply

    def watched(flight: Flight, orders: Orders) -> Any:
        outcome = leave(flight, orders)
        latents.update({state.request.row_id: state.latents for state in outcome.done})
        return outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flight, "apply", watched)
        engine.render(ListSource([row for row in rows if row.row_id != "row-5"]), plain)
    assert set(found) == {row.row_id for row in rows} - {"row-5"}  # dropped before it joined
    for name, state in found.items():
        if isinstance(state, RowState):
            assert torch.equal(state.latents, latents[name]), name
    errors = {name: type(error).__name__ for name, error in found.items() if name not in latents}
    assert errors == {name: type(error).__name__ for name, error in plain.errors.items()}
    assert set(errors) == {"row-7", "row-8"}
