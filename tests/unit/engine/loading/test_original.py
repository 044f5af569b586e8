"""Transformers from files in their makers' layout are those of the folder, to the bit, or refused
with the file and what is wrong with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.loaders import single_file_model
from originals import as_published
from quick_cases import first_quick
from safetensors.torch import load_file, save_file
from toy_engine import draw, request, small_spec, system, tiny_wan_spec, two_experts
from toy_flux import flux_spec, save_flux
from toy_loras import as_planned, files_of, save_lora
from toy_wan_images import clip_spec
from toys import TOYS
from video_toys import VIDEO_TOYS

from batchgen.config.build import to_mapping
from batchgen.config.checkpoints.checkpoint import check_disk
from batchgen.config.schema import (
    ComponentConfig,
    DeviceConfig,
    JobConfig,
    ModelSpec,
    SlurmConfig,
)
from batchgen.engine.devices.device import lone_layout
from batchgen.engine.engine import Engine
from batchgen.engine.loading.checkpoint import build_module, check_part
from batchgen.engine.loading.loras import LoraJudge
from batchgen.engine.loading.mapped import mapped_module
from batchgen.engine.loading.original import as_diffusers
from batchgen.engine.loading.parts import CheckpointPart, parts
from batchgen.engine.loading.weights import check_weights, convert_weights, load_components
from batchgen.engine.memory.fp8 import from_fp8, to_fp8
from batchgen.errors import WeightsError
from batchgen.families.family import family_names, family_spec
from batchgen.loras import NO_LORAS
from batchgen.paths import RunPaths
from batchgen.planning.digests import checkpoint_digest
from batchgen.planning.pricing.memory import residencies
from batchgen.request import NO_LORA, Loras
from batchgen.runner.begin import going_on
from batchgen.runner.submit import Settings

Tensors = dict[str, torch.Tensor]
SPECS: dict[str, Callable[[str], ModelSpec]] = {
    "wan": small_spec,
    "wan of two images": lambda weights: clip_spec(weights, images=2),
    "flux": flux_spec,
    "sd3": lambda weights: TOYS["sd3"].spec(weights, newer=False),
    "sd3.5": TOYS["sd3"].spec,
    "flux2_klein": TOYS["flux2_klein"].spec,
    "z_image": TOYS["z_image"].spec,
    "qwen_image": TOYS["qwen_image"].spec,
    "ltx": VIDEO_TOYS["ltx"].spec,
    "hunyuan_video": VIDEO_TOYS["hunyuan_video"].spec,
}
CPU = torch.device("cpu")
STEM = "diffusion_pytorch_model.safetensors"
COMFY = "model.diffusion_model."  # in front of names in files that have more to them


def transformer_of(spec: ModelSpec) -> CheckpointPart:
    return next(part for part in parts(spec, torch.float32) if part.name == "transformer")


def noise(spec: ModelSpec) -> Tensors:
    part = transformer_of(spec)
    module = build_module(part.model_class, part.config | part.extras)
    return {name: torch.randn(one.shape) for name, one in module.state_dict().items()}


def published(spec: ModelSpec, tensors: Tensors, prefix: str = "") -> Tensors:
    made = as_published(transformer_of(spec).model_class.__name__, tensors)
    return {f"{prefix}{name}": one for name, one in made.items()}


@pytest.mark.parametrize("name", SPECS)
def test_published_names_are_those_of_diffusers(tmp_path: Path, name: str) -> None:
    file, prefix = tmp_path / "published.safetensors", COMFY if len(name) % 2 else ""
    spec = replace(SPECS[name](str(tmp_path)), files={"transformer": str(file)})
    tensors = noise(spec)
    others = {"vae.decoder.conv_in.weight": torch.zeros(3)} if prefix else {}
    save_file(published(spec, tensors, prefix) | others, file)
    part = transformer_of(spec)
    check_part(tmp_path / "transformer", part, [file])
    found = mapped_module(tmp_path / "transformer", part, [file], on_disk=False).state_dict()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(one, tensors[key]) for key, one in found.items())
    inside = load_file(file)
    places = {one.untyped_storage().data_ptr() for one in inside.values()}
    views = as_diffusers(inside, tensors.keys(), part, file)
    copied = [key for key, one in views.items() if one.untyped_storage().data_ptr() not in places]
    assert all(".linear." in key and "norm" in key for key in copied)  # whose halves are swapped


def test_families_say_what_diffusers_reads_from_single_files() -> None:
    mapped = single_file_model.SINGLE_FILE_LOADABLE_CLASSES
    for name in family_names():
        for part in family_spec(name).COMPONENTS:
            served = part.stage == "denoise" and part.class_name in mapped
            assert part.original == served, f"{name}: {part.name}"


# ------------------------------------------------------------------------------------ whole models
@pytest.fixture(scope="module")
def flux(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    spec = flux_spec()
    return replace(spec, weights=str(save_flux(tmp_path_factory.mktemp("flux"), spec)))


@pytest.mark.parametrize("mode", first_quick(("resident", "stream", "disk"), 1))
def test_rows_with_lora_are_those_of_the_folder(flux: ModelSpec, tmp_path: Path, mode: str) -> None:
    """Wherever the weights are; the file is judged by what the model is."""
    file = tmp_path / "flux1-dev.safetensors"
    taken_out(flux, file)
    spec = replace(flux, files={"transformer": str(file)})
    transformer = load_components(flux, torch.float32)["transformer"]
    lora = save_lora(tmp_path / "lora.safetensors", transformer)
    LoraJudge(spec)(lora, "")
    adapted = {"lora": as_planned(str(lora)), "loras": files_of(str(lora))}
    plain = rendered(flux, "resident", **adapted)
    assert np.array_equal(rendered(spec, mode, **adapted), plain)
    assert not np.array_equal(plain, rendered(flux, "resident"))


def taken_out(spec: ModelSpec, file: Path, part: str = "transformer", prefix: str = "") -> None:
    """Write what the folder's transformer has as its makers publish it."""
    assert spec.weights_folder is not None
    home = spec.weights_folder / part
    tensors = load_file(home / STEM)
    save_file(published(spec, tensors, prefix), file)


