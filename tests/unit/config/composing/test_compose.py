"""Hydra composes a job; what is wrong with a key or value is said in the job's own terms."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from batchgen.config import capability
from batchgen.config.build import build, home_of, leaf_keys, to_mapping
from batchgen.config.composing.compose import CONF, Composed, compose_job, recompose, write_hydra
from batchgen.config.schema import JobConfig, OutputConfig, RowDefaults, SlurmConfig, SystemConfig
from batchgen.errors import ConfigError
from batchgen.families.family import family_names, family_spec

Job = Callable[..., Path]
ROOT = Path(__file__).parents[4]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Writes a job file with the given body below `defaults`."""

    def write(body: str = "", model: str = "tiny-wan", name: str = "small.yaml") -> Path:
        folder = tmp_path / "jobs"
        folder.mkdir(exist_ok=True)
        head = f"defaults: [base, {{model: {model}}}, _self_]\nmanifest: rows.parquet\n"
        (folder / name).write_text(head + body, encoding="utf-8")
        return folder / name

    return write


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose_job(path, overrides)
    return str(caught.value)


def test_a_job_without_settings_gets_every_default(job: Job) -> None:
    """The name is the file's stem, everything else is the schema's default."""
    composed = compose_job(job())
    assert composed.config.name == "small"
    assert composed.config.system == SystemConfig()
    assert composed.config.output == OutputConfig()
    assert composed.config.row_defaults == RowDefaults()
    assert composed.config.model.name == "tiny-wan"
    assert composed.config.slurm.executor == "local"


def test_base_yaml_holds_every_key_with_the_default_of_the_schema() -> None:
    """Users read base.yaml to learn the keys: it must not drift from the dataclasses."""
    stored = yaml.safe_load((CONF / "base.yaml").read_text(encoding="utf-8"))
    assert to_mapping(SystemConfig()) == stored["system"]
    assert to_mapping(OutputConfig()) == stored["output"]
    assert to_mapping(RowDefaults()) == stored["row_defaults"]
    own = {field.name for field in dataclasses.fields(JobConfig)} - {"model", "slurm"}
    assert own == set(stored) - {"defaults"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("row_defaults.num_step=3", "did you mean 'row_defaults.num_steps'"),
        ("output.fromat=gif", "output.fromat: unknown key (did you mean 'output.format'?)"),
        ("num_steps=3", "belongs to row_defaults; did you mean 'row_defaults.num_steps'"),
        ("system.num_steps=3", "num_steps belongs to row_defaults"),
        ("row_defaults.solver=euler", "did you mean 'system.sampler.solver'"),
        ("prompt=hello", "prompt is a column of the manifest"),
        ("cache=teacache", "cache belongs to row_defaults; did you mean 'row_defaults.cache'?"),
        ("low_mem_level=1", "did you mean 'system.memory.low_mem_level'?"),
        ("slurm.node=2", "did you mean 'slurm.nodes'?"),
        ("nodes=2", "did you mean 'slurm.nodes'"),
        ("system.paralel.dp=1", "unknown key; did you mean 'system.parallel.dp'"),
        ("system.seed=1", "seed belongs to row_defaults"),
        ("carry_columns=a,b", "a list is written key=[a,b]"),
        ("output.format=gfi", "'gfi' is not one of 'auto', 'frames', 'gif', 'jpeg', 'latents'"),
        ("output.quality=11", "legal: >= 0 and <= 10"),
        ("output.quality=high", "output.quality: 'high' is not an integer"),
        ("seed=-1", "seed: -1 is out of range"),
        ("seed=1.5", "seed: 1.5 is not an integer"),
        ("system.parallel.dp=many", "'auto' or an integer"),
        ("row_defaults.guidance_scale=.nan", "row_defaults.guidance_scale"),
        ("row_defaults.num_steps=0", "row_defaults.num_steps: 0 is out of range"),
        ("model=tiny-wam", "did you mean 'tiny-wan'"),
        ("slurm=h1000", "slurm: 'h1000' is not one of "),
        ("model.family=wna", "did you mean 'wan'"),
        ("name=a/b", "cannot be part of a folder name"),
        ("manifest=null", "manifest: null is not a string"),
        ("a b=1", "write key=value"),
        ("output=gif", "output: 'gif' is not a mapping"),
    ],
)
def test_a_wrong_override_is_refused_with_what_was_meant(
    job: Job, override: str, message: str
) -> None:
    assert message in refusal(job(), override)


