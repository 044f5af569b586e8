"""Ranges of job keys, beside the types of the schema: dotted key -> smallest and largest value."""

from __future__ import annotations

import re
from dataclasses import dataclass

from batchgen.errors import ConfigError

MAX_SEED = 2**63 - 1
MAX_STEPS = 1000  # the schedules are drawn from 1000 training timesteps
MAX_FPS = 240
MAX_SIDE = 16384  # pixels; beyond any model, small enough that products fit in int64
MAX_FRAMES = 65536
MAX_GUIDANCE = 1000.0
_NOT_UTF8 = re.compile(r"[\ud800-\udfff]")  # how Python keeps other bytes of a command line
_FILE_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Range:
    """A closed interval; None is open on that side. `above_low`: the low end itself is illegal."""

    low: float | None = None
    high: float | None = None
    above_low: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` lies inside."""
        if self.low is not None and (value < self.low or (self.above_low and value == self.low)):
            return False
        return self.high is None or value <= self.high

    def __str__(self) -> str:
        low = "" if self.low is None else f"{'> ' if self.above_low else '>= '}{self.low:g}"
        if self.high is None:
            return low
        high = f"{self.high}" if isinstance(self.high, int) else f"{self.high:g}"
        return f"{low} and <= {high}" if low else f"<= {high}"


_POSITIVE = Range(1)
_ABOVE_ZERO = Range(0, above_low=True)

# Request values: the same in row_defaults, model.request_defaults and the manifest's columns.
REQUEST_RANGES: dict[str, Range] = {
    "seed": Range(0, MAX_SEED),
    "width": Range(1, MAX_SIDE),
    "height": Range(1, MAX_SIDE),
    "num_frames": Range(1, MAX_FRAMES),
    "fps": Range(1, MAX_FPS),
    "num_steps": Range(1, MAX_STEPS),
    "guidance_scale": Range(0.0, MAX_GUIDANCE),
    "guidance_scale_2": Range(0.0, MAX_GUIDANCE),
    "true_cfg_scale": Range(0.0, MAX_GUIDANCE),
    "cache_ratio": Range(0.0, 1.0),
    "cache_warmup": Range(0, MAX_STEPS),
    "cache_cooldown": Range(0, MAX_STEPS),
}

RANGES: dict[str, Range] = {
    "seed": REQUEST_RANGES["seed"],
    **{f"row_defaults.{name}": bounds for name, bounds in REQUEST_RANGES.items()},
    **{f"model.request_defaults.{name}": bounds for name, bounds in REQUEST_RANGES.items()},
    "model.request_defaults.sigma_shift": _ABOVE_ZERO,
    "model.boundary": Range(0, 1),
    **{f"system.parallel.{axis}": _POSITIVE for axis in ("dp", "cfg", "ulysses", "ring")},
    "system.parallel.up_limit": _POSITIVE,
    "system.memory.vram_limit": Range(0),
    "system.memory.prefetch": Range(0),
    "system.vae.tile": _POSITIVE,
    "system.vae.stride": _POSITIVE,
    "system.cache.audit_every": Range(0),
    "system.sampler.sigma_shift": _ABOVE_ZERO,
    "system.sampler.boundary": Range(0, 1),
    **{f"system.batch.{k}": _POSITIVE for k in ("token_budget", "max_rows_in_flight", "window")},
    "output.fps": REQUEST_RANGES["fps"],
    "output.quality": Range(0, 10),
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
        for key in ("memory_gib", "matmul_tflops", "h2d_gbs", "link_gbs", "nic_gbs")
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
    bounds = _ABOVE_ZERO if _is_dimension(key) else RANGES.get(key)
    if bounds is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if not bounds.holds(value):
        raise ConfigError(f"{key}: {value!r} is out of range; legal: {bounds}")


def _is_dimension(key: str) -> bool:
    """Of a component (`model.vae.base_dim`) or a named size."""
    return (
        key.startswith("model.")
        and key.count(".") >= 2
        and not key.startswith("model.request_defaults.")
    )
