"""Wans that draw from images: each row equals what diffusers' pipeline makes of it alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from toy_engine import Keeper, ListSource, draw, request, spy_on, system
from toy_wan_images import PICTURES, SHAPE, SMALL, ImageTwin, digests, save

from batchgen.config.schema import ModelSpec
from batchgen.engine.engine import Engine
from batchgen.request import Request

COMPARED = tuple(SMALL)  # families


@pytest.fixture(scope="module", params=sorted(SMALL))
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return save(SMALL[request.param](), tmp_path_factory.mktemp(request.param))


def rows(family: str) -> list[Request]:
    """Mixed steps, guidances and images; two rows share one."""
    images = digests()
    made: list[Request] = []
    for i, guidance in enumerate((4.0, 1.0, 3.0, 5.0)):
        last = images[3] if i in LAST[family] else None
        second = 2.0 if family == "wan22_i2v" and i == 0 else None
        scales = {"guidance_scale": guidance, "guidance_scale_2": second}
        image = images[i % 3] if i or family != "wan22_ti2v" else None
        shape = SHAPES.get(family, SHAPE)
        made.append(request(i, num_steps=2 + i, image=image, last_image=last, **scales, **shape))
    return made


LAST = {"wan22_i2v": (1, 2), "wan_i2v": (), "wan22_ti2v": ()}  # rows with a last image
SHAPES = {"wan22_ti2v": {"width": 128, "height": 64, "num_frames": 5}}  # 16 tokens


def load(spec: ModelSpec, **changes: object) -> Engine:
    return Engine.load(spec, system(**changes), "cpu", images=PICTURES.__getitem__)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'
def test_packs_of_mixed_rows_equal_the_pipeline(spec: ModelSpec) -> None:
    engine, twin, some = load(spec), ImageTwin(spec), rows(spec.family)
    drawn = draw(engine, some)
    latents = {row.row_id: twin.latents(row) for row in some}
    drawn.assert_as_pipeline(latents, {row.row_id: twin.frames(row) for row in some})
    drawn.assert_packed()
    given = {row.images for row in some if row.images}
    assert engine.replica.pictures.encoder_calls == len(given) < len(some)
    alone = draw(load(spec, batch={"max_rows_in_flight": 1}), some[::-1])
    assert all((alone.frames[row] == drawn.frames[row]).all() for row in drawn.frames)


@pytest.mark.parametrize("spec", ["wan_i2v"], indirect=True)
def test_a_row_whose_image_is_damaged_fails_alone(spec: ModelSpec) -> None:
    def read(digest: str) -> object:
        if digest == digests()[1]:
            raise OSError("is cut off")
        return PICTURES[digest]

    engine = Engine.load(spec, system(), "cpu", images=read)  # type: ignore[arg-type]
    drawn = draw(engine, rows(spec.family)[:2])
    assert {name: str(error) for name, error in drawn.errors.items()} == {"row-1": "is cut off"}
    assert set(drawn.frames) == {"row-0"}


@pytest.mark.parametrize("spec", ["wan22_ti2v"], indirect=True)
def test_a_stopped_row_goes_on_with_its_image(spec: ModelSpec) -> None:
    """One component at a time, the encoder of the images too."""
    row = rows(spec.family)[2]
    whole = draw(load(spec), [row])
    engine, first, then = load(spec, memory={"mode": "model"}), Keeper(), Keeper()
    asked = iter(range(100))
    engine.render(ListSource([row]), first, stop=lambda: next(asked) > 2)
    assert first.states and not first.frames
    spy_on(engine, then)
    then.report = engine.render(ListSource([row], first.states), then)
    assert (then.frames[row.row_id] == whole.frames[row.row_id]).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'
@pytest.mark.parametrize("family", sorted(SMALL))
def test_a_wide_model_equals_the_pipeline(family: str, one_thread: None, tmp_path: Path) -> None:
    """Width 512 and 512 tokens: products of other kernels than those of the small model."""
    small = SMALL[family]()
    seen = {"added_kv_proj_dim": 512} if family == "wan_i2v" else {}
    size = {"num_layers": 1, "num_attention_heads": 8, "attention_head_dim": 64}
    transformer = replace(small.dims.transformer, **size, **seen)
    wide = save(replace(small, dims=replace(small.dims, transformer=transformer)), tmp_path)
    side = 512 if family == "wan22_ti2v" else 256
    shape = {"width": side, "height": side, "num_frames": 5}
    some = [request(i, num_steps=2, image=digests()[i], **shape) for i in range(2)]
    drawn, twin = draw(load(wide), some), ImageTwin(wide)
    latents = {row.row_id: twin.latents(row) for row in some}
    drawn.assert_as_pipeline(latents, {row.row_id: twin.frames(row) for row in some})
    drawn.assert_packed()