def test_a_wrong_key_in_the_file_is_refused_like_one_on_the_command_line(job: Job) -> None:
    assert "did you mean 'output.format'" in refusal(job("output: {fromat: gif}\n"))
    assert "'row_defaults.num_steps'" in refusal(job("num_steps: 3\n"))
    assert "'system.sampler.solver'" in refusal(job("row_defaults: {solver: euler}\n"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["attention=sage"], "attention: sage needs a CUDA device; legal here: auto, sdpa, flex"),
        (["attention_schedule.between=cudnn"], "attention_schedule.between: cudnn needs a CUDA"),
        (["attention=flex", "parallel.attention_op=xfuser"], "xfuser"),
        (["attention=flex", "parallel.ring=2"], "not with flex; legal with it: auto, 1"),
        (
            ["attention=radial", "attention_schedule.between=flex"],
            "radial has its own first steps (system.radial.dense_steps)",
        ),
        (["attention_schedule.first=-1"], "attention_schedule.first: -1 is out of range"),
        (["radial.decay=0"], "radial.decay: 0.0 is out of range"),
    ],
)
def test_kernels_that_cannot_run_are_refused_with_those_that_can(
    job: Job, overrides: list[str], said: str
) -> None:
    assert said in refusal(job(), *(f"system.{override}" for override in overrides))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["compile=default", "parallel.ulysses=2"], "ulysses and ring auto or 1"),
        (["compile=reduce-overhead", "memory.mode=stream"], "those that stream move"),
        (["compile=default", "attention=radial"], "radial attention differs from block to block"),
        (["compile=default", "compile.components=[vae]"], "vae is not served by tiny-wan yet"),
    ],
)
def test_what_compiled_blocks_do_not_go_with_is_refused(
    job: Job, overrides: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capability, "missing_compiler", lambda device: "")
    assert said in refusal(job(), *(f"system.{override}" for override in overrides))


