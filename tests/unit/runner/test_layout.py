"""The layout on its way: decided by a submission, kept in its intent, shown, obeyed or refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cli_calls import make_job_folder
from planned_run import plan_run

from batchgen import worker
from batchgen.cli.main import main
from batchgen.errors import ConfigError
from batchgen.ledger.events import Start
from batchgen.ledger.intent import config_of, last_intent, profile_of, read_intent, sealed
from batchgen.ledger.status import read_status
from batchgen.paths import RunPaths
from batchgen.records import Layout, RankInfo

NULL = ("model=null-engine", "slurm=inline")
TOO_SMALL = "slurm.device.memory_gib=1e-9"


@pytest.fixture
def work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """A verb on a job of two rows (or on its run), in this process."""
    job_folder = make_job_folder(tmp_path, 2)

    def call(verb: str, *options: str, code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        is_job = verb in ("plan", "run", "submit")
        target = job_folder.job if is_job else next(job_folder.root.iterdir())
        assert main([verb, str(target), *(NULL if is_job else ()), *options, "--json"]) == code
        out, err = capsys.readouterr()
        return {
            "err": err,
            "text": out,
            "root": job_folder.root,
            **json.loads(out.splitlines()[-1]),
        }

    return call


def layout_in(run: RunPaths) -> Layout:
    intent = last_intent(run)
    assert intent is not None and intent.layout is not None
    return intent.layout


def test_what_a_submission_decided_stands_in_its_intent_status_and_catalog(
    work: Callable[..., dict[str, Any]],
) -> None:
    planned = work("plan")["layout"]
    run = RunPaths(Path(work("run")["run"]))
    layout = layout_in(run)
    assert str(layout) == "dp1 resident fp32"
    assert json.loads(run.intent(1).read_bytes())["layout"] == planned
    intent = last_intent(run)
    assert intent is not None and config_of(run, intent).model.name == "null-engine"
    assert profile_of(run, intent).executor == "inline"
    shown = work("status")
    assert "layout    dp1 resident fp32 on 1 node of 1 rank" in shown["text"]
    assert shown["layout"] == planned
    attempt = pd.read_parquet(run.catalog_runs).iloc[0]
    assert (attempt["layout"], attempt["layout_dp"]) == ("dp1 resident fp32", 1)
    assert (attempt["layout_memory"], attempt["layout_vram_gib"]) == ("resident", layout.vram_gib)
    assert attempt["layout_reason"] == layout.reason
    assert set(pd.read_parquet(run.catalog_rows)["layout"]) == {"dp1 resident fp32"}


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("plan", ("--out", "kept.parquet")),
        ("run", ()),
        ("submit", ("slurm.executor=local",)),
        ("submit", ("--dry-run",)),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(
    work: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    options: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = work(verb, *options, TOO_SMALL, code=2)
    assert "a replica does not fit one rank (" in refused["err"]
    assert "say which device is there" in refused["err"]
    assert not refused["root"].exists()
    assert not (tmp_path / "kept.parquet").exists()


def test_a_resume_decides_anew_and_is_refused_where_its_rows_do_not_fit(
    work: Callable[..., dict[str, Any]],
) -> None:
    run = RunPaths(Path(work("run")["run"]))
    refused = work("retry", "--rows", "row-000", TOO_SMALL, code=2)
    assert "does not fit one rank" in refused["err"]
    assert [path.name for path in run.submissions.iterdir()] == ["0001"]
    work("retry", "--rows", "row-000", "slurm.device.memory_gib=64")
    assert "of 64 GiB" in layout_in(run).reason
    first, second = pd.read_parquet(run.catalog_runs).sort_values("submission").layout_reason
    assert "of 8 GiB" in first and "of 64 GiB" in second


# -------------------------------------------------------------------------------- in older intents
def make_old(run: RunPaths, number: int) -> None:
    """The intent as it was written before: the configuration as text, and no layout."""
    plain = json.loads(run.intent(number).read_bytes())
    del plain["sha256"], plain["layout"]
    plain["config"] = json.dumps(plain["config"] | {"a_key_of_then": 1})
    seal = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    run.intent(number).write_text(json.dumps(plain | {"sha256": seal}))


def test_intents_of_before_are_read_by_every_verb(work: Callable[..., dict[str, Any]]) -> None:
    run = RunPaths(Path(work("run")["run"]))
    make_old(run, 1)
    intent = read_intent(run, 1)
    assert intent is not None and intent.layout is None
    assert intent.config["a_key_of_then"] == 1
    shown = work("status")
    assert (shown["ok"], shown["layout"]) == (2, None)
    assert "layout    " not in shown["text"]
    work("collect")
    assert set(pd.read_parquet(run.catalog_rows)["layout"]) == {""}
    assert pd.read_parquet(run.catalog_runs)["layout"].tolist() == [""]
    work("verify")
    work("retry", "--rows", "row-001")
    assert str(layout_in(run)) == "dp1 resident fp32"
    assert read_status(run).ok == 2


def test_a_task_of_an_older_submission_goes_on(tmp_path: Path) -> None:
    planned = plan_run(tmp_path, [2])
    number = planned.begin([0])
    plain = json.loads(planned.run.intent(number).read_bytes())
    del plain["sha256"], plain["layout"]
    plain["config"] = json.dumps(plain["config"])
    planned.run.intent(number).write_text(json.dumps(plain))
    assert planned.work(number) == 0
    assert len(planned.frames(number)) == 1


# ---------------------------------------------------------------------------------- in the worker
def test_a_rank_that_cannot_keep_to_the_layout_ends_before_it_takes_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No accelerator is seen; the null model would take any device."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    planned = plan_run(tmp_path, [2], "slurm.executor=inline", model="tiny-wan")
    number = planned.begin([0])
    intent = read_intent(planned.run, number)
    assert intent is not None
    layout = Layout(memory="model", precision="bfloat16", attention="sdpa", device="h200")
    planned.run.intent(number).write_text(json.dumps(sealed(replace(intent, layout=layout))))
    with pytest.raises(ConfigError, match="the layout was decided for h200"):
        worker.work(planned.run, number, RankInfo(0, 1, 0, 0, 0, "node1"))
    assert not planned.of(Start, number)
    (attempt,) = read_status(planned.run).attempts
    assert attempt.ended == "ConfigError"
    assert "the layout was decided for h200" in attempt.error
