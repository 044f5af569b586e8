"""Which weights a row is drawn with: digests see every change that matters and no other."""

from __future__ import annotations

import json
import os
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchgen.config.checkpoints.checkpoint import check_dimensions
from batchgen.config.composing.compose import compose_job
from batchgen.config.schema import JobConfig, ModelSpec
from batchgen.errors import ConfigError, WeightsError
from batchgen.families.dims import in_key
from batchgen.planning import digests
from batchgen.planning.digests import checkpoint_digest
from batchgen.planning.identity import key_context

DEMO = Path(__file__).parents[3] / "jobs" / "demo.yaml"


@pytest.fixture
def model(tiny_job: JobConfig, tmp_path: Path) -> ModelSpec:
    """The embedded model, its checkpoint copied to where a test may change it."""
    source = tiny_job.model.weights_folder
    assert source is not None
    shutil.copytree(source, tmp_path / "weights")
    return replace(tiny_job.model, weights=str(tmp_path / "weights"))


def changed(model: ModelSpec, component: str, **dims: Any) -> ModelSpec:
    """The model with other dimensions of a component."""
    part = replace(getattr(model.dims, component), **dims)
    return replace(model, dims=replace(model.dims, **{component: part}))


def folder(model: ModelSpec) -> Path:
    return Path(model.weights)


def tensors(model: ModelSpec, component: str) -> Path:
    return next((folder(model) / component).glob("*.safetensors"))


def write_safetensors(path: Path, body: bytes) -> None:
    """A well-formed file of one uint8 tensor."""
    header = json.dumps(
        {"x": {"dtype": "F8_E4M3", "shape": [len(body)], "data_offsets": [0, len(body)]}}
    )
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + body)


def test_a_copy_has_the_same_digest_and_a_changed_tensor_another(
    model: ModelSpec, tiny_job: JobConfig
) -> None:
    before = checkpoint_digest(model).weights
    assert before == checkpoint_digest(tiny_job.model).weights
    file = tensors(model, "vae")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert checkpoint_digest(model).weights != before


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder"])
def test_the_configuration_counts_but_not_the_tool_that_wrote_it(
    model: ModelSpec, component: str
) -> None:
    """The decoder's latent mean, for one, decides pixels and stands in config.json alone."""
    before = checkpoint_digest(model).weights
    file = folder(model) / component / "config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"_diffusers_version": "9", "transformers_version": "9"}))
    assert checkpoint_digest(model).weights == before
    file.write_text(json.dumps(content | {"latents_mean": [1.0] * 8}))
    assert checkpoint_digest(model).weights != before


