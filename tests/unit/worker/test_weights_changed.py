"""Weights that change behind a run's back are drawn with by no rank."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_calls import write_manifest
from originals import as_published
from safetensors.torch import load_file, save_file

from batchgen.cli.main import main
from batchgen.config.composing.compose import compose_job
from batchgen.config.schema import JobConfig
from batchgen.errors import KeysChanged, WeightsError
from batchgen.ledger.blame.rows import read_blame
from batchgen.ledger.reading.left import missing_rows
from batchgen.ledger.status import RunStatus, read_status
from batchgen.paths import RunPaths
from batchgen.planning import digests
from batchgen.runfile import read_run
from batchgen.runner.create import create_run
from batchgen.runner.decide import next_move
from batchgen.runner.steward import drive
from batchgen.runner.submit import Settings
from batchgen.tiny.evaluate import WEIGHTS
from batchgen.worker.as_planned import as_planned

JOB = """\
defaults: [base, {{model: tiny-wan}}, _self_]
manifest: {folder}/manifest.parquet
model: {{weights: {folder}/w}}
row_defaults: {{width: 32, height: 32, num_frames: 1, num_steps: 1}}
output: {{root_dir: {folder}/outputs}}
slurm: {{executor: inline}}
"""
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
FILES = [
    VAE,
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer.json",
]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job over two rows with a checkpoint of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(WEIGHTS, tmp_path / "w")
    rows = [{"row_id": f"r{i}", "prompt": f"a red circle {i}", "seed": i} for i in range(2)]
    write_manifest(tmp_path / "manifest.parquet", rows)
    (tmp_path / "job.yaml").write_text(JOB.format(folder=tmp_path))
    return tmp_path / "job.yaml"


def planned(job: Path, **options: str) -> tuple[RunPaths, Settings, JobConfig]:
    """A run of which nothing has been started."""
    composed = compose_job(job)
    run = create_run(composed, **options)
    return run, Settings(composed.resolved, []), composed.config


def change(file: Path) -> None:
    """Another file of the old size and time."""
    stat, content = file.stat(), file.read_bytes()
    if file.suffix == ".json":
        for old, new in (
            (b"1e-06", b"1e-05"),
            (b'shift": 3.0', b'shift": 5.0'),
            (b"NFKC", b"NFKD"),
        ):
            content = content.replace(old, new)
    else:
        content = content[:-1] + bytes([content[-1] ^ 1])
    assert content != file.read_bytes() and len(content) == stat.st_size
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def unwatched(status: RunStatus) -> None:
    return None


def test_no_row_is_drawn_with_other_weights(job: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The attempt ends with the file's name; nobody is to blame, nothing is submitted again."""
    run, settings, _ = planned(job)
    change(job.parent / "w" / VAE)
    with pytest.raises(KeysChanged, match=rf"model\.weights changed since .*\({VAE} in "):
        drive(run, settings, unwatched)
    (attempt,) = read_status(run).attempts
    assert (attempt.ended, attempt.commits) == ("KeysChanged", 0)
    assert VAE in read_status(run).last_error
    assert list(run.media.rglob("*.*")) == []
    blame = read_blame(run, all_gone=True)
    assert (blame.bad_hosts, blame.convicted, len(blame.suspects)) == ({}, (), 0)
    missing = missing_rows(run)
    assert (len(missing.failed), len(missing.all)) == (0, 2)
    with caplog.at_level(logging.WARNING):
        assert next_move(run) is None
    assert VAE in caplog.text


def test_a_transformer_in_a_file_of_its_own_is_watched_too(job: Path) -> None:
    """Put back elsewhere it is the same: what it holds is in the keys, not where."""
    file = job.parent / "wan.safetensors"
    tensors = load_file(job.parent / "w" / TRANSFORMER)
    save_file(as_published("WanTransformer3DModel", tensors), file)
    (job.parent / "w" / TRANSFORMER).unlink()
    text = job.read_text().replace("/w}", f"/w, files: {{transformer: {file}}}}}")
    job.write_text(text)
    run, settings, _ = planned(job)
    shutil.copy2(file, job.parent / "kept.safetensors")
    change(file)
    with pytest.raises(KeysChanged, match=r"changed since .*\(model\.files\.transformer in "):
        drive(run, settings, unwatched)
    moved = f"model.files.transformer={job.parent / 'kept.safetensors'}"
    assert main(["resume", str(run.root), moved]) == 0
    assert len(missing_rows(run).all) == 0


