"""A run of each kind of model from its checkpoint alone: manifest in, media and catalog out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_calls import make_job_folder, rows_of
from PIL import Image
from quick_cases import first_quick
from toy_engine import request
from toy_flux import FluxTwin, flux_spec, save_flux
from toy_images import ImageTwin
from toy_videos import VideoTwin
from toys import TOYS
from video_toys import VIDEO_TOYS

COLUMNS = (
    "row_id",
    "prompt",
    "negative_prompt",
    "seed",
    "width",
    "height",
    "num_frames",
    "num_steps",
)
SIDES = ("width", "height", "num_frames")
TWO_SCALES = [
    {"row_id": f"row-{i}", "prompt": "a red circle", "seed": i, "guidance_scale_2": scale}
    for i, scale in enumerate([2.0, None, 5.0, 2.0])
]
TRUE_CFG = [
    {"row_id": f"row-{i}", "prompt": "a red cat", "seed": i, "true_cfg_scale": scale}
    for i, scale in enumerate([None, 2.0, 1.0])
]


def test_two_experts_with_one_on_the_device(two_expert_folder: Path, tmp_path: Path) -> None:
    job_folder = make_job_folder(tmp_path, TWO_SCALES)
    done = job_folder.run_here(
        "model=auto",
        f"model.weights={two_expert_folder}",
        "model.text_encoder.max_tokens=32",
        "system.memory.mode=model",
        "row_defaults.num_steps=6",
    )
    assert done.code == 0, done.err
    rows = rows_of(done.run)
    assert list(rows.status) == ["ok"] * 4
    assert rows.guidance_scale_2.tolist() == [2.0, 3.0, 5.0, 2.0]  # null: the family's default
    assert rows.frames_sha256.nunique() == 4
    attempts = pd.read_parquet(done.run.root / "catalog" / "runs.parquet")
    assert attempts.expert_swaps.tolist() == attempts.windows.tolist() == [1]
    assert attempts.component_moves.tolist() == [4]


@pytest.mark.slow
def test_streamed_blocks_change_no_pixel(one_thread: None, tmp_path: Path) -> None:
    """Asked for in three ways; the catalog says how it was, and how much was copied."""
    small = ("row_defaults.num_steps=3", "row_defaults.num_frames=5")
    job_folder = make_job_folder(tmp_path, 3)
    there = rows_of(job_folder.run_here(*small).run)
    found = {}
    for asked in (
        ("mode=stream", "prefetch=2"),
        ("low_mem_level=3", "vram_limit=0.012"),
        ("vram_limit=0",),
    ):
        done = job_folder.run_here(*small, *(f"system.memory.{each}" for each in asked))
        assert done.code == 0, done.err
        rows = rows_of(done.run)
        assert rows.frames_sha256.tolist() == there.frames_sha256.tolist()
        assert rows.row_key.tolist() == there.row_key.tolist()
        assert set(rows.layout) == {"dp1 stream fp32"}
        (found[asked[0]],) = pd.read_parquet(
            done.run.root / "catalog" / "runs.parquet"
        ).itertuples()
    some, none = found["low_mem_level=3"], found["vram_limit=0"]
    assert 0 < some.layout_resident_blocks < 6 and none.layout_resident_blocks == 0
    assert 0 < some.streamed_gib < none.streamed_gib
    assert none.peak_weights_gib <= some.peak_weights_gib <= 0.012


def test_images_of_a_flux(one_thread: None, tmp_path: Path) -> None:
    """PNG files hold what the pipeline draws; a column of another family is refused by name."""
    folder = save_flux(tmp_path / "flux", flux_spec())
    job_folder = make_job_folder(tmp_path, TRUE_CFG)
    model = ("model=auto", f"model.weights={folder}", "model.text_encoder_2.max_tokens=32")
    size = ("row_defaults.width=64", "row_defaults.height=64", "row_defaults.num_frames=1")
    done = job_folder.run_here(*model, *size, "row_defaults.num_steps=3")
    assert done.code == 0, done.err
    rows = rows_of(done.run)
    assert list(rows.status) == ["ok"] * 3
    assert rows.true_cfg_scale.tolist() == [1.0, 2.0, 1.0]
    assert rows.steps_total.tolist() == [3, 6, 3]
    twin = FluxTwin(flux_spec(str(folder)))
    for row in rows.itertuples():
        wanted = request(
            0,
            prompt=row.prompt,
            negative_prompt="",
            seed=row.seed,
            width=64,
            height=64,
            num_frames=1,
            num_steps=3,
            guidance_scale=row.guidance_scale,
            true_cfg_scale=row.true_cfg_scale,
        )
        assert row.media_path.endswith(".png")
        drawn = np.asarray(Image.open(done.run.root / row.media_path))
        assert np.array_equal(drawn, twin.frames(wanted)[0]), row.row_id


@pytest.mark.parametrize("name", first_quick(sorted(TOYS), 2))
def test_images_of_each_family(one_thread: None, tmp_path: Path, name: str) -> None:
    """From a checkpoint alone, whose dimensions are found; PNG files hold what the pipeline
    draws."""
    toy = TOYS[name]
    folder = toy.save(tmp_path / "model", toy.spec())
    wanted = toy.row(1)
    columns = {field: getattr(wanted, field) for field in COLUMNS if field not in toy.unread}
    job_folder = make_job_folder(tmp_path, [columns | toy.changes(1)])
    size = ("row_defaults.width=64", "row_defaults.height=64", "row_defaults.num_frames=1")
    model = ("model=auto", f"model.weights={folder}", *toy.overrides)
    done = job_folder.run_here(*model, *size)
    assert done.code == 0, done.err
    (row,) = rows_of(done.run).itertuples()
    drawn = np.asarray(Image.open(done.run.root / row.media_path))
    assert np.array_equal(drawn, ImageTwin(toy, toy.spec(str(folder)))(wanted)[1][0])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if "noisy" in name else pytest.mark.slow)
        for name in sorted(VIDEO_TOYS)
    ],
)
def test_videos_of_each_family(one_thread: None, tmp_path: Path, name: str) -> None:
    """From a checkpoint alone, whose dimensions are found; frames are those of the pipeline, and a
    film is one."""
    toy = VIDEO_TOYS[name]
    folder, wanted = toy.save(tmp_path / "model", toy.spec()), toy.row(2)
    columns = {field: getattr(wanted, field) for field in COLUMNS}
    changes = {k: v for k, v in toy.changes(2).items() if k != "solver"}  # the checkpoint's
    job_folder = make_job_folder(tmp_path, [columns | changes])
    size = [f"row_defaults.{side}={getattr(toy.bucket, side)}" for side in SIDES]
    model = ("model=auto", f"model.weights={folder}", *toy.overrides, *size)
    done = job_folder.run_here(*model, "output.format=npy")
    assert done.code == 0, done.err
    (row,) = rows_of(done.run).itertuples()
    drawn = np.load(done.run.root / row.media_path)
    assert np.array_equal(drawn, VideoTwin(toy, toy.spec(str(folder)))(wanted)[1])
    film = job_folder.run_here(*model)
    assert film.code == 0, film.err
    (row,) = rows_of(film.run).itertuples()
    assert row.media_path.endswith(".mp4") and (film.run.root / row.media_path).stat().st_size


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "row_defaults.guidance_scale_2=3",
            "row_defaults.guidance_scale_2: 3.0 is not served by flux.1-dev yet",
        ),
        (
            "system.sampler.solver=unipc",
            "system.sampler.solver: unipc is not served by flux.1-dev yet; served:",
        ),
        (
            "system.sampler.sigma_shift=3",
            "system.sampler.sigma_shift: 3.0 is not served by flux.1-dev yet",
        ),
        ("row_defaults.num_frames=5", "legal: 1 (the model draws images)"),
        ("row_defaults.width=40", "legal: multiples of 16"),
    ],
)
def test_what_an_image_model_does_not_read_is_refused(
    tmp_path: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from batchgen.cli.main import main

    job_folder = make_job_folder(tmp_path, 1)
    size = ("row_defaults.width=64", "row_defaults.height=64", "row_defaults.num_frames=1")
    model = ("model=flux.1-dev", "slurm.device.memory_gib=128")
    assert main(["plan", str(job_folder.job), *model, *size]) == 0
    assert main(["plan", str(job_folder.job), *model, *size, override]) == 2
    assert message in capsys.readouterr().err