def rendered(
    spec: ModelSpec, mode: str, lora: Loras = NO_LORA, loras: Any = NO_LORAS, **memory: Any
) -> np.ndarray:
    own = system(memory={"mode": mode, **memory})
    engine = Engine.load(spec, own, "cpu", layout=lone_layout(spec, own, CPU), loras=loras)
    row = request(
        0,
        width=32,
        num_frames=1,
        num_steps=2,
        solver="euler",
        sigma_shift=1.0,
        true_cfg_scale=3.0,
        lora=lora,
    )
    kept = draw(engine, [row])
    assert not kept.errors
    return kept.frames["row-0"]


def test_rows_are_those_of_the_folder_wherever_the_weights_are(
    flux: ModelSpec, tmp_path: Path
) -> None:
    file = tmp_path / "flux1-dev.safetensors"
    taken_out(flux, file, prefix=COMFY)
    spec = replace(flux, files={"transformer": str(file)})
    plain = rendered(flux, "resident")
    for mode in ("resident", "stream", "disk"):
        assert np.array_equal(rendered(spec, mode), plain), mode


def test_each_of_two_experts_has_a_file(two_expert_folder: Path, tmp_path: Path) -> None:
    """A folder without transformers serves: the preset says what they are."""
    names = ("transformer", "transformer_2")
    files = {name: str(tmp_path / f"{name}.safetensors") for name in names}
    whole = two_experts(tiny_wan_spec(), weights=str(two_expert_folder))
    theirs = load_components(whole, torch.float32)
    rest = tmp_path / "rest"
    rest.mkdir()
    for name, file in files.items():
        taken_out(whole, Path(file), name)
    for path in two_expert_folder.iterdir():
        if path.name not in files:
            (rest / path.name).symlink_to(path)
    spec = replace(whole, weights=str(rest), files=files)
    ours = load_components(spec, torch.float32)
    for name in files:
        mine, other = ours[name].state_dict(), theirs[name].state_dict()
        assert all(torch.equal(mine[key], one) for key, one in other.items())
    before = checkpoint_digest(spec).weights
    moved = str(tmp_path / "moved.safetensors")
    Path(files["transformer"]).rename(moved)
    elsewhere = replace(spec, files=files | {"transformer": moved})
    swapped = {"transformer": files["transformer_2"], "transformer_2": moved}
    other = checkpoint_digest(replace(spec, files=swapped)).weights
    assert checkpoint_digest(elsewhere).weights == before != other
    assert checkpoint_digest(whole).weights not in (before, other)


