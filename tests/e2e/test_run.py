"""From a manifest to a catalog, as a user types it."""

from __future__ import annotations

import signal
import time

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness import published, rows_of

from batchgen.ledger.status import read_status
from batchgen.paths import RunPaths
from batchgen.runner.submit import is_alive

HUGE = 32 * 1024  # over the model's longest rotary position: the forward itself raises


def test_every_row_of_an_inline_run_is_in_the_catalog(bench) -> None:
    done = bench(3).run()
    assert done.code == 0, done.err
    frame = rows_of(done.run)
    assert list(frame.status) == ["ok"] * 3
    assert (frame.media_bytes > 0).all() and (frame.num_frames == 5).all()
    assert all((done.run.root / path).is_file() for path in frame.media_path)
    stages = frame[["encode_s", "denoise_s", "decode_s", "write_s"]]
    assert (stages >= 0).all().all() and (frame.denoise_s > 0).all()
    assert set(frame.determinism) == {"strict"}
    plain = pd.read_parquet(done.run.catalog_rows)  # without batchgen
    assert sorted(plain.row_id) == list(frame.row_id)
    assert pd.read_parquet(done.run.catalog_runs).exit_reason.tolist() == ["done"]
    assert done.run.time_stats.read_text().startswith("Timestamp,")


def test_two_ranks_draw_what_one_draws(bench, tmp_path) -> None:
    rows = bench(7)
    alone = rows.run()
    shared = rows.run("slurm.executor=local", "slurm.ranks_per_node=2")
    assert (alone.code, shared.code) == (0, 0), shared.err
    assert published(shared.run) == published(alone.run)
    assert pd.read_parquet(shared.run.catalog_runs).shape[0] == 2


def test_submit_returns_before_the_rows_are_drawn(bench) -> None:
    """Also to a caller that reads its output to the end, as `$(batchgen submit ...)` does."""
    work = bench(2)
    started = work.call("submit", str(work.job), "slurm.executor=local", "--json")
    assert started.code == 0, started.err
    assert read_status(started.run).ok == 0
    watched = work.call("status", str(started.run.root), "--watch")
    while is_alive(started.run, 1):
        time.sleep(0.05)
    assert watched.code in (0, 1)
    assert read_status(started.run).ok == 2


def test_more_ranks_than_rows(bench) -> None:
    done = bench(1).run("slurm.executor=local", "slurm.ranks_per_node=3")
    assert done.code == 0, done.err
    assert len(published(done.run)) == 1


def test_rows_that_fail_do_not_stop_the_others(bench) -> None:
    """NaN latents, a forward that raises and an over-long prompt are recorded with their class."""
    rows = [
        {"row_id": "good-1", "prompt": "a red circle"},
        {"row_id": "nan", "prompt": "a red circle", "guidance_scale": 1e39},
        {"row_id": "long", "prompt": "red " * 200},
        {"row_id": "good-2", "prompt": "a blue ring"},
    ]
    done = bench(rows).run("model.prompt_overflow=error")
    assert done.code == 1
    frame = rows_of(done.run).set_index("row_id")
    assert dict(frame.status) == {
        "good-1": "ok", "good-2": "ok", "nan": "failed", "long": "failed",
    }  # fmt: skip
    assert frame.error_type["nan"] == "NonFiniteOutput"
    assert frame.error_type["long"] == "PromptTooLong"
    assert "Traceback" in frame.traceback["nan"]
    assert "2 failed" in done.out and "NonFiniteOutput" in done.out


def test_any_unicode_renders_and_truncation_is_recorded(bench) -> None:
    prompts = {
        "emoji": "🔴🟦 a red circle 👩‍👩‍👧‍👦",
        "rtl": "دائرة حمراء תמונה",
        "cjk": "红色的圆圈 赤い丸",
        "long": "a red circle " * 7700,
    }
    done = bench([{"row_id": k, "prompt": v} for k, v in prompts.items()]).run()
    assert done.code == 0, done.err
    frame = rows_of(done.run).set_index("row_id")
    assert dict(frame.prompt) == prompts
    assert frame.prompt_truncated["long"] and not frame.prompt_truncated["cjk"]
    assert frame.prompt_tokens["long"] > 1000


def test_a_directory_of_parts_and_equal_rows_rendered_once(bench, tmp_path) -> None:
    """Rows with equal keys are planned once; the alias shares the media file in the catalog."""
    parts = tmp_path / "parts"
    parts.mkdir()
    pq.write_table(pa.table({"prompt": ["a red circle"], "seed": [7]}), parts / "a.parquet")
    pq.write_table(
        pa.table({"prompt": ["a red circle", "a blue ring"], "seed": [7, 8]}), parts / "b.parquet"
    )
    work = bench(1)
    done = work.run(f"manifest={parts}")
    assert done.code == 0, done.err
    frame = rows_of(done.run)
    assert len(frame) == 3 and (frame.status == "ok").all()
    assert frame.media_path.nunique() == 2
    assert frame.alias_of.fillna("").astype(bool).sum() == 1


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("row_defaults.num_steps=0", "num_steps"),
        ("system.determinism=exact", "throughput"),
        ("model.weights=/no/such/folder", "/no/such/folder"),
        ("manifest=/no/such.parquet", "/no/such.parquet"),
        ("slurm.executor=slurm", "local"),
        ("output.qualty=3", "quality"),
    ],
)
def test_a_bad_setting_ends_with_2_before_anything_is_made(bench, override, named) -> None:
    work = bench(2)
    done = work.call("run", str(work.job), override)
    assert done.code == 2, done.err
    assert named in done.err and "Traceback" not in done.err
    assert not work.root.exists() or not list(work.root.iterdir())


def test_interrupting_a_run_leaves_a_state_that_resumes(bench) -> None:
    """Ctrl-C (SIGINT) exits with 130; resume renders the rest."""
    work = bench(12)
    process = work.start("run", str(work.job), "slurm.executor=local", "row_defaults.num_steps=8")
    while not list(work.root.glob("*/media/*.mp4")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    run = RunPaths(next(work.root.glob("job-*")))
    status = work.call("status", str(run.root), "--json")
    assert status.code == 1 and status.json["running"] == 0
    done = work.call("resume", str(run.root), "--json")
    assert done.code == 0, done.err
    assert len(published(run)) == 12
