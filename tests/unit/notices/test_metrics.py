"""metrics.prom, read by Prometheus' own parser."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from run_folder import RunFolder
from waiting import wait_for

from batchgen.ledger.events import End
from batchgen.ledger.status import read_status
from batchgen.notices.metrics import Metrics, metrics_text, write_metrics

Samples = dict[tuple[str, ...], float]


def parsed(text: str) -> Samples:
    """(name, labels' values but the run's) -> value; every family has a help and a type."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        assert family.type == "gauge"
        for sample in family.samples:
            assert sample.timestamp is None, "the textfile collector refuses times"
            rest = [value for label, value in sample.labels.items() if label != "run"]
            found[(sample.name, *rest)] = sample.value
    return found


def test_the_figures_are_those_of_status(make_run_folder: Callable[..., RunFolder]) -> None:
    folder = make_run_folder(5)
    with folder.journal(folder.submit()) as journal:
        folder.render(journal, 0)
        folder.fail(journal, 1)
        journal.start(2, "row0002")
        write_metrics(folder.run)
        status = read_status(folder.run)
        found = parsed(folder.run.metrics.read_text())
        assert not [path for path in folder.run.root.iterdir() if path.name.endswith(".tmp")]
        journal.end(End(reason="done"))
    rows = {name[1]: value for name, value in found.items() if name[0] == "batchgen_rows"}
    assert rows == {"ok": 1, "failed": 1, "quarantined": 0, "pending": 3}
    states = {name[1]: value for name, value in found.items() if name[0] == "batchgen_state"}
    assert states == {"planned": 0, "submitted": 0, "running": 1, "stopped": 0, "finished": 0}
    assert found["batchgen_rows_in_flight",] == 1
    assert found["batchgen_attempts_running",] == 1
    assert found["batchgen_submissions",] == 1
    assert 0 < found["batchgen_device_seconds",] <= status.gpu_hours * 3600
    assert abs(found["batchgen_updated_timestamp_seconds",] - time.time()) < 60
    assert found["batchgen_eta_seconds",] > 0


def test_any_name_of_a_run_is_a_label(make_run_folder: Callable[..., RunFolder]) -> None:
    status = replace(read_status(make_run_folder(1).run), eta_s=None, rate_per_s=float("inf"))
    name = 'a"b\\nc\nd ☃'
    families = [*text_string_to_metric_families(metrics_text(name, status).decode())]
    assert {s.labels["run"] for family in families for s in family.samples} == {name}
    assert "batchgen_eta_seconds" not in {family.name for family in families}


def test_a_file_that_another_rank_writes_is_left_to_it(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """Clocks are not compared: the file server's may be ahead."""
    run, now = make_run_folder(1).run, 100.0
    metrics = Metrics(run, every_s=10, clock=lambda: now)
    assert metrics.is_old(), "there is none"
    for written in (time.time() + 3600, time.time() - 3600):
        run.metrics.touch()
        os.utime(run.metrics, (written, written))
        assert not metrics.is_old()
        now += 9
        assert not metrics.is_old()
    now += 2
    assert metrics.is_old()


def test_a_rank_writes_it_while_it_is_at_work(make_run_folder: Callable[..., RunFolder]) -> None:
    run = make_run_folder(1).run
    run.metrics.write_text("old")
    with Metrics(run, every_s=0.05):
        wait_for(lambda: "batchgen_rows" in run.metrics.read_text())


def test_a_run_needs_no_metrics(tmp_path: Path, make_run_folder: Callable[..., RunFolder]) -> None:
    run = make_run_folder(1).run
    run.metrics.mkdir()
    write_metrics(run)
    run.plan.unlink()
    run.run_json.unlink()
    write_metrics(run)
    assert [*run.metrics.iterdir()] == []
