"""What earlier runs measured: their catalogs turned into factors on the predicted seconds.

Rows say what their stages took, attempts what starting up took and for how long they then held
their device: less than the sum of the stages, since decoding runs behind the next steps. What they
waited is not in proportion to the rows: for the last pictures, or for another rank's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchgen.config.schema import DeviceConfig, JobConfig, ModelSpec
from batchgen.families.tiling import Tiling
from batchgen.paths import RunPaths
from batchgen.planning.pricing.cost import UNMEASURED, CostModel, Factors, FactorTable
from batchgen.records import is_streamed, ranks_named
from batchgen.request import LATENTS, Bucket

_RUNS_READ = 20  # the newest ones
_ROWS_READ = 200_000  # of each
_ENOUGH_ROWS = 4  # for a bucket to have factors of its own
_COLUMNS = (
    "status", "alias_of", "device", "width", "height", "num_frames", "steps_computed",
    "denoise_s", "decode_s", "encode_s", "layout",
)  # fmt: skip
_IMAGE = "image"  # a column that the catalogs of older versions lack
_START_UP = ("load_s", "compile_s", "warmup_s", "other_s")
_AT_WORK = ("move_s", "busy_s")
_WAITING = ("idle_s", "tail_s")
_LEAST_SPREAD = 0.10  # no forecast is better than this


@dataclass(frozen=True, slots=True)
class Calibration:
    """Factors from the catalogs of earlier runs of the same model on the same device."""

    factors: FactorTable
    spread: float  # relative half-width of the interval of a forecast
    runs: tuple[str, ...]  # names of the run folders
    rows: int
    start_up_s: float | None = None  # before an attempt could render; None: no attempt says
    held: float = 1.0  # seconds of a device, from then on, for each second of its rows' stages
    waits_s: float = 0.0  # that an attempt holds its device beside that


@dataclass(frozen=True, slots=True)
class _Attempt:
    """Seconds of one that drew rows alone on such a device."""

    start_up_s: float
    held_s: float  # in proportion to its rows
    waits_s: float


@dataclass(frozen=True, slots=True)
class _Measured:
    """Rows of one run: seconds as measured and as the device's figures alone predict them."""

    run: str
    buckets: np.ndarray  # Bucket objects
    measured: np.ndarray  # (rows, 3): denoise, decode, encode
    predicted: np.ndarray  # (rows, 3)
    attempts: tuple[_Attempt, ...]
    held_s: float  # by these rows' share of its attempts, start-ups and waits apart; 0: not known


def calibrate(root: Path, model: ModelSpec, device: DeviceConfig) -> Calibration | None:
    """Factors from the finished rows of `<root>/*/catalog/rows`; None when no run fits.

    A run fits when it drew with this model's dimensions on a device of this name (`h200` fits
    `NVIDIA H200`), each row on one rank. Damaged or foreign folders are passed over.
    """
    runs = [m for path in _newest(root) if (m := _measure(path, model, device)) is not None]
    if not runs:
        return None
    buckets = np.concatenate([run.buckets for run in runs])
    measured = np.concatenate([run.measured for run in runs])
    predicted = np.concatenate([run.predicted for run in runs])
    general = _factors(measured, predicted)
    by_bucket = {}
    for bucket in set(buckets.tolist()):
        mine = np.array([b == bucket for b in buckets.tolist()])
        if mine.sum() >= _ENOUGH_ROWS:
            by_bucket[bucket] = _factors(measured[mine], predicted[mine])
    table = FactorTable(general, by_bucket)
    attempts = [attempt for run in runs for attempt in run.attempts]
    told = [run for run in runs if run.held_s > 0]
    stages = sum(float(run.measured.sum()) for run in told)
    return Calibration(
        table,
        _spread(runs, table),
        tuple(r.run for r in runs),
        len(buckets),
        start_up_s=_start_up(attempts),
        held=sum(run.held_s for run in told) / stages if stages > 0 else 1.0,
        waits_s=float(np.median([a.waits_s for a in attempts])) if attempts else 0.0,
    )


def measured_start_up(job: JobConfig) -> float | None:
    """`Calibration.start_up_s` of a job, from the attempts alone; None: none says."""
    attempts = [
        attempt
        for run in _newest(Path(job.output.root_dir))
        if _same_model(run, job.model)
        for attempt in _attempts(run, job.slurm.device, 0)[0]
    ]
    return _start_up(attempts)


def _start_up(attempts: Sequence[_Attempt]) -> float | None:
    return float(np.median([a.start_up_s for a in attempts])) if attempts else None


def _newest(root: Path) -> list[RunPaths]:
    files = [path for path in root.glob("*/run.json") if not path.parent.name.startswith(".")]
    files.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [RunPaths(path.parent) for path in files[:_RUNS_READ]]


