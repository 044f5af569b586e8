"""The catalog: plain Parquet, one row a manifest row, numbers of record never null."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_folder import GivenSeconds, RunFolder

from batchgen import catalog
from batchgen.catalog import collect as catalog_module
from batchgen.catalog import frames as frames_module
from batchgen.catalog import parts as parts_module
from batchgen.catalog.collect import collect
from batchgen.catalog.columns import ROWS
from batchgen.catalog.timers import HEADER
from batchgen.errors import RunStateError
from batchgen.ledger.events import AttemptHeader, End
from batchgen.ledger.journal import JournalWriter
from batchgen.ledger.reading.bands import Bands
from batchgen.ledger.restarts import fence_restart
from batchgen.paths import RunPaths
from batchgen.records import Attempt, RankSeconds


@pytest.fixture
def mixed(make_run_folder: Callable[..., RunFolder]) -> RunFolder:
    """ok, ok, failed, pending, alias of row 1, alias of the pending row 3."""
    extra = {"carry.style": list("abcdef"), "carry.width": [1.5, None, 2.5, 3.5, 4.5, 5.5]}
    run_folder = make_run_folder(6, aliases={4: 1, 5: 3}, extra=extra)
    with run_folder.journal(run_folder.submit([0, 1, 2, 3])) as journal:
        journal.phase("load", 2.0)
        run_folder.render(journal, 0)
        run_folder.render(journal, 1)
        run_folder.fail(journal, 2)
        journal.end(End(reason="done", busy_s=3.3, idle_s=0.25, forwards=7))
    return run_folder


def test_every_manifest_row_is_there_once_in_order(mixed: RunFolder) -> None:
    summary = collect(mixed.run)
    frame = pd.read_parquet(mixed.run.catalog_rows)
    assert frame["row_id"].tolist() == [f"row{n:04d}" for n in range(6)]
    assert frame["status"].tolist() == ["ok", "ok", "failed", "pending", "ok", "pending"]
    assert (summary.ok, summary.failed, summary.pending, summary.rows) == (3, 1, 2, 6)
    assert summary.parts == 1


def test_the_names_that_scripts_rely_on_are_there(mixed: RunFolder) -> None:
    collect(mixed.run)
    columns = pq.read_schema(next(mixed.run.catalog_rows.iterdir())).names
    promised = """row_id row_key status alias_of prompt negative_prompt prompt_tokens
        prompt_truncated seed width height num_frames fps num_steps guidance_scale
        media_path media_sha256 media_bytes frames_sha256 attempt shard host device queue_s
        encode_s denoise_s decode_s
        write_s latency_s steps_total steps_computed batch_size_mean peak_mem_gib determinism
        attention_kernel plan_id error_type error cache_strategy cache_ratio cache_warmup
        cache_cooldown score psnr ssim audit_s d2h_s step_p50_s step_p95_s traceback"""
    assert set(promised.split()) <= set(columns)


def test_numbers_of_record_are_never_null_and_large_seeds_stay_exact(mixed: RunFolder) -> None:
    collect(mixed.run)
    frame = pd.read_parquet(mixed.run.catalog_rows)
    nullable = {field.name for field in ROWS if field.nullable}
    measured = {"score", "psnr", "ssim", "peak_mem_gib"}
    left_out = {"guidance_scale_2", "decode_noise_scale", "image", "last_image", "tags"}
    left_out |= {"prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3"}  # "" is a text
    assert nullable == {*left_out, "alias_of", *measured}
    assert not frame[[n for n in ROWS.names if n not in nullable]].isna().any().any()
    assert frame["seed"].dtype == np.int64
    assert frame["seed"].tolist()[:3] == [2**62, 2**62 + 1, 2**62 + 2]
    pending = frame.iloc[3]
    assert (pending["media_path"], pending["media_bytes"], pending["steps_total"]) == ("", 0, 0)
    assert (frame["requested_width"] == frame["width"]).all()
    assert set(frame["cache_strategy"]) == {"none"}


def test_an_alias_shows_its_originals_result_under_its_own_name(mixed: RunFolder) -> None:
    """But no device seconds: they were spent once, so that columns add up to the busy time."""
    collect(mixed.run)
    frame = pd.read_parquet(mixed.run.catalog_rows).set_index("row_id")
    alias, original = frame.loc["row0004"], frame.loc["row0001"]
    assert alias["alias_of"] == "row0001"
    same = ["status", "media_path", "media_sha256", "frames_sha256", "attempt", "steps_total"]
    assert alias[same].tolist() == original[same].tolist()
    assert (alias["denoise_s"], alias["latency_s"]) == (0.0, 0.0)
    assert original["denoise_s"] == 1.0
    assert frame["denoise_s"].sum() == pytest.approx(3.0)


def test_what_the_engine_measured_is_there(mixed: RunFolder) -> None:
    collect(mixed.run)
    row = pd.read_parquet(mixed.run.catalog_rows).iloc[0]
    stages = ["queue_s", "encode_s", "denoise_s", "decode_s", "d2h_s", "write_s"]
    assert row[stages].tolist() == [0.5, 0.1, 1.0, 0.2, 0.01, 0.02]
    assert row["latency_s"] == pytest.approx(1.5)
    assert (row["attempt"], row["host"], row["device"]) == ("s1t0r0p0", "n1", "cpu")
    assert (row["plan_id"], row["bucket"]) == ("plan-demo-1", "16x8x1")
    assert (mixed.run.root / row["media_path"]).stat().st_size == row["media_bytes"]


def test_scores_of_older_journals_stay(mixed: RunFolder) -> None:
    """They were a field of the commit."""
    for path in mixed.run.journals.rglob("*.jsonl"):
        path.write_bytes(b"".join(map(_as_before_metrics, path.read_bytes().splitlines())))
    collect(mixed.run)
    frame = pd.read_parquet(mixed.run.catalog_rows)
    assert frame["score"].fillna(-1).tolist() == [-1, 0.25, 0.25, -1, 0.25, -1]
    assert frame["seed"].tolist()[:3] == [2**62, 2**62 + 1, 2**62 + 2]


def _as_before_metrics(line: bytes) -> bytes:
    """A commit line with a score and what is newer taken out, no shorter than it was."""
    plain = json.loads(line)
    if plain["kind"] != "commit":
        return line + b"\n"
    for name in ("metrics", "judge_notes", "seed", "crc"):
        plain.pop(name, None)
    plain |= {"score": 0.25 if plain["row_index"] else None, "older": ""}
    short = json.dumps(plain, separators=(",", ":")).encode()[:-1] + b',"crc":"12345678"}'
    plain["older"] = "x" * (len(line) - len(short))
    body = json.dumps(plain, separators=(",", ":")).encode()[:-1]
    return b'%s,"crc":"%08x"}\n' % (body, zlib.crc32(body))


def test_what_a_row_does_not_say_is_null(mixed: RunFolder) -> None:
    """Not an empty text: a tag may be one."""
    collect(mixed.run)
    frame = pd.read_parquet(mixed.run.catalog_rows)
    assert frame["tags"].isna().all()
    assert frame["alias_of"].notna().tolist() == [False] * 4 + [True, True]
    assert frame["fps"].dtype == np.float64


def test_a_failed_row_says_why(mixed: RunFolder) -> None:
    collect(mixed.run)
    row = pd.read_parquet(mixed.run.catalog_rows).iloc[2]
    assert (row["error_type"], row["error"]) == ("NonFiniteOutput", "boom")
    assert row["traceback"] == "Traceback ..."
    assert row["media_path"] == ""


def test_carried_columns_keep_their_name_unless_it_is_taken(mixed: RunFolder) -> None:
    collect(mixed.run)
    frame = pd.read_parquet(mixed.run.catalog_rows)
    assert frame["style"].tolist() == list("abcdef")
    assert frame["carry.width"].tolist()[0] == 1.5
    assert frame["carry.width"].isna().tolist()[1]
    assert frame["width"].tolist() == [16] * 6


def test_carried_columns_of_any_type_come_through(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    extra = {
        "carry.words": [["a", "b"], None],
        "carry.kind": pa.array(["x", "y"]).dictionary_encode(),
        "carry.when": pa.array([1, None], pa.timestamp("us", "UTC")),
        "carry.run": ["third", "fourth"],
    }
    run_folder = make_run_folder(2, extra=extra)
    collect(run_folder.run)
    frame = catalog.open_runs(run_folder.run.root)
    assert frame["words"].tolist()[0].tolist() == ["a", "b"]
    assert frame["kind"].tolist() == ["x", "y"]
    assert frame["when"].isna().tolist() == [False, True]
    assert frame["run"].tolist() == ["demo-1", "demo-1"]
    assert frame["carry.run"].tolist() == ["third", "fourth"]


def test_parts_of_an_older_cut_are_removed(
    make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder = make_run_folder(4)
    monkeypatch.setattr(parts_module, "GROUP_ROWS", 2)
    monkeypatch.setattr(parts_module, "PART_ROWS", 2)
    collect(run_folder.run)
    monkeypatch.setattr(parts_module, "PART_ROWS", 4)
    collect(run_folder.run)
    assert len(pd.read_parquet(run_folder.run.catalog_rows)) == 4


def test_it_reads_without_this_package_and_carries_the_configuration(mixed: RunFolder) -> None:
    collect(mixed.run)
    code = """
