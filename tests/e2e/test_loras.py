"""A run whose rows are drawn with LoRA, from files to a verified catalog."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_calls import JobFolder, make_job_folder, rows_of
from toy_loras import as_planned, save_lora

from batchgen.tiny.models import make_transformer

SETS = {"a": None, "b": "styles/ink.safetensors@0.3", "c": "", "d": "styles/ink.safetensors@0.3"}


@pytest.fixture(scope="module")
def folder(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    home = tmp_path_factory.mktemp("loras")
    (home / "styles").mkdir()
    save_lora(home / "styles" / "ink.safetensors", make_transformer(), seed=1)
    rows = [{"row_id": n, "prompt": "a red circle", "seed": 1, "lora": s} for n, s in SETS.items()]
    return make_job_folder(home, rows)


def test_a_run_draws_each_row_with_its_own(folder: JobFolder, tmp_path: Path) -> None:
    """The catalog and the files say with which; a file that has changed since is not drawn with."""
    done = folder.run_here()
    assert done.code == 0, done.err
    rows = rows_of(done.run)
    ink = as_planned(f"{folder.folder}/styles/ink.safetensors@0.3")
    assert list(rows.status) == ["ok"] * 4 and list(rows.lora) == ["", ink, "", ink]
    assert list(rows.alias_of.fillna("")) == ["", "", "a", "b"]
    assert rows.frames_sha256[0] != rows.frames_sha256[1]
    shown = folder.here("inspect", str(done.run.root / rows.media_path[1]), "--json")
    assert shown.json["request"]["lora"] == ink and ink in shown.out
    assert folder.here("verify", str(done.run.root)).code == 0
    plain = folder.run_here("row_defaults.lora=null", "locked=[]")
    again = rows_of(plain.run)
    assert list(again.row_key) == list(rows.row_key)
    assert list(again.frames_sha256) == list(rows.frames_sha256)


def test_a_file_that_changed_since_the_plan_is_not_drawn_with(folder: JobFolder) -> None:
    begun = folder.run_here("system.max_gpu_hours=0.0000000001")
    assert begun.code == 1
    file = folder.folder / "styles" / "ink.safetensors"
    before = file.read_bytes()
    save_lora(file, make_transformer(), seed=2)
    refused = folder.here("resume", str(begun.run.root), "--max-gpu-hours", "10", "--json")
    logs = "".join(path.read_text() for path in begun.run.logs.rglob("*.log"))
    assert refused.code == 1
    assert f"{file} changed since this run was planned" in refused.err + refused.out + logs
    file.write_bytes(before)
    resumed = folder.here("resume", str(begun.run.root), "--max-gpu-hours", "10", "--json")
    assert resumed.code == 0, resumed.err
    assert list(rows_of(begun.run).status) == ["ok"] * 4


def test_the_plan_counts_them(folder: JobFolder) -> None:
    seen = folder.here("plan", str(folder.job))
    assert seen.code == 0, seen.err
    assert "1 file, 0.00 GiB of each rank's memory" in " ".join(seen.out.split())


def test_the_command_line_names_what_is_wrong(folder: JobFolder) -> None:
    for given, answer in (
        ("row_defaults.lora=styles/ink.safetensors@strong", "'strong' is no strength"),
        ("row_defaults.lora=styles/none.safetensors", "none.safetensors: there is no such file"),
        (
            "model=null-engine",
            "row 1, lora = 'styles/ink.safetensors@0.3': is not served by null-engine yet",
        ),
    ):
        done = folder.run_here(given)
        assert done.code == 2 and answer in done.err, done.err
