"""Out of device memory at encoding, loading, in forwards and in decodes: what a replica then does,
and that no bit of a row depends on it."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from toy_engine import PACKED, Keeper, ListSource, draw, request, small_spec, system, two_experts
from toy_flux import flux_spec, save_flux

from batchgen import failpoints
from batchgen.config.schema import ModelSpec
from batchgen.engine.contract import Ascent
from batchgen.engine.devices.device import lone_layout
from batchgen.engine.engine import Engine
from batchgen.engine.fitting.lockstep import Lockstep
from batchgen.engine.isolation import Failed, attempt
from batchgen.engine.memory.stream import tensors_of
from batchgen.errors import OutOfMemory
from batchgen.records import Climb
from batchgen.request import Request

CPU = torch.device("cpu")
MANY = 1 << 40  # bytes: no device of these tests has as many


class SmallDevice:
    """Raises what torch does when weights on the device and what a piece of work takes beside them
    are more than its room. `takes`: bytes of each item in the stages that are watched; the row
    `hungry` takes them all."""

    def __init__(
        self, engine: Engine, room: int, takes: Mapping[str, int], hungry: str = ""
    ) -> None:
        self.engine, self.room, self.takes, self.hungry = engine, room, takes, hungry
        self.asked: list[tuple[str, int, bool]] = []  # stage, items, and whether there was room
        family: Any = engine.family
        self._watch(family, "forward", "denoise", lambda items: [i.request.row_id for i in items])
        self._watch(family, "encode", "encode", lambda tokens: [""])
        self._watch(family, "decode", "decode", lambda latents, bucket: [""])

    def _watch(self, family: Any, name: str, stage: str, rows: Callable[..., list[str]]) -> None:
        work = getattr(family, name)

        def watched(*args: Any) -> Any:
            names = rows(*args)
            if "self-test" in names:
                return work(*args)
            needs = self.takes.get(stage, -MANY) * len(names)
            needs += MANY if self.hungry and self.hungry in names else 0
            fits = self.engine.replica.residency.gauge.inside + needs <= self.room
            self.asked.append((stage, len(names), fits))
            if not fits:
                raise torch.OutOfMemoryError(f"tried to allocate {needs} bytes")
            return work(*args)

        setattr(family, name, watched)

    def sizes(self, stage: str) -> list[int]:
        """Items of its pieces of work, one by one, that found room."""
        return [items for at, items, fits in self.asked if at == stage and fits]


def rows(name: str = "wan", count: int = 4, **changes: Any) -> list[Request]:
    flux = {"true_cfg_scale": 3.0, "solver": "euler", "sigma_shift": 1.0}
    more = PACKED | (flux if name == "flux" else {}) | changes
    return [request(i, num_steps=2 + i % 2, **more) for i in range(count)]


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSpec]:
    flux = flux_spec(heads=4)
    folder = save_flux(tmp_path_factory.mktemp("flux"), flux)
    wan = small_spec()
    return {"wan": wan, "wan22": two_experts(wan), "flux": replace(flux, weights=str(folder))}


@pytest.fixture(scope="module")
def plain(specs: dict[str, ModelSpec], one_thread: None) -> dict[str, Keeper]:
    """What a device with room draws."""
    return {name: draw(load(spec), rows(name)) for name, spec in specs.items()}


def load(spec: ModelSpec, climbs: list[Climb] | None = None, **changes: Any) -> Engine:
    """An engine that notes its climbs."""
    before = changes.pop("before", ())
    ascent = Ascent(before, [].append if climbs is None else climbs.append)
    overlap = changes.pop("overlap", True)
    return Engine.load(spec, system(**changes), "cpu", ascent=ascent, overlap=overlap)


def render(engine: Engine, some: Sequence[Request]) -> Keeper:
    keeper = Keeper()
    keeper.report = engine.render(ListSource(some), keeper)
    return keeper


def weights(engine: Engine, *parts: str) -> int:
    """Bytes of some components."""
    modules = engine.family.modules
    return sum(t.nbytes for p in parts for t in (*modules[p].parameters(), *modules[p].buffers()))


def alone(engine: Engine, expert: str) -> int:
    """Bytes of a transformer on the device, where tables stand in for some of its weights."""
    away = engine.replica.recall.weights(engine.family, [expert])
    return weights(engine, expert) - sum(t.nbytes for m in away for t in tensors_of(m))


def forget_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failpoints count from here."""
    monkeypatch.setattr(failpoints, "_passes", Counter())


def assert_same(drawn: Keeper, there: Keeper, but: Sequence[str] = ()) -> None:
    assert drawn.errors.keys() == {*but}
    assert drawn.frames.keys() == there.frames.keys() - {*but}
    for name, frames in drawn.frames.items():
        assert np.array_equal(frames, there.frames[name]), name


