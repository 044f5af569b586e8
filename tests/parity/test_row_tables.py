"""Tables of what sees timestep, guidance and text combined, in place of weights on the host."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from quick_cases import first_quick
from toy_engine import Keeper, draw, request, system
from toy_flux import flux_spec, save_flux
from toy_hunyuan_video import HUNYUAN_VIDEO
from toy_loras import as_planned, files_of, save_lora
from toy_sd3 import SD3

from batchgen.config.composing.compose import compose_job
from batchgen.config.degrees import Degrees
from batchgen.config.schema import DeviceConfig, JobConfig, ModelSpec
from batchgen.engine.devices.device import lone_layout
from batchgen.engine.engine import Engine
from batchgen.engine.memory.stream import tensors_of
from batchgen.engine.reuse.blocks import named
from batchgen.engine.reuse.recall import Recall
from batchgen.engine.rows.finish import Denoised, Finisher
from batchgen.engine.rows.flight import Flight
from batchgen.families.components import components_of
from batchgen.planning.pricing.candidates import all_candidates
from batchgen.planning.pricing.layout import choose_layout
from batchgen.planning.pricing.memory import GIB
from batchgen.planning.pricing.work import Work
from batchgen.records import MemoryMode, Precision
from batchgen.request import Request

ROOT = Path(__file__).parents[2]


def flux_row(number: int) -> Request:
    """Of several guidances, some with a second branch."""
    return request(
        number,
        width=64,
        height=64,
        num_frames=1,
        solver="euler",
        sigma_shift=1.0,
        format="png",
        guidance_scale=(3.5, 1.0, 2.5)[number % 3],
        true_cfg_scale=(1.0, 3.0)[number % 2],
    )


FAMILIES: dict[str, tuple[Callable[..., ModelSpec], Any, Callable[[int], Request]]] = {
    "flux": (flux_spec, save_flux, flux_row),
    "sd3": (SD3.spec, SD3.save, SD3.row),
    "hunyuan_video": (HUNYUAN_VIDEO.spec, HUNYUAN_VIDEO.save, HUNYUAN_VIDEO.row),
}
# hunyuan_video rounds timesteps to the precision of its latents, which the first step alone has
CASES = [("flux", "float32"), ("sd3", "float32"), *(("hunyuan_video", p) for p in ("float32",))]
CASES += [("hunyuan_video", "bfloat16"), ("flux", "bfloat16")]
WAYS: tuple[tuple[MemoryMode, int], ...] = (("model", 1), ("stream", 2), ("model", 6))


class Drawn:
    """Rows of one family by engines that keep its weights in different places."""

    def __init__(self, name: str, precision: Any, folder: Path) -> None:
        make, save, self.row = FAMILIES[name]
        self.spec = make(str(save(folder / name, make())))
        self.precision: Precision = precision
        self.layout = lone_layout(self.spec, system(), torch.device("cpu"))
        [part] = [p for p in components_of(self.spec) if p.stage == "denoise" and p.stacks]
        self.away = [one.modules for one in part.recalled if one.like]
        self.loras: dict[str, Path] = {}

    def engine(self, mode: MemoryMode, **changes: Any) -> Engine:
        layout = replace(self.layout, memory=mode, precision=self.precision)
        own = system(memory={"mode": mode}, **changes)
        return Engine.load(self.spec, own, "cpu", layout=layout, loras=self.loras)

    def sizes(self, engine: Engine) -> list[int]:
        """Bytes of what is away."""
        transformer = engine.family.modules["transformer"]
        modules = [m for pattern in self.away for m in named(transformer, pattern)]
        assert modules
        return [sum(t.nbytes for t in tensors_of(module)) for module in modules]


def assert_alike(found: Keeper, plain: Keeper) -> None:
    assert not found.errors and found.latents.keys() == plain.latents.keys()
    for row, latents in plain.latents.items():
        assert torch.equal(found.latents[row], latents), row


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), CASES)
def test_rows_have_the_bits_of_weights_that_stay(
    name: str, precision: str, one_thread: None, tmp_path: Path
) -> None:
    """Alone, in packs, with rows that join late, with and without an adapter, in every place."""
    drawn = Drawn(name, precision, tmp_path)
    lora = save_lora(tmp_path / "on all.safetensors", drawn.engine("resident").family.transformer)
    drawn.loras = files_of(str(lora))
    few = {"guidance_scale": 3.0, "width": 64, "prompt": "sky"}
    rows = [drawn.row(number) for number in range(4)]
    rows += [replace(drawn.row(4), **few), replace(drawn.row(5), **few, num_steps=2)]
    rows[1] = replace(rows[1], lora=as_planned(str(lora)))
    plain = draw(drawn.engine("resident"), rows)
    for mode, most in WAYS:
        engine = drawn.engine(mode, batch={"max_rows_in_flight": most})
        assert_alike(draw(engine, rows), plain)
        engine.replica.recall.free()
        gc.collect()
        assert not engine.replica.recall._combined  # nothing of rows stays behind them


@pytest.mark.parametrize(
    ("name", "precision"), first_quick([("flux", "float32"), ("hunyuan_video", "bfloat16")], 1)
)
def test_weights_come_once_for_all_rows_that_join(
    name: str, precision: str, one_thread: None, tmp_path: Path
) -> None:
    """And one at a time, however many steps, texts and guidances there are."""
    drawn = Drawn(name, precision, tmp_path)
    rows = [replace(drawn.row(number), num_steps=2 + number) for number in range(4)]
    rows.append(replace(rows[1], row_index=4, row_id="row-4", seed=7))  # of the same tables
    together = {"max_rows_in_flight": len(rows)}
    strict = drawn.engine("model", batch=together)
    assert_alike(draw(strict, rows), draw(drawn.engine("resident"), rows))
    engine = drawn.engine("model", determinism="throughput", batch=together)  # tests itself less
    sizes = drawn.sizes(engine)
    found = draw(engine, rows)
    assert not found.errors
    assert found.report.streamed_gib * 1024**3 == sum(sizes)
    transformer = engine.family.modules["transformer"]
    whole = sum(t.nbytes for t in tensors_of(transformer))
    peak = engine.replica.residency.gauge.peaks["denoise"]
    assert peak == whole - sum(sizes) + max(sizes)


def test_where_there_is_no_room_for_tables_forwards_make_what_they_need(
    one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Drawn("flux", "float32", tmp_path)
    rows = [flux_row(number) for number in range(3)]
    plain = draw(drawn.engine("resident"), rows)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Recall, "_make_tables", full)
    engine = drawn.engine("model")
    found = draw(engine, rows)
    assert_alike(found, plain)
    assert found.report.streamed_gib * 1024**3 >= 3 * sum(drawn.sizes(engine))


@pytest.mark.parametrize("together", [1, 2])
def test_what_fails_as_tables_are_made_fails_the_row_that_it_is_of(
    together: int, one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that join together each is tried again alone."""
    drawn = Drawn("flux", "float32", tmp_path)
    plain, make = Recall._make_tables, [True, *[False] * together]

    def once(self: Recall, *given: Any) -> None:
        if make.pop():
            return plain(self, *given)
        raise ValueError("not these")

    monkeypatch.setattr(Recall, "_make_tables", once)
    rows = [flux_row(number) for number in range(2)]
    found = draw(drawn.engine("model", batch={"max_rows_in_flight": together}), rows)
    assert [str(error) for error in found.errors.values()] == ["not these"]
    assert [*found.errors] == ["row-0"] and [*found.frames] == ["row-1"]


