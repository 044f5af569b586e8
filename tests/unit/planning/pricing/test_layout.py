"""The layout: which one is taken, what it costs, and what is refused with which way on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from batchgen.caches.strategy import strategy
from batchgen.config.composing.compose import compose_job
from batchgen.config.degrees import Degrees
from batchgen.config.schema import CompileConfig, DeviceConfig, JobConfig
from batchgen.errors import ConfigError
from batchgen.families.components import component_bytes
from batchgen.families.family import family_spec
from batchgen.families.kept import kept_bytes
from batchgen.planning.pricing.candidates import all_candidates
from batchgen.planning.pricing.cost import start_up_seconds
from batchgen.planning.pricing.layout import choose_layout, resolve_layout, survey
from batchgen.planning.pricing.memory import GIB, most_demanding, need_of, row_tables, weights_of
from batchgen.planning.pricing.work import Work
from batchgen.records import Layout
from batchgen.request import Bucket

ROOT = Path(__file__).parents[4]
WAN = ROOT / "jobs" / "wan21_1_3b_480p.yaml"
CLIP = Bucket(832, 480, 81)
Make = Callable[..., JobConfig]


@cache
def composed(*overrides: str) -> JobConfig:
    return compose_job(WAN, ["slurm=h200x8", *overrides]).config


@pytest.fixture
def job() -> Make:
    """A job of the 1.3B model on a GPU with so much memory."""

    def make(*overrides: str, gib: float = 139) -> JobConfig:
        config = composed(*overrides)
        device = DeviceConfig(name="h200", memory_gib=gib, matmul_tflops=790)
        return replace(config, slurm=replace(config.slurm, device=device))

    return make


def work(bucket: Bucket, rows: int = 4800) -> Work:
    """Many rows of 50 steps with guidance."""
    return Work(bucket, rows, rows * 50, rows * 100)


def degrees(layout: Layout) -> tuple[int, int, int, int]:
    return layout.dp, layout.cfg, layout.ulysses, layout.ring


def test_every_rank_of_every_node_is_a_replica(job: Make) -> None:
    for nodes, ranks in ((1, 8), (3, 8), (1, 1)):
        layout = choose_layout(
            job(f"slurm.nodes={nodes}", f"slurm.ranks_per_node={ranks}"), [work(CLIP)]
        )
        assert degrees(layout) == (nodes * ranks, 1, 1, 1)
        assert (layout.nodes, layout.ranks_per_node) == (nodes, ranks)
        assert layout.ranks == nodes * ranks


def test_stages_that_are_left_out_take_no_memory_and_no_time(job: Make) -> None:
    whole, drawing = job(), job("output.format=latents")
    decoding = replace(whole, decode="/runs/drawn")
    peaks = [need_of(one, CLIP, "resident").peak_bytes for one in (whole, drawing, decoding)]
    autoencoder = component_bytes(whole.model).of("decode")
    assert peaks[1] <= peaks[0] - autoencoder
    assert peaks[2] == autoencoder + family_spec("wan").decode_bytes(whole.model, CLIP)
    rows = [Work(CLIP, 100, 0, 0)]
    found = survey(decoding, rows)
    assert degrees(found.layout) == (8, 1, 1, 1)
    assert found.chosen.most_kept == 0  # no row is between two steps
    starts = [start_up_seconds(one) for one in (whole, drawing, decoding)]
    assert starts[0] > starts[1] > starts[2]


def test_degrees_given_by_hand_are_taken_and_multiply_to_all_ranks(job: Make) -> None:
    given = ("slurm.nodes=2", "system.parallel.dp=16", "system.parallel.cfg=1")
    assert degrees(choose_layout(job(*given), [work(CLIP)])) == (16, 1, 1, 1)
    with pytest.raises(ConfigError, match=r"is 8, but slurm\.nodes x slurm\.ranks_per_node is 16"):
        job("slurm.nodes=2", "system.parallel={dp: 8, cfg: 1, ulysses: 1, ring: 1}")


def test_degrees_of_a_replica_leave_the_rest_to_dp(job: Make) -> None:
    layout = choose_layout(job("system.parallel.cfg=2", "system.parallel.ulysses=2"), [work(CLIP)])
    assert degrees(layout) == (2, 2, 2, 1)
    assert str(layout) == "dp2 cfg2 ulysses2 resident bf16"


def test_a_limit_on_memory_counts_like_less_of_it(job: Make) -> None:
    assert choose_layout(job(), [work(CLIP)]).memory == "resident"
    assert choose_layout(job("system.memory.vram_limit=14"), [work(CLIP)]).memory == "model"
    assert choose_layout(job("system.memory.vram_limit=99", gib=16), [work(CLIP)]).memory == "model"


def test_no_memory_at_all_lets_every_block_stream(job: Make) -> None:
    for asked in ("system.memory.vram_limit=0", "system.memory.mode=stream"):
        layout = resolve_layout(job(asked), [work(CLIP)])
        assert (layout.memory, layout.resident_blocks) == ("stream", 0)
        assert str(layout) == "dp8 stream bf16"


def test_as_many_blocks_stay_as_a_limit_leaves_room_for(job: Make) -> None:
    stay = []
    for limit in (4, 8, 12, 16):
        layout = resolve_layout(
            job(
                "system.memory.mode=stream",
                f"system.memory.vram_limit={limit}",
                "model=flux.1-dev",
                "system.batch.token_budget=4608",
            ),
            [work(Bucket(1024, 1024, 1), 8)],
        )
        assert layout.memory == "stream" and layout.vram_gib <= limit
        assert layout.places == ("text_encoder_2=model" if limit > 9 else "")
        stay.append(layout.resident_blocks)
    assert 0 < stay[0] < stay[1] < stay[2] < stay[3] < 57


@pytest.mark.parametrize(
    ("overrides", "gib", "words"),
    [
        ((), 2, ("(10.35 GiB of 2 GiB on h200", "one component at a time", "slurm=...")),
        (
            (),
            8,
            ("(10.35 GiB of 8 GiB on h200", "decode in tiles (system.vae.tiled=true)", "slurm=..."),
        ),
        (("system.memory.mode=resident",), 16, ("as system.memory.mode asks", "mode=auto")),
        (("system.memory.mode=model",), 8, ("as system.memory.mode asks", "slurm=...")),
        (("system.memory.vram_limit=2",), 139, ("vram_limit=2", "raise system.memory.vram_limit")),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_on(
    job: Make, overrides: tuple[str, ...], gib: float, words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_layout(job(*overrides, gib=gib), [work(CLIP)])
    for part in ("does not fit one rank", *words):
        assert part in str(caught.value)


def test_large_models_stream_in_small_memory(job: Make) -> None:
    """Weights on the device are those of two blocks and what is no block, of the encoder, too."""
    tiles = "system.vae.tiled=true"
    for bucket, gib, branches, asked in (
        (Bucket(1024, 1024, 1), 12, 1, ["model=flux.1-dev"]),
        (Bucket(512, 512, 1), 3, 1, ["model=flux.1-dev"]),
        (Bucket(832, 480, 81), 12, 2, ["model=wan2.1-t2v-14b"]),
        (Bucket(832, 480, 81), 9, 2, ["model=wan2.1-t2v-14b", tiles]),
        (Bucket(832, 480, 17), 6, 2, ["model=wan2.1-t2v-14b", tiles]),
    ):
        rows = Work(bucket, 8, 8 * 28, 8 * 28 * branches)
        layout = resolve_layout(job(*asked, gib=gib), [rows])
        assert layout.memory == "stream" and layout.fits and layout.vram_gib < 0.92 * gib
        assert layout.slower >= 1


@pytest.mark.parametrize(
    ("model", "gib"), [("qwen-image", 12.66), ("hunyuan-video-1.5", 5.06), ("cogvideox-5b", 1.48)]
)
def test_weights_with_tables_in_their_place_wait_on_the_host(
    job: Make, model: str, gib: float
) -> None:
    """Unless their transformer is resident."""
    config = job(f"model={model}", "model.weights=random")
    weights = weights_of(config)
    [part] = weights.of("denoise")
    away = sum(weights.away(part)) / GIB
    assert away == pytest.approx(gib, abs=0.02)
    whole = weights.whole(part)
    assert weights.held(part, "resident") == whole
    assert weights.held(part, "model") / GIB == pytest.approx(whole / GIB - away + 1)
    streamed = weights.streamed(part)
    assert sum(streamed.blocks) + streamed.rest == weights.held(part, "model")


@pytest.mark.parametrize(
    ("model", "gib", "row_mb"),
    [("flux.1-dev", 6.01, 2.1), ("sd3.5-large", 4.98, 2.2), ("hunyuan-video", 6.33, 2.21)],
)
def test_rows_keep_tables_of_their_texts(job: Make, model: str, gib: float, row_mb: float) -> None:
    """In place of weights: as many numbers for each evaluation as these have rows."""
    config = job(f"model={model}", "model.weights=random")
    weights = weights_of(config)
    [part] = weights.of("denoise")
    away = weights.away(part)
    assert sum(away) / GIB == pytest.approx(gib, abs=0.01)
    assert weights.row_tables(part) / 1e6 == pytest.approx(row_mb, rel=0.01)
    whole = weights.whole(part)
    assert weights.held(part, "resident") == whole
    assert weights.held(part, "model") == whole - sum(away) + max(away)
    assert row_tables(config, "resident") == 0
    assert row_tables(config, "model") == row_tables(config, "stream") == weights.row_tables(part)
    compiled = replace(config.system, compile=CompileConfig(mode="default"))
    assert row_tables(replace(config, system=compiled), "model") == 0


def test_tables_of_texts_are_counted_with_the_rows_and_priced_with_their_joining(job: Make) -> None:
    """Of the row with most steps; the weights come once for rows that join together."""
    mode = "system.memory.mode=model"
    flux = job("model=flux.1-dev", mode, "system.batch.max_rows_in_flight=4")
    images = Work(Bucket(1024, 1024, 1), 64, 64 * 28, 64 * 28)
    mixed = replace(images, most_steps=50)
    found = [survey(flux, [work]).chosen for work in (images, mixed)]
    each = row_tables(flux, "model")
    assert found[1].kept_bytes - found[0].kept_bytes == 4 * (50 - 28) * each
    together, alone = (
        survey(job("model=flux.1-dev", mode, f"system.batch.max_rows_in_flight={rows}"), [images])
        for rows in (4, 1)
    )
    assert 1 < together.chosen.slower < alone.chosen.slower
    assert f"{alone.chosen.slower:.2f} x the time of a row" in alone.layout.reason


def test_the_shape_that_needs_the_most_memory_decides(job: Make) -> None:
    config, small = job(gib=20), Bucket(208, 128, 9)
    assert most_demanding(config, [small, CLIP, small]) == CLIP
    with pytest.raises(ConfigError):
        resolve_layout(job("system.memory.mode=resident", gib=20), [work(small), work(CLIP)])
    assert resolve_layout(job("system.memory.mode=resident", gib=20), [work(small)]).fits


@pytest.mark.parametrize("mode", ["auto", "resident", "model"])
def test_on_a_cpu_everything_is_there_in_float32(tiny_job: JobConfig, mode: str) -> None:
    memory = replace(tiny_job.system.memory, mode=mode)
    config = replace(tiny_job, system=replace(tiny_job.system, memory=memory))
    layout = choose_layout(config, [work(Bucket(64, 64, 9))])
    assert layout.memory == ("model" if mode == "model" else "resident")
    assert (layout.precision, layout.attention, layout.device) == ("float32", "sdpa", "cpu")
    assert layout.vram_gib == choose_layout(tiny_job, [work(Bucket(64, 64, 9))]).vram_gib


@pytest.mark.parametrize(("rows", "shared"), [(1, (1, 1, 2, 1)), (64, (1, 2, 1, 1))])
def test_on_a_cpu_ranks_that_dp_leaves_share_rows_as_it_pays(
    rows: int, shared: tuple[int, int, int, int]
) -> None:
    """dp goes first; one row without guidance has no items to divide over cfg."""
    two = ["slurm=local", "slurm.ranks_per_node=2", "slurm.device.memory_gib=200"]
    images = Work(Bucket(1024, 1024, 1), rows, rows * 28, rows * 28)
    config = compose_job(ROOT / "jobs" / "flux1_dev_1024.yaml", two).config
    assert degrees(choose_layout(config, [images])) == (2, 1, 1, 1)
    config = compose_job(
        ROOT / "jobs" / "flux1_dev_1024.yaml", [*two, "system.parallel.dp=1"]
    ).config
    assert degrees(choose_layout(config, [images])) == shared


def test_a_layout_has_room_for_what_its_caches_keep(tiny_job: JobConfig) -> None:
    """Of a strategy that keeps much the peak is higher by what it keeps."""
    bucket, rows = Bucket(64, 64, 9), 4
    batch = replace(tiny_job.system.batch, max_rows_in_flight=rows)
    job = replace(tiny_job, system=replace(tiny_job.system, batch=batch))
    plain = Work(bucket, 10, 100, 200)
    peaks = [
        all_candidates(job, [replace(plain, caches=caches)], [Degrees(1, 1, 1, 1)])[0].peak_bytes
        for caches in ((), ("uniform",), ("pab", "uniform"))
    ]
    pab = kept_bytes(replace(job.model, dtype="float32"), bucket, strategy("pab").FACTS.keeps)
    assert peaks[2] - peaks[0] == rows * 2 * pab and peaks[0] < peaks[1] < peaks[2]


def test_rows_may_keep_what_there_is_room_for_up_to_all_that_ticks_take(job: Make) -> None:
    """And no less than the forwards were priced with."""
    asks = "model=flux.1-dev", "model.weights=random", "system.memory.mode=model"
    images = Work(Bucket(1024, 1024, 1), 64, 64 * 28, 64 * 28, ("pab",))
    plenty, some = (survey(job(*asks, gib=gib), [images]) for gib in (139, 36))
    for found in plenty, some:
        kept, chosen = found.layout.kept_gib * GIB, found.chosen
        assert chosen.kept_bytes <= kept <= chosen.most_kept
        assert found.layout.vram_gib * GIB - chosen.peak_bytes <= kept - chosen.kept_bytes
    assert plenty.layout.kept_gib * GIB == plenty.chosen.most_kept == 7 * plenty.chosen.kept_bytes
    assert some.chosen.kept_bytes < some.layout.kept_gib * GIB < some.chosen.most_kept
    assert 36 * 0.92 - 0.01 < some.layout.vram_gib <= 36 * 0.92
