"""Runs with a pilot: some rows are drawn first, uncached; the others are planned with what was
fitted to them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from cli_calls import Done, JobFolder, make_job_folder, published, rows_of

from batchgen.caches.tables import user_folder
from batchgen.ledger.intent import read_intent, submission_numbers
from batchgen.paths import RunPaths
from batchgen.planning.store import read_plan

STEPS = "row_defaults.num_steps=8"
CALIBRATE = (STEPS, "row_defaults.cache_ratio=0.5", "system.cache.calibrate=true")
COUNT, DRAWN = 10, 5  # rows, and those of the pilot
POINTS = (
    *("pilot.before_tables", "pilot.after_tables"),
    *("replan.before_plan", "replan.after_plan"),
)


@pytest.fixture(autouse=True)
def own_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has fitted nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def job_folder(one_thread: None, tmp_path: Path) -> JobFolder:
    """Rows of different prompts."""
    (folder := tmp_path / "job").mkdir()
    colours = ("red", "blue", "green")
    rows = [
        {"row_id": f"row-{i:03d}", "prompt": f"a {colours[i % 3]} circle {i}", "seed": i}
        for i in range(COUNT)
    ]
    return make_job_folder(folder, rows)


def pilots(run: RunPaths) -> list[bool]:
    """Of each submission, whether it was a pilot."""
    found = (read_intent(run, number) for number in submission_numbers(run))
    return [intent.pilot for intent in found if intent is not None]


def parted(run: RunPaths) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of the pilot, and the others, by row_id; all of them ok."""
    rows = rows_of(run).set_index("row_id")
    assert set(rows.status) == {"ok"} and len(rows) == COUNT
    drawn = rows.cache_refused == "pilot"
    return rows[drawn], rows[~drawn]


def words(done: Done) -> str:
    """What a command printed; lines are broken anywhere."""
    return " ".join(done.out.split())