def test_pickled_and_divided_files_are_read_once_they_are_converted(
    small_folder: Path, tmp_path: Path
) -> None:
    """HunyuanVideo's makers wrap tensors in `module`; large Wans come in shards with an index."""
    whole = small_spec(str(small_folder))
    taken_out(whole, tmp_path / "whole.safetensors")
    tensors = load_file(tmp_path / "whole.safetensors")
    torch.save({"module": tensors}, tmp_path / "wan.pth")
    with pytest.raises(
        WeightsError, match=r"wan\.pth: pickled .* weights convert \S+\.pth \S+\.saf"
    ):
        check_weights(replace(whole, files={"transformer": str(tmp_path / "wan.pth")}))
    convert_weights(tmp_path / "wan.pth", tmp_path / "wan.safetensors")
    homes = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in {*homes.values()}:
        save_file({n: t for n, t in tensors.items() if homes[n] == file}, tmp_path / file)
    index = tmp_path / "wan.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    theirs = load_components(whole, torch.float32)["transformer"].state_dict()
    for file in ("wan.safetensors", index.name):
        spec = replace(whole, files={"transformer": str(tmp_path / file)})
        ours = load_components(spec, torch.float32)["transformer"].state_dict()
        assert all(torch.equal(ours[key], one) for key, one in theirs.items())
        assert len(checkpoint_digest(spec).files) > 4


# ---------------------------------------------------------------------------------------- refusals
def spoilt(change: Callable[[Tensors], object]) -> Callable[[Path], object]:
    def spoil(file: Path) -> None:
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return spoil


def of_flux(file: Path) -> None:
    save_file(published(flux_spec(), noise(flux_spec())), file)


def of_a_smaller_wan(file: Path) -> None:
    dims = small_spec().dims
    spec = small_spec(dims=replace(dims, transformer=replace(dims.transformer, ffn_dim=256)))
    save_file(published(spec, noise(spec)), file)


QUERY = "blocks.0.self_attn.q"


def mark(kind: str) -> torch.Tensor:
    """What ComfyUI writes beside a weight."""
    return torch.tensor([*json.dumps({"format": kind}).encode()], dtype=torch.uint8)


