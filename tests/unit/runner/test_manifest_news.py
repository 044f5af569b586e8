"""A manifest that changes under a run: `resume` says so, and goes on with the plan."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_calls import rows_of, write_manifest

from batchgen.cli.main import main
from batchgen.config.composing.compose import compose_job
from batchgen.paths import RunPaths
from batchgen.runner.create import create_run
from batchgen.runner.manifest_news import manifest_news

JOB = """\
defaults: [base, {model: null-engine}, {override slurm: inline}, _self_]
manifest: rows.parquet
carry_columns: [shot]
row_defaults: {num_steps: 1}
output: {root_dir: out}
"""
ROWS = [{"row_id": f"r{i}", "prompt": f"p{i}", "seed": i, "shot": "x"} for i in range(6)]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPaths:
    """A run of six rows that is planned and not begun."""
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(JOB)
    write_manifest(Path("rows.parquet"), ROWS)
    return create_run(compose_job(Path("job.yaml"), ["tag=a", "row_defaults.tags='two words'"]))


def test_nothing_is_said_while_the_rows_are_the_same(run: RunPaths) -> None:
    assert manifest_news(run) == ""
    write_manifest(Path("rows.parquet"), [dict(reversed(row.items())) for row in ROWS])
    assert manifest_news(run) == ""  # other bytes, same rows


def test_rows_added_changed_and_gone_are_counted_and_named(run: RunPaths) -> None:
    now = [*ROWS[:1], {**ROWS[1], "prompt": "edited"}, {**ROWS[2], "shot": "y"}, *ROWS[4:]]
    now += [{"row_id": f"new{i}", "prompt": "n", "seed": i, "shot": "x"} for i in range(5)]
    write_manifest(Path("rows.parquet"), now)
    first, second = manifest_news(run).splitlines()
    assert "has changed since this run was planned (it has 10 rows now): " in first
    assert first.endswith("5 added (new0, new1, new2, ...), 2 changed (r1, r2), 1 gone (r3)")
    command = f"batchgen run {Path('job.yaml').absolute()} tag=a 'row_defaults.tags='"
    assert command.rstrip("'") in second
    assert main(["plan", "job.yaml", "tag=a"]) == 0  # what it says can be typed


def test_rows_are_compared_under_the_runs_own_settings(run: RunPaths) -> None:
    Path("job.yaml").write_text(JOB.replace("num_steps: 1", "num_steps: 9"))
    write_manifest(Path("rows.parquet"), [*ROWS, {**ROWS[0], "row_id": "new"}])
    assert "1 added (new)" in manifest_news(run)
    assert "changed (" not in manifest_news(run)


def test_a_manifest_that_is_gone_or_none_any_more_is_said(run: RunPaths) -> None:
    write_manifest(Path("rows.parquet"), [{"row_id": "r", "prompt": ""}])
    assert "cannot be planned now: " in manifest_news(run)
    Path("rows.parquet").write_text("half")
    assert "not a Parquet file" in manifest_news(run)
    Path("rows.parquet").unlink()
    assert "is not there any more; the run goes on with its plan" in manifest_news(run)


def test_resume_says_so_and_renders_what_was_planned(
    run: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(Path("rows.parquet"), [{**ROWS[0], "prompt": "edited"}, *ROWS[1:]])
    assert main(["resume", str(run.root)]) == 0
    assert "1 changed (r0)" in capsys.readouterr().out
    frame = rows_of(run)
    assert frame["prompt"].tolist() == [row["prompt"] for row in ROWS]
    assert set(frame["status"]) == {"ok"}
    assert frame["alias_of"].isna().all() and set(frame["tags"]) == {"two words"}