def test_rows_that_wait_for_their_decode_hold_no_tables(
    one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In mode `model` those of a whole window do."""
    engine = Drawn("flux", "float32", tmp_path).engine("model", batch={"max_rows_in_flight": 1})
    held, decode = list[int](), Finisher._decoded

    def look(finisher: Finisher, rows: Sequence[Denoised]) -> list[torch.Tensor]:
        gc.collect()
        held.append(len(engine.replica.recall._combined))
        return decode(finisher, rows)

    monkeypatch.setattr(Finisher, "_decoded", look)
    found = draw(engine, [flux_row(number) for number in range(3)])
    assert not found.errors and held and max(held) <= 1  # that of the last forward


def small_gpu(drawn: Drawn, rows: Sequence[Request], room: float = 0.0) -> tuple[JobConfig, Work]:
    """These rows on a GPU in mode `model`, which may take so many bytes; 0: plenty."""
    demo = compose_job(ROOT / "jobs" / "demo.yaml").config
    device = DeviceConfig(name="h200", memory_gib=139, matmul_tflops=790)
    own = system(memory={"mode": "model", "vram_limit": room / GIB or None})
    slurm = replace(demo.slurm, device=device, nodes=1, ranks_per_node=1)
    branches = [1 + (row.true_cfg_scale > 1) for row in rows]
    steps = sum(row.num_steps for row in rows)
    evaluations = sum(row.num_steps * n for row, n in zip(rows, branches, strict=True))
    work = Work(rows[0].bucket, len(rows), steps, evaluations)
    return replace(demo, model=drawn.spec, system=own, slurm=slurm), work


@pytest.mark.parametrize("more", [0, 2])
def test_rows_in_flight_hold_no_more_tables_than_were_planned(
    more: int, one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device that has room for one row, and for two `more`, where a tick has it for all."""
    drawn = Drawn("flux", "float32", tmp_path)
    asks = {"num_steps": 8, "true_cfg_scale": 3.0}
    rows = [replace(drawn.row(n), prompt=f"sky {n}", **asks) for n in range(6)]
    job, work = small_gpu(drawn, rows)
    one = all_candidates(job, [work], [Degrees(1, 1, 1, 1)])[0]
    job, _ = small_gpu(drawn, rows, one.peak_bytes + more * one.kept_bytes + 1)
    tight = choose_layout(job, [work])
    assert tight.fits
    plain, held = draw(drawn.engine("model"), rows), list[tuple[int, int]]()
    tick, drawn.layout = Flight._tick, tight

    def look(flight: Flight, *given: Any) -> None:
        gc.collect()
        tables = {id(memo): memo.bytes for row in flight.rows.values() for memo in row.tables}
        held.append((len(flight.rows), sum(tables.values())))
        tick(flight, *given)

    monkeypatch.setattr(Flight, "_tick", look)
    assert_alike(draw(drawn.engine("model"), rows), plain)
    assert max(held)[1] <= tight.kept_gib * GIB <= (more + 1) * one.kept_bytes + 1
    assert max(held)[0] == more + 1  # as many rows as there is room for
