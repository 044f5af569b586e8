"""A run that draws from images, from pictures to a verified catalog."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from cli_calls import JobFolder, make_job_folder, rows_of
from toy_wan_images import picture, save, ti2v_spec

from batchgen.config.build import build
from batchgen.config.schema import JobConfig
from batchgen.paths import RunPaths
from batchgen.planning.calibrate import calibrate
from batchgen.planning.pricing.cost import cost_of
from batchgen.planning.pricing.work import planned_work, read_work
from batchgen.planning.store import read_costs, read_plan
from batchgen.request import Bucket
from batchgen.runfile import read_run


@pytest.fixture(scope="module")
def folder(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    home = tmp_path_factory.mktemp("images")
    pictures = home / "pictures"
    pictures.mkdir()
    for name in ("a", "b"):
        picture(0).save(pictures / f"{name}.png")  # of equal bytes
    rows = [{"row_id": n, "prompt": n, "image": f"pictures/{n}.png", "seed": 1} for n in "ab"]
    save(ti2v_spec(), home / "weights")
    return make_job_folder(home, [*rows, {"row_id": "c", "prompt": "c", "image": None, "seed": 2}])


AS_SAVED = (
    "model=auto",
    "model.weights=weights",
    "row_defaults={width: 128, height: 64, num_frames: 5, num_steps: 2}",
    "output.format=npy",
)


def test_a_preview_finds_the_images(folder: JobFolder) -> None:
    seen = folder.run_here(*AS_SAVED, "--preview", "2")
    assert seen.code == 0, seen.err
    assert list(rows_of(seen.run).row_id) == ["a", "b"]
    shutil.rmtree(seen.run.root)


def test_images_are_in_the_forecast(folder: JobFolder) -> None:
    """Of the rows that are given one; also of those that are left, and what is learnt from them."""
    done = folder.run_here(*AS_SAVED)
    assert done.code == 0, done.err
    job = build(JobConfig, read_run(done.run).config)
    bucket, costs = Bucket(128, 64, 5), read_costs(done.run.plan).cost_s
    seconds = cost_of(job).bucket(bucket)
    assert seconds.images > 0
    assert costs[0] - costs[2] == costs[1] - costs[2] == pytest.approx(seconds.images)
    plan = read_plan(done.run.plan)
    (sums,) = plan.buckets
    assert sums.encode_s == pytest.approx(3 * seconds.encode + 2 * seconds.images)
    assert sums.cost_s == pytest.approx(costs.sum())
    rest = read_work(done.run.plan, np.array([1, 2]), job.model)
    assert [work.illustrated for work in (*planned_work(plan), *rest)] == [2, 1]
    measured = calibrate(folder.root, job.model, job.slurm.device)
    assert measured is not None
    spent = rows_of(done.run).encode_s.sum()
    assert measured.factors.general.encode == pytest.approx(spent / sums.encode_s)
    shutil.rmtree(done.run.root)


def test_a_run_keeps_its_images_and_verify_looks_after_them(folder: JobFolder) -> None:
    done = folder.run_here(*AS_SAVED)
    assert done.code == 0, done.err
    shutil.rmtree(folder.folder / "pictures")  # nobody needs them any more
    run = RunPaths(done.run.root.rename(folder.folder / "moved"))
    rows = rows_of(run)
    assert list(rows.status) == ["ok"] * 3
    assert rows.image[0] == rows.image[1] and rows.image.isna().to_list() == [False, False, True]
    (kept,) = (path for path in run.inputs.rglob("*") if path.is_file())
    assert kept == run.input(rows.image[0])
    assert folder.here("verify", str(run.root)).code == 0
    kept.write_bytes(b"another")
    found = folder.here("verify", str(run.root))
    assert found.code == 1 and f"inputs/{kept.parent.name}/{kept.name}" in found.out
    assert "(row a); put the file back" in found.out
    assert folder.here("retry", str(run.root), "--rows", "b").code == 0  # it was ok, and stays so
    logs = "".join(path.read_text() for path in run.logs.rglob("*.log"))
    assert f"row b failed: RunStateError: {kept}: is damaged: its sha256 is" in logs