def in_8_bits(tensors: Tensors) -> Tensors:
    """Its first query's weight, without a scale."""
    return {f"{QUERY}.weight": tensors[f"{QUERY}.weight"].to(torch.float8_e4m3fn)}


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "of another family": (
        of_flux,
        r"f\.safetensors: .*missing tensors .*diffusers takes the file for flux-dev",
    ),
    "of other dimensions": (of_a_smaller_wan, r"tensor blocks\.\S+ has shape \[256"),
    "of no model": (
        lambda f: save_file({"a.b": torch.zeros(1)}, f),
        r"f\.safetensors: missing tensors .*; diffusers knows no such file",
    ),
    "a tensor less": (
        spoilt(lambda t: t.pop("blocks.1.self_attn.q.weight")),
        r"f\.safetensors: missing tensor blocks\.1\.attn1\.to_q\.weight",
    ),
    "a tensor more": (
        spoilt(lambda t: t.update({"blocks.1.extra.weight": torch.zeros(1)})),
        r"f\.safetensors: unexpected tensor blocks\.1\.extra\.weight",
    ),
    "a scale of what is not in 8 bits": (
        spoilt(lambda t: t.update({f"{QUERY}.scale_weight": torch.ones(1)})),
        rf"f\.safetensors: has {QUERY}\.scale_weight: {QUERY}\.weight is F32, which is not served",
    ),
    "scales of blocks": (
        spoilt(lambda t: t.update(in_8_bits(t) | {f"{QUERY}.weight_scale": torch.ones(4, 1)})),
        rf"has {QUERY}\.weight_scale: it is F32 of shape \[4, 1\], which is not served; legal",
    ),
    "another format": (
        spoilt(lambda t: t.update(in_8_bits(t) | {f"{QUERY}.comfy_quant": mark("mxfp8")})),
        rf"has {QUERY}\.comfy_quant: it says \{{'format': 'mxfp8'\}}, which is not served",
    ),
    "bits of another layout": (
        spoilt(lambda t: t.update({f"{QUERY}.absmax": torch.ones(4)})),
        rf"has {QUERY}\.absmax: its weights are quantised, with absmax beside them",
    ),
    "whole numbers": (
        spoilt(lambda t: t.update({"head.head.weight": t["head.head.weight"].to(torch.int8)})),
        r"f\.safetensors: head\.head\.weight is stored as I8: not served; legal: a",
    ),
    "gone": (Path.unlink, r"f\.safetensors: is missing \(model\.files\.transformer\); legal"),
    "cut off": (
        lambda f: f.write_bytes(f.read_bytes()[:1000]),
        r"f\.safetensors: cannot be read as safetensors",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_file_that_does_not_fit_is_refused(small_folder: Path, tmp_path: Path, case: str) -> None:
    spec = small_spec(str(small_folder), files={"transformer": str(tmp_path / "f.safetensors")})
    taken_out(spec, tmp_path / "f.safetensors")
    check_weights(spec)
    spoil, expected = SPOILT[case]
    spoil(tmp_path / "f.safetensors")
    with pytest.raises(WeightsError, match=expected):
        check_weights(spec)


def test_a_file_for_another_family_says_what_its_converter_missed(
    flux: ModelSpec, tmp_path: Path
) -> None:
    """Converters that take names apart end in an error of their own."""
    save_file(published(small_spec(), noise(small_spec())), tmp_path / "wan.safetensors")
    with pytest.raises(WeightsError, match=r"wan\.safetensors: .* no FluxTransformer2DModel; diff"):
        check_weights(replace(flux, files={"transformer": str(tmp_path / "wan.safetensors")}))


# ------------------------------------------------------------------------------------------ 8 bits
@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_stored_in_8_bits_are_computed_as_they_are(
    flux: ModelSpec, tmp_path: Path, kind: torch.dtype
) -> None:
    file = tmp_path / "flux1-dev-fp8.safetensors"
    taken_out(flux, tmp_path / "full.safetensors")
    stored = {name: one.to(kind) for name, one in load_file(tmp_path / "full.safetensors").items()}
    save_file(stored, file)
    save_file({name: one.float() for name, one in stored.items()}, tmp_path / "wide.safetensors")
    spec = replace(flux, files={"transformer": str(file)})
    wide = replace(flux, files={"transformer": str(tmp_path / "wide.safetensors")})
    plain = rendered(wide, "resident")
    assert np.array_equal(rendered(spec, "resident"), plain)
    assert np.array_equal(rendered(spec, "disk"), plain)
    if kind == torch.float8_e4m3fn:  # stored again as it was
        assert np.array_equal(rendered(spec, "resident", store_dtype="fp8"), plain)


def scaled(tensors: Tensors, prefix: str, *, newer: bool) -> tuple[Tensors, Tensors]:
    """With matrices in 8 bits and a scale beside each, as ComfyUI writes and wrote them; and what
    they stand for."""
    kind, stored, meant = torch.float8_e4m3fn, dict(tensors), dict(tensors)
    if not newer:
        stored[f"{prefix}scaled_fp8"] = torch.empty(2, dtype=kind)
    for name in [n for n, one in tensors.items() if n.endswith(".weight") and one.ndim == 2]:
        module = name.removesuffix(".weight")
        scale = tensors[name].abs().max() / 448
        stored[name] = (tensors[name] / scale).to(kind)
        meant[name] = stored[name].float() * scale
        beside = {"weight_scale": scale, "input_scale": torch.tensor(0.5)}
        if newer:
            beside["comfy_quant"] = mark("float8_e4m3fn")
        else:
            beside = {"scale_weight": scale.reshape(1), "scale_input": torch.ones(1)}
        stored |= {f"{module}.{leaf}": one for leaf, one in beside.items()}
    return stored, meant


@pytest.mark.parametrize("name", first_quick(SPECS, 3))
def test_weights_in_8_bits_are_multiplied_with_their_scales(tmp_path: Path, name: str) -> None:
    """Where converters cut, join and swap weights, too."""
    prefix, newer = (COMFY, True) if len(name) % 2 else ("", False)
    spec = SPECS[name](str(tmp_path))
    stored, meant = scaled(published(spec, noise(spec), prefix), prefix, newer=newer)
    found = []
    for tensors, file in (stored, tmp_path / "stored.safetensors"), (meant, tmp_path / "meant"):
        file = file.with_suffix(".safetensors")
        save_file(tensors, file)
        part = transformer_of(replace(spec, files={"transformer": str(file)}))
        check_part(tmp_path / "transformer", part, [file])
        found.append(mapped_module(tmp_path / "transformer", part, [file], on_disk=False))
    ours, theirs = (module.state_dict() for module in found)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(one, theirs[key]) for key, one in ours.items())
    assert len(stored) > len(meant)


