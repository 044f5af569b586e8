"""The generic family: which pipelines it takes, what it reads of their calls, and its keys."""

from __future__ import annotations

import inspect
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import pytest
from toy_engine import request
from toy_generic import SET_PARAMS, save_pixart

from batchgen.config.composing.compose import compose_job, recompose
from batchgen.config.schema import JobConfig
from batchgen.errors import ConfigError, WeightsError
from batchgen.families.components import component_bytes
from batchgen.families.generic import spec as generic
from batchgen.families.generic.call import UNREAD, call_of
from batchgen.families.generic.columns import filled, set_by_job
from batchgen.planning.digests import checkpoint_digest
from batchgen.planning.identity import KeyContext, key_context, row_key

JOB = Path(__file__).parents[3] / "jobs" / "demo.yaml"


@pytest.fixture(scope="module")
def folder(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pixart(tmp_path_factory.mktemp("pixart"))


def job(folder: Path, *overrides: str, model: str = "auto") -> JobConfig:
    return compose_job(JOB, [f"model={model}", f"model.weights={folder}", *overrides]).config


_VAE = ("diffusers", "AutoencoderKL")


def index(pipeline: str, **more: Any) -> dict[str, Any]:
    """A model_index.json with all the components of a class."""
    parts = call_of(pipeline).parts
    return {"_class_name": pipeline, **{name: [*_VAE] for name in parts}, **more}


@pytest.mark.parametrize(
    "name", ["PixArtSigmaPipeline", "SanaVideoPipeline", "StableDiffusionXLPipeline", "WanPipeline"]
)
def test_a_call_is_read_as_python_sees_it(name: str) -> None:
    seen = inspect.signature(getattr(diffusers, name).__call__).parameters
    read = call_of(name).arguments
    assert set(read) == {n for n, p in seen.items() if n != "self" and p.kind is not p.VAR_KEYWORD}
    for argument, found in read.items():
        assert found.needed == (seen[argument].default is inspect.Parameter.empty)
        assert found.default is UNREAD or found.default == seen[argument].default


def test_an_inherited_call_is_found() -> None:
    assert call_of("StableDiffusionOnnxPipeline").arguments.keys() >= {"prompt", "height"}


@pytest.mark.parametrize(
    "name",
    [
        *("PixArtSigmaPipeline", "PixArtAlphaPipeline", "SanaPipeline", "SanaSprintPipeline"),
        *("StableDiffusionPipeline", "StableDiffusionXLPipeline", "AuraFlowPipeline"),
        *("SanaVideoPipeline", "AllegroPipeline", "AnimateDiffPipeline", "Kandinsky5T2VPipeline"),
        *("Flux2Pipeline", "Lumina2Pipeline", "CogView4Pipeline", "ChromaPipeline"),
    ],
)
def test_pipelines_that_draw_from_text_are_taken(name: str) -> None:
    assert generic.refusal(index(name)) == ""


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (index("StableDiffusionXLImg2ImgPipeline"), "draws from image, strength, not from text"),
        (index("LTXImageToVideoPipeline"), "draws from image, not from text alone"),
        (index("FluxControlPipeline"), "draws from control_image, not from text alone"),
        (index("StableDiffusionControlNetPipeline"), "draws from controlnet, not from text alone"),
        (index("WanVACEPipeline"), "draws from video"),
        (index("AudioLDM2Pipeline"), "its call has no width, height"),
        (index("LTX2Pipeline"), "it makes sound (audio_vae, vocoder)"),
        ({"_class_name": "NoPipeline"}, f"diffusers {diffusers.__version__} has no NoPipeline"),
        ({}, "has no None"),
        (
            index("WanPipeline", transformer=["diffusers", "SanaTransformer2DModel"]),
            "its transformer is diffusers.SanaTransformer2DModel, but that class takes WanTransf",
        ),
        (index("SanaPipeline", vae=["my_code", "MyVae"]), "the component vae is my_code.MyVae"),
        (
            {"_class_name": "SanaPipeline", "vae": ["diffusers", "AutoencoderDC"]},
            "tokenizer, text_encoder, transformer, scheduler is missing in the checkpoint",
        ),
    ],
)
def test_others_are_refused_with_the_reason(found: dict[str, Any], why: str) -> None:
    assert why in generic.refusal(found)


def test_columns_fill_the_arguments_that_a_call_has() -> None:
    call = call_of("SanaVideoPipeline")
    row = asdict(request(0, negative_prompt="", num_frames=9, guidance_scale=2.0))
    assert filled(call, row) == {
        "negative_prompt": "", "width": 32, "height": 32, "frames": 9, "num_inference_steps": 3,
        "guidance_scale": 2.0,
    }  # fmt: skip
    # None and "" differ to this call, and a row that says nothing leaves it its own
    assert "negative_prompt" not in filled(call_of("StableDiffusionXLPipeline"), row)
    rate = filled(call_of("SkyReelsV2DiffusionForcingPipeline"), row | {"fps": 24.0})["fps"]
    assert rate == 24 and isinstance(rate, int)


def test_pairs_of_a_job_are_tuples_where_the_call_adds_them_up() -> None:
    call = call_of("StableDiffusionXLPipeline")
    assert set_by_job(call, {"target_size": [64, 32], "clip_skip": 1}) == {
        "target_size": (64, 32),
        "clip_skip": 1,
    }
    assert set_by_job(call_of("SanaPipeline"), {"sigmas": [1.0]}) == {"sigmas": [1.0]}


