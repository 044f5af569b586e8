"""A user's own YAML files: never in the place of packaged ones, and their errors have a place."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from batchgen.config.composing.compose import CONF, compose_job
from batchgen.config.composing.yamlfile import read_yaml
from batchgen.errors import ConfigError

HEAD = "defaults: [base, {model: tiny-wan}, _self_]\nmanifest: rows.parquet\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a job lies, with folders for models and profiles; the current folder is another."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = tmp_path / "jobs"
    for group in ("model", "slurm", "hydra/launcher", "row_defaults"):
        (folder / group).mkdir(parents=True)
    (folder / "mine.yaml").write_text(HEAD)
    return folder


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose_job(path, overrides)
    return str(caught.value)


def test_a_file_called_base_replaces_nothing_and_is_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = folder / "mine.yaml"
    plain = compose_job(job).config
    for text in ("seed: 5\n", HEAD, "not: [yaml"):
        (folder / "base.yaml").write_text(text)
        with caplog.at_level(logging.WARNING):
            assert compose_job(job).config == plain
        assert f"{folder / 'base.yaml'} is not used by {job}" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("name", ["base", "hydra", "local", "tiny-wan", "model", "grün = 1"])
def test_a_job_may_have_any_name(folder: Path, name: str) -> None:
    (folder / f"{name}.yaml").write_text(f"{HEAD}seed: 5\nname: x\n")
    assert compose_job(folder / f"{name}.yaml").config.seed == 5


def test_files_for_hydra_itself_beside_a_job_are_not_its(folder: Path) -> None:
    before = compose_job(folder / "mine.yaml").hydra
    (folder / "hydra" / "config.yaml").write_text("mode: MULTIRUN\nbroken: 1\n")
    (folder / "hydra" / "launcher" / "basic.yaml").write_text("broken: 1\n")
    (folder / "hydra.yaml").write_text("broken: 1\n")
    assert compose_job(folder / "mine.yaml").hydra["launcher"] == before["launcher"]


@pytest.mark.parametrize(
    "hydra", ["sweeper: {params: {seed: '1,2'}}", "mode: MULTIRUN", "searchpath: [file:///x]"]
)
def test_what_steers_hydra_itself_is_no_part_of_a_job(folder: Path, hydra: str) -> None:
    (folder / "mine.yaml").write_text(f"{HEAD}hydra: {{{hydra}}}\n")
    assert f"mine.yaml: hydra.{hydra.split(':')[0]}: is not for jobs" in refusal(
        folder / "mine.yaml"
    )


def test_the_record_names_the_job_and_its_folder(folder: Path) -> None:
    hydra = compose_job(folder / "mine.yaml").hydra
    assert hydra["job"]["config_name"] == hydra["job"]["name"] == "mine"
    main = [s["path"] for s in hydra["runtime"]["config_sources"] if s["provider"] == "main"]
    assert main == [str(folder)]


@pytest.mark.parametrize(("group", "name"), [("model", "tiny-wan"), ("slurm", "local")])
def test_a_model_or_profile_with_a_packaged_name_is_refused_by_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch, group: str, name: str
) -> None:
    """Beside the job as in the current folder, also when another file starts from it; and only
    where it is asked for."""
    own = folder / group / f"{name}.yaml"
    own.write_text((CONF / group / f"{name}.yaml").read_text())
    said = f"{own}: {name} is the name of a packaged"
    assert refusal(folder / "mine.yaml").startswith(said)
    (folder / "slurm" / "own.yaml").write_text("defaults: [local]\nranks_per_node: 2\n")
    (folder / "model" / "own.yaml").write_text("defaults: [tiny-wan]\nname: own\n")
    assert refusal(folder / "mine.yaml", f"{group}=own").startswith(said)
    other = {"model": "null-engine", "slurm": "inline"}[group]
    assert compose_job(folder / "mine.yaml", [f"{group}={other}"])
    assert f"{name}, " in refusal(folder / "mine.yaml", f"{group}=nope")
    moved = folder.parent / "elsewhere" / group
    moved.mkdir()
    own.rename(moved / own.name)
    assert refusal(folder / "mine.yaml").startswith(f"{moved / own.name}: {name} is the name of")


def test_files_of_other_names_are_used(folder: Path) -> None:
    (folder / "common.yaml").write_text("seed: 3\n")
    (folder / "row_defaults" / "few.yaml").write_text("num_steps: 2\n")
    (folder / "slurm" / "own.yaml").write_text("defaults: [local]\nranks_per_node: 2\n")
    (folder / "mine.yaml").write_text(
        "defaults: [base, {model: tiny-wan}, common, {row_defaults: few}, _self_]\nmanifest: m\n"
    )
    config = compose_job(folder / "mine.yaml", ["slurm=own"]).config
    assert (config.seed, config.row_defaults.num_steps) == (3, 2)
    assert (config.slurm.executor, config.slurm.ranks_per_node) == ("local", 2)


BAD = {
    "nodes: 1\n\tmem_gb: 2\n": "line 2, column 1: found character '\\t' that cannot start any "
    "token (while scanning for the next token); indent with spaces, not tabs",
    "nodes: [1\n": "line 2, column 1: expected ',' or ']'",
    "nodes: 1\nqos: a: b\n": "line 2, column 7: mapping values are not allowed here",
    "nodes: *x\n": "line 1, column 8: found undefined alias 'x'",
    "nodes: 1\n---\nnodes: 2\n": "line 2, column 1: but found another document",
    "nodes: 1\nqos: a\nnodes: 2\n": "line 3, column 1: the key 'nodes' is there twice, first in "
    "line 1",
    "device: {name: a,\n  name: b}\n": "line 2, column 3: the key 'name' is there twice, first in "
    "line 1",
    "nodes: !!python/object:os.x {}\n": "line 1, column 8: could not determine a constructor",
    "- a\n": "line 1, column 1: not a mapping; write key: value",
    "hello": "line 1, column 1: not a mapping; write key: value",
    "nodes: 1\x00\n": "line 1, column 9: the character U+0000 cannot stand in YAML",
    "qos: ${x\n": "no viable alternative at input '${x'",
    "[" * 3000: "its lists or mappings are nested too deeply",
    "# ok\n# grö".encode() + "ße ü".encode("latin-1"): "line 2, column 6: byte 0xdf is not UTF-8 "
    "('ß' in Latin-1)",
    "nodes: 1\n".encode("utf-16"): "is UTF-16 or UTF-32; save it as UTF-8",
    "nodes: 1\n".encode("utf-16-be"): "line 1, column 1: the character U+0000 cannot stand in "
    "YAML; is the file UTF-16?",
}


@pytest.mark.parametrize(("content", "message"), BAD.items())
def test_a_file_that_is_no_good_yaml_is_named_with_the_place(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        read_yaml(file)
    assert str(caught.value).startswith(f"{file}: {message}")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("bad", ["nodes: 1\nnodes: 2\n", "x: a\n\ty: 1\n", b"# \xf6\n", "x: ${y"])
def test_jobs_profiles_and_models_are_all_read_like_that(folder: Path, bad: str | bytes) -> None:
    for name, asked in (("bad", ()), ("slurm/bad", ("slurm=bad",)), ("model/bad", ("model=bad",))):
        file = folder / f"{name}.yaml"
        file.write_bytes(bad if isinstance(bad, bytes) else bad.encode())
        job = folder / ("mine.yaml" if asked else "bad.yaml")
        assert refusal(job, *asked).startswith(f"{file}: ")


def test_a_byte_order_mark_is_no_part_of_a_key(folder: Path) -> None:
    (folder / "slurm" / "own.yaml").write_bytes(b"\xef\xbb\xbfnodes: 3\n")
    (folder / "bom.yaml").write_bytes(b"\xef\xbb\xbf" + HEAD.encode())
    assert compose_job(folder / "bom.yaml", ["slurm=own"]).config.slurm.nodes == 3


def test_what_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "slurm" / "dir.yaml").mkdir()
    (folder / "slurm" / "dead.yaml").symlink_to("/no/such/file")
    job = folder / "mine.yaml"
    assert refusal(job, "slurm=dir").endswith("dir.yaml: cannot be read: Is a directory")
    os.mkfifo(folder / "slurm" / "pipe.yaml")
    assert refusal(job, "slurm=pipe").endswith("pipe.yaml: is no plain file")
    assert "dead.yaml: cannot be read: No such file" in refusal(job, "slurm=dead")
    assert "cannot be read: File name too long" in refusal(folder / ("x" * 300 + ".yaml"))


def test_defaults_that_lead_back_to_themselves_are_one_line(folder: Path) -> None:
    (folder / "slurm" / "loop.yaml").write_text("defaults: [loop]\n")
    (folder / "slurm" / "gone.yaml").write_text("defaults: [nowhere]\n")
    said = refusal(folder / "mine.yaml", "slurm=loop")
    assert said == f"{folder / 'mine.yaml'}: its defaults lead back to itself"
    assert "Could not load 'slurm/nowhere'" in refusal(folder / "mine.yaml", "slurm=gone")