@pytest.mark.slow
def test_a_pilot_is_drawn_once_and_the_others_follow_its_fit(
    job_folder: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = published(job_folder.run_here(STEPS).run)
    told = words(job_folder.here("plan", str(job_folder.job), *CALIBRATE))
    assert f"{DRAWN} rows are drawn first, without a cache; they fit planned 0.5, 8 steps" in told
    assert f"{DRAWN * 16} forwards of rows, at most {DRAWN * 8} of the fits" in told

    done = job_folder.run_here(*CALIBRATE)
    assert done.code == 0, done.err
    run = done.run
    assert pilots(run) == [True, False]
    drawn, others = parted(run)
    assert len(drawn) == DRAWN
    assert {*drawn.cache_strategy} == {"none"} and {*drawn.steps_computed} == {16.0}
    assert {*others.cache_strategy} == {"planned"} and {*others.steps_computed} == {8.0}
    for row_id, frames in drawn.frames_sha256.items():
        assert frames == bare[str(row_id)][1], "a pilot's rows are those of a run without caches"
    assert {*drawn.steps_restored} == {0}
    assert (drawn.audit_steps > 0).all() and drawn.psnr.isna().all()
    (table,) = {*others.cache_table}
    assert table and read_plan(run.plan).cache_tables == (table,)
    (attempts,) = {*drawn.attempt}
    assert attempts != others.attempt.iloc[0]

    again = job_folder.run_here(*CALIBRATE)
    assert again.code == 0 and pilots(again.run) == [False], "the user's folder has the fit"
    all_rows = rows_of(again.run).set_index("row_id")
    assert {*all_rows.cache_table} == {table}
    same = all_rows.frames_sha256[others.index]
    assert same.equals(others.frames_sha256)

    shutil.rmtree(user_folder())
    monkeypatch.setenv("XDG_CACHE_HOME", str(job_folder.folder / "elsewhere"))
    row = str(others.index[0])
    for each in (run, again.run):  # each has its own copy
        assert job_folder.here("retry", str(each.root), "--rows", row).code == 0
        assert rows_of(each).set_index("row_id").frames_sha256[row] == others.frames_sha256[row]
    more = job_folder.here("resume", str(run.root), "output.quality=5", "--rerender-changed")
    assert more.code == 0, more.err
    rows = rows_of(run).set_index("row_id")
    assert rows.cache_table[others.index].eq(table).all()
    assert rows.frames_sha256.equals(pd.concat([drawn, others]).frames_sha256.sort_index())
    assert pilots(run)[2:] == [False, False], "a run has one pilot"


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.slow
def test_whatever_is_killed_around_a_pilot_goes_on(job_folder: JobFolder, point: str) -> None:
    env = {"BATCHGEN_FAILPOINT": f"{point}:1:kill"}
    killed = job_folder.run(*CALIBRATE, env=env)
    assert killed.code < 0
    (folder,) = job_folder.root.iterdir()
    run = RunPaths(folder)
    if point == "pilot.before_tables":
        assert not list(run.caches.glob("*")) and not list(run.media.glob("*"))
    done = job_folder.here("resume", str(folder), "--json")
    assert done.code == 0, done.err
    drawn, others = parted(run)
    assert len(drawn) == DRAWN and {*others.cache_strategy} == {"planned"}
    (table,) = {*others.cache_table}
    assert table
    again = pilots(run)
    assert again == ([True, True, False] if point == POINTS[0] else again)
    assert again.count(True) == (2 if point == POINTS[0] else 1)


def test_an_interrupted_pilot_is_drawn_anew(
    job_folder: JobFolder, fail_at: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at("pilot.before_tables:1:raise")
    failed = job_folder.run_here(*CALIBRATE)
    assert failed.code != 0
    monkeypatch.delenv("BATCHGEN_FAILPOINT")
    (folder,) = job_folder.root.iterdir()
    run = RunPaths(folder)
    assert rows_of(run).status.ne("ok").all(), "no row before the tables"
    without = ("system.cache.calibrate=false", "row_defaults.cache_ratio=null")
    done = job_folder.here("resume", str(folder), *without)
    assert done.code == 0, done.err
    assert {*rows_of(run).cache_refused} == {""} and {*rows_of(run).cache_strategy} == {"none"}


@pytest.mark.slow
def test_the_largest_ratio_that_is_good_enough_is_chosen(job_folder: JobFolder) -> None:
    rows = [
        {"row_id": f"row-{i:03d}", "prompt": f"a blue circle {i}", "seed": i} for i in range(COUNT)
    ]
    rows[3]["cache_ratio"] = 0.25  # its own
    folder = make_job_folder(job_folder.folder, rows)
    asks = (STEPS, "row_defaults.cache=planned", "system.cache.min_psnr_db=1")
    done = folder.run_here(*asks)
    assert done.code == 0, done.err
    plan = read_plan(done.run.plan)
    (choice,) = plan.choices
    by_ratio = {judged.ratio: judged for judged in choice.judged}
    assert choice.ratio == max(by_ratio) and choice.floor_db == 1
    assert all(j.worst <= j.p5 <= j.mean and j.rows == 2 for j in choice.judged)
    frame = rows_of(done.run).set_index("row_id")
    others = frame[frame.cache_refused == ""]
    chosen = others.drop(index="row-003", errors="ignore")
    assert {*chosen.cache_ratio} == {choice.ratio}
    if "row-003" in others.index:
        assert others.cache_ratio["row-003"] == 0.25
    assert f"{choice.ratio:g} is the largest that keeps a p5 of 1 dB" in words(done)

    told = words(folder.here("plan", str(folder.job), *asks[:2], "system.cache.min_psnr_db=99"))
    assert "no ratio keeps a p5 of 99 dB: no cache" in told and "are drawn first" not in told
    data = json.loads(
        folder.here("plan", str(folder.job), *asks, "--json").out.strip().splitlines()[-1]
    )
    assert data["pilots"] == [] and data["choices"][0]["ratio"] == choice.ratio


def test_what_cannot_be_calibrated_is_said_before_anything_is_made(job_folder: JobFolder) -> None:
    few = make_job_folder(job_folder.folder, [{"prompt": f"circle {i}"} for i in range(3)])
    done = few.run_here(*CALIBRATE)
    assert done.code == 2
    assert "system.cache.calibrate: 3 rows ask for planned 0.5, 8 steps" in done.err
    assert "a fit needs 4 different ones" in done.err
    floor = (STEPS, "row_defaults.cache=uniform", "system.cache.min_psnr_db=30")
    done = few.run_here(*floor)
    assert done.code == 2
    assert "cache_strategy = 'uniform': system.cache.min_psnr_db chooses the ratio of" in done.err
    done = few.run_here(STEPS, "system.cache.min_psnr_db=0")
    assert done.code == 2 and "system.cache.min_psnr_db: 0" in done.err
    assert not few.root.exists()