def test_without_a_compiler_nothing_is_compiled(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    said = refusal(job(), "system.compile=default")
    assert said.endswith("there is no C++ compiler (CXX, g++ or clang++); legal here: off")


def test_kernels_are_asked_of_the_device_that_the_profile_promises(job: Job) -> None:
    card = [f"slurm.device.{each}" for each in ("name=h200", "memory_gib=141")]
    half, full = "model.dtype=bfloat16", "model.dtype=float32"
    for name in ("flash_attn", "flash_attn_3", "sage", "sparge"):
        said = refusal(job(), f"system.attention={name}", half, *card)
        assert f"{name} is not installed (python package " in said
        assert said.endswith("legal here: auto, sdpa, cudnn, flex, radial")
    said = refusal(job(), "system.attention=cudnn", full, *card)
    assert "cudnn takes bfloat16 or float16 alone; legal here: auto, sdpa, flex, radial" in said


@pytest.mark.parametrize(
    ("override", "served"),
    [
        ("system.sampler.boundary=0.9", "null"),
        ("system.components.vae.memory=stream", "null, resident, model, disk"),
        ("row_defaults.image=a.png", "null"),
        ("row_defaults.guidance_scale_2=3", "null"),
    ],
)
def test_a_legal_setting_that_is_not_served_is_refused_never_ignored(
    job: Job, override: str, served: str
) -> None:
    assert refusal(job(), override).endswith(f"is not served by tiny-wan yet; served: {served}")


def test_tiles_are_of_sizes_that_show_no_seam(job: Job) -> None:
    """Sizes that are left out are the family's, and recorded."""
    tiled = "system.vae.tiled=true"
    vae = compose_job(job(), [tiled]).config.system.vae
    assert (vae.tile, vae.stride) == (416 + 144, 416)
    vae = compose_job(job(), [tiled, "system.vae.stride=64"]).config.system.vae
    assert (vae.tile, vae.stride) == (64 + 144, 64)
    assert refusal(job(), tiled, "system.vae.tile=200", "system.vae.stride=64") == (
        "system.vae.tile: 200: a tile of tiny-wan needs 144 pixels beside what it is there for, "
        "else seams show; legal: from 208 on with system.vae.stride=64"
    )
    assert refusal(job(), tiled, "system.vae.tile=100").endswith("legal: from 152 on")
    assert refusal(job(), tiled, "system.vae.tile=300", "system.vae.stride=64").endswith(
        "300: the latents of tiny-wan have cells of 8 pixels; legal: multiples of that"
    )
    assert refusal(job(), "system.vae.tile=208") == (
        "system.vae.tile: 208: without system.vae.tiled=true there are no tiles; legal: null"
    )
    said = refusal(job(model="ltx-video-0.9.1"), tiled)
    assert (
        said == "system.vae.tiled: true is not served by ltx-video-0.9.1 yet; served: auto, false"
    )


def test_tiles_of_a_layer_have_nothing_beside_them(job: Job) -> None:
    flux, tiled = job(model="flux.1-dev"), "system.vae.tiled=true"
    for own, size in (((), 256), (("system.vae.tile=128",), 128), (("system.vae.stride=64",), 64)):
        vae = compose_job(flux, [tiled, *own]).config.system.vae
        assert (vae.tile, vae.stride) == (size, size)
    assert refusal(flux, tiled, "system.vae.tile=128", "system.vae.stride=64") == (
        "system.vae.tile: 128: flux.1-dev is decoded layer by layer, where tiles have nothing "
        "beside what they are there for; legal with system.vae.stride=64: null, 64"
    )


@pytest.mark.skipif(find_spec("xfuser") is not None, reason="xfuser is installed")
def test_xfuser_is_refused_where_it_is_not_installed(job: Job) -> None:
    """Nodes may have another Python."""
    asked = "system.parallel.attention_op=xfuser"
    said = "system.parallel.attention_op: xfuser is not installed; legal here: auto, torch"
    assert refusal(job(), asked) == said
    composed = compose_job(job(), [asked, "slurm=h200x8", "slurm.python=container python"])
    assert composed.config.system.parallel.attention_op == "xfuser"


def test_a_ulysses_degree_divides_the_heads(job: Job) -> None:
    assert refusal(job(), "system.parallel.ulysses=4").endswith(
        "4 does not divide the 6 attention heads of tiny-wan; legal: 1, 2, 3, 6"
    )
    said = refusal(job(model="flux.1-dev"), "system.parallel.ulysses=16")
    assert said.endswith("24 attention heads of flux.1-dev; legal: 1, 2, 3, 4, 6, 8, 12")


@pytest.mark.parametrize("degree", ["cfg", "ring"])
def test_degrees_that_a_model_has_not_are_refused_with_those_it_has(job: Job, degree: str) -> None:
    said = refusal(job(), "model=null-engine", f"system.parallel.{degree}=2")
    assert said == f"system.parallel.{degree}: 2 is not served by null-engine yet; served: auto, 1"


def test_aliases_are_resolved_and_only_the_canonical_key_is_recorded(job: Job) -> None:
    composed = compose_job(
        job("system: {parallel: {cfp: 1, up_limit: 1}, memory: {low_mem_level: 2}}\n"),
        ["row_defaults.cache=OFF", "system.compile=off", "system.parallel.ring_degree=1"],
    )
    system = composed.config.system
    assert (system.parallel.cfg, system.parallel.ulysses, system.parallel.ring) == (1, 1, 1)
    assert system.memory.mode == "model"
    assert system.compile.mode == "off"
    assert composed.config.row_defaults.cache_strategy == "none"
    assert "cfp" not in composed.resolved["system"]["parallel"]
    assert "low_mem_level" not in composed.resolved["system"]["memory"]


def test_no_memory_for_blocks_is_refused_where_they_do_not_stream(job: Job) -> None:
    none = "system.memory.vram_limit=0"
    assert (
        compose_job(job(), ["system.memory.low_mem_level=3"]).config.system.memory.mode == "stream"
    )
    compose_job(job(), [none, "system.memory.mode=stream"])
    said = refusal(job(), none, "system.memory.mode=model")
    assert "mode model does not; legal: with system.memory.mode=auto or stream" in said
    assert refusal(job(), none, "model=null-engine").endswith("legal: above 0")


def test_an_alias_against_its_canonical_key_is_refused(job: Job) -> None:
    body = "system: {memory: {low_mem_level: 0, mode: model}}\n"
    assert "set one of them" in refusal(job(body))
    assert "not one of 0, 1, 2, 3" in refusal(job(), "system.memory.low_mem_level=4")
    assert "above system.parallel.up_limit" in refusal(
        job("system: {parallel: {up_limit: 2, ulysses: 4}}\n")
    )


def test_degrees_that_do_not_multiply_to_the_ranks_are_refused_with_the_product(job: Job) -> None:
    assert "is 3, but slurm.ranks_per_node is 2" in refusal(
        job(), "system.parallel.dp=3", "slurm.ranks_per_node=2"
    )
    compose_job(job(), ["system.parallel.dp=2", "slurm.ranks_per_node=2"])


def test_pipeline_and_tensor_degrees_are_recognised_and_refused(job: Job) -> None:
    assert "pipeline parallelism is not served" in refusal(job(), "system.parallel.pp=2")
    assert "tensor parallelism is not served" in refusal(
        job("system: {parallel: {tp_degree: 2}}\n")
    )


def test_a_ratio_is_no_number(job: Job) -> None:
    """YAML 1.1 reads 16:9 as the number 969."""
    made = compose_job(job("row_defaults: {aspect_ratio: 16:9}\n"))
    assert made.config.row_defaults.aspect_ratio == "16:9"
    ok = compose_job(job(), ["row_defaults.aspect_ratio=16:9"])
    assert ok.config.row_defaults.aspect_ratio == "16:9"


def test_a_job_file_that_hydra_cannot_use_is_refused_without_a_traceback(
    job: Job, tmp_path: Path
) -> None:
    path = job()
    assert "did you mean" in refusal(path.with_name("smal.yaml"))
    assert "is a folder, not a job" in refusal(path.parent)
    (rows := path.with_name("rows.parquet")).touch()
    assert refusal(rows).endswith(f"a manifest is its key: JOB manifest={rows}")
    path.write_text("defaults: [base, {model: tiny-wan}]\nmanifest: m\nseed: 1\n")
    assert "must name _self_" in refusal(path)
    path.write_text("defaults: [base, {model: tiny-wan}, _self_]\nseed: [1\n")
    assert str(path) in refusal(path)
    path.write_text("defaults: [base, {model: tiny-wan}, _self_]\n")
    assert "manifest: required" in refusal(path)
    path.write_text("defaults: [base, _self_]\nmanifest: m\n")
    assert "model: required" in refusal(path)
    path.write_text("defaults: [base, {model: tiny-wan}, _self_]\nmanifest: ${oc.env:NO_SUCH_V}\n")
    assert "manifest: " in refusal(path)


def test_jobs_compose_again_after_a_failed_one(job: Job) -> None:
    """Hydra keeps global state; one process composes many jobs."""
    refusal(job(), "slurm=nowhere")
    refusal(job(), "output.quality=99")
    assert compose_job(job(), ["output.quality=3"]).config.output.quality == 3


def test_another_use_of_hydra_in_the_process_is_no_obstacle(job: Job, tmp_path: Path) -> None:
    path = job()
    initialize_config_dir(str(path.parent), version_base="1.3")
    assert GlobalHydra.instance().is_initialized()
    assert compose_job(path).config.name == "small"


def test_a_bare_off_is_the_word_off_although_yaml_reads_false(job: Job) -> None:
    body = "output: {hydra_dump_mode: off}\nsystem: {compile: {mode: off}}\n"
    config = compose_job(job(body + "row_defaults: {cache: off}\n")).config
    assert config.output.hydra_dump_mode == "off"
    assert config.system.compile.mode == "off"
    assert config.row_defaults.cache_strategy == "none"
    assert "output.format: false is not one of" in refusal(job("output: {format: off}\n"))


def test_the_slurm_group_is_found_beside_the_jobs_and_in_the_current_folder(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = job()
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "mine.yaml").write_text("nodes: 7\nranks_per_node: 2\n")
    assert compose_job(path, ["slurm=mine"]).config.slurm.nodes == 7
    elsewhere = tmp_path / "with 'quotes', and spaces"
    (elsewhere / "slurm").mkdir(parents=True)
    (elsewhere / "slurm" / "here.yaml").write_text("nodes: 5\n")
    monkeypatch.chdir(elsewhere)
    assert compose_job(path, ["slurm=here"]).config.slurm == SlurmConfig(nodes=5)


def test_an_own_model_is_a_file_in_the_folder_model(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    packaged = (CONF / "model" / "tiny-wan.yaml").read_text(encoding="utf-8")
    own = packaged.replace("name: tiny-wan", "name: mine").replace("num_steps: 20", "num_steps: 6")
    (tmp_path / "model" / "mine.yaml").write_text(own, encoding="utf-8")
    model = compose_job(job(model="mine")).config.model
    assert (model.name, model.request_defaults.num_steps) == ("mine", 6)
    (tmp_path / "model" / "mine.yaml").write_text(own + "layers: 6\n", encoding="utf-8")
    assert "model.layers: unknown key" in refusal(job(model="mine"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.vae.spatial_factor=0", "model.vae.spatial_factor: 0 is out of range; legal: > 0"),
        ("model.transformer.patch_size=[1,2,0]", "patch_size[2]: 0 is out of range"),
        ("model.transformer.patch_size=[1,2]", "patch_size: [1, 2] must have 3 entries"),
        ("model.vae.temperal_downsample=[true]", "must have 3 entries"),
        ("model.sizes={big: [64]}", "model.sizes.big: [64] must have 2 entries"),
    ],
)
def test_dimensions_that_no_model_can_have_are_refused(
    job: Job, override: str, message: str
) -> None:
    assert message in refusal(job(), override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["vae=a.safetensors"],
            "model.files.vae: tiny-wan does not take it from a file of",
        ),
        (["transformr=a.st"], "(did you mean 'transformer'?); legal: transformer"),
        (["transformer=a.st", "model=cogvideox-2b"], "legal: none, since diffusers reads no such"),
        (["transformer=a.st", "model.weights=random"], "legal with it: model.weights=<folder"),
    ],
)
def test_files_of_components_that_are_not_served_are_refused(
    job: Job, overrides: list[str], message: str
) -> None:
    assert message in refusal(job(), f"model.files.{overrides[0]}", *overrides[1:])