def test_sampling_reads_a_part_and_full_reads_every_byte(
    model: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_SAMPLES", 4)
    monkeypatch.setattr(digests, "_SAMPLE_BYTES", 16)
    file = tensors(model, "vae")
    body = bytearray(os.urandom(1000))
    write_safetensors(file, bytes(body))
    sampled, full = checkpoint_digest(model).weights, checkpoint_digest(model, "full").weights
    assert sampled != full
    body[200] ^= 1  # between two samples
    write_safetensors(file, bytes(body))
    os.utime(file, ns=(1, 1))
    assert checkpoint_digest(model).weights == sampled
    assert checkpoint_digest(model, "full").weights != full
    body[5] ^= 1  # inside the first
    write_safetensors(file, bytes(body))
    os.utime(file, ns=(2, 2))
    assert checkpoint_digest(model).weights != sampled
    write_safetensors(file, bytes(body) + b"x")
    assert checkpoint_digest(model).weights != sampled


def test_the_second_time_no_file_is_read_until_one_changes(
    model: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = checkpoint_digest(model).weights
    read: list[Path] = []
    original = digests._file_digest

    def counted(file: Path, mode: str) -> str:
        read.append(file)
        return original(file, mode)

    monkeypatch.setattr(digests, "_file_digest", counted)
    assert checkpoint_digest(model).weights == first
    assert read == []
    os.utime(tensors(model, "vae"), ns=(5, 5))
    assert checkpoint_digest(model).weights == first
    assert [file.parent.name for file in read] == ["vae"]


@pytest.mark.parametrize("content", ["", "not json", "[1]"])
def test_a_damaged_cache_is_made_again(model: ModelSpec, tmp_path: Path, content: str) -> None:
    first = checkpoint_digest(model).weights
    cache = tmp_path / "cache" / "batchgen" / "digests.json"
    assert cache.is_file()
    cache.write_text(content)
    assert checkpoint_digest(model).weights == first
    assert len(json.loads(cache.read_text())) == 3


def test_a_home_that_cannot_be_written_costs_time_only(
    model: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert checkpoint_digest(model).weights.startswith("sampled:")


def test_random_weights_are_identified_by_the_dimensions(tiny_job: JobConfig) -> None:
    model = replace(tiny_job.model, weights="random")
    wider = changed(model, "transformer", ffn_dim=600)
    renamed = replace(model, name="other")
    assert checkpoint_digest(model).weights == checkpoint_digest(renamed).weights
    assert checkpoint_digest(model).weights != checkpoint_digest(wider).weights


def test_the_tokenizer_counts(model: ModelSpec) -> None:
    before = checkpoint_digest(model)
    file = folder(model) / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text().replace("Lowercase", "StripAccents"))
    after = checkpoint_digest(model)
    assert after.tokenizer != before.tokenizer and after.weights == before.weights
    changed = [name for name in before.files if after.files[name] != before.files[name]]
    assert changed == ["tokenizer/tokenizer.json"]


@pytest.mark.parametrize(
    ("key", "value"), [("_class_name", "FlowMatchEulerDiscreteScheduler"), ("flow_shift", 5.0)]
)
def test_the_scheduler_counts(model: ModelSpec, key: str, value: object) -> None:
    before = checkpoint_digest(model)
    file = folder(model) / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    assert checkpoint_digest(model).weights != before.weights


def test_what_is_never_loaded_does_not_count(model: ModelSpec) -> None:
    before = checkpoint_digest(model)
    for name in (
        "README.md",
        "transformer/diffusion_pytorch_model.fp16.safetensors",
        "transformer/diffusion_pytorch_model.bin",
        "text_encoder/flax_model.msgpack",
        "text_encoder/generation_config.json",
        "vae/model.safetensors",
        "tokenizer/README.md",
    ):
        (folder(model) / name).write_bytes(b"not loaded")
    assert checkpoint_digest(model) == before


def test_fresh_digests_come_from_the_files(model: ModelSpec, tmp_path: Path) -> None:
    """A cache that is wrong misleads nobody who asks for them."""
    before = checkpoint_digest(model)
    cache = tmp_path / "cache" / "batchgen" / "digests.json"
    cache.write_text(json.dumps(dict.fromkeys(json.loads(cache.read_text()), "0")))
    assert checkpoint_digest(model) != before
    read: list[None] = []
    assert checkpoint_digest(model, fresh=True, read=lambda: read.append(None)) == before
    assert len(read) == len(before.files) == 9


def test_another_file_under_the_old_size_and_time_is_read(model: ModelSpec) -> None:
    before = checkpoint_digest(model)
    file = tensors(model, "vae")
    stat = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    other = file.with_name("other")
    other.write_bytes(content)
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(other, file)
    assert checkpoint_digest(model).weights != before.weights


def test_a_context_remembers_how_the_checkpoint_was_read(tiny_job: JobConfig) -> None:
    """A run that was planned with full hashes is compared with full hashes when it is resumed."""
    for mode in ("sampled", "full"):
        context = key_context(tiny_job, mode)
        assert context.hash_mode == mode
        assert key_context(tiny_job, context.hash_mode) == context


def test_a_missing_part_of_a_checkpoint_is_named(model: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'fast' is not one of sampled, full"):
        checkpoint_digest(model, "fast")
    with pytest.raises(WeightsError, match="did you mean 'random'"):
        checkpoint_digest(replace(model, weights=str(tmp_path / "rnadom")))
    shutil.rmtree(folder(model) / "tokenizer")
    with pytest.raises(WeightsError, match="tokenizer: there is no such folder"):
        checkpoint_digest(model)
    file = tensors(model, "transformer")
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(WeightsError, match="convert them once: batchgen weights convert"):
        checkpoint_digest(model)
    shutil.rmtree(file.parent)
    with pytest.raises(WeightsError, match="transformer: there is no such folder"):
        checkpoint_digest(model)


def test_a_cut_off_safetensors_file_is_named(model: ModelSpec) -> None:
    file = tensors(model, "vae")
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(WeightsError, match="cut off"):
        checkpoint_digest(model)


def test_a_spec_that_disagrees_with_its_checkpoint_is_refused_with_both_values(
    model: ModelSpec, tiny_job: JobConfig
) -> None:
    check_dimensions(model)
    wrong = changed(model, "transformer", num_layers=7)
    with pytest.raises(WeightsError, match=r"num_layers is 6, but model\.transformer\.num_layers"):
        key_context(replace(tiny_job, model=wrong))
    wrong = changed(model, "vae", spatial_factor=16)
    with pytest.raises(WeightsError, match="scale_factor_spatial is 8"):
        check_dimensions(wrong)
    wrong = changed(model, "text_encoder", vocab_size=96)
    with pytest.raises(WeightsError, match=r"vocab_size is \d+, but model.text_encoder.vocab_size"):
        check_dimensions(wrong)
    (folder(model) / "vae" / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="is not JSON"):
        check_dimensions(model)


def test_a_dimension_that_came_later_changes_no_key_at_its_default() -> None:
    """Of random weights, which are told by their dimensions."""
    model = compose_job(DEMO, ["model=ltx-video"]).config.model
    assert "downsample_type" not in in_key(model.dims)["vae"]
    assert {"patch_size", "layers_per_block"} <= in_key(model.dims)["vae"].keys()
    newer = compose_job(DEMO, ["model=ltx-video-0.9.5"]).config.model
    assert in_key(newer.dims)["vae"]["downsample_type"][0] == "spatial"