def test_what_a_checkpoint_says_becomes_the_model(folder: Path) -> None:
    model = job(folder, *SET_PARAMS).model
    assert (model.family, model.name, model.media) == ("generic", folder.name, "image")
    own = model.request_defaults
    assert (own.width, own.height, own.num_frames, own.num_steps) == (256, 256, 1, 20)
    assert (own.guidance_scale, own.solver) == (4.5, "own")
    dims = model.dims
    assert (dims.pipeline, dims.grid) == ("PixArtSigmaPipeline", 8)
    loaded = diffusers.PixArtTransformer2DModel.from_pretrained(folder / "transformer")
    assert dims.part_weights["transformer"] == loaded.num_parameters()
    stages = {name: stage for name, stage, _ in component_bytes(model).parts}
    assert stages == {"transformer": "denoise", "vae": "decode", "text_encoder": "encode"}


def test_a_stored_job_goes_on_as_it_is(folder: Path) -> None:
    composed = compose_job(JOB, ["model=auto", f"model.weights={folder}", *SET_PARAMS])
    assert recompose(composed.resolved).config == composed.config
    other = recompose(composed.resolved, ["model.params.max_sequence_length=64"]).config
    assert other.model.dims.params["max_sequence_length"] == 64


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.params.foo=1", "model.params.foo: the call of PixArtSigmaPipeline takes no foo"),
        ("model.params.clean_captoin=true", r"\(did you mean 'clean_caption'\?\); legal: timest"),
        ("model.params.width=64", "model.params.width: is the column width of rows"),
        ("model.params.latents=1", "takes no latents from a job"),
        ("model.params.clean_caption=1", "1 is no bool, as the call of PixArtSigmaPipeline"),
        ("model.params.max_sequence_length=1.5", "1.5 is no int, as the call"),
        (
            "row_defaults.true_cfg_scale=2",
            r"row_defaults\.true_cfg_scale: 2\.0 is not served by pixart\d yet",
        ),
        ("row_defaults.cache_ratio=0.5", "cache"),
        (
            "system.parallel.cfg=2",
            r"system\.parallel\.cfg: 2 is not served by pixart\d yet; served: auto, 1",
        ),
        (
            "system.memory.mode=stream",
            r"system\.memory\.mode: stream is not served by pixart\d yet",
        ),
        (
            "system.compile.mode=default",
            r"system\.compile\.mode: default is not served by pixart\d yet",
        ),
        (
            "system.batch.window=4",
            r"system\.batch\.window: 4 is not served by pixart\d yet; served: auto",
        ),
        (
            "system.sampler.solver=euler",
            r"solver: euler is not served by pixart\d yet; served: null, own",
        ),
        ("model.prompt_overflow=error", r"prompt_overflow: error is not served by pixart\d yet"),
        ("system.components.vae.dtype=float32", "has no such component; legal: none"),
    ],
)
def test_what_is_not_served_is_refused(folder: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        job(folder, override)


def test_a_call_without_a_negative_prompt_refuses_one(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "model")
    sprint = {
        "_class_name": "SanaSprintPipeline",
        "transformer": ["diffusers", "SanaTransformer2DModel"],
    }
    stored = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps(stored | sprint))
    with pytest.raises(ConfigError, match="negative_prompt: blur is not served by model yet"):
        job(other, "row_defaults.negative_prompt=blur")


def test_generic_by_name_says_why_not(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps(index("FluxControlPipeline")))
    with pytest.raises(WeightsError, match="model=generic does not take FluxControlPipeline: it"):
        job(tmp_path, model="generic")
    with pytest.raises(ConfigError, match="model=generic needs a folder in diffusers layout"):
        job(Path("random"), model="generic")
    pickled = shutil.copytree(folder, tmp_path / "model")
    weights = pickled / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(WeightsError, match="pickled weights are not loaded"):
        job(pickled)


def test_every_file_of_every_component_is_in_the_digest(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "model")
    model = job(other).model
    first = checkpoint_digest(model)
    components = {file.parent.name for file in folder.rglob("*") if file.parent != folder}
    assert {name.partition("/")[0] for name in first.files} == {*components, "model_index.json"}
    for file in sorted(path for path in other.rglob("*") if path.is_file()):
        before = file.read_bytes()
        if file.name == "tokenizer.json":
            file.write_text(f"{before.decode()}\n")
        elif file.suffix == ".json":
            file.write_text(json.dumps(json.loads(before) | {"changed": True}))
        else:
            file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        changed = checkpoint_digest(model)
        assert (changed.weights, changed.tokenizer) != (first.weights, first.tokenizer), file
        file.write_bytes(before)
    assert checkpoint_digest(model) == first


def test_class_version_and_arguments_are_in_the_key(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(context: KeyContext) -> str:
        return row_key(context, request(0))

    plain = key_context(job(folder))
    other = key_context(job(folder, "model.params.max_sequence_length=64"))
    assert key(plain) != key(other)
    assert plain.differences(other) == ["model.params, or the installed diffusers (or bs4)"]
    assert KeyContext.from_json(plain.to_json()) == plain
    monkeypatch.setattr(generic, "diffusers_version", lambda: "0.0")
    assert key(key_context(job(folder))) != key(plain)
    monkeypatch.undo()
    monkeypatch.setattr(generic, "find_spec", lambda name: None)  # captions would not be cleaned
    assert key(key_context(job(folder))) != key(plain)
    assert "pipeline" not in key_context(compose_job(JOB).config).to_json()