def test_relative_paths_are_found_beside_the_job_and_recorded_absolute(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = job()
    (tmp_path / "rows.parquet").touch()
    monkeypatch.chdir("/")
    assert compose_job(path).config.manifest == str(tmp_path / "rows.parquet")
    weights = compose_job(path, ["model.weights=jobs"]).config.model.weights
    assert weights == str(tmp_path / "jobs")
    assert compose_job(path, ["model.weights=random"]).config.model.weights == "random"
    files = compose_job(path, ["model.files.transformer=rows.parquet"]).config.model.files
    assert files == {"transformer": str(tmp_path / "rows.parquet")}


def test_files_of_a_run_made_before_they_carried_metadata_carry_none(job: Job) -> None:
    made = compose_job(job())
    output = {k: value for k, value in made.resolved["output"].items() if k != "embed_metadata"}
    before = {**made.resolved, "output": output}
    assert not recompose(before).config.output.embed_metadata
    assert recompose(before, ["output.embed_metadata=true"]).config.output.embed_metadata
    assert recompose(made.resolved).config.output.embed_metadata


def test_a_run_made_before_there_were_judges_is_judged_as_it_was(job: Job) -> None:
    """The embedded model had a judge of its own."""
    made = compose_job(job(), ["output.judges=[]"])
    output = {k: value for k, value in made.resolved["output"].items() if k != "judges"}
    before = {**made.resolved, "output": output}
    (judge,) = recompose(before).config.output.judges
    assert (judge.call, judge.columns) == ("batchgen.tiny.score:judge", ("score",))
    assert recompose(before, ["output.judges=[]"]).config.output.judges == ()
    assert recompose(made.resolved).config.output.judges == ()
    other = {**before, "model": {**made.resolved["model"], "weights": "random"}}
    assert recompose(other).config.output.judges == ()


def test_a_stored_configuration_composes_to_itself_and_takes_further_overrides(job: Job) -> None:
    body = 'row_defaults: {negative_prompt: "\\\\${not.a.key} 😀 مرحبا \\u2028"}\n'
    first = compose_job(job(body), ["seed=5"])
    assert first.config.row_defaults.negative_prompt == "${not.a.key} 😀 مرحبا \u2028"
    assert recompose(first.resolved).config == first.config
    again = recompose(first.resolved, ["slurm=local", "slurm=inline", "slurm.nodes=2", "seed=6"])
    assert again.config.slurm.executor == "inline"
    assert (again.config.slurm.nodes, again.config.seed) == (2, 6)
    assert again.config.row_defaults == first.config.row_defaults
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        recompose(first.resolved, ["sed=6"])


def test_a_stored_configuration_finds_the_profiles_beside_its_job(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any folder, and again after that; without a record of it, in the current folder."""
    first = compose_job(job())
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "mine.yaml").write_text("defaults: [inline]\nstart_up_s: 7\n")
    monkeypatch.chdir("/")
    second = recompose(first.resolved, ["slurm=mine"], first.hydra)
    assert second.config.slurm.start_up_s == 7
    assert recompose(second.resolved, ["slurm=mine"], second.hydra).config == second.config
    with pytest.raises(ConfigError, match="'mine' is not one of"):
        recompose(first.resolved, ["slurm=mine"])
    gone = {"searchpath": ["file:///no/such/folder", *first.hydra["searchpath"]]}
    assert recompose(first.resolved, ["slurm=mine"], gone).config == second.config
    monkeypatch.chdir(tmp_path)
    assert recompose(first.resolved, ["slurm=mine"]).config == second.config


def test_the_three_hydra_files_are_written(job: Job, tmp_path: Path) -> None:
    composed = compose_job(job(), ["seed=5", "output.format=gif"])
    parts = (composed.resolved, composed.overrides, composed.hydra)
    write_hydra(*parts, tmp_path / ".hydra")
    stored = {
        name: yaml.safe_load((tmp_path / ".hydra" / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("config", "overrides", "hydra")
    }
    assert stored["config"]["seed"] == 5
    assert build(JobConfig, stored["config"]) == composed.config
    assert stored["overrides"] == ["seed=5", "output.format=gif"]
    assert stored["hydra"]["hydra"]["runtime"]["choices"]["model"] == "tiny-wan"


def test_every_key_of_the_schema_can_be_overridden_without_a_plus(job: Job) -> None:
    """Each leaf, set to its own value, composes to the same job."""
    plain = compose_job(job())
    same: list[str] = []
    wan = {f"model.{key}" for key, _ in leaf_keys(family_spec("wan").Dims)}
    others = {
        f"model.{key}"
        for name in family_names()
        for key, _ in leaf_keys(family_spec(name).Dims)
        if f"model.{key}" not in wan
    }
    for key, _ in leaf_keys():
        value: object = plain.resolved
        if key == "model.sizes" or key in others:
            continue
        for part in key.split("."):
            value = value[part]  # type: ignore[index]
        same.append(f"{key}={_as_override(value)}")
    assert compose_job(job(), same).config == plain.config


def _as_override(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"'{value}'"
    return str(value).replace("True", "true").replace("False", "false")


def test_shipped_jobs_compose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = sorted((ROOT / "jobs").glob("*.yaml"))
    assert len(jobs) >= 3
    for path in jobs:
        given = [f"manifest={ROOT}/manifests/demo.parquet", "model=tiny-wan"]  # by who types it
        composed: Composed = compose_job(path, given if path.name == "any.yaml" else ())
        assert Path(composed.config.manifest).is_file(), path


def test_home_of_a_name_is_the_tier_where_users_set_it() -> None:
    assert home_of("width") == "row_defaults.width"
    assert home_of("fps") == "row_defaults.fps"
    assert home_of("tile") == "system.vae.tile"
    assert home_of("weights") == "model.weights"
    assert home_of("no_such_key") is None