def rungs(keeper: Keeper) -> set[str]:
    return {stats.memory_rung for stats in keeper.stats.values()}


def test_a_device_with_room_is_on_no_rung(plain: dict[str, Keeper]) -> None:
    assert rungs(plain["wan"]) == {""} and plain["wan"].report.memory_rung == ""


# ----------------------------------------------------------------------------------------- forwards
def test_room_that_comes_back_needs_no_climb(
    specs: dict[str, ModelSpec], plain: dict[str, Keeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of decoders at work beside it, or of what torch keeps."""
    engine = load(specs["wan"], climbs := [])
    forget_passes(monkeypatch)
    monkeypatch.setenv("BATCHGEN_FAILPOINT", "memory.denoise:2:oom,memory.decode:3:oom")
    drawn = render(engine, rows())
    assert_same(drawn, plain["wan"])
    assert climbs == [] and drawn.report.memory_rung == "free"


def test_a_pack_is_halved_until_it_fits(
    specs: dict[str, ModelSpec], plain: dict[str, Keeper]
) -> None:
    engine = load(specs["wan"], climbs := [])
    whole = engine.replica.residency.gauge.inside
    device = SmallDevice(engine, whole + 1000, {"denoise": 400})
    drawn = render(engine, rows())
    assert_same(drawn, plain["wan"])
    assert climbs == [Climb("smaller", "denoise", "64x64x1", n) for n in (4, 2)]
    assert max(device.sizes("denoise")) == 2
    assert engine.replica.residency.plan.resident
    assert rungs(drawn) == {"smaller"} == {drawn.report.memory_rung}
    again = render(engine, rows())  # siblings start there
    assert_same(again, plain["wan"])
    assert len(climbs) == 2


@pytest.mark.parametrize("name", ["wan", "wan22", "flux"])
@pytest.mark.parametrize("overlap", [True, False])
def test_components_leave_for_the_forward_of_one_item(
    specs: dict[str, ModelSpec], plain: dict[str, Keeper], name: str, overlap: bool
) -> None:
    """With two experts, rows of both may be in flight: each forward finds its own."""
    engine = load(specs[name], climbs := [], overlap=overlap)
    experts = engine.replica.residency.plan.experts
    device = SmallDevice(engine, alone(engine, experts[0]) + 1000, {"denoise": 900})
    drawn = render(engine, rows(name))
    assert_same(drawn, plain[name])
    halved = [Climb("smaller", "denoise", climbs[0].bucket, n) for n in (4, 2, 1)]
    # larger ones are tried once more, those that wait in the pack first
    assert climbs == [*halved, Climb("model", "denoise"), halved[-1]]
    assert {*device.sizes("denoise")} == {1}
    assert not engine.replica.residency.plan.resident
    assert rungs(drawn) == {"model"}


def test_packs_are_whole_again_once_weights_have_left(
    specs: dict[str, ModelSpec], plain: dict[str, Keeper]
) -> None:
    """Where not even one item had room beside them; and so they are in later attempts."""
    engine = load(specs["wan"], climbs := [])
    device = SmallDevice(engine, engine.replica.residency.gauge.inside + 500, {"denoise": 900})
    drawn = render(engine, rows())
    assert_same(drawn, plain["wan"])
    tried = [Climb("smaller", "denoise", "64x64x1", n) for n in (4, 2, 1)]
    assert climbs == [*tried, Climb("model", "denoise")]
    assert max(device.sizes("denoise")) == 8
    later = load(specs["wan"], climbs := [], before=(*tried, Climb("model", "denoise")))
    device = SmallDevice(later, MANY, {})
    assert_same(render(later, rows()), plain["wan"])
    assert max(device.sizes("denoise")) == 8 and climbs == []


@pytest.mark.parametrize("name", ["wan", "wan22", "flux"])
def test_blocks_stream_for_the_forward_of_one_item(
    specs: dict[str, ModelSpec], plain: dict[str, Keeper], name: str
) -> None:
    engine = load(specs[name], climbs := [], memory={"prefetch": 0})
    experts = engine.replica.residency.plan.experts
    SmallDevice(engine, alone(engine, experts[0]) - 1000, {"denoise": 900})
    drawn = render(engine, rows(name))
    assert_same(drawn, plain[name])
    assert [climb.rung for climb in climbs][-3:] == ["smaller", "model", "stream"]
    assert rungs(drawn) == {"stream"} and drawn.report.streamed_gib > 0


def test_blocks_that_were_to_stay_stream_too(
    specs: dict[str, ModelSpec], plain: dict[str, Keeper]
) -> None:
    spec, own = specs["wan"], system(memory={"mode": "stream", "prefetch": 0})
    layout = replace(lone_layout(spec, own, CPU), resident_blocks=1)
    engine = Engine.load(spec, own, "cpu", layout=layout)
    assert len(engine.replica.residency.feeds["transformer"].modules) == 1
    SmallDevice(engine, weights(engine, "transformer") - 1000, {"denoise": 900})
    drawn = render(engine, rows())
    assert_same(drawn, plain["wan"])
    assert len(engine.replica.residency.feeds["transformer"].modules) == 2
    assert rungs(drawn) == {"stream"}


def test_a_row_that_fits_on_no_rung_fails_and_the_others_go_on(
    specs: dict[str, ModelSpec], plain: dict[str, Keeper]
) -> None:
    engine = load(specs["wan"])
    SmallDevice(engine, MANY // 2, {"denoise": 0}, hungry="row-2")
    drawn = render(engine, rows())
    assert_same(drawn, plain["wan"], but=["row-2"])
    error = drawn.errors["row-2"]
    assert isinstance(error, OutOfMemory)
    assert str(error) == (
        f"denoise: the device is out of memory, tried free, smaller, model, stream: tried to "
        f"allocate {MANY} bytes"
    )
    assert isinstance(error.__cause__, torch.OutOfMemoryError)


def test_two_windows_go_on_behind_a_climb(
    specs: dict[str, ModelSpec], plain: dict[str, Keeper]
) -> None:
    """Rows that wait when components leave are drawn before the next window is encoded."""
    engine = load(specs["wan"], batch={"window": 3, "max_rows_in_flight": 2})
    SmallDevice(engine, weights(engine, "transformer") + 1000, {"denoise": 900, "decode": 900})
    drawn = render(engine, rows())
    assert_same(drawn, plain["wan"])


# ------------------------------------------------------------------------------------------- encode
@pytest.mark.parametrize(("short", "rung"), [(1000, "model"), (-1000, "stream")])
def test_the_encoder_gets_room(
    specs: dict[str, ModelSpec], plain: dict[str, Keeper], short: int, rung: str
) -> None:
    engine = load(specs["wan"], climbs := [], memory={"prefetch": 0})
    room = weights(engine, "text_encoder") + short
    SmallDevice(engine, room, {"encode": 900})
    drawn = render(engine, rows())
    assert_same(drawn, plain["wan"])
    assert climbs[-1] == Climb(rung, "encode")  # type: ignore[arg-type]
    assert rungs(drawn) == {rung}


def test_a_text_that_fits_nowhere_fails_its_row(
    specs: dict[str, ModelSpec], plain: dict[str, Keeper]
) -> None:
    engine = load(specs["wan"])
    encode, long = engine.family.encode, engine.family.tokenize("prompt 2")

    def encoding(tokens: Any) -> Any:
        if torch.equal(tokens.inputs[0], long.inputs[0]):
            raise torch.OutOfMemoryError("full")
        return encode(tokens)

    engine.family.encode = encoding  # type: ignore[method-assign]
    drawn = render(engine, rows())
    assert_same(drawn, plain["wan"], but=["row-2"])
    assert str(drawn.errors["row-2"]) == (
        "encode: the device is out of memory, tried free, model, stream: full"
    )


# ------------------------------------------------------------------------------------------- decode
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("window", [2, 8])
def test_the_decoder_gets_room(
    specs: dict[str, ModelSpec], plain: dict[str, Keeper], overlap: bool, window: int
) -> None:
    """The row comes back from the lane while others are in flight, the last one at the end."""
    engine = load(specs["wan"], climbs := [], overlap=overlap, batch={"window": window})
    SmallDevice(engine, weights(engine, "vae") + 1000, {"decode": 900})
    drawn = render(engine, rows())
    assert_same(drawn, plain["wan"])
    assert climbs == [Climb("model", "decode")]
    assert drawn.report.rows_finished == 4
    assert "model" in rungs(drawn)


def test_a_row_that_cannot_be_decoded_fails_alone(
    specs: dict[str, ModelSpec], plain: dict[str, Keeper]
) -> None:
    engine = load(specs["wan"])
    decode = engine.family.decode

    def third(latents: Any, bucket: Any) -> Any:
        if torch.equal(latents, plain["wan"].latents["row-2"]):
            raise torch.OutOfMemoryError("full")
        return decode(latents, bucket)

    engine.family.decode = third  # type: ignore[method-assign]
    keeper = render(engine, rows())
    assert_same(keeper, plain["wan"], but=["row-2"])
    assert str(keeper.errors["row-2"]) == (
        "decode: the device is out of memory, tried free, model: full"
    )


# --------------------------------------------------------------------------------------------- load
def test_a_model_that_does_not_fit_is_loaded_less_of(
    specs: dict[str, ModelSpec], plain: dict[str, Keeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`free`, then `model`: the second component finds no room twice."""
    forget_passes(monkeypatch)
    monkeypatch.setenv("BATCHGEN_FAILPOINT", "memory.move:2:oom,memory.move:3:oom")
    engine = load(specs["wan"], climbs := [])
    assert climbs == [Climb("model", "load")]
    assert engine.replica.residency.gauge.inside == 0
    drawn = render(engine, rows())
    assert_same(drawn, plain["wan"])
    assert rungs(drawn) == {"model"}


def test_a_component_that_does_not_fit_for_its_stage_streams(
    specs: dict[str, ModelSpec], plain: dict[str, Keeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(specs["wan"], climbs := [], memory={"mode": "model"})
    residency, whole = engine.replica.residency, weights(engine, "transformer")
    enter = residency._enter

    def entering(name: str) -> None:
        if sum(tensor.nbytes for tensor in residency._own_tensors(name)) == whole:
            raise torch.OutOfMemoryError("full")
        enter(name)

    monkeypatch.setattr(residency, "_enter", entering)
    drawn = render(engine, rows())
    assert_same(drawn, plain["wan"])
    assert climbs == [Climb("stream", "denoise")]


def test_a_model_for_which_there_is_no_room_at_all_is_refused(
    specs: dict[str, ModelSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHGEN_FAILPOINT", "memory.move:*:oom")
    engine = load(specs["wan"])  # nothing stays
    with pytest.raises(OutOfMemory, match=r"encode: .*tried free, model, stream: failpoint"):
        render(engine, rows())


# ------------------------------------------------------------------------------------------- pilots
def test_a_pilot_takes_less_too(specs: dict[str, ModelSpec], one_thread: None) -> None:
    """Rows that are drawn in step with each other, to be fitted."""
    some = [replace(row, num_steps=2) for row in rows()]

    def velocities(engine: Engine) -> list[torch.Tensor]:
        drawn = Lockstep(engine.replica, some, guided=False)
        noise = [drawn.noise(row) for row in range(len(some))]
        with torch.no_grad():
            found = drawn.velocities(range(len(some)), noise, 0)
        return [one for row in found for one in row]

    engine = load(specs["wan"], climbs := [])
    device = SmallDevice(engine, weights(engine, "transformer") + 1000, {"denoise": 400})
    there, here = velocities(load(specs["wan"])), velocities(engine)
    assert all(map(torch.equal, there, here))
    assert [climb.rung for climb in climbs][:4] == ["smaller", "smaller", "smaller", "model"]
    assert max(device.sizes("denoise")) == 2


# ---------------------------------------------------------------------------------- later attempts
def test_an_engine_starts_on_the_rung_that_was_reached(
    specs: dict[str, ModelSpec], plain: dict[str, Keeper]
) -> None:
    before = (
        Climb("smaller", "denoise", "64x64x1", 1),
        Climb("model", "decode"),
        Climb("smaller", "denoise", "64x64x1", 2),
        Climb("smaller", "decode", "64x64x1", 1),
    )
    engine = load(specs["wan"], climbs := [], before=before)
    assert {*engine.replica.residency.plan.places.values()} == {"model"}
    device = SmallDevice(engine, MANY, {})
    drawn = render(engine, rows())
    assert_same(drawn, plain["wan"])
    assert max(device.sizes("denoise")) == 2
    assert rungs(drawn) == {"model"} and climbs == []
    assert engine.replica.decodes.size(rows()[0].bucket) == 1
    far = load(specs["wan"], before=(Climb("stream", "denoise"),))
    assert far.replica.residency.plan.places["transformer"] == "stream"


# ------------------------------------------------------------------------------------------- memory
def test_a_failed_forward_holds_no_memory() -> None:
    """Else what is tried next would find as little room."""
    held: list[weakref.ref[torch.Tensor]] = []

    def work() -> None:
        large = torch.zeros(1000)
        held.append(weakref.ref(large))
        raise torch.OutOfMemoryError("full")

    failed = attempt(work)
    assert isinstance(failed, Failed) and held[0]() is None
    assert "in work" in failed.error.__notes__[0], "where it was is told all the same"


def test_what_is_tried_next_finds_no_tensor_of_a_failed_forward(
    specs: dict[str, ModelSpec], plain: dict[str, Keeper]
) -> None:
    engine = load(specs["wan"])
    forward, held = engine.family.forward, list[weakref.ref[torch.Tensor]]()

    def alone(items: Any) -> Any:
        assert all(one() is None for one in held)
        if len(items) > 1 and items[0].request.row_id != "self-test":
            held.append(weakref.ref(activations := torch.zeros(1000)))
            raise torch.OutOfMemoryError(f"beside {activations.nbytes} bytes")
        return forward(items)

    engine.family.forward = alone  # type: ignore[method-assign]
    assert_same(render(engine, rows()), plain["wan"])
    assert len(held) >= 6  # packs of eight, four and two items, each tried twice
