"""What an engine counts is declared once: the last line of a journal and the catalog follow."""

from __future__ import annotations

from dataclasses import asdict, fields

from batchgen.catalog.columns import RUNS
from batchgen.engine.contract import EngineReport
from batchgen.ledger.events import End
from batchgen.records import EngineCounters, add_counters


def test_every_counter_is_in_the_journal_and_in_the_catalog() -> None:
    names = {counter.name for counter in fields(EngineCounters)}
    assert names <= {field.name for field in fields(End)}
    assert names <= set(RUNS.names)
    assert names <= {field.name for field in fields(EngineReport)}


def test_renders_of_one_engine_add_up() -> None:
    first = EngineReport(forwards=2, decode_s=0.5, peak_mem_gib=3.0, self_test="passed", ticks=7)
    second = EngineReport(forwards=3, decode_s=0.25, peak_mem_gib=1.0, self_test="failed")
    total = add_counters([first, second])
    assert (total.forwards, total.decode_s, total.peak_mem_gib) == (5, 0.75, 3.0)
    assert total.self_test == "passed"
    assert add_counters([]) == EngineCounters()
    assert End(reason="done", **asdict(total)).forwards == 5