def test_a_resume_says_that_it_takes_other_weights(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No row is finished, so none would be of the old ones."""
    run, _, _ = planned(job)
    change(job.parent / "w" / VAE)
    assert main(["resume", str(run.root)]) == 0
    told = capsys.readouterr().out
    assert "changed  model.weights" in told and "planned anew" in told


def test_put_back_the_run_goes_on(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, settings, _ = planned(job)
    shutil.copy2(job.parent / "w" / VAE, job.parent / "kept")
    change(job.parent / "w" / VAE)
    with pytest.raises(KeysChanged):
        drive(run, settings, unwatched)
    os.replace(job.parent / "kept", job.parent / "w" / VAE)
    assert main(["resume", str(run.root)]) == 0
    before = read_run(run)
    change(job.parent / "w" / VAE)
    for verb in (["resume"], ["retry", "--rows", "r0"]):
        capsys.readouterr()
        assert main([verb[0], str(run.root), *verb[1:]]) == 2
        assert "2 finished rows would change because of model.weights" in capsys.readouterr().err
    assert main(["resume", str(run.root), "--rerender-changed"]) == 0
    after = read_run(run)
    changed = {
        name for name in after.checkpoint if after.checkpoint[name] != before.checkpoint[name]
    }
    assert changed == {VAE}
    assert main(["verify", str(run.root)]) == 0


def test_other_weights_are_checked_before_a_resume_takes_them(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _, _ = planned(job)
    before = sorted(run.root.rglob("*"))
    shutil.copytree(job.parent / "w", job.parent / "v")
    (job.parent / "v" / "tokenizer" / "tokenizer_config.json").write_text("{}")
    assert main(["resume", str(run.root), f"model.weights={job.parent / 'v'}"]) == 2
    assert "v/tokenizer: the tokenizer has no pad_token" in capsys.readouterr().err
    assert sorted(run.root.rglob("*")) == before


@pytest.mark.parametrize("verb", ["plan", "submit", "run"])
def test_a_checkpoint_that_cannot_be_loaded_is_refused_before_a_run_is_made(
    job: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = job.parent / "w" / VAE
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    executor = ["slurm.executor=local"] if verb == "submit" else []
    assert main([verb, str(job), *executor]) == 2
    assert "vae: has no diffusion_pytorch_model.safetensors, only" in capsys.readouterr().err
    outputs = job.parent / "outputs"
    assert not outputs.exists() or not [*outputs.iterdir()]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("mode", ["sampled", "full"])
def test_every_file_is_held_against_the_header(job: Path, name: str, mode: str) -> None:
    """And read for it, whatever the cache of digests says."""
    run, _, config = planned(job, hash_weights=mode)
    header, file = read_run(run), job.parent / "w" / name
    with as_planned(run, header, config, lambda: None):
        pass
    change(file)
    cache = job.parent / "cache" / "batchgen" / "digests.json"
    stamp = " ".join(map(str, digests.stamp(file)))
    known = json.loads(cache.read_text()) | {f"{file} {stamp} {mode}": header.checkpoint[name]}
    cache.write_text(json.dumps(known))
    with pytest.raises(KeysChanged, match=name), as_planned(run, header, config, lambda: None):
        pytest.fail("it is loaded")


def test_full_digests_find_what_lies_between_samples(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_SAMPLES", 2)
    monkeypatch.setattr(digests, "_SAMPLE_BYTES", 16)
    run, _, config = planned(job, hash_weights="full")
    with open(job.parent / "w" / VAE, "r+b") as file:
        file.seek(-100_000, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(KeysChanged), as_planned(run, read_run(run), config, lambda: None):
        pass


def test_a_file_replaced_while_the_model_is_loaded_is_found(job: Path) -> None:
    run, _, config = planned(job)
    with (
        pytest.raises(KeysChanged, match=VAE),
        as_planned(run, read_run(run), config, lambda: None),
    ):
        change(job.parent / "w" / VAE)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda weights: (weights / VAE).unlink(), r"model\.weights changed .*vae: has no weights"),
        (lambda weights: (weights / VAE).write_bytes(b"{}"), r"model\.weights changed .*cut off"),
        (lambda weights: (weights / "vae/config.json").write_text("{"), r"changed .*is not JSON"),
    ],
)
def test_what_cannot_be_loaded_any_more_has_changed(
    job: Path, spoil: Callable[[Path], object], told: str
) -> None:
    run, _, config = planned(job)
    spoil(job.parent / "w")
    with (
        pytest.raises(KeysChanged, match=told),
        as_planned(run, read_run(run), config, lambda: None),
    ):
        pass


@pytest.mark.parametrize(
    ("away", "told"), [("w", "there is no such folder"), ("own", "wan.safetensors: is missing")]
)
def test_a_machine_without_the_folder_may_be_the_one_to_blame(
    job: Path, away: str, told: str
) -> None:
    """It is not mounted there, say: others go on."""
    if away == "own":
        file = job.parent / away / "wan.safetensors"
        file.parent.mkdir()
        shutil.move(job.parent / "w" / TRANSFORMER, file)
        job.write_text(job.read_text().replace("/w}", f"/w, files: {{transformer: {file}}}}}"))
    run, _, config = planned(job)
    (job.parent / away).rename(job.parent / "gone")
    with (
        pytest.raises(WeightsError, match=told),
        as_planned(run, read_run(run), config, lambda: None),
    ):
        pass


def test_other_numerics_are_found_too(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that was upgraded in between, say."""
    run, _, config = planned(job)
    monkeypatch.setattr("batchgen.families.wan.spec.NUMERICS_VERSION", 0)
    told = r"the numerics version of model\.family changed since this run was planned; nothing"
    with (
        pytest.raises(KeysChanged, match=told),
        as_planned(run, read_run(run), config, lambda: None),
    ):
        pass


def test_a_run_without_digests_of_files_names_the_settings(job: Path) -> None:
    """As older versions planned it."""
    run, _, config = planned(job)
    header = json.loads(run.run_json.read_text())
    del header["checkpoint"]
    run.run_json.write_text(json.dumps(header))
    change(job.parent / "w" / VAE)
    told = r"model\.weights changed since this run was planned; nothing"
    with (
        pytest.raises(KeysChanged, match=told),
        as_planned(run, read_run(run), config, lambda: None),
    ):
        pass
