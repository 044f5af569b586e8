"""Audited rows in the catalog, in its accounts and in what commands print."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from run_folder import GivenSeconds, RunFolder, render

from batchgen.catalog.collect import collect
from batchgen.cli.main import main
from batchgen.ledger.events import End
from batchgen.ledger.fidelity import Spread, read_fidelity
from batchgen.ledger.journal import JournalWriter
from batchgen.media.publish import write_media
from batchgen.paths import parse_journal
from batchgen.records import Audit, RankSeconds

STRATEGIES = ["planned"] * 5 + ["none", "teacache", "planned"]
PSNR = [50.0, 40.0, 60.0, 30.0]
SPENT = RankSeconds(load=1.0, encode=0.8, denoise=8 + 5 * 3.5)  # eight rows and five audits


def draw(
    run_folder: RunFolder, journal: JournalWriter, row: int, audit: Audit | None = None
) -> None:
    """A row's media and its commit line."""
    attempt, request = parse_journal(journal.path), run_folder.requests[row]
    journal.start(row, request.row_id)
    media = write_media(render(request), run_folder.run, attempt, len(run_folder.requests))
    commit = run_folder.commit_of(row, attempt, media)
    assert commit.stats is not None
    journal.commit(replace(commit, stats=replace(commit.stats, audit=audit)))


def audit(psnr: float | None) -> Audit:
    ssim = None if psnr is None else psnr / 100
    return Audit(psnr, ssim, busy=3.5, seconds=4.0, steps=16.0)


@pytest.fixture
def run_folder(make_run_folder: Callable[..., RunFolder]) -> RunFolder:
    """Rows 0 to 3 are audited, the twin of 4 failed, 5 and 7 are not audited, 6 has another
    strategy, 8 is an alias of 3."""
    strategies = [*STRATEGIES, "planned"]
    made = make_run_folder(9, aliases={8: 3}, extra={"cache_strategy": strategies})
    with made.journal(made.submit(range(8)), meter=GivenSeconds(SPENT)) as journal:
        for row, psnr in enumerate([*PSNR, None]):
            draw(made, journal, row, audit(psnr))
        draw(made, journal, 5)
        draw(made, journal, 6, Audit(20.0, 0.5))
        draw(made, journal, 7)
        journal.end(End(reason="done", busy_s=SPENT.busy, load_s=1.0))
    return made


def test_the_columns_are_null_where_nothing_was_audited(run_folder: RunFolder) -> None:
    collect(run_folder.run)
    frame = pd.read_parquet(run_folder.run.catalog_rows)
    assert frame["psnr"].tolist()[:4] == PSNR
    assert frame["ssim"].tolist()[:4] == [value / 100 for value in PSNR]
    assert frame["psnr"].isna().tolist() == [False] * 4 + [True, True, False, True, False]
    assert frame["audit_s"].tolist() == [4.0] * 5 + [0.0] * 4  # an alias took none
    assert frame["audit_steps"].tolist() == [16.0] * 5 + [0.0] * 4
    assert frame["denoise_s"].tolist()[:8] == [1.0] * 8  # a row's own


def test_what_audits_took_is_useful(run_folder: RunFolder) -> None:
    collect(run_folder.run)
    attempt = pd.read_parquet(run_folder.run.catalog_runs).iloc[0]
    assert attempt["useful_s"] == pytest.approx(attempt["busy_s"]) == pytest.approx(SPENT.busy)


def test_rows_are_summed_up_by_strategy_and_bucket(run_folder: RunFolder) -> None:
    planned, teacache = collect(run_folder.run).fidelity
    assert (planned.strategy, planned.bucket, planned.rows) == ("planned", "16x8x1", 4)
    assert planned.psnr == Spread(45.0, float(np.percentile(PSNR, 5)), 30.0, "row0003")
    assert planned.ssim.worst == 0.3 and planned.ssim.worst_row == "row0003"
    assert teacache.rows == 1 and teacache.psnr == Spread(20.0, 20.0, 20.0, "row0006")


def test_collect_and_status_print_and_tell_it(
    run_folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(run_folder.run.root)
    said = "planned 16x8x1, 4 rows: psnr mean 45, p5 31.5, worst 30 (row0003); ssim mean 0.45, "
    for words in (["collect", root], ["status", root, "--offline"]):
        assert main([*words, "--json"]) == 0
        out = capsys.readouterr().out
        assert said in out
        told = json.loads(out.splitlines()[-1])["fidelity"]
        assert told == [asdict(part) for part in read_fidelity(run_folder.run)]
        assert [part["strategy"] for part in told] == ["planned", "teacache"]


def test_a_run_without_audits_has_no_summary(
    make_run_folder: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_run_folder(1)
    made.run.catalog_fidelity.parent.mkdir(parents=True)
    made.run.catalog_fidelity.write_text("[]")  # of an earlier collect
    with made.journal(made.submit([0])) as journal:
        made.render(journal, 0)
    assert main(["collect", str(made.run.root), "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["fidelity"] == [] and "audited" not in out
    assert not made.run.catalog_fidelity.exists()
