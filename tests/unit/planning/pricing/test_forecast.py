"""The forecast: from the profile's figures, or from what earlier runs measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchgen.caches.audit import has_twin
from batchgen.cli.plans.caches import cache_lines
from batchgen.config.build import to_mapping
from batchgen.config.composing.compose import compose_job
from batchgen.config.schema import DeviceConfig, JobConfig
from batchgen.planning.calibrate import calibrate, measured_start_up
from batchgen.planning.plan import Plan, make_plan, read_costs, read_keys, read_requests
from batchgen.planning.pricing.cost import CostModel, Factors, FactorTable
from batchgen.planning.pricing.forecast import Forecast, forecast
from batchgen.planning.pricing.layout import choose_layout
from batchgen.planning.pricing.work import Work
from batchgen.records import Layout
from batchgen.request import Bucket
from batchgen.runner.submit import cut
from batchgen.words import counted

ROOT = Path(__file__).parents[4]
H200 = DeviceConfig(name="h200", memory_gib=139, matmul_tflops=790)
DENOISE, DECODE, ENCODE = 3.0, 0.5, 2.0  # how the machine of these tests differs from the profile


@pytest.fixture
def earlier_run(tmp_path: Path, tiny_job: JobConfig) -> Callable[..., Path]:
    """Writes a run folder whose catalog holds measured seconds: predicted x the factors above."""

    def write(
        name: str,
        *,
        device: str = "cpu",
        speed: float = 1.0,
        layout: str = "dp1 resident fp32",
        **damage: object,
    ) -> Path:
        run = tmp_path / "outputs" / name
        (run / "catalog" / "rows").mkdir(parents=True)
        config = json.loads(json.dumps(to_mapping(tiny_job)))
        config["model"]["transformer"]["num_layers"] = damage.get("layers", 6)
        (run / "run.json").write_text(json.dumps({"config": config}))
        cost = CostModel(tiny_job.model, tiny_job.slurm.device)
        frames = [1, 9, 9, 9, 9, 17] * 4
        parts = [cost.bucket(Bucket(64, 64, n)) for n in frames]
        n = len(frames)
        computed = [10, *[40] * 5] * 4  # some rows were begun by an attempt before
        table = {
            "status": ["ok"] * (n - 1) + ["failed"],
            "alias_of": pa.array([None] * n, pa.string()),
            "device": [device] * n,
            "layout": [layout] * n,
            "width": [64] * n,
            "height": [64] * n,
            "num_frames": frames,
            "steps_computed": [float(count) for count in computed],
            "denoise_s": [
                p.forward * count * DENOISE / speed
                for p, count in zip(parts, computed, strict=True)
            ],
            "decode_s": [p.decode * DECODE / speed for p in parts],
            "encode_s": [p.encode * ENCODE / speed for p in parts],
        }
        pq.write_table(pa.table(table), run / "catalog" / "rows" / "part-0.parquet")
        return run

    return write


def test_factors_are_found_again_from_a_catalog(
    earlier_run: Callable[..., Path], tiny_job: JobConfig
) -> None:
    run = earlier_run("demo-1")
    found = calibrate(run.parent, tiny_job.model, tiny_job.slurm.device)
    assert found is not None
    assert found.rows == 23  # a failed row measured nothing
    assert found.runs == ("demo-1",)
    for bucket in (Bucket(64, 64, 9), Bucket(128, 128, 9)):
        factors = found.factors.of(bucket)
        assert factors.denoise == pytest.approx(DENOISE)
        assert factors.decode == pytest.approx(DECODE)
        assert factors.encode == pytest.approx(ENCODE)
    assert found.spread == pytest.approx(0.2)


def test_runs_of_other_devices_and_models_and_damaged_ones_are_passed_over(
    earlier_run: Callable[..., Path], tiny_job: JobConfig
) -> None:
    root = earlier_run("other-device", device="NVIDIA H200").parent
    earlier_run("other-model", layers=7)
    (earlier_run("torn") / "catalog" / "rows" / "part-0.parquet").write_bytes(b"PAR1")
    (earlier_run("no-config") / "run.json").write_text("{}")
    (earlier_run("bad-json") / "run.json").write_text("{")
    assert calibrate(root, tiny_job.model, tiny_job.slurm.device) is None
    assert calibrate(root / "nowhere", tiny_job.model, tiny_job.slurm.device) is None
    found = calibrate(root, tiny_job.model, H200)
    assert found is not None
    assert found.runs == ("other-device",)


def test_rows_that_several_ranks_drew_say_nothing_of_one(
    earlier_run: Callable[..., Path], tiny_job: JobConfig
) -> None:
    root = earlier_run("shared", speed=2.0, layout="dp1 cfg2 ulysses2 resident fp32").parent
    earlier_run("ring", speed=2.0, layout="dp1 ring2 resident fp32")
    assert calibrate(root, tiny_job.model, tiny_job.slurm.device) is None
    earlier_run("alone", layout="dp2 resident fp32")
    found = calibrate(root, tiny_job.model, tiny_job.slurm.device)
    assert found is not None
    assert found.runs == ("alone",)
    assert found.factors.general.denoise == pytest.approx(DENOISE)


def test_runs_that_disagree_widen_the_interval(
    earlier_run: Callable[..., Path], tiny_job: JobConfig
) -> None:
    root = earlier_run("fast", speed=2.0).parent
    earlier_run("slow", speed=1.0)
    found = calibrate(root, tiny_job.model, tiny_job.slurm.device)
    assert found is not None
    assert 0.3 < found.spread < 0.5


def test_a_calibrated_forecast_is_the_measured_time(
    earlier_run: Callable[..., Path], tiny_job: JobConfig, tmp_path: Path
) -> None:
    """What the same rows would take again, within a percent, and said to be measured."""
    run = earlier_run("demo-1")
    found = calibrate(run.parent, tiny_job.model, tiny_job.slurm.device)
    assert found is not None
    rows = pq.read_table(run / "catalog" / "rows").to_pandas()
    manifest = tmp_path / "again.parquet"
    frames = rows["num_frames"].tolist()
    pq.write_table(pa.table({"prompt": ["a"] * len(frames), "num_frames": frames}), manifest)
    job = replace(tiny_job, manifest=str(manifest))
    plan = make_plan(job, tmp_path / "plan.parquet", factors=found.factors)
    whole = rows["denoise_s"] * 40 / rows["steps_computed"]  # in one go
    measured = (whole + rows["decode_s"] + rows["encode_s"]).sum()
    assert plan.cost_s_total == pytest.approx(measured, rel=0.01)
    predicted = forecast(job, plan, read_costs(plan.path), found)
    assert predicted.basis == "measured: 23 rows of 1 earlier run: demo-1"
    assert predicted.low < predicted.gpu_hours < predicted.high


def attempt(**changes: object) -> dict[str, object]:
    """What `catalog/runs.parquet` says of one that drew rows alone."""
    seconds = {"load_s": 4.0, "compile_s": 0.0, "warmup_s": 1.0, "other_s": 0.0, "move_s": 0.0}
    held = {"busy_s": 60.0, "idle_s": 10.0, "tail_s": 2.0}
    known = {"device": "cpu", "layout": "dp1 resident fp32", "rows_ok": 12, "decode_s": 40.0}
    return {**seconds, **held, **known, **changes}


@pytest.mark.parametrize("decoder_held", [False, True])
def test_start_up_and_what_runs_behind_are_calibrated_from_attempts(
    earlier_run: Callable[..., Path], tiny_job: JobConfig, tmp_path: Path, decoder_held: bool
) -> None:
    """Two attempts were at work for 60 and 96 s; their 24 rows of which 23 count. A third waited
    for its decoder, which is to be expected of any row. One that drew nothing, one elsewhere and
    one of several ranks say nothing."""
    run = earlier_run("demo-1")
    others = [
        attempt(rows_ok=0, load_s=90.0),
        attempt(device="NVIDIA H200", load_s=90.0),
        attempt(layout="dp1 cfg2 resident fp32", load_s=90.0),
    ]
    mine = [attempt(), attempt(load_s=8.0, busy_s=96.0)]
    if decoder_held:
        mine.append(attempt(load_s=6.0, decode_s=61.0))
    pq.write_table(pa.Table.from_pylist([*mine, *others]), run / "catalog" / "runs.parquet")
    found = calibrate(run.parent, tiny_job.model, tiny_job.slurm.device)
    assert found is not None and found.start_up_s == pytest.approx(7.0)
    rows = pq.read_table(run / "catalog" / "rows").to_pandas()[:23]
    stages = rows[["denoise_s", "decode_s", "encode_s"]].to_numpy().sum()
    at_work = (60 + 96) / 24 if not decoder_held else (60 + 96 + 72) / 36
    assert found.held == pytest.approx(at_work * 23 / stages)
    assert found.waits_s == 12.0

    manifest = tmp_path / "again.parquet"
    pq.write_table(pa.table({"prompt": ["a"] * 5}), manifest)
    job = replace(tiny_job, manifest=str(manifest))
    plan = make_plan(job, tmp_path / "plan.parquet", factors=found.factors)
    predicted = forecast(job, plan, read_costs(plan.path), found)
    assert 3600 * predicted.gpu_hours == pytest.approx(plan.cost_s_total * found.held + 7 + 12)
    assert predicted.basis.endswith("demo-1; start-up 7.0 s")
    given = replace(job, slurm=replace(job.slurm, start_up_s=30.0))  # the profile knows better
    predicted = forecast(given, plan, read_costs(plan.path), found)
    assert 3600 * predicted.gpu_hours == pytest.approx(plan.cost_s_total * found.held + 30 + 12)


def test_a_submission_is_cut_by_the_start_up_that_was_measured(
    earlier_run: Callable[..., Path], tiny_job: JobConfig, tmp_path: Path
) -> None:
    """As `plan` said it would be."""
    run = earlier_run("demo-1")
    manifest = tmp_path / "again.parquet"
    pq.write_table(pa.table({"prompt": [str(row) for row in range(40)]}), manifest)
    slurm = replace(tiny_job.slurm, executor="slurm", nodes=4, timeout_min=10**7)
    output = replace(tiny_job.output, root_dir=str(run.parent))
    job = replace(tiny_job, manifest=str(manifest), slurm=slurm, output=output)
    plan = make_plan(job, tmp_path / "plan.parquet", factors=FactorTable(Factors(1e4, 1e4, 1e4)))
    counts = []
    for load_s in (1.0, 1e5):
        pq.write_table(
            pa.Table.from_pylist([attempt(load_s=load_s)]), run / "catalog" / "runs.parquet"
        )
        found = calibrate(run.parent, job.model, job.slurm.device)
        assert found is not None and found.start_up_s == measured_start_up(job) == load_s + 1
        predicted = forecast(job, plan, read_costs(plan.path), found)
        rows = cut(plan.path, np.arange(40), job, predicted.layout)
        counts.append(int(rows.shard.max()) + 1)
        assert counts[-1] == predicted.shards
    assert counts[0] > counts[1] == 1


def test_without_attempts_rows_calibrate_all_the_same(
    earlier_run: Callable[..., Path], tiny_job: JobConfig
) -> None:
    run = earlier_run("demo-1")
    for damaged in (None, b"no parquet"):
        if damaged is not None:
            (run / "catalog" / "runs.parquet").write_bytes(damaged)
        found = calibrate(run.parent, tiny_job.model, tiny_job.slurm.device)
        assert found is not None and (found.start_up_s, found.held) == (None, 1.0)


@pytest.fixture
def wan_forecast(tmp_path: Path) -> Callable[..., tuple[JobConfig, Plan, Forecast]]:
    def make(job: str, *overrides: str) -> tuple[JobConfig, Plan, Forecast]:
        config = compose_job(ROOT / "jobs" / f"{job}.yaml", overrides).config
        plan = make_plan(config, tmp_path / "plan.parquet")
        return config, plan, forecast(config, plan, read_costs(plan.path), None)

    return make


def test_profile_figures_predict_published_times_within_their_interval(
    tiny_job: JobConfig,
) -> None:
    """Wan 2.1 on one H100 or H200: 58 s (1.3B, 480p) and 974 s (14B, 720p, 40 steps)."""
    for name, bucket, forwards, published in (
        ("wan2.1-t2v-1.3b", Bucket(832, 480, 81), 100, 58.0),
        ("wan2.1-t2v-14b", Bucket(1280, 720, 81), 80, 974.0),
    ):
        model = compose_job(ROOT / "jobs" / "demo.yaml", [f"model={name}"]).config.model
        seconds = CostModel(model, H200).bucket(bucket)
        assert 0.5 <= seconds.forward * forwards / published <= 2.0
        if name.endswith("1.3b"):
            assert seconds.decode == pytest.approx(2.3, rel=0.3)


def test_the_forecast_says_what_it_rests_on(
    wan_forecast: Callable[..., tuple[JobConfig, Plan, Forecast]],
) -> None:
    _, plan, predicted = wan_forecast("wan21_1_3b_480p", "slurm=h200x8")
    assert predicted.basis == "figures of the profile (h200, 790 TFLOP/s)"
    assert predicted.gpu_hours * 3600 > plan.cost_s_total
    assert predicted.low < predicted.gpu_hours < predicted.high
    assert predicted.layout.dp == 8
    assert "dp first" in predicted.layout.reason
    assert predicted.files >= plan.unique_rows


def test_a_model_that_does_not_fit_is_said_aloud(
    wan_forecast: Callable[..., tuple[JobConfig, Plan, Forecast]],
) -> None:
    _, _, predicted = wan_forecast("wan21_14b_720p")
    assert not predicted.layout.fits
    assert "does not fit one rank" in predicted.layout.reason
    assert predicted.vram_gib > 8


def test_residency_follows_the_room(tiny_job: JobConfig) -> None:
    path = ROOT / "jobs" / "wan21_1_3b_480p.yaml"
    job, tiled = (compose_job(path, more).config for more in ([], ["system.vae.tiled=true"]))
    rows = [Work(Bucket(832, 480, 81), rows=100, steps=5000, evaluations=10000)]

    def on(gib: float, job: JobConfig = job) -> Layout:
        device = replace(H200, memory_gib=gib)
        return choose_layout(replace(job, slurm=replace(job.slurm, device=device)), rows)

    assert (on(139).memory, on(139).precision) == ("resident", "bfloat16")
    assert on(16).memory == "model"
    assert on(16).fits and on(16).vram_gib < on(139).vram_gib
    assert not on(8).fits  # a decode takes more
    small = on(8, tiled)
    assert small.fits and small.memory == "stream"
    assert "the encoder's blocks stream" in small.reason
    assert not on(2).fits
    cpu = choose_layout(job, rows)  # all components are there, in twice the bytes
    assert (cpu.memory, cpu.precision, cpu.fits) == ("resident", "float32", False)
    assert cpu.vram_gib > 1.5 * on(139).vram_gib  # the decoder is in float32 everywhere


def test_disk_and_files_follow_the_format(
    wan_forecast: Callable[..., tuple[JobConfig, Plan, Forecast]],
) -> None:
    size = {}
    for name in ("mp4", "gif", "frames", "npy"):
        _, _, predicted = wan_forecast("wan21_1_3b_480p", f"output.format={name}")
        size[name] = predicted.disk_gib
        if name == "frames":
            assert predicted.files > 6 * 81
    assert size["mp4"] < size["gif"] < size["frames"] < size["npy"]
    pixels = 832 * 480 * 3 * (6 * 81 + 49 + 1)
    assert size["npy"] * 2**30 == pytest.approx(pixels, rel=0.01)


def test_costs_of_rows_add_up_to_their_buckets(tiny_job: JobConfig, tmp_path: Path) -> None:
    plan = make_plan(tiny_job, tmp_path / "plan.parquet")
    costs = read_costs(plan.path)
    assert np.isclose(costs.cost_s.sum(), sum(item.cost_s for item in plan.buckets))


def test_rows_that_are_audited_cost_a_second_drawing_without_the_cache(
    job_over: Callable[..., JobConfig], write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    """All steps of both branches, and decoding; the text is there already."""
    strategies = ["uniform"] * 30 + ["none"] * 10
    manifest = write_rows(
        {"prompt": [f"a red circle {n}" for n in range(40)], "cache_strategy": strategies}
    )
    plans = [
        make_plan(
            job_over(manifest, row_defaults__num_steps=20, system__cache__audit_every=every),
            tmp_path / f"{every}.parquet",
        )
        for every in (0, 3)
    ]
    (plain,), (priced,) = (plan.buckets for plan in plans)
    keys, requests = read_keys(plans[1].path), read_requests(plans[1].path)
    chosen = [has_twin(request, 3) for request in requests]
    assert keys.tolist() == read_keys(plans[0].path).tolist(), "audits are in no key"
    assert 0 < sum(chosen) < 30 and not any(chosen[30:])
    costs = [read_costs(plan.path).cost_s for plan in plans]
    model = job_over(manifest).model, job_over(manifest).slurm.device
    seconds = CostModel(*model).bucket(requests[0].bucket)
    assert costs[1] - costs[0] == pytest.approx(
        np.array(chosen) * (20 * 2 * seconds.forward + seconds.decode)
    )
    assert (plain.audits, priced.audits) == (0, sum(chosen))
    assert priced.audit_evaluations == 40 * sum(chosen)
    assert (priced.evaluations, priced.steps) == (plain.evaluations, plain.steps)  # the rows' own
    rows, forwards = counted(sum(chosen), "row"), 40 * sum(chosen)
    said = f"{rows} drawn without their cache too: {forwards} forwards more"
    assert cache_lines(plans[1])["audits"] == said and "audits" not in cache_lines(plans[0])
    assert plans[1].cost_s_total == pytest.approx(costs[1].sum())
