"""What YAML would make a number, a date or a truth is text at keys that take text."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchgen.config.composing.compose import compose_job, recompose
from batchgen.errors import ConfigError

HEAD = "defaults: [base, {model: null-engine}, {override slurm: inline}, _self_]\n"
WORDS = ["20240101", "007", "1e5", "1_000", "0x1F", "0b11", "1.50", ".5", "-7", "2024-01-01"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for group in ("model", "slurm"):
        (tmp_path / group).mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job(folder: Path, text: str, head: str = HEAD) -> Path:
    (folder / "job.yaml").write_text(f"{head}manifest: 1e5\n{text}\n")
    return folder / "job.yaml"


@pytest.mark.parametrize("word", [*WORDS, "yes", "off", "nan"])
def test_a_text_is_taken_as_it_is_written(folder: Path, word: str) -> None:
    made = compose_job(job(folder, f"tag: {word} # why\nslurm: {{setup: [{word}, 'b']}}"))
    assert made.config.tag == word
    assert made.config.slurm.setup == (word, "b")
    assert made.config.manifest == str(folder / "1e5")
    assert recompose(made.resolved, [], made.hydra).config.tag == word
    assert compose_job(job(folder, ""), [f"tag={word}"]).config.tag == word  # so does the shell


def test_numbers_stay_numbers_and_quotes_quotes(folder: Path) -> None:
    text = """
seed: &s 0x1F
tag: &t 007
name: *t
row_defaults: {aspect_ratio: 16:9, tags: it's 5, negative_prompt: null, fps: 1e1, num_steps: 012}
carry_columns:
- 1
- "02"
system: {compile: {mode: off}}
output: {format: !!str png}"""
    config = compose_job(job(folder, text)).config
    assert (config.seed, config.tag, config.name) == (31, "007", "007")
    rows = config.row_defaults
    assert (rows.aspect_ratio, rows.tags, rows.negative_prompt) == ("16:9", "it's 5", None)
    assert (rows.fps, rows.num_steps) == (10, 10)
    assert config.carry_columns == ("1", "02")
    with pytest.raises(ConfigError, match="tag: null is not a string"):
        compose_job(job(folder, "tag:"))
    with pytest.raises(ConfigError, match="name: 7 is not a string"):  # which of them was meant?
        compose_job(job(folder, "seed: &s 7\nname: *s"))


def test_profiles_and_packages_too(folder: Path) -> None:
    head = HEAD.replace("inline", "mine")
    (folder / "slurm" / "mine.yaml").write_text(
        "executor: slurm\naccount: 007\nextra: {comment: 5e3, exclusive: yes}\nnodes: 2\n"
    )
    slurm = compose_job(job(folder, "", head)).config.slurm
    assert (slurm.account, slurm.nodes) == ("007", 2)
    assert slurm.extra == {"comment": "5e3", "exclusive": True}
    (folder / "site.yaml").write_text("# @package slurm\naccount: 012\n")
    (folder / "job.yaml").write_text(
        "defaults: [base, {model: null-engine}, site, _self_, {override slurm: mine}]\n"
        "manifest: x\n"
    )
    assert compose_job(folder / "job.yaml").config.slurm.account == "012"
