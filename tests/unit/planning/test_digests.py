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

from batchgen.config.checkpoint import check_dimensions
from batchgen.config.schema import JobConfig, ModelSpec
from batchgen.errors import ConfigError, WeightsError
from batchgen.planning import digests
from batchgen.planning.digests import tokenizer_digest, weights_digest
from batchgen.planning.identity import key_context


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
        {"x": {"dtype": "U8", "shape": [len(body)], "data_offsets": [0, len(body)]}}
    )
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + body)


def test_a_copy_has_the_same_digest_and_a_changed_tensor_another(
    model: ModelSpec, tiny_job: JobConfig
) -> None:
    before = weights_digest(model)
    assert before == weights_digest(tiny_job.model)
    file = tensors(model, "vae")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert weights_digest(model) != before


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder"])
def test_the_configuration_counts_but_not_the_tool_that_wrote_it(
    model: ModelSpec, component: str
) -> None:
    """The decoder's latent mean, for one, decides pixels and stands in config.json alone."""
    before = weights_digest(model)
    file = folder(model) / component / "config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"_diffusers_version": "9", "transformers_version": "9"}))
    assert weights_digest(model) == before
    file.write_text(json.dumps(content | {"latents_mean": [1.0] * 8}))
    assert weights_digest(model) != before


def test_sampling_reads_a_part_and_full_reads_every_byte(
    model: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_SAMPLES", 4)
    monkeypatch.setattr(digests, "_SAMPLE_BYTES", 16)
    file = tensors(model, "vae")
    body = bytearray(os.urandom(1000))
    write_safetensors(file, bytes(body))
    sampled, full = weights_digest(model), weights_digest(model, "full")
    assert sampled != full
    body[200] ^= 1  # between two samples
    write_safetensors(file, bytes(body))
    os.utime(file, ns=(1, 1))
    assert weights_digest(model) == sampled
    assert weights_digest(model, "full") != full
    body[5] ^= 1  # inside the first
    write_safetensors(file, bytes(body))
    os.utime(file, ns=(2, 2))
    assert weights_digest(model) != sampled
    write_safetensors(file, bytes(body) + b"x")
    assert weights_digest(model) != sampled


def test_the_second_time_no_file_is_read_until_one_changes(
    model: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = weights_digest(model)
    read: list[Path] = []
    original = digests._file_digest

    def counted(file: Path, mode: str) -> str:
        read.append(file)
        return original(file, mode)

    monkeypatch.setattr(digests, "_file_digest", counted)
    assert weights_digest(model) == first
    assert read == []
    os.utime(tensors(model, "vae"), ns=(5, 5))
    assert weights_digest(model) == first
    assert [file.parent.name for file in read] == ["vae"]


@pytest.mark.parametrize("content", ["", "not json", "[1]"])
def test_a_damaged_cache_is_made_again(model: ModelSpec, tmp_path: Path, content: str) -> None:
    first = weights_digest(model)
    cache = tmp_path / "cache" / "batchgen" / "digests.json"
    assert cache.is_file()
    cache.write_text(content)
    assert weights_digest(model) == first
    assert len(json.loads(cache.read_text())) == 3


def test_a_home_that_cannot_be_written_costs_time_only(
    model: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert weights_digest(model).startswith("sampled:")


def test_random_weights_are_identified_by_the_dimensions(tiny_job: JobConfig) -> None:
    model = replace(tiny_job.model, weights="random")
    wider = changed(model, "transformer", ffn_dim=600)
    renamed = replace(model, name="other")
    assert weights_digest(model) == weights_digest(renamed)
    assert weights_digest(model) != weights_digest(wider)


def test_the_tokenizer_counts(model: ModelSpec) -> None:
    before = tokenizer_digest(model)
    (folder(model) / "tokenizer" / "tokenizer.json").write_text("{}")
    assert tokenizer_digest(model) != before


def test_a_context_remembers_how_the_checkpoint_was_read(tiny_job: JobConfig) -> None:
    """A run that was planned with full hashes is compared with full hashes when it is resumed."""
    for mode in ("sampled", "full"):
        context = key_context(tiny_job, mode)
        assert context.hash_mode == mode
        assert key_context(tiny_job, context.hash_mode) == context


def test_a_missing_part_of_a_checkpoint_is_named(model: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'fast' is not one of sampled, full"):
        weights_digest(model, "fast")
    with pytest.raises(WeightsError, match="did you mean 'random'"):
        weights_digest(replace(model, weights=str(tmp_path / "rnadom")))
    shutil.rmtree(folder(model) / "tokenizer")
    with pytest.raises(WeightsError, match="tokenizer: no tokenizer files"):
        tokenizer_digest(model)
    file = tensors(model, "transformer")
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(WeightsError, match="must be converted first: `batchgen weights convert"):
        weights_digest(model)
    shutil.rmtree(file.parent)
    with pytest.raises(WeightsError, match="transformer: no such folder"):
        weights_digest(model)


def test_a_cut_off_safetensors_file_is_named(model: ModelSpec) -> None:
    file = tensors(model, "vae")
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(WeightsError, match="cut off"):
        weights_digest(model)


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
