"""What a plan will take: device hours with an interval, time, memory, disk, files."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from batchgen.config.capability import served_by
from batchgen.config.schema import JobConfig, SlurmConfig
from batchgen.errors import ConfigError
from batchgen.planning.calibrate import Calibration
from batchgen.planning.pricing.cost import start_up_seconds
from batchgen.planning.pricing.layout import choose_layout
from batchgen.planning.pricing.memory import GIB
from batchgen.planning.pricing.shards import cut_shards
from batchgen.planning.pricing.work import planned_work
from batchgen.planning.store import BucketForecast, Plan, PlanCosts
from batchgen.records import Layout
from batchgen.words import counted, duration, hours_name

# Figures of a profile are no measurement: an engine may reach half or twice of the assumed rate.
_PROFILE_LOW, _PROFILE_HIGH = 0.5, 2.0
_GUESS_LOW, _GUESS_HIGH = 0.1, 10.0
_GUESS = (
    "a guess: what a row costs here, and takes beside the weights, is not known before some were "
    "drawn; later plans measure it by them"
)
_WALL_SHARE = 0.8  # of the wall-time limit that a shard is cut for
_JOURNAL_BYTES = 1500  # start and commit lines of a row
_CATALOG_BYTES = 800

# Bytes per pixel and frame at quality 8; encoders differ by content, so these are upper middles.
# A format that is not listed counts as what is stored without loss.
_BYTES_PER_PIXEL = {
    "mp4": 0.06, "gif": 0.5, "webp": 0.15, "png": 1.6, "frames": 1.6, "jpeg": 0.35, "npy": 3.0,
    "latents": 0.25,
}  # fmt: skip
_LEAST_MEDIA_BYTES = 1500


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predicted use of one run. GPU-hours are hours of the profile's device, whatever it is."""

    gpu_hours: float
    low: float
    high: float
    basis: str
    wall_hours: float
    shards: int
    layout: Layout
    vram_gib: float
    disk_gib: float
    files: int
    row_hours: float  # of `gpu_hours`: the stages of rows
    start_up_hours: float  # of `gpu_hours`; the rest goes by beside rows, or to a pilot


def forecast(
    job: JobConfig, plan: Plan, costs: PlanCosts, calibration: Calibration | None
) -> Forecast:
    """Predict what a planned run takes on the job's profile."""
    layout = choose_layout(job, planned_work(plan))
    start_up, ahead = start_up_seconds(job, calibration.start_up_s if calibration else None), 0.0
    shards = count_shards(job, costs, start_up, layout)
    busy = of_rows = plan.cost_s_total * layout.ranks_of_a_replica / layout.speed  # of devices
    waits = calibration.waits_s if calibration else 0.0  # as often as starting up
    if calibration is not None:
        busy *= calibration.held
    starts = layout.nodes_together * layout.ranks_per_node * shards
    if plan.pilots:  # another submission before all others, on one rank
        pilot_s = sum(pilot.cost_s for pilot in plan.pilots)
        busy, starts = busy + pilot_s, starts + 1
        ahead = pilot_s + start_up + waits
    idle_start = starts * (start_up + waits)
    guessed = calibration is None and not served_by(job.model).costs_known
    low, high = (_GUESS_LOW, _GUESS_HIGH) if guessed else _interval(calibration)
    media_bytes, media_files = _media(job, plan.buckets)
    disk = media_bytes + plan.rows * (_JOURNAL_BYTES + _CATALOG_BYTES)
    rounds = max(1, shards / layout.groups)
    at_work = layout.ranks_of_a_replica * min(layout.dp, max(1, plan.unique_rows))
    return Forecast(
        gpu_hours=(busy + idle_start) / 3600,
        low=(busy * low + idle_start) / 3600,
        high=(busy * high + idle_start) / 3600,
        basis=_GUESS if guessed else _basis(job, calibration),
        wall_hours=(busy / at_work + (start_up + waits) * rounds + ahead) / 3600,
        shards=shards,
        layout=layout,
        vram_gib=layout.vram_gib,
        disk_gib=disk / GIB,
        files=media_files + 12 + shards * (2 + 2 * layout.replicas_together),
        row_hours=of_rows / 3600,
        start_up_hours=starts * start_up / 3600,
    )


def refuse_over_budget(predicted: Forecast, limit: float | None) -> None:
    """ConfigError if a run is predicted to take more device hours than `system.max_gpu_hours`."""
    if limit is not None and predicted.gpu_hours > limit:
        raise ConfigError(
            f"the forecast of {predicted.gpu_hours:.4g} {hours_name(predicted.layout.device)} is "
            f"above system.max_gpu_hours={limit:g}"
        )


def count_shards(job: JobConfig, costs: PlanCosts, start_up_s: float, layout: Layout) -> int:
    """How many shards the first submission has; one machine is one shard."""
    if job.slurm.executor in ("inline", "local"):
        return 1
    shard = cut_shards(
        costs.cost_s[~costs.is_alias] / layout.speed,
        shards=None,
        slots=layout.groups,
        start_up_s=start_up_s,
        ranks=layout.replicas_together,
        most_s=most_shard_seconds(job.slurm),
    )
    return int(np.max(shard)) + 1


def most_shard_seconds(slurm: SlurmConfig) -> float:
    """Wall seconds that a shard is predicted to take at most, so that it fits in the limit."""
    return _WALL_SHARE * (60 * slurm.timeout_min - slurm.signal_delay_s)


def _interval(calibration: Calibration | None) -> tuple[float, float]:
    if calibration is None:
        return _PROFILE_LOW, _PROFILE_HIGH
    return max(0.1, 1 - calibration.spread), 1 + calibration.spread


def _basis(job: JobConfig, calibration: Calibration | None) -> str:
    if calibration is None:
        device = job.slurm.device
        return f"figures of the profile ({device.name}, {device.matmul_tflops:g} TFLOP/s)"
    shown = ", ".join(calibration.runs[:3]) + (", ..." if len(calibration.runs) > 3 else "")
    rows, runs = counted(calibration.rows, "row"), counted(len(calibration.runs), "earlier run")
    measured = f"measured: {rows} of {runs}: {shown}"
    start_up = calibration.start_up_s
    return measured if start_up is None else f"{measured}; start-up {duration(start_up)}"


def _media(job: JobConfig, buckets: tuple[BucketForecast, ...]) -> tuple[float, int]:
    """Bytes and number of media files."""
    total, files = 0.0, 0
    quality = 0.4 + 0.6 * (job.output.quality / 8) ** 2
    for forecast in buckets:
        bucket, name = forecast.bucket, job.output.format
        if name == "auto":
            name = "png" if bucket.num_frames == 1 else "mp4"
        lossy = quality if name in ("mp4", "webp", "jpeg") else 1.0
        per_pixel = _BYTES_PER_PIXEL.get(name, _BYTES_PER_PIXEL["npy"])
        pixels = bucket.width * bucket.height * bucket.num_frames
        total += forecast.rows * max(_LEAST_MEDIA_BYTES, pixels * per_pixel * lossy)
        files += forecast.rows * (bucket.num_frames if name == "frames" else 1)
    if job.output.pack is not None:
        files = ceil(total / (job.output.pack_mib * 2**20))
    return total, files
