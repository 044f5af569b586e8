"""LoRA: each row equals what its diffusers pipeline makes of it with the same adapters, unfused, to
the bit; and a row without any what the weights alone make, whatever is drawn before or beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from toy_engine import Twin, draw, request, small_spec, system
from toy_flux import FluxTwin, flux_spec, save_flux
from toy_images import ImageTwin
from toy_loras import as_planned, factors, files_of, put_on, save_lora
from toy_videos import VideoTwin
from toy_wan_images import PICTURES, SHAPE, SMALL, digests
from toy_wan_images import ImageTwin as PicturedTwin
from toy_wan_images import save as save_illustrated
from toys import TOYS
from video_toys import VIDEO_TOYS

from batchgen.config.schema import ModelSpec
from batchgen.engine.engine import Engine
from batchgen.request import NO_LORA, Request

SETS = ("", "{a}@0.7", "{b}@-0.5,{a}@1", "{b}")
UNSERVED = ("hunyuan_dit",)  # its transformer takes no adapters in diffusers
VIDEOS = [name for name in VIDEO_TOYS if VIDEO_TOYS[name].family not in UNSERVED]
# Pipelines hand latents to these as a view that is turned, and a product with few outputs (a factor
# of an adapter has as many as its rank) differs in the last bit; the weights' own does not.
TURNED = {"flux2_klein": "x_embedder"} | dict.fromkeys(
    (name for name, toy in VIDEO_TOYS.items() if toy.family == "ltx"), "proj_in"
)
# of text and image, where every second row has one; and of an image that CLIP sees too
ILLUSTRATED = ("wan22_i2v", "wan22_ti2v", "wan_i2v")
# Of two experts each has its own, or one has one alone.
SETS_OF_TWO = (
    *("", "transformer:{a}@0.7,transformer_2:{b}"),
    *("transformer_2:{b}@-0.5,transformer_2:{a}", "transformer:{b}"),
)
# Where a file has factors of one of the two modules of an image, and of a text's, diffusers draws
# with zeros for the image's; here none of a text's keys is among them.
EVERY = {"wan_i2v": 5}
NAMES = ["wan", "flux", *ILLUSTRATED, *sorted({*TOYS} - {*UNSERVED}), *sorted(VIDEOS)]
BRIEFLY = ("wan", "flux", "sd3", "qwen_image", "ltx", "hunyuan_video")  # others are slow tests


@dataclass(frozen=True)
class Case:
    """A checkpoint, rows of four sets in turn, and diffusers' pipeline."""

    spec: ModelSpec
    rows: list[Request]
    files: Mapping[str, Path]
    pipeline: Any
    latents: Callable[[Request], Tensor]

    def engine(self, *, adapters: bool = True, **changes: Any) -> Engine:
        files = self.files if adapters else {}
        read = PICTURES.__getitem__
        return Engine.load(self.spec, system(**changes), "cpu", images=read, loras=files)

    def twin(self, row: Request) -> Tensor:
        put_on(self.pipeline, row, dict(self.files))
        return self.latents(row)


def wan(folder: Path) -> tuple[ModelSpec, Any, Callable[[Request], Tensor], list[Request]]:
    from toy_engine import save_small

    spec = small_spec(str(save_small(folder)))
    twin = Twin(spec)
    rows = [
        request(i, num_steps=2 + i % 3, guidance_scale=(5.0, 1.0)[i % 7 == 6]) for i in range(8)
    ]
    return spec, twin.pipeline, twin.latents, rows


def flux(folder: Path) -> tuple[ModelSpec, Any, Callable[[Request], Tensor], list[Request]]:
    spec = flux_spec(str(save_flux(folder, flux_spec())))
    twin = FluxTwin(spec)
    size = {"width": 64, "height": 64, "num_frames": 1}
    common = {"solver": "euler", "sigma_shift": 1.0, "format": "png", **size}
    rows = [
        request(i, num_steps=2 + i % 3, true_cfg_scale=(1.0, 3.0)[i % 3 == 1], **common)
        for i in range(8)
    ]
    return spec, twin.pipeline, twin.latents, rows


def illustrated(
    name: str, folder: Path
) -> tuple[ModelSpec, Any, Callable[[Request], Tensor], list[Request]]:
    spec = save_illustrated(SMALL[name](), folder)
    twin, images = PicturedTwin(spec), digests()
    size = {"width": 128, "height": 64, "num_frames": 5} if name == "wan22_ti2v" else SHAPE
    given = [None if name == "wan22_ti2v" and i % 2 else images[i % 3] for i in range(8)]
    rows = [request(i, num_steps=2 + i % 3, image=given[i], **size) for i in range(8)]
    return spec, twin.imaging, twin.latents, rows


