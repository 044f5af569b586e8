"""From a manifest to a catalog, as a user types it."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_calls import AT_ONCE, NULL, SLOW_ROWS, published, rows_of
from quick_cases import first_quick
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

import batchgen.tiny
from batchgen.ledger.status import read_status
from batchgen.paths import RunPaths
from batchgen.runner.jobs import is_alive


def test_every_row_of_an_inline_run_is_in_the_catalog(new_job_folder) -> None:
    work = new_job_folder(3)
    done = work.call_anew("run", str(work.job), "--json")
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


@pytest.mark.slow
def test_two_ranks_draw_what_one_draws(new_job_folder, tmp_path) -> None:
    rows = new_job_folder(7)
    alone = rows.run_here()
    shared = rows.run("slurm.executor=local", "slurm.ranks_per_node=2")
    assert (alone.code, shared.code) == (0, 0), shared.err
    assert published(shared.run) == published(alone.run)
    assert pd.read_parquet(shared.run.catalog_runs).shape[0] == 2


@pytest.mark.slow
def test_submit_returns_before_the_rows_are_drawn(new_job_folder) -> None:
    """Also to a caller that reads its output to the end, as `$(batchgen submit ...)` does."""
    work = new_job_folder(2)
    started = work.call("submit", str(work.job), "slurm.executor=local", "--json")
    assert started.code == 0, started.err
    assert read_status(started.run).ok == 0
    watched = work.here("status", str(started.run.root), "--watch")
    assert watched.code == 0, watched.out
    assert not is_alive(started.run)  # so that a resume is not refused
    assert "2: 0 ok" in watched.out and "2: 2 ok" in watched.out  # it was watched from the start
    name = started.run.root.name
    assert watched.out.strip().endswith(f"no catalog yet: batchgen collect {name}")
    assert work.here("collect", str(started.run.root)).code == 0
    shown = work.here("status", str(started.run.root))
    assert shown.out.strip().endswith(f"catalog   {started.run.catalog_rows}")


def test_more_ranks_than_rows(new_job_folder) -> None:
    done = new_job_folder(1).run(NULL, "slurm.executor=local", "slurm.ranks_per_node=3")
    assert done.code == 0, done.err
    assert len(published(done.run)) == 1


@pytest.fixture
def poisoned_weights(tmp_path: Path) -> Path:
    """The embedded model, but the word `violet` is NaN to it."""
    folder = tmp_path / "poisoned"
    shutil.copytree(Path(batchgen.tiny.__file__).parent / "weights", folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    tensors["shared.weight"][tokenizer.convert_tokens_to_ids("violet")] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def test_rows_that_fail_do_not_stop_the_others(new_job_folder, poisoned_weights: Path) -> None:
    """NaN latents and an over-long prompt are recorded with class, message and traceback."""
    work = new_job_folder([
        {"row_id": "good-1", "prompt": "a red circle"},
        {"row_id": "nan", "prompt": "a violet circle"},
        {"row_id": "long", "prompt": "red " * 200},
        {"row_id": "good-2", "prompt": "a blue ring"},
    ])  # fmt: skip
    done = work.run_here("model.prompt_overflow=error", f"model.weights={poisoned_weights}")
    assert done.code == 1, done.err
    frame = rows_of(done.run).set_index("row_id")
    assert dict(frame.status) == {
        "good-1": "ok", "good-2": "ok", "nan": "failed", "long": "failed",
    }  # fmt: skip
    assert frame.error_type["nan"] == "NonFiniteOutput"
    assert frame.error_type["long"] == "PromptTooLong"
    assert "Traceback" in frame.traceback["nan"]
    assert "2 failed" in done.out and "NonFiniteOutput" in done.out
    logs = work.here("logs", str(done.run.root), "--failed", "--json")
    assert sorted(logs.json["failed"]) == ["long", "nan"]
    assert "==> nan  NonFiniteOutput" in logs.out and "Traceback" in logs.out


@pytest.mark.parametrize("action", first_quick(["enospc", "raise"], 1))
def test_media_that_cannot_be_written_is_tried_again_and_then_fails_its_row(
    new_job_folder, action, fail_at
) -> None:
    work = new_job_folder(3)
    fail_at(f"media.before_write:2:{action}")
    once = work.run_here()
    assert once.code == 0, once.err
    assert sorted(rows_of(once.run).tries) == [1, 1, 2]
    fail_at(f"media.after_write:2:{action}")
    never = work.run_here("slurm.row_retries=0")
    assert never.code == 1, never.err
    frame = rows_of(never.run)
    assert sorted(frame.status) == ["failed", "ok", "ok"]
    assert set(frame.error_type) == {"", "MediaError" if action == "enospc" else "RuntimeError"}


def test_any_unicode_renders_and_truncation_is_recorded(new_job_folder) -> None:
    prompts = {
        "emoji": "🔴🟦 a red circle 👩‍👩‍👧‍👦",
        "rtl": "دائرة حمراء תמונה",
        "cjk": "红色的圆圈 赤い丸",
        "long": "a red circle " * 7700,
    }
    rows = [{"row_id": k, "prompt": v} for k, v in prompts.items()]
    rows[0]["negative_prompt"] = "a blurred ring " * 100
    done = new_job_folder(rows).run_here("row_defaults.guidance_scale=3")
    assert done.code == 0, done.err
    frame = rows_of(done.run).set_index("row_id")
    assert dict(frame.prompt) == prompts
    assert frame.prompt_truncated["long"] and not frame.prompt_truncated["cjk"]
    assert frame.prompt_tokens["long"] > 1000
    assert frame.negative_prompt_truncated.to_dict() == {k: k == "emoji" for k in prompts}
    assert frame.negative_prompt_tokens["emoji"] > 100


def test_a_directory_of_parts_and_equal_rows_rendered_once(new_job_folder, tmp_path) -> None:
    """Rows with equal keys are planned once; the alias shares the media file in the catalog."""
    parts = tmp_path / "parts"
    parts.mkdir()
    pq.write_table(pa.table({"prompt": ["a red circle"], "seed": [7]}), parts / "a.parquet")
    pq.write_table(
        pa.table({"prompt": ["a red circle", "a blue ring"], "seed": [7, 8]}), parts / "b.parquet"
    )
    work = new_job_folder(1)
    done = work.run_here(f"manifest={parts}")
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
        ("output.qualty=3", "quality"),
    ],
)
def test_a_bad_setting_ends_with_2_before_anything_is_made(new_job_folder, override, named) -> None:
    work = new_job_folder(2)
    done = work.here("run", str(work.job), override)
    assert done.code == 2, done.err
    assert named in done.err and "Traceback" not in done.err
    assert not work.root.exists() or not list(work.root.iterdir())


def test_a_machine_without_slurm_is_told_before_anything_is_made(new_job_folder) -> None:
    work = new_job_folder(2)
    done = work.call("submit", str(work.job), "slurm.executor=slurm", env={"PATH": "/nowhere"})
    assert done.code == 2, done.err
    assert "sbatch" in done.err and "slurm=local" in done.err
    assert not work.root.exists() or not list(work.root.iterdir())


def wait_for_media(work, process) -> RunPaths:
    while not list(work.root.glob("*/media/*.mp4")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return RunPaths(next(work.root.glob("job-*")))


@pytest.mark.parametrize("executor", ["local", "inline"])
def test_interrupting_a_run_leaves_a_state_that_resumes(new_job_folder, executor: str) -> None:
    """Ctrl-C (SIGINT) exits with 130, soon; resume renders the rest."""
    work = new_job_folder(12)
    process = work.start(
        "run", str(work.job), NULL, f"slurm.executor={executor}", *SLOW_ROWS, "--json"
    )
    run = wait_for_media(work, process)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert time.monotonic() - began < 25, "somebody was waited for"
    assert json.loads(out.splitlines()[-1])["run"] == str(run.root)
    assert f"batchgen resume {run.root.name}" in err
    status = work.here("status", str(run.root), "--json")
    assert status.code == 1 and status.json["running"] == 0
    assert {a["life"] for a in status.json["attempts"]} == {"ended"}
    done = work.call("resume", str(run.root), "--json", env=AT_ONCE)
    assert done.code == 0, done.err
    assert len(published(run)) == 12


def test_cancelling_a_foreground_run_ends_it_for_good(new_job_folder) -> None:
    work = new_job_folder(12)
    process = work.start("run", str(work.job), NULL, "slurm.executor=local", *SLOW_ROWS, "--json")
    run = wait_for_media(work, process)
    cancelled = work.here("cancel", str(run.root))
    assert cancelled.code == 0, cancelled.out
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    last = json.loads(out.splitlines()[-1])
    assert 0 < last["ok"] < 12 and last["left"] == 12 - last["ok"]
    assert read_status(run).submission == 1


def test_cancel_reaches_ranks_that_are_still_starting(new_job_folder) -> None:
    work = new_job_folder(12)
    started = work.call("submit", str(work.job), "slurm.executor=local", *SLOW_ROWS, "--json")
    cancelled = work.here("cancel", str(started.run.root))
    assert cancelled.code == 0, cancelled.out
    status = read_status(started.run)
    assert not is_alive(started.run)
    assert status.ok == 0 and status.left == 12
    again = work.here("cancel", str(started.run.root))
    assert again.code == 0 and "nothing is at work" in again.out


def test_ranks_that_all_meet_the_same_error_are_not_tried_again(new_job_folder) -> None:
    """The error is told, and three attempts are not spent on it."""
    work = new_job_folder(2)
    env = {"BATCHGEN_FAILPOINT": "journal.before_append:1:enospc"}
    done = work.run(NULL, "slurm.executor=local", env=env)
    assert done.code == 1, done.err
    assert read_status(done.run).submission == 1
    assert "No space left" in done.out
