"""What a run folder says of its configuration, also once it went on under other settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from cli_calls import write_manifest
from quick_cases import first_quick

from batchgen.cli.main import main
from batchgen.config.composing.compose import compose_job
from batchgen.paths import RunPaths
from batchgen.planning.plan import make_plan
from batchgen.runfile import read_run

JOB = """\
defaults: [base, {model: null-engine}, {override slurm: inline}, _self_]
manifest: rows.parquet
row_defaults: {width: 16, height: 16, num_frames: 1, num_steps: 2}
output: {root_dir: out}
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_manifest(tmp_path / "rows.parquet", [{"prompt": "a", "seed": 1}, {"prompt": "b"}])
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


def begin(job: Path, *overrides: str) -> RunPaths:
    assert main(["run", str(job), *overrides]) == 0
    (folder,) = (job.parent / "out").iterdir()
    return RunPaths(folder)


def dumped(run: RunPaths) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.dump_config.read_text())
    return found


def test_the_dump_follows_the_run(job: Path, tmp_path: Path) -> None:
    run = begin(job, "seed=3")
    assert dumped(run)["overrides"] == ["seed=3"]
    assert main(["resume", str(run.root), "slurm.row_retries=2"]) == 0, "nothing was left"
    assert dumped(run)["slurm"]["row_retries"] == 1
    assert main(["retry", str(run.root), "--rows", "00000001", "slurm.row_retries=2"]) == 0
    dump = dumped(run)
    assert dump["slurm"]["row_retries"] == 2
    assert dump["overrides"] == ["seed=3", "slurm.row_retries=2"]
    assert [s["overrides"] for s in dump["submissions"]] == [["seed=3"], dump["overrides"]]
    assert yaml.safe_load((run.hydra / "overrides.yaml").read_text()) == dump["overrides"]
    new = ["row_defaults.num_steps=3", "--rerender-changed"]
    assert main(["resume", str(run.root), *new]) == 0
    dump, header = dumped(run), read_run(run)
    assert dump["tier_3_rows"]["row_defaults"]["num_steps"] == 3
    assert (dump["plan_id"], dump["digests"]) == (header.plan_id, header.key_context)
    assert [s["number"] for s in dump["submissions"]] == [1, 2, 3]
    assert yaml.safe_load((run.hydra / "config.yaml").read_text()) == header.config
    assert again(dump, tmp_path) == header.plan_id


def again(dump: dict[str, Any], folder: Path) -> str:
    """The plan of a job that is made from nothing but a dump."""
    job = {**dump["job"], **dump["tier_2_system"], "model": dump["tier_1_model"]}
    rows = dump["tier_3_rows"]
    job |= {"slurm": dump["slurm"], "manifest": rows["manifest"]}
    job |= {"row_defaults": rows["row_defaults"], "defaults": ["base", "_self_"]}
    path = folder / "again.yaml"
    path.write_text(yaml.safe_dump(job))
    return make_plan(compose_job(path).config, folder / "again.parquet").plan_id


@pytest.mark.parametrize(
    ("mode", "there"),
    first_quick([("video_dir", "media/.hydra"), ("off", None), ("default", ".hydra")], 1),
)
def test_hydras_files_lie_where_they_are_wanted(
    mode: str, there: str | None, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the media they are no orphans; without them the catalog and run.json hold it all."""
    run = begin(job, f"output.hydra_dump_mode={mode}", "seed=3")
    folders = [str(path.relative_to(run.root)) for path in run.root.rglob(".hydra")]
    assert folders == ([there] if there else [])
    for folder in folders:
        names = {path.name for path in (run.root / folder).iterdir()}
        assert names == {"config.yaml", "overrides.yaml", "hydra.yaml"}
    assert main(["verify", str(run.root), "--repair"]) == 0
    assert [str(path.relative_to(run.root)) for path in run.root.rglob(".hydra")] == folders
    assert main(["retry", str(run.root), "--rows", "00000001"]) == 0
    (part,) = run.catalog_rows.glob("*.parquet")
    assert any(b"seed=3" in value for value in pq.read_schema(part).metadata.values())
    for text in pd.read_parquet(run.catalog_runs).config:
        assert json.loads(text)["output"]["hydra_dump_mode"] == mode


def test_hydras_files_move_with_the_setting(job: Path) -> None:
    """Of two folders one would be out of date."""
    run = begin(job)
    changed = ["--rows", "00000001", "output.hydra_dump_mode=video_dir"]
    assert main(["retry", str(run.root), *changed]) == 0
    assert not run.hydra.exists() and (run.media / ".hydra" / "config.yaml").is_file()
