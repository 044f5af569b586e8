"""Weights that stay in their files: the models that libraries load, the pixels of those that stay,
and what the host holds of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_engine import draw, request, small_spec, system
from toy_flux import flux_spec, save_flux
from toy_qwen_image import QWEN_IMAGE

from batchgen.config.schema import ComponentConfig, ModelSpec
from batchgen.engine.devices.device import lone_layout
from batchgen.engine.engine import Engine
from batchgen.engine.loading.mapped import mapped_module
from batchgen.engine.loading.parts import parts
from batchgen.engine.loading.weights import check_weights
from batchgen.engine.memory.sources import source_of
from batchgen.engine.memory.stream import tensors_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    spec = flux_spec(heads=4)
    return replace(spec, weights=str(save_flux(tmp_path_factory.mktemp("flux"), spec)))


@pytest.fixture(scope="module")
def wan(small_folder: Path) -> ModelSpec:
    return small_spec(str(small_folder))


@pytest.fixture(scope="module")
def qwen_image(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """Whose text encoder is saved with names that its modules had once."""
    return QWEN_IMAGE.spec(str(QWEN_IMAGE.save(tmp_path_factory.mktemp("qwen"), QWEN_IMAGE.spec())))


@pytest.mark.parametrize("name", ["flux", "wan", "qwen_image"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mapped_models_are_those_that_the_libraries_load(
    request: pytest.FixtureRequest, name: str, dtype: torch.dtype
) -> None:
    spec: ModelSpec = request.getfixturevalue(name)
    files, folder = check_weights(spec), spec.weights_folder
    assert folder is not None
    for part in parts(spec, dtype):
        if part.model_class is None:
            continue
        home = folder / part.name
        theirs = part.model_class.from_pretrained(home, dtype=part.dtype).eval()
        ours = mapped_module(home, part, files[part.name], on_disk=False)
        away = mapped_module(home, part, files[part.name], on_disk=True)
        assert [n for n, _ in ours.named_modules()] == [n for n, _ in theirs.named_modules()]
        for mine, other, absent in zip(*map(tensors_of, (ours, theirs, away)), strict=True):
            assert mine.dtype == other.dtype == absent.dtype, part.name
            assert torch.equal(mine, other), part.name
            assert torch.equal(source_of(absent).to(absent.dtype), mine), part.name
        assert not any(p.requires_grad for p in ours.parameters()) and not ours.training
        assert all(p.isnan().all() for p in away.parameters())


def engine(spec: ModelSpec, mode: str, **changes: Any) -> Engine:
    memory = {"mode": mode, "prefetch": changes.pop("prefetch", 1)}
    own = system(memory=memory, **changes)
    return Engine.load(spec, own, "cpu", layout=lone_layout(spec, own, CPU))


def rows(name: str, count: int = 3) -> list[Any]:
    guided: dict[str, Any] = {"num_frames": 5}
    if name == "flux":
        guided = {"num_frames": 1, "true_cfg_scale": 3.0, "solver": "euler", "sigma_shift": 1.0}
    return [request(i, num_steps=2 + i % 2, **guided) for i in range(count)]


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_rows_from_disk_are_those_of_a_resident_model(
    request: pytest.FixtureRequest, one_thread: None, name: str
) -> None:
    spec: ModelSpec = request.getfixturevalue(name)
    there = draw(engine(spec, "resident"), rows(name))
    for prefetch in (0, 1):
        made = engine(spec, "disk", prefetch=prefetch)
        drawn = draw(made, rows(name))
        assert not drawn.errors and drawn.frames.keys() == there.frames.keys()
        for row, frames in there.frames.items():
            assert np.array_equal(drawn.frames[row], frames)
            assert torch.equal(drawn.latents[row], there.latents[row])
    streamed = engine(spec, "stream")
    draw(streamed, rows(name))
    theirs, ours = (each.replica.residency.gauge for each in (streamed, made))
    assert ours.peaks == theirs.peaks and ours.streamed == theirs.streamed
    modules = made.family.modules
    for expert in made.replica.residency.plan.experts:  # the decoder was the last to work
        assert all(p.isnan().all() for p in modules[expert].parameters())


def test_the_host_keeps_no_copy_of_what_is_on_disk(wan: ModelSpec) -> None:
    """What stands for weights is one number; the weights are pages of the files."""
    made = engine(wan, "disk")
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ends = [line[0].split("-") for line in maps if line[-1].endswith(".safetensors")]
    pages = [range(int(begin, 16), int(end, 16)) for begin, end in ends]
    for module in made.family.modules.values():
        for parameter in module.parameters():
            assert parameter.untyped_storage().nbytes() == parameter.itemsize
            at = source_of(parameter).data_ptr()
            assert any(at in each for each in pages)


def test_one_component_alone_may_live_on_disk(wan: ModelSpec, one_thread: None) -> None:
    own = {"text_encoder": ComponentConfig(memory="disk")}
    made = engine(wan, "resident", components=own)
    there, drawn = draw(engine(wan, "resident"), rows("wan", 1)), draw(made, rows("wan", 1))
    assert torch.equal(drawn.latents["row-0"], there.latents["row-0"])
    assert made.replica.residency.plan.on_disk == ("text_encoder",)
