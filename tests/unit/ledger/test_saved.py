"""Rows that leave an attempt without a commit: saved, tried again, lost; and what they cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from run_folder import STAGES, GivenSeconds, RunFolder

from batchgen import catalog
from batchgen.catalog.collect import collect
from batchgen.errors import RunStateError
from batchgen.ledger import journal as journal_module
from batchgen.ledger.events import END, HEAD, LEFT, START, End, Saved, Start, Tried, encode_line
from batchgen.ledger.intent import read_intent
from batchgen.ledger.reading.scan import index_commits
from batchgen.ledger.restarts import fence_restart
from batchgen.ledger.status import read_status
from batchgen.ledger.submissions import SubmissionInfo, SubmissionRows, begin_submission, read_shard
from batchgen.paths import FAN_OUT_ENTRIES, RunPaths, parse_journal
from batchgen.records import Attempt, RankSeconds

ROW_S = STAGES.encode + STAGES.denoise
SOON_S = 0.2  # from a heartbeat to what the test does next


def runs(run_folder: RunFolder) -> pd.DataFrame:
    collect(run_folder.run)
    frame: pd.DataFrame = pd.read_parquet(run_folder.run.catalog_runs)
    return frame


def closes(run: pd.Series) -> bool:
    parts = run["useful_s"] + run["retried_s"] + run["saved_s"] + run["lost_s"]
    return bool(parts == pytest.approx(run["busy_s"], abs=SOON_S))


# lines


def test_readers_that_parse_no_json_know_the_lines() -> None:
    start = START.match(encode_line(Start(7, "r", 1.0, alone=True)))
    assert start is not None
    assert start.groups() == (b"7", b"true")
    start = START.match(b'{"kind":"start","row_index":7,"row_id":"r","t":1.0,"crc":"0"}\n')
    assert start is not None, "of a run that is older than suspects"
    assert start.groups() == (b"7", None)
    for event in (Saved(7, 3, 0.5, 1.0), Tried(7, 0.5, "ValueError", 1.0)):
        line = encode_line(event)
        left = LEFT.match(line)
        assert left is not None
        assert left[1] == b"7"
        assert HEAD.match(line) is None
    assert encode_line(End(reason="done")).startswith(END)


# in flight


@pytest.mark.parametrize("followed", [True, False])
def test_a_row_that_is_saved_or_to_be_tried_again_is_not_in_flight(
    followed: bool, make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by the writer, or by a reader of lines after the counters were written."""
    monkeypatch.setattr(journal_module, "COUNTERS_EVERY_S", 1e9 if followed else 0.0)
    run_folder = make_run_folder(4)
    journal = run_folder.journal(run_folder.submit())
    for row in range(4):
        journal.start(row, f"row{row:04d}")
    assert read_status(run_folder.run).running == 4
    journal.saved(0, 2, 0.5)
    journal.tried(1, 0.5, ValueError("no"))
    assert read_status(run_folder.run).running == 2
    (facts,) = index_commits(run_folder.run).journals
    assert facts.in_flight.rows == {2, 3}
    journal.start(1, "row0001")
    assert read_status(run_folder.run).running == 3
    (facts,) = index_commits(run_folder.run).journals
    assert (facts.in_flight.rows, facts.saved, facts.tried_s) == ({1, 2, 3}, {0: 0.5}, 0.5)


