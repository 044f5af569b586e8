"""Audited rows from a job's keys to the catalog, with the embedded model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from cli_calls import JobFolder, published, rows_of
from planned_run import PlannedRun, plan_run

from batchgen.caches.audit import audited
from batchgen.catalog.collect import collect
from batchgen.records import RankInfo
from batchgen.worker import work

CACHED = ("row_defaults.cache_strategy=uniform", "row_defaults.num_steps=4")
EVERY_ROW = "system.cache.audit_every=1"
SMALL = ("row_defaults.width=32", "row_defaults.height=32", "row_defaults.num_frames=5")


def audited_rows(frame: pd.DataFrame) -> set[str]:
    return set(frame[frame.psnr.notna()].row_id)


def test_audits_change_no_row_and_say_how_far_each_moved(new_job_folder) -> None:
    job: JobFolder = new_job_folder(3)
    half = (*CACHED, "row_defaults.cache_ratio=0.5")
    plain, done = job.run_here(*half), job.run_here(*half, EVERY_ROW)
    assert (plain.code, done.code) == (0, 0), done.err
    assert published(done.run) == published(plain.run)
    frame, bare = rows_of(done.run), rows_of(plain.run)
    assert audited_rows(frame) == set(frame.row_id) and audited_rows(bare) == set()
    assert frame.psnr.between(5, 99).all() and frame.ssim.between(0, 0.9999).all()
    assert (frame.audit_steps == frame.steps_total).all() and (frame.audit_s > 0).all()
    assert (frame.steps_computed == bare.steps_computed).all()
    (part,) = done.json["fidelity"]
    assert (part["strategy"], part["bucket"], part["rows"]) == ("uniform", "32x32x5", 3)
    worst = frame.loc[frame.psnr.idxmin()]
    assert part["psnr"]["worst"] == worst.psnr and part["psnr"]["worst_row"] == worst.row_id
    assert part["psnr"]["mean"] == pytest.approx(frame.psnr.mean())
    assert "audited  uniform 32x32x5, 3 rows: psnr mean" in done.out
    (account,) = pd.read_parquet(done.run.catalog_runs).itertuples()
    assert account.useful_s > frame.encode_s.sum() + frame.denoise_s.sum()  # and the audits
    assert account.lost_s == pytest.approx(0.0, abs=1e-6)


def test_ratio_zero_is_audited_as_equal(new_job_folder) -> None:
    job: JobFolder = new_job_folder(2)
    none = job.run_here(CACHED[1])
    zero = job.run_here(*CACHED, "row_defaults.cache_ratio=0", EVERY_ROW)
    frame = rows_of(zero.run)
    assert frame.psnr.tolist() == [100.0] * 2 and frame.ssim.tolist() == [1.0] * 2
    assert frame.frames_sha256.tolist() == rows_of(none.run).frames_sha256.tolist()


@pytest.mark.slow
def test_the_same_rows_are_audited_in_three_shards_one_of_which_is_killed(tmp_path: Path) -> None:
    """A row whose attempt dies is drawn again with its twin, and recorded once."""
    steps = [3] * 6
    keys = (*CACHED, *SMALL, "system.cache.audit_every=2", "slurm.executor=inline")
    whole = plan_run(tmp_path / "whole", steps, *keys, model="tiny-wan")
    draw(whole, range(6))
    cut = plan_run(tmp_path / "cut", steps, *keys, model="tiny-wan")
    assert cut.begin([0, 1]) == 1
    assert cut.work(1, {"BATCHGEN_FAILPOINT": "journal.before_append:2:kill"}) != 0
    work(cut.run, 1, RankInfo(0, 1, 0, 0, 1, "node1"))  # its second start
    draw(cut, [2, 3])
    draw(cut, [4, 5])
    frames = [collected(run) for run in (whole, cut)]
    expected = {row.row_id for row in frames[0].itertuples() if audited(row.row_key, 2)}
    assert 0 < len(expected) < 6, "choose other rows: their keys decide"
    for frame in frames:
        assert frame.row_id.is_unique and set(frame.status) == {"ok"}
        assert audited_rows(frame) == expected
    columns = ["row_id", "row_key", "frames_sha256", "psnr", "ssim"]
    pd.testing.assert_frame_equal(frames[0][columns], frames[1][columns])


def draw(planned_run: PlannedRun, rows: Sequence[int]) -> None:
    """In a shard of their own, in this process."""
    work(planned_run.run, planned_run.begin(rows), RankInfo(0, 1, 0, 0, 0, "node1"))


def collected(planned_run: PlannedRun) -> pd.DataFrame:
    collect(planned_run.run)
    return rows_of(planned_run.run)
