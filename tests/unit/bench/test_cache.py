"""The bench of step caches: what it draws is real, what it says follows from its samples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forced_schedule import COMPUTED, STEPS, forced
from PIL import Image
from toy_engine import PACKED, request, small_spec, system

from batchgen.bench.cache import LEAST
from batchgen.bench.cache.figures import Figures, figures
from batchgen.bench.cache.plot import HEIGHT, WIDTH, plot
from batchgen.bench.cache.policies import FEWER, drawn_by, policies
from batchgen.bench.cache.report import markdown
from batchgen.bench.cache.rows import Shape, bench_rows, tuning_rows
from batchgen.bench.cache.samples import Block, Pair, Sample, Samples, Speed
from batchgen.bench.cache.tune import NEAR, threshold_for
from batchgen.caches.strategy import names
from batchgen.caches.tables import Tables
from batchgen.cli.main import main
from batchgen.engine.engine import Engine
from batchgen.errors import ConfigError
from batchgen.tiny.calibration import MODEL, calibration_rows, preset


# --------------------------------------------------------------------------------- the whole, small
@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "cache"
    assert main(["bench", "cache", "--tiny", "--out", str(out)]) == 0
    return out


def figure(out: Path, policy: str, ratio: float) -> dict[str, Any]:
    found = json.loads((out / "figures.json").read_text())["figures"]
    (one,) = [each for each in found if (each["policy"], each["ratio"]) == (policy, ratio)]
    return one


@pytest.mark.slow
def test_a_repetition_and_a_ratio_of_0_change_nothing(quick: Path) -> None:
    for policy in ("none, again", "planned", FEWER):
        found = figure(quick, policy, 0.0)
        assert found["quality"]["equal"] == found["rows"] == LEAST["rows"], policy
        assert found["quality"]["worst"] == 100.0 and found["quality"]["ssim"] == 1.0
        assert found["computed"] == found["total"] == 40


@pytest.mark.slow
def test_at_half_of_the_evaluations_planned_is_nearer_than_fewer_steps(quick: Path) -> None:
    ours, twin = figure(quick, "planned", 0.5), figure(quick, FEWER, 0.5)
    assert ours["computed"] == twin["computed"] == 20 and twin["total"] == 40
    assert ours["quality"]["worst"] > twin["quality"]["mean"]
    assert twin["ahead"]["mean"] == pytest.approx(ours["quality"]["mean"] - twin["quality"]["mean"])
    assert ours["quality"]["score"] is not None


@pytest.mark.slow
def test_a_row_is_the_same_alone_and_packed(quick: Path) -> None:
    found = json.loads((quick / "figures.json").read_text())
    assert all(each["same_alone"] for each in found["figures"])
    assert {each["packed"]["in_flight"] for each in found["figures"]} == {2}
    assert found["hardware"]["cpus"] >= 1
    assert all(len(block["samples"]) == 2 for block in found["samples"])


@pytest.mark.slow
def test_what_is_there_is_not_drawn_again(quick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (quick / "samples.jsonl").read_text()
    assert main(["bench", "cache", "--tiny", "--out", str(quick), "--json"]) == 0
    assert (quick / "samples.jsonl").read_text() == before
    said = capsys.readouterr()
    assert "rows from" not in said.err and "none, again" in said.out
    assert json.loads(said.out.splitlines()[-1])["missing"] == {}


@pytest.mark.slow
def test_samples_of_another_question_are_kept(
    quick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (quick / "samples.jsonl").read_text()
    assert main(["bench", "cache", "--out", str(quick), "--steps", "7"]) == 2
    assert "--out" in capsys.readouterr().err
    assert (quick / "samples.jsonl").read_text() == before


def test_an_unknown_policy_is_named_with_the_legal_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "cache", "--out", str(tmp_path), "--strategies", "magic"]) == 2
    said = capsys.readouterr().err
    assert "'magic'" in said and "planned, " in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [("--width", "50"), ("--height", "72"), ("--frames", "16")])
def test_a_size_that_the_model_does_not_draw_is_refused(
    size: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "cache", "--out", str(tmp_path), *size]) == 2
    said = capsys.readouterr().err
    assert size[1] in said and "multiples of 16" in said
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------- rows and policies
def test_no_calibration_has_seen_the_rows() -> None:
    shape = Shape(frames=17, width=96)
    seen = calibration_rows()
    bench, tuning = bench_rows(64, shape), tuning_rows(8, shape)
    for rows, others in ((bench, [*seen, *tuning]), (tuning, seen)):
        assert not {row.seed for row in rows} & {row.seed for row in others}
    assert not {row.prompt for row in (*bench, *tuning)} & {row.prompt for row in seen}
    assert len({row.prompt for row in bench}) == 64
    assert bench[:8] == bench_rows(8, shape)
    assert bench[0].num_frames == 17 and bench[0].num_steps == 50
    assert (bench[0].width, bench[0].height) == (96, 64)


def test_every_strategy_of_the_folder_is_compared() -> None:
    found = policies(preset())
    assert {policy.strategy for policy in found} == {"none", *names()}
    assert len({policy.name for policy in found}) == len(found)


def test_a_policy_draws_what_a_row_with_its_settings_draws() -> None:
    (row,) = bench_rows(1, Shape())
    planned, fewer = policies(preset(), ["planned", FEWER])
    tables = Tables.usual()
    drawn = drawn_by(planned, row, 0.58, tables, MODEL)
    assert (drawn.cache_strategy, drawn.cache_ratio) == ("planned", 0.58)
    assert tables.by_digest(drawn.cache_table).key.computed == 21
    assert drawn_by(fewer, row, 0.58, tables, MODEL) == replace(row, num_steps=21)
    with pytest.raises(ConfigError, match="no coefficients"):
        (teacache,) = policies(preset(), ["teacache"])
        drawn_by(teacache, row, 0.5, tables, "another model")


# ------------------------------------------------------------------------------------------ figures
def test_a_threshold_keeps_to_the_budget() -> None:
    asked: list[float] = []

    def share(threshold: float) -> float:
        asked.append(threshold)
        return 1.0 if threshold < 0.04 else 0.5 if threshold < 0.2 else 0.3

    assert 0.04 <= threshold_for(0.5, share) <= 0.04 * NEAR
    assert 0.2 <= threshold_for(0.45, share) <= 0.2 * NEAR
    assert len(asked) < 30
    assert threshold_for(0.1, share) == 10.0, "none does"


def speed(seconds: float, steps: float) -> Speed:
    return Speed(1, seconds, seconds + 1, seconds / 2, steps)


def block(policy: str, ratio: float, psnrs: list[float], seconds: float, steps: float) -> Block:
    pair = Pair(speed(10.0, 100.0), speed(seconds, steps))
    rows = enumerate(psnrs)
    samples = tuple(Sample(row, db, 0.9, None, steps, 100, False) for row, db in rows)
    return Block(policy, ratio, 0, None, pair, pair, True, samples)


def made_up(path: Path) -> list[Figures]:
    kept = Samples(path / "samples.jsonl", {})
    kept.add(block("planned", 0.5, [50.0, 60.0, 70.0], 5.0, 50.0))
    kept.add(block(FEWER, 0.5, [40.0, 50.0, 60.0], 5.0, 50.0))
    kept.add(block("pab", 0.5, [45.0, 45.0, 45.0], 8.0, 60.0))
    assert Samples(kept.path, {}).blocks == kept.blocks
    return figures(kept)


def test_figures_worked_out_by_hand(tmp_path: Path) -> None:
    ours, fewer, pab = made_up(tmp_path)
    assert (ours.quality.mean, ours.quality.p10, ours.quality.worst) == (60.0, 52.0, 50.0)
    assert ours.ahead is None and fewer.ahead is not None and pab.ahead is not None
    assert (fewer.ahead.mean, fewer.ahead.low, fewer.ahead.high) == (10.0, 10.0, 10.0)
    assert pab.ahead.low < pab.ahead.mean == 15.0 < pab.ahead.high
    assert pab.ahead.p10 == 7.0
    assert ours.alone.denoise == 2.0 and ours.alone.denoise_worth == 1.0
    assert pab.alone.denoise == 1.25 and pab.alone.denoise_worth == 1.25 / (100 / 60)
    assert pab.over_budget and not ours.over_budget
    lines = {line.split(" | ")[0]: line for line in markdown([ours, fewer, pab]).splitlines()}
    assert lines["| pab"].startswith("| pab | 60.0/100* |")
    assert lines["| pab"].endswith("| 1.25 | 0.75< | 1.25 | 0.75< |"), "below both goals"
    assert lines["| planned"].endswith("| 2.00 | 1.00 | 2.00 | 1.00 |")


def test_a_goal_is_met_as_it_is_printed(tmp_path: Path) -> None:
    """Alone 0.95 is aimed at, packed 0.90."""
    kept = Samples(tmp_path / "samples.jsonl", {})
    for number, seconds in enumerate((5.27, 5.55, 5.7)):
        kept.add(block(f"policy {number}", 0.5, [50.0], seconds, 50.0))
    found = [line.split(" | ")[-3:] for line in markdown(figures(kept)).splitlines()[2:]]
    worth = [(alone, packed.removesuffix(" |")) for alone, _, packed in found]
    assert worth == [("0.95", "0.95"), ("0.90<", "0.90"), ("0.88<", "0.88<")]


def test_the_picture_has_a_line_for_every_policy(tmp_path: Path) -> None:
    plot(made_up(tmp_path), tmp_path / "error.png")
    image = Image.open(tmp_path / "error.png")
    assert image.size == (WIDTH, HEIGHT)
    colours = np.unique(np.asarray(image).reshape(-1, 3), axis=0)
    for colour in ("#0072b2", "#d55e00", "#009e73"):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (colours == rgb).all(1).any(), colour


# --------------------------------------------------------------------------------- forced schedule
@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_forced_schedule_computes_21_of_50_steps(in_flight: int) -> None:
    """What is measured on a card at a real model's size."""
    batch = {"max_rows_in_flight": in_flight}
    engine = Engine.load(small_spec("random"), system(batch=batch), "cpu")
    found = forced(engine, [request(i, **PACKED) for i in range(2)], turns=1)
    assert found.due == STEPS / COMPUTED
    assert found.speedup > 0
    for drawn in (*found.plain, *found.cached):
        assert [frames.shape for frames in drawn.frames] == [(1, 64, 64, 3)] * 2
        assert {stats.batch_size_mean for stats in drawn.stats} == {2.0 * in_flight}