def test_rows_of_a_file_with_scales_are_those_of_what_it_means(
    flux: ModelSpec, tmp_path: Path
) -> None:
    taken_out(flux, tmp_path / "full.safetensors")
    stored, meant = scaled(load_file(tmp_path / "full.safetensors"), "", newer=True)
    made = {}
    for name, tensors in ("stored", stored), ("meant", meant):
        file = tmp_path / f"{name}.safetensors"
        save_file(tensors, file)
        made[name] = replace(flux, files={"transformer": str(file)})
        check_weights(made[name])
    plain = rendered(made["meant"], "resident")
    for mode in ("resident", "stream"):
        assert np.array_equal(rendered(made["stored"], mode), plain), mode
    assert checkpoint_digest(made["stored"]).weights != checkpoint_digest(made["meant"]).weights
    check_disk(made["meant"], system(memory={"mode": "disk"}))
    for asked in (
        {"memory": {"mode": "disk"}},
        {"components": {"transformer": ComponentConfig(memory="disk")}},
    ):
        with pytest.raises(
            WeightsError, match=r"stored\.safetensors: has .*_scale, .* on disk; legal"
        ):
            check_disk(made["stored"], system(**asked))
    elsewhere = {"transformer": ComponentConfig(memory="stream")}
    check_disk(made["stored"], system(memory={"mode": "disk"}, components=elsewhere))
    on_disk = system(memory={"mode": "disk"})
    job = JobConfig(name="job", manifest="m", model=made["stored"], system=on_disk)
    goes_on = going_on(RunPaths(tmp_path), Settings(to_mapping(job), []), [])
    with pytest.raises(WeightsError, match="on disk; legal"), goes_on:
        raise AssertionError("the run goes on")
    where = SlurmConfig(mem_gb=1e-9, device=DeviceConfig(name="gpu", memory_gib=8))
    chosen = {
        name: residencies(JobConfig(name="", manifest="", model=model, slurm=where))
        for name, model in made.items()
    }
    assert "disk" in chosen["meant"] and "disk" not in chosen["stored"]  # of a node that is full


def test_a_folder_may_hold_weights_in_8_bits(small_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_folder, tmp_path / "fp8"))
    stored: dict[str, Tensors] = {}
    for part, file in (("transformer", STEM), ("text_encoder", "model.safetensors")):
        whole = load_file(folder / part / file)
        stored[part] = {name: one.to(torch.float8_e4m3fn) for name, one in whole.items()}
        save_file(stored[part], folder / part / file, metadata={"format": "pt"})
    found = load_components(small_spec(str(folder)), torch.bfloat16)
    for part, tensors in stored.items():
        state = found[part].state_dict()
        assert all(torch.equal(state[name].float(), one.float()) for name, one in tensors.items())


def test_what_was_stored_in_8_bits_is_stored_so_without_loss() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    values = codes[codes.isfinite()]
    rows = torch.stack([values, values / 448, values.clamp(-(2.0**-6), 2.0**-6)])
    rows[1] = rows[1].to(torch.float8_e4m3fn).float()
    assert torch.equal(from_fp8(*to_fp8(rows), torch.bfloat16).float(), rows)