def test_a_saved_line_is_durable(
    make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(journal_module.os, "fsync", synced.append)
    run_folder = make_run_folder(1)
    journal = run_folder.journal(run_folder.submit())
    journal.start(0, "row0000")
    before = len(synced)
    journal.saved(0, 2, 0.5)
    assert len(synced) == before + 1


# seconds


def test_a_saved_row_is_carried_over_and_counted_where_it_was_spent(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """Two attempts draw one half each: both are useful work, none of it twice."""
    run_folder = make_run_folder(2)
    with run_folder.journal(run_folder.submit()) as journal:
        run_folder.render(journal, 0)
        journal.start(1, "row0001")
        journal.saved(1, 2, 0.6)
        journal.end(End(reason="drained", busy_s=ROW_S + 0.6))
    with run_folder.journal(run_folder.submit([1])) as journal:
        journal.start(1, "row0001")
        attempt = parse_journal(journal.path)
        commit = run_folder.commit_of(1, attempt, None)
        assert commit.stats is not None
        stages = replace(STAGES, encode=0.0, denoise=0.4)
        journal.commit(
            replace(commit, stats=replace(commit.stats, stages=stages, steps_restored=2))
        )
        journal.end(End(reason="done", busy_s=0.4))
    first, second = (row for _, row in runs(run_folder).iterrows())
    assert (first["rows_saved"], first["saved_s"]) == (1, 0.6)
    assert (first["rows_lost"], first["lost_s"]) == (0, 0.0)
    assert second["useful_s"] == pytest.approx(0.4)
    assert closes(first)
    assert closes(second)
    frame = pd.read_parquet(run_folder.run.catalog_rows)
    assert frame["steps_restored"].tolist() == [0, 2]
    assert frame["denoise_s"].tolist() == [1.0, 0.4]
    assert catalog.waste(run_folder.run.root)["total"] == 0.0


def test_a_row_that_is_saved_and_then_finished_by_the_same_attempt_counts_once(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(1)
    with run_folder.journal(run_folder.submit()) as journal:
        journal.start(0, "row0000")
        journal.saved(0, 2, 0.6)
        run_folder.render(journal, 0)
        journal.end(End(reason="done", busy_s=ROW_S))
    (run,) = (row for _, row in runs(run_folder).iterrows())
    assert (run["rows_saved"], run["saved_s"]) == (0, 0.0)
    assert closes(run)


def test_a_try_that_failed_is_retried_time(make_run_folder: Callable[..., RunFolder]) -> None:
    run_folder = make_run_folder(1)
    with run_folder.journal(run_folder.submit()) as journal:
        journal.start(0, "row0000")
        journal.tried(0, 0.7, RuntimeError("boom"))
        run_folder.render(journal, 0)
        journal.end(End(reason="done", busy_s=ROW_S + 0.7))
    (run,) = (row for _, row in runs(run_folder).iterrows())
    assert run["retried_s"] == pytest.approx(0.7)
    assert closes(run)


def test_lost_is_what_rows_without_a_line_took(make_run_folder: Callable[..., RunFolder]) -> None:
    """Of what an attempt told in its last line."""
    run_folder = make_run_folder(3)
    with run_folder.journal(run_folder.submit()) as journal:
        run_folder.render(journal, 0)
        journal.start(1, "row0001")
        journal.saved(1, 2, 0.5)
        journal.start(2, "row0002")
        journal.end(End(reason="terminated", busy_s=ROW_S + 0.5 + 4.5, lost_s=4.5))
    (run,) = (row for _, row in runs(run_folder).iterrows())
    assert (run["rows_lost"], run["lost_s"]) == (1, pytest.approx(4.5))
    assert closes(run)


@pytest.mark.parametrize("by", ["line", "heartbeat"])
def test_of_a_killed_attempt_the_last_sign_counts(
    by: str, make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line, or the heartbeat after it; whatever it was doing then."""
    monkeypatch.setattr(journal_module, "COUNTERS_EVERY_S", 1e9 if by == "line" else 0.0)
    run_folder, meter = make_run_folder(2), GivenSeconds(RankSeconds(load=1.0))
    journal = run_folder.journal(run_folder.submit(), meter=meter)
    journal.start(0, "row0000")
    spent = {"load": 1.0, "move": 0.25, "encode": 0.5, "idle": 3.0, "tail": 0.5}
    meter.spent = RankSeconds(**spent, denoise=2.0, open=2.0)
    journal.saved(0, 2, 0.5)
    if by == "heartbeat":
        meter.spent = replace(meter.spent, denoise=7.0, idle=4.0, open=7.0)
        journal.beat()
    (run,) = (row for _, row in runs(run_folder).iterrows())
    assert run["exit_reason"] == "killed"
    busy, idle = (2.5, 3.0) if by == "line" else (7.5, 4.0)
    assert (run["load_s"], run["move_s"], run["idle_s"]) == (1.0, 0.25, idle)
    assert (run["busy_s"], run["encode_s"], run["tail_s"]) == (busy, 0.5, 0.5)
    assert (run["saved_s"], run["lost_s"]) == (0.5, busy - 0.5)


def test_a_row_that_was_encoded_and_dropped_before_it_began_is_lost(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """No line names it."""
    run_folder = make_run_folder(1)
    with run_folder.journal(run_folder.submit()) as journal:
        run_folder.render(journal, 0)
        journal.end(End(reason="drained", busy_s=ROW_S + 0.75, encode_s=0.75, lost_s=0.75))
    (run,) = (row for _, row in runs(run_folder).iterrows())
    assert (run["rows_lost"], run["lost_s"]) == (0, pytest.approx(0.75))
    assert closes(run)


def test_a_row_that_is_saved_and_then_fails_counts_once(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """Denoised, it is saved as it waits for the decoder, where it fails. Nobody is left to try it
    again."""
    run_folder = make_run_folder(1)
    with run_folder.journal(run_folder.submit()) as journal:
        journal.start(0, "row0000")
        journal.saved(0, 4, 0.6)
        journal.tried(0, 0.6, RuntimeError("boom"))
        journal.end(End(reason="drained", busy_s=0.6))
    (run,) = (row for _, row in runs(run_folder).iterrows())
    assert (run["rows_saved"], run["saved_s"], run["retried_s"]) == (0, 0.0, 0.6)
    assert closes(run)


def test_the_waste_of_a_run(make_run_folder: Callable[..., RunFolder]) -> None:
    """A failure, a zombie's commit after its fence, and a row that was dropped."""
    run_folder = make_run_folder(4)
    with pytest.raises(RunStateError, match="batchgen collect"):
        catalog.waste(run_folder.run.root)
    zombie = run_folder.journal(run_folder.submit())
    run_folder.render(zombie, 0)
    run_folder.fail(zombie, 1)
    number = run_folder.submit([1, 2, 3])
    run_folder.render(zombie, 2)
    zombie.end(End(reason="done", busy_s=3 * ROW_S))
    with run_folder.journal(number) as journal:
        run_folder.render(journal, 2)
        journal.start(3, "row0003")
        journal.end(End(reason="terminated", busy_s=ROW_S + 0.8, lost_s=0.8))
    assert runs(run_folder)["fenced_s"].tolist() == pytest.approx([ROW_S, 0.0])
    wasted = catalog.waste(run_folder.run.root)
    assert wasted["lost"] == pytest.approx(0.8, abs=SOON_S)
    assert wasted["retried"] == pytest.approx(2 * ROW_S)
    assert wasted["fenced"] == pytest.approx(ROW_S)
    assert wasted["total"] == pytest.approx(0.8 + 2 * ROW_S, abs=SOON_S)
    assert wasted["share"] == pytest.approx(wasted["total"] / (4 * ROW_S + 0.8), abs=SOON_S)


def test_phases_of_one_name_add_up_and_unknown_ones_are_kept(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(1)
    with run_folder.journal(run_folder.submit()) as journal:
        for name, seconds in (("load", 1.0), ("load", 0.5), ("wait", 0.25), ("mend", 0.25)):
            journal.phase(name, seconds)
        journal.end(End(reason="done"))
    (run,) = (row for _, row in runs(run_folder).iterrows())
    assert (run["load_s"], run["other_s"], run["warmup_s"]) == (1.5, 0.5, 0.0)


# suspects of a submission


def with_suspects(run_folder: RunFolder) -> int:
    index = np.arange(5)
    rows = SubmissionRows(index, np.zeros(5, np.int32), index[::-1], index % 2 == 1)
    return begin_submission(
        run_folder.run, rows, SubmissionInfo(attempt=2, excluded={"n1": "sick"})
    )


def test_a_shard_names_its_suspects_apart(make_run_folder: Callable[..., RunFolder]) -> None:
    run_folder = make_run_folder(5)
    shard = read_shard(run_folder.run, with_suspects(run_folder), 0)
    assert (shard.rows.tolist(), shard.suspects.tolist()) == ([4, 2, 0], [3, 1])
    assert shard.all.tolist() == [4, 2, 0, 3, 1]
    shard = read_shard(run_folder.run, run_folder.submit(), 0)
    assert (len(shard.rows), len(shard.suspects)) == (5, 0)


def test_submissions_of_older_runs_are_read(make_run_folder: Callable[..., RunFolder]) -> None:
    run_folder = make_run_folder(5)
    number = with_suspects(run_folder)
    path = run_folder.run.shards(number)
    pq.write_table(pq.read_table(path).drop_columns(["alone"]), path)
    shard = read_shard(run_folder.run, number, 0)
    assert (shard.rows.tolist(), shard.suspects.tolist()) == ([4, 3, 2, 1, 0], [])
    intent = json.loads(run_folder.run.intent(number).read_text())
    assert (intent["attempt"], intent["excluded"]) == (2, {"n1": "sick"})
    for name in ("attempt", "excluded", "suspects", "lost", "sha256"):
        del intent[name]
    run_folder.run.intent(number).write_text(json.dumps(intent))
    old = read_intent(run_folder.run, number)
    assert old is not None
    assert (old.attempt, old.excluded, old.suspects) == (1, {}, ())


@pytest.mark.parametrize("state", ["fresh", "stale", "missing"])
def test_status_counts_suspects_until_they_are_committed(
    state: str, make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    from batchgen.ledger import status as status_module

    monkeypatch.setattr(journal_module, "COUNTERS_EVERY_S", 1e9 if state == "stale" else 0.0)
    run_folder = make_run_folder(5)
    number = with_suspects(run_folder)
    counters = [run_folder.run.counters(Attempt(number, 0, restart, 0)) for restart in (0, 1)]

    def suspects() -> int:
        for path in counters if state == "missing" else ():
            path.unlink(missing_ok=True)
        return read_status(run_folder.run).suspects

    assert suspects() == 2
    journal = run_folder.journal(number)
    run_folder.render(journal, 3)
    run_folder.render(journal, 0)
    journal.start(4, "row0004")
    assert suspects() == 1
    monkeypatch.setattr(status_module.ProcessId, "alive", lambda _: False)
    assert suspects() == 2, "row 4 too, now that its process is gone"
    fence_restart(run_folder.run, Attempt(number, 0, 1, 0))
    again = run_folder.journal(number, restart=1)
    run_folder.render(again, 4)
    assert suspects() == 1
    run_folder.render(again, 1)
    assert suspects() == 0


# where the state of a row is


def test_states_of_many_rows_fan_out_like_media() -> None:
    run = RunPaths(Path("/run"))
    assert run.row_state(3, 100) == Path("/run/state/rows/3.safetensors")
    large = run.row_state(FAN_OUT_ENTRIES + 1, 3 * FAN_OUT_ENTRIES)
    assert large == Path(f"/run/state/rows/01/{FAN_OUT_ENTRIES + 1}.safetensors")
    million = {run.row_state(row, 10**6).parent for row in range(0, 10**6, 500)}
    assert len(million) == -(-(10**6) // FAN_OUT_ENTRIES)