def of_a_toy(toy: Any, twin: Any, folder: Path) -> tuple[Any, ...]:
    spec = toy.spec(str(toy.save(folder, toy.spec())))
    made = twin(toy, spec)
    return spec, made.pipeline, lambda row: made(row)[0], [toy.row(i) for i in range(8)]


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=[pytest.mark.slow] * (n not in BRIEFLY)) for n in NAMES],
)
def case(
    request: pytest.FixtureRequest, one_thread: None, tmp_path_factory: pytest.TempPathFactory
) -> Case:
    name, folder = request.param, tmp_path_factory.mktemp("lora")
    if name in ILLUSTRATED:
        spec, pipeline, latents, rows = illustrated(name, folder / "model")
    elif name in ("wan", "flux"):
        spec, pipeline, latents, rows = {"wan": wan, "flux": flux}[name](folder / "model")
    else:
        toy, twin = (TOYS[name], ImageTwin) if name in TOYS else (VIDEO_TOYS[name], VideoTwin)
        spec, pipeline, latents, rows = of_a_toy(toy, twin, folder / "model")
    but = TURNED.get(name, "")
    a = save_lora(folder / "a.safetensors", pipeline.transformer, seed=1, but=but)
    b = save_lora(
        folder / "b.safetensors", pipeline.transformer, seed=2, every=EVERY.get(name, 3), but=but
    )
    texts = SETS_OF_TWO if name == "wan22_i2v" else SETS
    sets = [text.format(a=a, b=b) for text in texts]
    rows = [replace(row, lora=as_planned(sets[i % 4])) for i, row in enumerate(rows)]
    return Case(spec, rows, files_of(*sets), pipeline, latents)


@torch.no_grad()
def test_rows_in_one_flight_equal_the_pipeline(case: Case) -> None:
    """Two rows of each set share forwards, and only they."""
    drawn = draw(case.engine(batch={"token_budget": 8000, "window": 8}), case.rows)
    assert not drawn.errors
    drawn.assert_packed()
    theirs = {row.row_id: case.twin(row) for row in case.rows}
    alone = draw(case.engine(adapters=False), [row for row in case.rows if not row.lora])
    for row in case.rows:
        ours = drawn.latents[row.row_id]
        if drawn.report.self_test == "failed":
            assert torch.allclose(ours, theirs[row.row_id], atol=1e-4), row.lora
            continue
        assert torch.equal(ours, theirs[row.row_id]), row.lora
        if row.lora == NO_LORA:
            assert torch.equal(ours, alone.latents[row.row_id])
    by_set = {row.lora: theirs[row.row_id] for row in case.rows}
    assert len(by_set) == len(SETS)


@pytest.mark.parametrize("name", ["flux2_klein", "ltx"])
@torch.no_grad()
def test_an_adapted_input_is_as_near_as_rounding_allows(
    name: str, one_thread: None, tmp_path: Path
) -> None:
    toy, twin = (TOYS[name], ImageTwin) if name in TOYS else (VIDEO_TOYS[name], VideoTwin)
    spec, pipeline, latents, rows = of_a_toy(toy, twin, tmp_path / "model")
    path = tmp_path / "input.safetensors"
    save_file(factors(pipeline.transformer, [TURNED[name]], 3), path)
    adapted = [replace(row, lora=as_planned(str(path))) for row in rows[:3]]
    case = Case(spec, adapted, files_of(str(path)), pipeline, latents)
    drawn = draw(case.engine(), [rows[3], *adapted])
    for row in adapted:
        theirs = case.twin(row)
        assert torch.allclose(drawn.latents[row.row_id], theirs, rtol=0, atol=1e-5)
        put_on(pipeline, replace(row, lora=NO_LORA), dict(case.files))
        assert not torch.allclose(latents(row), theirs, rtol=0, atol=1e-2)


def others(kind: str, transformer: Any, folder: Path) -> Path:
    """A file as other trainers write it: in their names, with their scales."""
    draw = torch.Generator().manual_seed(5)
    width = transformer.transformer_blocks[0].attn.to_q.weight.shape[1]
    down = torch.randn(4, width, generator=draw) / 4
    up = torch.randn(3 * width, 4, generator=draw) / 4
    kohya, xlabs = "lora_unet_double_blocks_0_img_attn_qkv", "double_blocks.0.processor.qkv_lora1"
    query = "transformer.transformer_blocks.0.attn.to_q"
    pair = {f"{query}.lora_A.weight": down, f"{query}.lora_B.weight": up[:width]}
    told = {"r": 4, "lora_alpha": 6, "target_modules": [query.removeprefix("transformer.")]}
    metadata = json.dumps({f"transformer.{name}": value for name, value in told.items()})
    made: dict[str, tuple[dict[str, Tensor], dict[str, str] | None]] = {
        "kohya": (
            {
                f"{kohya}.lora_down.weight": down,
                f"{kohya}.lora_up.weight": up,
                f"{kohya}.alpha": torch.tensor(2.0),
            },
            None,
        ),
        "xlabs": ({f"{xlabs}.down.weight": down, f"{xlabs}.up.weight": up}, None),
        "alphas": (pair | {f"{query}.alpha": torch.tensor(2.0)}, None),
        "metadata": (pair, {"format": "pt", "lora_adapter_metadata": metadata}),
    }
    tensors, told_too = made[kind]
    path = folder / f"{kind}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, told_too)
    return path


@torch.no_grad()
def test_files_of_other_trainers_are_read_as_diffusers_reads_them(
    one_thread: None, tmp_path: Path
) -> None:
    spec, pipeline, latents, [row, *_] = flux(tmp_path / "model")
    kinds = ("kohya", "xlabs", "alphas", "metadata")
    texts = [f"{others(kind, pipeline.transformer, tmp_path)}@0.9" for kind in kinds]
    case = Case(spec, [], files_of(*texts), pipeline, latents)
    rows = [
        replace(row, row_id=kind, lora=as_planned(text))
        for kind, text in zip(kinds, texts, strict=True)
    ]
    drawn = draw(case.engine(), [row, *rows])
    assert not drawn.errors
    for each in rows:
        assert torch.equal(drawn.latents[each.row_id], case.twin(each)), each.row_id
    assert len({float(latents.sum()) for latents in drawn.latents.values()}) == 5
