"""Ranges of job keys, beside the types of the schema: dotted key -> smallest and largest value."""

from __future__ import annotations

import re

from batchgen.errors import ConfigError
from batchgen.request import FIELDS, MANIFEST, MODEL_FIELDS, Range

_NOT_UTF8 = re.compile(r"[\ud800-\udfff]")  # how Python keeps other bytes of a command line
_FILE_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


_POSITIVE = Range(1)
_ABOVE_ZERO = Range(0, above_low=True)

# Request values: the same in row_defaults and the manifest's columns.
REQUEST_RANGES = {n: field.column.range for n, field in MANIFEST.items() if field.column.range}
_BY_JOB = {
    field.column.set_by: field.column.range
    for field in FIELDS.values()
    if "." in field.column.set_by and field.column.range
}

RANGES: dict[str, Range] = {
    "seed": REQUEST_RANGES["seed"],
    **{f"row_defaults.{name}": bounds for name, bounds in REQUEST_RANGES.items()},
    **{
        f"model.request_defaults.{field.name}": field.column.range
        for field in MODEL_FIELDS
        if field.column.range
    },
    **_BY_JOB,
    "model.boundary": Range(0, 1),
    **{f"system.parallel.{axis}": _POSITIVE for axis in ("dp", "cfg", "ulysses", "ring")},
    "system.parallel.up_limit": _POSITIVE,
    "system.memory.vram_limit": Range(0),
    "system.memory.prefetch": Range(0),
    **{f"system.attention_schedule.{k}": Range(0) for k in ("first", "last")},
    **{f"system.radial.{k}": Range(0) for k in ("dense_steps", "dense_layers")},
    "system.radial.decay": _ABOVE_ZERO,
    "system.vae.tile": _POSITIVE,
    "system.vae.stride": _POSITIVE,
    "system.cache.audit_every": Range(0),
    "system.cache.min_psnr_db": Range(0, 100, above_low=True),
    "system.sampler.boundary": Range(0, 1),
    **{f"system.batch.{k}": _POSITIVE for k in ("token_budget", "max_rows_in_flight", "window")},
    "system.max_gpu_hours": _ABOVE_ZERO,
    "system.batch.text_store_gib": Range(0),
    "output.fps": REQUEST_RANGES["fps"],
    "output.pack_mib": _ABOVE_ZERO,
    **{
        f"slurm.{key}": _POSITIVE
        for key in ("nodes", "ranks_per_node", "cpus_per_rank", "timeout_min", "array_parallelism")
    },
    "slurm.gpus_per_node": Range(0),
    "slurm.mem_gb": Range(0),  # 0: all that a node has
    "slurm.signal_delay_s": Range(0, 65535),  # sbatch takes no more
    "slurm.watchdog_s": Range(0),
    "slurm.start_up_s": Range(0),
    "slurm.max_attempts": _POSITIVE,
    "slurm.row_retries": Range(0),
    **{
        f"slurm.device.{key}": _ABOVE_ZERO
        for key in ("memory_gib", "matmul_tflops", "h2d_gbs", "disk_gbs", "link_gbs", "nic_gbs")
    },
}

_PATHS = {"manifest", "model.weights", "output.root_dir"}  # empty would mean the current folder
_NAMES = {"name", "tag"}  # they become part of a folder's name


def check_limit(key: str, value: object) -> None:
    """Raise ConfigError when the value of a dotted job key is out of its range."""
    if key in _PATHS and isinstance(value, str) and not value.strip():
        raise ConfigError(f"{key}: is empty (a shell variable that is not set?); legal: a path")
    if isinstance(value, str) and _NOT_UTF8.search(value):
        raise ConfigError(f"{key}: {value!r} is not UTF-8; rename what it names, or convert it")
    if key in _NAMES and isinstance(value, str) and value and not _FILE_NAME.fullmatch(value):
        raise ConfigError(
            f"{key}: {value!r} cannot be part of a folder name; legal: 1 to 64 characters of "
            "A-Z a-z 0-9 . _ -"
        )
    bounds = _dimension(key) if _is_dimension(key) else RANGES.get(key)
    if bounds is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if not bounds.holds(value):
        raise ConfigError(f"{key}: {value!r} is out of range; legal: {bounds}")


def _dimension(key: str) -> Range:
    """A size; or the number of a layer, `model.transformer.dual_attention_layers[0]`, or a setting
    of a guider."""
    from_zero = key.rpartition("[")[0].endswith("_layers") or key.startswith("model.guider.")
    return Range(0) if from_zero else _ABOVE_ZERO


def _is_dimension(key: str) -> bool:
    """Of a component (`model.vae.base_dim`) or a named size."""
    return (
        key.startswith("model.")
        and key.count(".") >= 2
        and not key.startswith("model.request_defaults.")
    )
