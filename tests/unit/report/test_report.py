"""What the report says of a run, and that no text of a row becomes markup."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from report_run import HOSTILE, make_large_run
from run_folder import RunFolder

from batchgen.paths import RunPaths, parse_journal
from batchgen.report import write_report
from batchgen.report.sheet import EVEN
from batchgen.report.text import cut_tags
from batchgen.report.timeline import Clock

MakeRun = Callable[..., RunFolder]
ROWS = 3 * EVEN + 7


def data_of(run: RunPaths) -> dict[str, Any]:
    """What the page's scripts are told."""
    text = run.report.read_text(encoding="utf-8")
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert len(found) == 1
    parsed: dict[str, Any] = json.loads(found[0])
    return parsed


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = make_large_run(tmp_path_factory.mktemp("large") / "run", ROWS).run
    write_report(run)
    assert run.report.stat().st_size < 2_000_000
    return data_of(run)


def test_a_large_run_is_counted_whole_and_shown_by_a_sample(large: dict[str, Any]) -> None:
    counts, sheet = large["counts"], large["sheet"]
    failed = len(range(5, ROWS, 331))
    assert (counts["rows"], counts["failed"], counts["ok"]) == (ROWS, failed, ROWS - failed)
    assert sheet["every"] == 4
    assert sum(sheet["sampled"]) == -(-ROWS // 4)
    assert sheet["status"].count("failed") == failed  # all: there are few
    assert len({*sheet["id"]}) == len(sheet["id"]) < 2 * EVEN
    assert [*sheet["id"]] == sorted(sheet["id"])  # the manifest's order


def test_time_is_added_up_over_all_rows(large: dict[str, Any]) -> None:
    money, counts = large["money"], large["counts"]
    assert money["unit"] == "GPU-hours"
    assert sum(bucket["rows"] for bucket in money["buckets"]) == counts["ok"]
    assert {b["name"] for b in money["buckets"]} == {"480x320x16", "832x480x81"}
    slowest = max(money["hosts"], key=lambda host: host["seconds"] / host["rows"])
    assert slowest["name"] == "node01"
    assert money["predicted"] == pytest.approx(money["seconds"], rel=0.1)
    assert sum(large["timeline"]["ok"]) == counts["ok"]
    assert sum(large["timeline"]["failed"]) == counts["failed"]
    assert sum(money["histogram"]["counts"]) == counts["ok"]
    assert money["computed"] / money["total"] == pytest.approx(2 / 3, rel=0.02)
    assert large["timeline"]["pauses"] == 1


def test_failures_of_one_kind_are_one_group_with_a_traceback(large: dict[str, Any]) -> None:
    groups = {group["kind"]: group for group in large["failures"]}
    assert {*groups} == {"NonFiniteOutput", "OutOfMemory"}
    assert sum(group["rows"] for group in groups.values()) == large["counts"]["failed"]
    assert 'File "engine.py", line 7' in groups["OutOfMemory"]["traceback"]


def test_rows_that_were_short_of_memory_are_told_by_device_and_rung(large: dict[str, Any]) -> None:
    told = [(s["device"], s["rung"], s["rows"]) for s in large["shortages"]]
    each = [len(range(first, ROWS, 100)) for first in (7, 8)]
    assert told == [("NVIDIA H200", "smaller", each[0]), ("NVIDIA H200", "model", each[1])]
    smaller = large["shortages"][0]
    assert len(smaller["first"]) == 5 and 1 < smaller["attempts"] <= each[0]
    rungs = dict(zip(large["sheet"]["id"], large["sheet"]["rung"], strict=True))
    assert {*rungs.values()} == {"", "smaller", "model"}


def test_a_run_that_goes_on_is_reported_as_far_as_it_is(make_run_folder: MakeRun) -> None:
    folder = make_run_folder(rows=3)
    with folder.journal(folder.submit()) as journal:
        folder.render(journal, 0)
        write_report(folder.run)
        first = data_of(folder.run)
        folder.render(journal, 1)
        write_report(folder.run)
    assert first["about"]["state"] == "running"
    assert (first["counts"]["ok"], first["counts"]["pending"]) == (1, 2)
    assert data_of(folder.run)["counts"]["ok"] == 2
    assert first["money"]["unit"] == "CPU-hours"
    assert first["sheet"]["status"] == ["ok", "pending", "pending"]


def test_a_median_is_never_above_the_longest_row(make_run_folder: MakeRun) -> None:
    folder = make_run_folder(rows=2)
    with folder.journal(folder.submit()) as journal:
        stages = [folder.render(journal, row).stats.stages for row in (0, 1)]  # type: ignore[union-attr]
    write_report(folder.run)
    (seconds,) = {each.encode + each.denoise + each.decode for each in stages}
    histogram = data_of(folder.run)["money"]["histogram"]
    assert histogram["p50"] == histogram["p95"] == pytest.approx(seconds, rel=1e-9)


def test_steps_of_an_earlier_attempt_are_not_taken_for_those_that_a_cache_left_out(
    make_run_folder: MakeRun,
) -> None:
    folder = make_run_folder(rows=2)
    with folder.journal(folder.submit()) as journal:
        folder.render(journal, 0)
        drained = folder.commit_of(1, parse_journal(journal.path), None)
        stats = replace(drained.stats, steps_computed=2.0, steps_restored=3)
        journal.commit(replace(drained, stats=stats))
    write_report(folder.run)
    found = data_of(folder.run)
    assert (found["money"]["computed"], found["money"]["total"]) == (8, 8)
    assert found["sheet"]["restored"] == [0, 3]


def test_a_catalog_of_an_older_version_is_made_anew_for_it(make_run_folder: MakeRun) -> None:
    run = make_run_folder(rows=1).run
    write_report(run)
    part = run.catalog_rows / "part-00000.parquet"
    pq.write_table(pq.read_table(part).drop_columns(["memory_rung"]), part)
    write_report(run)
    assert "memory_rung" in pq.read_schema(part).names


def test_a_plan_without_any_submission_has_a_report(make_run_folder: MakeRun) -> None:
    folder = make_run_folder(rows=2)
    write_report(folder.run)
    assert data_of(folder.run)["about"]["state"] == "planned"


def test_text_of_rows_stays_text(make_run_folder: MakeRun) -> None:
    hostile = [HOSTILE] * 2
    folder = make_run_folder(rows=2, extra={"prompt": hostile, "tags": hostile, "bucket": hostile})
    with folder.journal(folder.submit()) as journal:
        folder.render(journal, 0)
        folder.fail(journal, 1, HOSTILE)
    write_report(folder.run)
    text = folder.run.report.read_text(encoding="utf-8")
    assert "<img" not in text and "</script><script>" not in text.split('id="data">')[1][:-200]
    sheet = data_of(folder.run)["sheet"]
    assert sheet["prompt"] == hostile and sheet["tags"] == hostile


def test_long_texts_do_not_fill_the_page(make_run_folder: MakeRun) -> None:
    folder = make_run_folder(rows=40, extra={"prompt": ["画" * 100_000] * 40})
    write_report(folder.run)
    assert folder.run.report.stat().st_size < 1_000_000


def test_tags_are_cut_between_two() -> None:
    assert cut_tags("day,night,rain", 14) == "day,night,rain"
    assert cut_tags("day,night,rain", 13) == "day,night,…"
    assert cut_tags("a\ud800,b", 30) == "a\\ud800,b"  # text that UTF-8 cannot hold


def test_time_in_which_nobody_worked_is_left_out() -> None:
    clock = Clock.of(np.array([0.0, 5.0, 1000.0]), np.array([10.0, 12.0, 1008.0]))
    assert clock.total == 20.0
    assert clock.at(np.array([6.0, 12.0, 500.0, 1004.0])).tolist() == [6.0, 12.0, 12.0, 16.0]