import json, sys, pandas, pyarrow.parquet as pq
from pathlib import Path
frame = pandas.read_parquet(sys.argv[1])
assert "batchgen" not in sys.modules
meta = pq.read_schema(next(Path(sys.argv[1]).iterdir())).metadata
seed = json.loads(meta[b"batchgen.config"])["seed"]
print(len(frame), seed, meta[b"batchgen.overrides"].decode())
"""
    command = [sys.executable, "-c", code, str(mixed.run.catalog_rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '6 3 ["seed=3"]'


def test_runs_hold_the_ledger_of_each_attempt(mixed: RunFolder) -> None:
    began = time.time() - 5.0
    header = AttemptHeader(attempt=Attempt(mixed.submit([2, 3]), 0, 0, 0), t=began)
    spent = RankSeconds(load=1.0, encode=0.5, denoise=3.5, open=2.9)
    killed = JournalWriter.open(mixed.run, header, GivenSeconds(spent))
    killed.phase("load", 1.0)
    mixed.render(killed, 3)
    killed.start(2, "row0002")
    killed.close()  # no last line
    collect(mixed.run)
    runs = pd.read_parquet(mixed.run.catalog_runs)
    assert runs["peak_mem_gib"].isna().all(), "of no device"
    assert not runs.drop(columns="peak_mem_gib").isna().any().any()
    first, second = runs.iloc[0], runs.iloc[1]
    assert (first["attempt"], first["exit_reason"], first["load_s"]) == ("s1t0r0p0", "done", 2.0)
    assert (first["rows_ok"], first["rows_failed"], first["rows_lost"]) == (2, 1, 0)
    assert (first["useful_s"], first["retried_s"]) == (pytest.approx(2.2), pytest.approx(1.1))
    assert (first["busy_s"], first["idle_s"], first["lost_s"]) == (3.3, 0.25, 0.0)
    assert first["forwards"] == 7
    assert second["exit_reason"] == "killed"
    assert second["wall_s"] == pytest.approx(5.0, abs=0.5)
    assert (second["busy_s"], second["useful_s"]) == (4.0, pytest.approx(1.1))
    assert (second["rows_lost"], second["lost_s"]) == (1, pytest.approx(2.9))
    assert json.loads(first["config"]) == {"name": "demo-1", "seed": 3}
    assert json.loads(first["overrides"]) == ["seed=3"]


def test_failures_after_the_fence_are_waste_and_no_failures(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(2)
    zombie = run_folder.journal(run_folder.submit())
    run_folder.fail(zombie, 0)
    run_folder.submit([1])
    run_folder.fail(zombie, 1)
    summary = collect(run_folder.run)
    assert (summary.failed, summary.pending, summary.wasted) == (1, 1, 1)
    run = pd.read_parquet(run_folder.run.catalog_runs).iloc[0]
    assert (run["rows_failed"], run["rows_wasted"]) == (1, 1)
    assert run["retried_s"] == pytest.approx(2.2)


def test_a_submissions_own_configuration_is_recorded(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    from batchgen.ledger.submissions import SubmissionInfo, SubmissionRows, begin_submission

    run_folder = make_run_folder(1)
    rows = SubmissionRows(np.arange(1), np.zeros(1, np.int32), np.arange(1))
    info = SubmissionInfo(config={"seed": 4}, overrides=("seed=4",))
    run_folder.journal(begin_submission(run_folder.run, rows, info)).close()
    collect(run_folder.run)
    run = pd.read_parquet(run_folder.run.catalog_runs).iloc[0]
    assert json.loads(run["config"]) == {"seed": 4}
    assert json.loads(run["overrides"]) == ["seed=4"]


def test_time_stats_have_a_line_a_timer(mixed: RunFolder) -> None:
    collect(mixed.run)
    lines = [line.split(",") for line in mixed.run.time_stats.read_text().splitlines()]
    assert lines[0] == HEADER
    timers = {line[1]: line[2:] for line in lines[1:]}
    stages = ["encode", "denoise", "decode", "d2h", "write", "judge"]
    assert list(timers) == ["overall", "load", *stages]
    assert timers["denoise"] == ["1000.000", "1000.000", "1000.000", "2"]
    assert timers["load"] == ["2000.000", "2000.000", "2000.000", "1"]
    assert timers["overall"][3] == "2"


@pytest.mark.parametrize("wanted", [True, False])
def test_time_stats_are_written_where_the_job_wants_them(mixed: RunFolder, wanted: bool) -> None:
    fields = json.loads(mixed.run.run_json.read_text())
    fields["config"]["output"] = {"enable_timer_dump": wanted}
    mixed.run.run_json.write_text(json.dumps(fields))
    assert collect(mixed.run).ok == 3
    assert mixed.run.time_stats.exists() == wanted


def test_many_parts_hold_the_rows_of_one(
    make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces and parts that do not divide the rows, nor the plan's row groups."""
    run_folder = make_run_folder(2500)
    with run_folder.journal(run_folder.submit()) as journal:
        for row in (0, 999, 1000, 2499):
            run_folder.render(journal, row)
    assert collect(run_folder.run).parts == 1
    whole = pd.read_parquet(run_folder.run.catalog_rows)
    monkeypatch.setattr(parts_module, "GROUP_ROWS", 300)
    monkeypatch.setattr(parts_module, "PART_ROWS", 600)
    for file in run_folder.run.catalog_rows.iterdir():
        file.unlink()
    assert collect(run_folder.run).parts == 5
    pd.testing.assert_frame_equal(pd.read_parquet(run_folder.run.catalog_rows), whole)
    pd.testing.assert_frame_equal(catalog.snapshot(run_folder.run.root), whole)
    assert whole["status"].value_counts().to_dict() == {"pending": 2496, "ok": 4}


