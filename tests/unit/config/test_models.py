"""The shipped models: their dimensions, sizes and the light family's arithmetic."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

from batchgen.config.checkpoints.checkpoint import check_dimensions
from batchgen.config.composing.compose import CONF, compose_job
from batchgen.config.schema import ModelSpec
from batchgen.errors import ConfigError
from batchgen.families.components import component_bytes
from batchgen.families.family import family_spec
from batchgen.numerics.solver import schedule
from batchgen.request import Bucket

ROOT = Path(__file__).parents[3]
FOUND = ("auto", "generic")  # models that are what their checkpoint says
NAMES = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem not in FOUND)


@pytest.fixture(scope="module")
def models() -> dict[str, ModelSpec]:
    job = ROOT / "jobs" / "demo.yaml"
    return {name: compose_job(job, [f"model={name}"]).config.model for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_named_like_its_file_and_can_draw_its_own_defaults(
    models: dict[str, ModelSpec], name: str
) -> None:
    model = models[name]
    assert model.name == name
    stride = family_spec(model.family).stride(model)
    own = model.request_defaults
    for width, height in [*model.sizes.values(), (own.width, own.height)]:
        assert width % stride.pixels == height % stride.pixels == 0
    assert (own.num_frames - 1) % stride.frames == 0
    assert (own.width, own.height) in model.sizes.values()


def test_the_embedded_model_has_the_dimensions_of_its_checkpoint(
    models: dict[str, ModelSpec],
) -> None:
    model = models["tiny-wan"]
    assert model.weights_folder is not None
    check_dimensions(model)


def test_published_dimensions_of_wan(models: dict[str, ModelSpec]) -> None:
    small, large = models["wan2.1-t2v-1.3b"], models["wan2.1-t2v-14b"]
    wan = family_spec("wan")
    assert (small.dims.transformer.width, small.dims.transformer.num_layers) == (1536, 30)
    assert (large.dims.transformer.width, large.dims.transformer.num_layers) == (5120, 40)
    assert wan.parameters(small, "transformer") == pytest.approx(1.42e9, rel=0.02)
    assert wan.parameters(large, "transformer") == pytest.approx(14.3e9, rel=0.02)
    assert wan.parameters(small, "text_encoder") == pytest.approx(5.68e9, rel=0.02)
    assert wan.parameters(small, "vae") == pytest.approx(127e6, rel=0.1)
    for model in (small, large):
        assert (model.request_defaults.num_steps, model.request_defaults.guidance_scale) == (
            50,
            5.0,
        )


@pytest.mark.parametrize(
    ("name", "bucket", "tokens", "tflop"),
    [
        ("wan2.1-t2v-1.3b", Bucket(832, 480, 81), 32_760, 283.0),
        ("wan2.1-t2v-1.3b", Bucket(1280, 720, 81), 75_600, 1249.8),
        ("wan2.1-t2v-14b", Bucket(832, 480, 81), 32_760, 1678.4),
        ("wan2.1-t2v-14b", Bucket(1280, 720, 81), 75_600, 6523.4),
    ],
)
def test_tokens_and_flops_of_a_forward(
    models: dict[str, ModelSpec], name: str, bucket: Bucket, tokens: int, tflop: float
) -> None:
    family = family_spec("wan")
    assert family.tokens(models[name], bucket) == tokens
    assert family.forward_flops(models[name], bucket) / 1e12 == pytest.approx(tflop, rel=1e-3)


@pytest.mark.parametrize("component", ["transformer", "text_encoder", "vae"])
def test_predicted_bytes_are_those_of_the_real_tensors(
    models: dict[str, ModelSpec], component: str
) -> None:
    """Within a tenth: biases, norms and small convolutions are left out of the formulas."""
    model = models["tiny-wan"]
    assert model.weights_folder is not None
    (file,) = (model.weights_folder / component).glob("*.safetensors")
    raw = file.read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    header.pop("__metadata__", None)
    counted = 4 * sum(prod(tensor["shape"]) for tensor in header.values())
    predicted = {name: size for name, _, size in component_bytes(model).parts}
    assert predicted[component] == pytest.approx(counted, rel=0.15)


def test_costs_grow_with_every_dimension_of_a_bucket(models: dict[str, ModelSpec]) -> None:
    model, family = models["wan2.1-t2v-1.3b"], family_spec("wan")
    base = Bucket(832, 480, 49)
    for larger in (Bucket(848, 480, 49), Bucket(832, 496, 49), Bucket(832, 480, 53)):
        assert family.tokens(model, larger) > family.tokens(model, base)
        assert family.forward_flops(model, larger) > family.forward_flops(model, base)
        assert family.decode_flops(model, larger) > family.decode_flops(model, base)
        assert family.forward_bytes(model, larger) > family.forward_bytes(model, base)
        assert family.decode_bytes(model, larger) > family.decode_bytes(model, base)
    half, whole = component_bytes(model), component_bytes(replace(model, dtype="float32"))
    vae = 4 * family.parameters(model, "vae")  # in float32 whatever the rest is in
    assert whole.total - vae == 2 * (half.total - vae)


def test_steps_of_the_first_expert_of_wan22(models: dict[str, ModelSpec]) -> None:
    """The published settings: 26 of 40 steps are of high noise."""
    model = models["wan2.2-t2v-a14b"]
    own = model.request_defaults
    assert (own.num_steps, own.sigma_shift, model.dims.boundary) == (40, 12.0, 0.875)
    assert (own.guidance_scale, own.guidance_scale_2) == (4.0, 3.0)
    steps = schedule(own.solver, own.sigma_shift, own.num_steps).timesteps
    assert sum(float(t) >= 1000 * model.dims.boundary for t in steps) == 26
    sizes = {name: size for name, _, size in component_bytes(model).parts}
    assert sizes["transformer"] == sizes["transformer_2"]
    assert component_bytes(model).expert == sizes["transformer"]


def test_keys_of_one_family_are_refused_in_another() -> None:
    job = ROOT / "jobs" / "demo.yaml"
    with pytest.raises(
        ConfigError, match=r"model\.boundary: models of family wan have no boundary"
    ):
        compose_job(job, ["model.boundary=0.5"])
    assert compose_job(job, ["model=wan2.2-t2v-a14b", "model.boundary=0.5"])
    with pytest.raises(ConfigError, match=r"system\.sampler\.boundary: 0\.5 is not served"):
        compose_job(job, ["system.sampler.boundary=0.5"])
