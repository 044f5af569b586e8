"""`model=auto`: the checkpoint says what it is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from toy_engine import small_spec, tiny_wan_spec, two_experts
from toy_flux import flux_spec, save_flux
from video_toys import VIDEO_TOYS

from batchgen.config.checkpoints.checkpoint import check_dimensions
from batchgen.config.composing.compose import compose_job, recompose
from batchgen.config.schema import ModelSpec
from batchgen.errors import ConfigError, WeightsError
from batchgen.families.family import family_names, family_spec
from batchgen.planning.digests import checkpoint_digest
from batchgen.planning.identity import key_context

JOB = Path(__file__).parents[3] / "jobs" / "demo.yaml"
SIZE = ("row_defaults.width=64", "row_defaults.height=64", "row_defaults.num_frames=1")


def auto(weights: Path | str, *overrides: str) -> ModelSpec:
    return compose_job(JOB, ["model=auto", f"model.weights={weights}", *overrides]).config.model


@pytest.fixture(scope="module")
def flux_folder(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_flux(tmp_path_factory.mktemp("flux"), flux_spec())


def test_a_wan_is_found_with_its_dimensions(small_folder: Path) -> None:
    model = auto(small_folder, "model.text_encoder.max_tokens=16")
    small = small_spec(str(small_folder))
    assert (model.family, model.dims, model.name) == ("wan", small.dims, small_folder.name)
    assert model.request_defaults.sigma_shift == 3.0
    assert checkpoint_digest(model).weights == checkpoint_digest(small).weights
    tiny = auto("embedded", "model.text_encoder.max_tokens=32")
    assert tiny.dims == tiny_wan_spec().dims


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"_class_name": "LCMScheduler"}, "_class_name is 'LCMScheduler'; legal: UniPCMultistep"),
        ({"solver_order": 3}, "solver_order is 3; legal: 2"),
        ({"solver_type": "bh1"}, "solver_type is 'bh1'; legal: 'bh2'"),
        ({"use_beta_sigmas": True}, "use_beta_sigmas is True; legal: False"),
        ({"flow_shift": "large"}, "flow_shift is 'large'; legal: a number above 0"),
        ({"flow_shift": 0}, "flow_shift is 0; legal: a number above 0"),
    ],
)
def test_a_scheduler_that_would_draw_something_else_is_refused(
    small_folder: Path, tmp_path: Path, changes: dict[str, object], answer: str
) -> None:
    """Else its rows would silently be those of another scheduler."""
    shutil.copytree(small_folder, tmp_path / "model")
    file = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(WeightsError) as caught:
        auto(tmp_path / "model", "model.text_encoder.max_tokens=16")
    assert f"{file}: {answer}" in str(caught.value)


def test_two_experts_are_found_with_their_boundary(two_expert_folder: Path) -> None:
    model = auto(two_expert_folder, "model.text_encoder.max_tokens=32")
    assert model.family == "wan22"
    assert model.dims == two_experts(tiny_wan_spec()).dims
    assert model.request_defaults.guidance_scale_2 == 3.0


@pytest.mark.parametrize("dev", [True, False])
def test_a_flux_is_found_with_its_scheduler(one_thread: None, tmp_path: Path, dev: bool) -> None:
    folder = save_flux(tmp_path / "model", flux_spec(dev=dev))
    model = auto(folder, "model.text_encoder_2.max_tokens=32", "model.name=mine")
    assert (model.family, model.dims, model.name) == ("flux", flux_spec(dev=dev).dims, "mine")
    own = model.request_defaults
    assert (own.num_steps, own.solver, own.num_frames) == (28 if dev else 4, "euler", 1)


@pytest.mark.parametrize("name", sorted(VIDEO_TOYS))
def test_videos_are_found_with_their_dimensions(
    one_thread: None, tmp_path: Path, name: str
) -> None:
    toy = VIDEO_TOYS[name]
    folder = toy.save(tmp_path / "model", toy.spec())
    model = auto(folder, *toy.overrides)
    assert (model.family, model.media, model.dims) == (toy.family, "video", toy.spec().dims)


def test_texts_of_another_length_than_the_model_has_places_for_are_refused(
    one_thread: None, tmp_path: Path
) -> None:
    toy = VIDEO_TOYS["cogvideox"]
    folder = toy.save(tmp_path / "model", toy.spec())
    says = (
        "max_tokens: 226, but texts are as long as model.transformer.max_text_seq_length says: 32"
    )
    with pytest.raises(ConfigError, match=says):
        auto(folder, "model.text_encoder.max_tokens=226")


def test_what_is_set_wins_and_what_was_found_is_stored(small_folder: Path) -> None:
    composed = compose_job(
        JOB,
        ["model=auto", f"model.weights={small_folder}", "model.request_defaults.num_steps=7"],
    )
    assert composed.config.model.request_defaults.num_steps == 7
    assert composed.resolved["model"]["family"] == "wan"
    assert recompose(composed.resolved).config == composed.config


def test_a_boundary_that_is_not_the_checkpoints_is_refused(two_expert_folder: Path) -> None:
    """It can be moved on purpose: system.sampler.boundary is in the row key."""
    model = auto(two_expert_folder)
    check_dimensions(model)
    with pytest.raises(WeightsError, match=r"boundary is 0\.875, but model\.boundary says 0\.9"):
        check_dimensions(replace(model, dims=replace(model.dims, boundary=0.9)))
    given = ["model=auto", f"model.weights={two_expert_folder}"]
    for more, boundary in (([], 0.875), (["system.sampler.boundary=0.5"], 0.5)):
        assert key_context(compose_job(JOB, [*given, *more]).config).boundary == boundary


def test_a_model_of_no_family_or_with_keys_of_the_inside_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    job = tmp_path / "job.yaml"
    job.write_text("defaults: [base, {model: mine}, _self_]\nmanifest: m.parquet\n")
    plain = {"name": "mine", "weights": "random", "transformer": {"num_layers": 1}}
    cases: list[tuple[dict[str, object], str]] = [
        ({}, "model.family: required, but not set"),
        ({"family": 3}, "model.family: '3' is not one of"),
        ({"family": "wann"}, f"model.family: 'wann' is not one of {', '.join(family_names())}"),
        ({"family": "wan", "dims": {}}, "model.dims: unknown key"),
        ({"family": "wan"}, "model.transformer.num_attention_heads: required"),
    ]
    for extra, message in cases:
        (tmp_path / "model" / "mine.yaml").write_text(json.dumps(plain | extra))
        with pytest.raises(ConfigError) as caught:
            compose_job(job)
        assert message in str(caught.value)


def test_what_nobody_serves_is_refused_with_what_is(
    small_folder: Path, two_expert_folder: Path, tmp_path: Path
) -> None:
    def changed(source: Path, **entries: object) -> Path:
        folder = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(source, folder)
        index = folder / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | entries))
        return folder

    pipelines = {family_spec(name).PIPELINE for name in family_names()} - {""}
    served = f"is not served; served: {', '.join(sorted(pipelines))}"
    unknown = changed(small_folder, _class_name="NoPipeline")
    with pytest.raises(WeightsError, match=f"NoPipeline with these parts {served}; nor does "):
        auto(unknown)
    with pytest.raises(WeightsError, match=r"model=generic take it: the installed .* has no NoP"):
        auto(unknown)
    with pytest.raises(
        WeightsError, match=r"text_encoder is transformers\.GemmaModel, but WanPipeline is"
    ):
        auto(changed(small_folder, text_encoder=["transformers", "GemmaModel"]))
    with pytest.raises(WeightsError, match=f"WanVACEPipeline with these parts {served}"):
        auto(changed(small_folder, _class_name="WanVACEPipeline"))
    folder = changed(two_expert_folder)
    shutil.rmtree(folder / "transformer")
    with pytest.raises(WeightsError, match=r"transformer/config\.json: is missing"):
        auto(folder)
    (folder / "model_index.json").unlink()
    with pytest.raises(WeightsError, match=r"model_index\.json: is missing"):
        auto(folder)
    with pytest.raises(WeightsError, match=r"holds checkpoints; model\.weights takes one: "):
        auto(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.weights: random, but model=auto needs a folder"):
        auto("random")
    with pytest.raises(ConfigError, match=r"model\.weights: required"):
        compose_job(JOB, ["model=auto"])


@pytest.mark.parametrize("column", ["negative_prompt", "guidance_scale", "true_cfg_scale"])
def test_what_a_distilled_klein_does_not_read_is_refused(column: str) -> None:
    value = "blur" if column == "negative_prompt" else "2.0"
    with pytest.raises(
        ConfigError, match=rf"row_defaults\.{column}: {value} is not served by flux.2-klein-4b yet"
    ):
        compose_job(JOB, ["model=flux.2-klein-4b", f"row_defaults.{column}={value}"])