def test_readers_never_meet_a_torn_catalog(
    make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """pandas reads while another thread collects: every row once, at every read."""
    monkeypatch.setattr(parts_module, "GROUP_ROWS", 20)
    monkeypatch.setattr(parts_module, "PART_ROWS", 20)
    run_folder = make_run_folder(100)
    run_folder.submit()
    collect(run_folder.run)
    ids = [f"row{n:04d}" for n in range(100)]
    stop = threading.Event()
    rounds = 0

    def collector() -> None:
        nonlocal rounds
        while not stop.is_set():
            shutil.rmtree(run_folder.run.kept_rows("part").parent, ignore_errors=True)
            collect(run_folder.run)  # which writes all parts
            rounds += 1

    thread = threading.Thread(target=collector)
    thread.start()
    try:
        while rounds < 10 and thread.is_alive():
            assert pd.read_parquet(run_folder.run.catalog_rows)["row_id"].tolist() == ids
            assert catalog.open_runs(run_folder.run.root)["row_id"].tolist() == ids
    finally:
        stop.set()
        thread.join()
    assert rounds >= 10
    hidden = [
        p.name for p in run_folder.run.catalog_rows.parent.iterdir() if p.name.startswith(".")
    ]
    assert hidden == [".turns"]


def test_open_runs_does_not_mix_two_collects(
    make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collect that was cut off between two parts is told, and the next one mends it."""
    monkeypatch.setattr(parts_module, "GROUP_ROWS", 2)
    monkeypatch.setattr(parts_module, "PART_ROWS", 2)
    run_folder = make_run_folder(4)
    number = run_folder.submit()
    collect(run_folder.run)
    part = run_folder.run.catalog_rows / "part-00001.parquet"
    older = part.read_bytes()
    with run_folder.journal(number) as journal:
        run_folder.render(journal, 3)
    collect(run_folder.run)
    part.write_bytes(older)
    with pytest.raises(RunStateError, match="different collects"):
        catalog.open_runs(run_folder.run.root)
    collect(run_folder.run)
    assert len(catalog.open_runs(run_folder.run.root)) == 4


def test_what_collects_that_died_left_behind_is_swept_after_an_hour(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(1)
    folder = run_folder.run.catalog_rows.parent
    for name, age_s in ((".rows-1-dead", 3700), (".rows-2-busy", 3500)):
        (folder / name).mkdir(parents=True)
        (folder / name / "part-00000.parquet").touch()
        os.utime(folder / name, (time.time() - age_s,) * 2)
    collect(run_folder.run)
    names = sorted(path.name for path in folder.iterdir())
    assert names == [".rows-2-busy", ".turns", "rows", "runs.parquet", "scans"]


def test_many_runs_open_as_one_frame(
    make_run_folder: Callable[..., RunFolder], tmp_path: Path
) -> None:
    labs = [make_run_folder(2, root=tmp_path / name) for name in ("first", "second")]
    for run_folder in labs:
        run_folder.submit()
        collect(run_folder.run)
    frame = catalog.open_runs(*(run_folder.run.root for run_folder in labs))
    assert frame["run"].tolist() == ["first", "first", "second", "second"]
    assert frame["seed"].dtype == np.int64


def test_runs_with_other_carried_columns_open_together(
    make_run_folder: Callable[..., RunFolder], tmp_path: Path
) -> None:
    one = make_run_folder(1, root=tmp_path / "one", extra={"carry.style": ["noir"]})
    two = make_run_folder(1, root=tmp_path / "two")
    for run_folder in (one, two):
        collect(run_folder.run)
    frame = catalog.open_runs(one.run.root, two.run.root)
    assert frame["style"].tolist()[0] == "noir"
    assert frame["style"].isna().tolist() == [False, True]


def test_a_run_that_was_not_collected_opens_as_it_stands(
    make_run_folder: Callable[..., RunFolder], tmp_path: Path
) -> None:
    """Beside one that was; both have the same columns."""
    done, going = (make_run_folder(2, root=tmp_path / name) for name in ("done", "going"))
    collect(done.run)
    going.render(going.journal(going.submit()), 0)
    frame = catalog.open_runs(done.run.root, going.run.root)
    assert frame["run"].tolist() == ["done", "done", "going", "going"]
    assert frame["status"].tolist() == ["pending", "pending", "ok", "pending"]
    assert not going.run.catalog_rows.exists()
    pd.testing.assert_series_equal(
        catalog.open_runs(done.run.root).dtypes, catalog.open_runs(going.run.root).dtypes
    )


def test_a_run_that_went_on_after_its_collect_opens_as_it_stands(
    make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whatever it went on; and once that is collected the catalog is read again."""
    snapshots = []
    real = frames_module.snapshot_table
    monkeypatch.setattr(
        frames_module, "snapshot_table", lambda run: snapshots.append(run) or real(run)
    )
    run_folder = make_run_folder(4)

    def statuses(as_it_stands: bool) -> str:
        snapshots.clear()
        found = catalog.open_runs(run_folder.run.root)["status"]
        assert bool(snapshots) == as_it_stands
        return "".join(status[0] for status in found)

    first = run_folder.journal(run_folder.submit())
    run_folder.render(first, 0)
    collect(run_folder.run)
    assert statuses(False) == "oppp"
    run_folder.render(first, 1)
    run_folder.fail(first, 2)
    assert statuses(True) == "oofp"
    collect(run_folder.run)
    assert statuses(False) == "oofp"
    second = run_folder.journal(1, task=1)
    assert statuses(True) == "oofp"
    run_folder.render(second, 3)
    assert statuses(True) == "oofo"
    collect(run_folder.run)
    fence_restart(run_folder.run, Attempt(1, 1, 1, 0))
    assert statuses(True) == "oofo"
    collect(run_folder.run)
    run_folder.submit([2])
    run_folder.render(first, 2)  # a zombie's
    assert statuses(True) == "oofo"
    collect(run_folder.run)
    shutil.rmtree(run_folder.run.journals)
    shutil.rmtree(run_folder.run.submissions)
    assert statuses(False) == "oofo", "all that was kept of the run is its catalog"


def test_what_is_written_while_a_collect_reads_is_not_taken_for_collected(
    make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder = make_run_folder(2)
    journal = run_folder.journal(run_folder.submit())
    run_folder.render(journal, 0)
    real = catalog_module.bands_of

    def late(run: RunPaths) -> Bands:
        found = real(run)
        run_folder.render(journal, 1)
        return found

    monkeypatch.setattr(catalog_module, "bands_of", late)
    assert collect(run_folder.run).ok == 1
    monkeypatch.undo()
    assert catalog.open_runs(run_folder.run.root)["status"].tolist() == ["ok", "ok"]


def test_what_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunStateError, match="is not a run folder"):
        catalog.open_runs(tmp_path)
    with pytest.raises(RunStateError, match="at least one"):
        catalog.open_runs()


def test_a_snapshot_shows_a_run_in_progress(make_run_folder: Callable[..., RunFolder]) -> None:
    """Also while the last line is only half written."""
    run_folder = make_run_folder(3)
    journal = run_folder.journal(run_folder.submit())
    run_folder.render(journal, 0)
    with journal.path.open("ab") as file:
        file.write(b'{"kind":"commit","row_index":1,"status":"ok","row_key":"')
    assert catalog.snapshot(run_folder.run.root)["status"].tolist() == ["ok", "pending", "pending"]


def test_summaries(mixed: RunFolder) -> None:
    collect(mixed.run)
    frame = catalog.open_runs(mixed.run.root)
    buckets = catalog.throughput_by_bucket(frame)
    assert buckets[["width", "height", "num_frames", "rows"]].values.tolist() == [[16, 8, 1, 2]]
    assert buckets["device_s"].tolist() == pytest.approx([2.6])
    assert buckets["rows_per_device_hour"].tolist() == pytest.approx([2 / 2.6 * 3600])
    bad = catalog.failures(frame)
    assert bad[["run", "row_id", "error", "same_error"]].values.tolist() == [
        ["demo-1", "row0002", "boom", 1]
    ]
    shares = catalog.stage_shares(frame)
    assert shares.sum() == pytest.approx(1.0)
    assert shares["denoise_s"] == pytest.approx(1.0 / 1.33)


def test_device_seconds_of_a_replica_are_those_of_all_its_ranks(mixed: RunFolder) -> None:
    collect(mixed.run)
    frame = catalog.open_runs(mixed.run.root)
    frame["layout"] = "dp2 cfg2 ulysses4 resident bf16"
    buckets = catalog.throughput_by_bucket(frame)
    assert buckets["device_s"].tolist() == pytest.approx([8 * 2.6])
    assert buckets["rows_per_device_hour"].tolist() == pytest.approx([2 / (8 * 2.6) * 3600])


def test_summaries_of_a_run_without_results(make_run_folder: Callable[..., RunFolder]) -> None:
    run_folder = make_run_folder(2)
    collect(run_folder.run)
    frame = catalog.open_runs(run_folder.run.root)
    assert len(catalog.throughput_by_bucket(frame)) == 0
    assert len(catalog.failures(frame)) == 0
    assert catalog.stage_shares(frame).sum() == 0.0


def test_an_empty_plan_makes_an_empty_catalog(make_run_folder: Callable[..., RunFolder]) -> None:
    run_folder = make_run_folder(1)
    table = pq.read_table(run_folder.run.plan)
    run_folder.install_plan(table.slice(0, 0))
    collect(run_folder.run)
    assert len(pd.read_parquet(run_folder.run.catalog_rows)) == 0


def test_text_of_any_script_and_length_comes_through(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(2)
    texts = ["🎈 שלום 漢字 \0 \n", "x" * 5_000_000]
    table = pq.read_table(run_folder.run.plan)
    place = table.column_names.index("prompt")
    prompts = pa.array(texts, pa.large_string())
    run_folder.install_plan(table.set_column(place, "prompt", prompts))
    journal = run_folder.journal(run_folder.submit())
    run_folder.fail(journal, 0, "🎈" * 100 + "\0\ud800")
    run_folder.fail(journal, 1, "y" * 9_000_000)  # longer than a block of the JSON reader
    collect(run_folder.run)
    frame = pd.read_parquet(run_folder.run.catalog_rows)
    assert frame["prompt"].tolist() == texts
    assert frame["error"].tolist() == ["🎈" * 100 + "\0\\ud800", "y" * 9_000_000]


def test_a_catalog_that_cannot_be_written_leaves_the_old_one(
    mixed: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from batchgen.errors import StorageError

    collect(mixed.run)
    before = {p.name: p.read_bytes() for p in mixed.run.catalog_rows.iterdir()}

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(catalog_module, "sync", full)
    with pytest.raises(StorageError, match=r"the catalog cannot be written.*No space left"):
        collect(mixed.run)
    assert {p.name: p.read_bytes() for p in mixed.run.catalog_rows.iterdir()} == before
    names = sorted(path.name for path in mixed.run.catalog_rows.parent.iterdir())
    assert names == [".turns", "rows", "runs.parquet", "scans"]