def _measure(run: RunPaths, model: ModelSpec, device: DeviceConfig) -> _Measured | None:
    """The usable rows of a run, or None when it has none."""
    if not _same_model(run, model) or not run.catalog_rows.is_dir():
        return None
    import pyarrow.dataset as ds  # pandas with it, which takes a while

    try:
        data = ds.dataset(run.catalog_rows, format="parquet")
        given = [_IMAGE] if _IMAGE in data.schema.names else []
        table = data.head(_ROWS_READ, columns=[*_COLUMNS, *given])
    except (pa.ArrowException, OSError, KeyError):
        return None  # written by another version, or being written
    finished = pc.and_(pc.equal(table["status"], "ok"), _without_alias(table))
    table = table.filter(pc.and_(finished, _on_device(table["device"], device.name)))
    layouts = table["layout"].to_pylist()
    alone = [ranks_named(layout) == 1 and not is_streamed(layout) for layout in layouts]
    table = table.filter(pa.array(alone, pa.bool_()))
    if len(table) == 0:
        return None
    cost = CostModel(model, device, UNMEASURED, _tiling(run))
    columns = [table[name].to_pylist() for name in ("width", "height", "num_frames")]
    buckets = np.empty(len(table), object)
    buckets[:] = [Bucket(*size) for size in zip(*columns, strict=True)]
    seconds = {bucket: cost.bucket(bucket) for bucket in set(buckets.tolist())}
    evaluations = table["steps_computed"].to_numpy()  # of this attempt: others may have begun it
    images = table[_IMAGE].is_valid().to_pylist() if given else [False] * len(table)
    predicted = [
        (count * seconds[b].forward, seconds[b].decode, seconds[b].encode + i * seconds[b].images)
        for b, count, i in zip(buckets.tolist(), evaluations.tolist(), images, strict=True)
    ]
    stages = [table[name].to_numpy() for name in ("denoise_s", "decode_s", "encode_s")]
    attempts, held_s = _attempts(run, device, len(table))
    return _Measured(
        run.root.name, buckets, np.stack(stages, 1), np.array(predicted), attempts, held_s
    )


def _attempts(run: RunPaths, device: DeviceConfig, rows: int) -> tuple[tuple[_Attempt, ...], float]:
    """Those that drew rows alone on such a device, and for how long they held it, waits apart, by
    the share that `rows` has in theirs."""
    names = ("device", "layout", "rows_ok", "decode_s", *_START_UP, *_AT_WORK, *_WAITING)
    try:
        found = pq.read_table(run.catalog_runs, columns=list(names)).to_pylist()
    except (pa.ArrowException, OSError, KeyError):
        return (), 0.0
    drew = [
        each
        for each in found
        if each["rows_ok"] > 0
        and _is_device(each["device"], device.name)
        and ranks_named(each["layout"]) == 1
        and not is_streamed(each["layout"])
    ]
    attempts = tuple(map(_attempt, drew))
    done = sum(each["rows_ok"] for each in drew)
    held = sum(attempt.held_s for attempt in attempts)
    return attempts, held * rows / done if done else 0.0


def _attempt(found: dict[str, Any]) -> _Attempt:
    start_up, at_work, waits = (
        sum(found[name] for name in names) for names in (_START_UP, _AT_WORK, _WAITING)
    )
    if found["decode_s"] > at_work:  # it waited for the decoder, row after row
        return _Attempt(start_up, at_work + waits, 0.0)
    return _Attempt(start_up, at_work, waits)


def _same_model(run: RunPaths, model: ModelSpec) -> bool:
    """Whether a run drew with these dimensions (weights do not change the time), from texts to
    pictures."""
    try:
        stored: dict[str, Any] = json.loads(run.run_json.read_text(encoding="utf-8"))["config"]
        if stored.get("decode") or stored["output"]["format"] == LATENTS:
            return False
        other = stored["model"]
        mine = json.loads(json.dumps(asdict(model.dims)))
        return other["family"] == model.family and all(other[key] == mine[key] for key in mine)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _tiling(run: RunPaths) -> Tiling | None:
    """As its decoder went; None: over whole frames."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        vae = json.loads(run.run_json.read_text(encoding="utf-8"))["config"]["system"]["vae"]
        if vae["tiled"] is True:
            return Tiling(vae["tile"], vae["stride"])
    return None


def _without_alias(table: pa.Table) -> pa.ChunkedArray:
    """Rows that were rendered themselves (an empty alias_of is none)."""
    return pc.equal(pc.binary_length(pc.fill_null(table["alias_of"].cast(pa.string()), "")), 0)


def _on_device(names: pa.ChunkedArray, wanted: str) -> pa.Array:
    return pa.array([_is_device(name, wanted) for name in names.to_pylist()], pa.bool_())


def _is_device(name: str | None, wanted: str) -> bool:
    """Whether one of the two names is a part of the other, and there is one."""
    words = wanted.casefold()
    return name is not None and (words in name.casefold() or name.casefold() in words)


def _factors(measured: np.ndarray, predicted: np.ndarray) -> Factors:
    """Sums over sums: long rows weigh more, as they do in the forecast."""
    ratios = measured.sum(0) / np.maximum(predicted.sum(0), 1e-12)
    denoise, decode, encode = (float(ratio) for ratio in ratios)
    return Factors(denoise=denoise, decode=decode, encode=encode)


def _spread(runs: Sequence[_Measured], table: FactorTable) -> float:
    """How far single runs lie from the calibrated prediction (relative, largest); with one run
    alone, its two halves stand in."""
    samples = [(run, slice(None)) for run in runs]
    if len(runs) == 1:
        samples = [(runs[0], slice(0, None, 2)), (runs[0], slice(1, None, 2))]
    errors = [_LEAST_SPREAD if len(runs) > 1 else 2 * _LEAST_SPREAD]
    for run, part in samples:
        measured, buckets = run.measured[part].sum(), run.buckets[part].tolist()
        factors = np.array([[f.denoise, f.decode, f.encode] for f in map(table.of, buckets)])
        if len(buckets):
            errors.append(abs(measured / max((run.predicted[part] * factors).sum(), 1e-12) - 1))
    return float(max(errors))
