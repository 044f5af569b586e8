"""Other spellings of keys, resolved when a job is composed; only the canonical key is recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from batchgen.caches.settings import NO_CACHE
from batchgen.config.offload_states import KEYS, resolve_states
from batchgen.errors import ConfigError

# alias -> canonical key; the value stays as it is
RENAMED = {
    "row_defaults.cache": "row_defaults.cache_strategy",
    "system.parallel.cfp": "system.parallel.cfg",
    "system.parallel.dp_degree": "system.parallel.dp",
    "system.parallel.cfg_degree": "system.parallel.cfg",
    "system.parallel.ulysses_degree": "system.parallel.ulysses",
    "system.parallel.sp_ulysses_degree": "system.parallel.ulysses",
    "system.parallel.ring_degree": "system.parallel.ring",
    "system.parallel.sp_ring_degree": "system.parallel.ring",
}

# These are resolved together with other keys, below.
COMPOUND = ("system.memory.low_mem_level", "row_defaults.cache")

LOW_MEM_LEVELS: dict[int, dict[str, object]] = {
    0: {"system.memory.mode": "resident"},
    1: {"system.memory.mode": "resident", "system.vae.tiled": True},
    2: {"system.memory.mode": "model"},
    3: {"system.memory.mode": "stream"},
}

# Ways to use ranks that exist elsewhere: what it is, and why it is not served.
_PIPELINE = (
    "pipeline parallelism is not served: it reuses activations of the step before, which changes "
    "pixels"
)
_TENSOR = (
    "tensor parallelism is not served: it sends every token's activations twice a block, more than "
    "ulysses or ring do"
)
_SHARDED = (
    "weights sharded over ranks are not served: each rank holds its own, and where those do not "
    "fit, system.memory.mode=model keeps one component at a time on the device"
)
_PIPELINE_KEYS = ("pipeline", "pipefusion", "pipefusion_parallel_degree", "pp", "pp_degree")
_TENSOR_KEYS = ("tensor", "tp", "tp_degree", "tensor_parallel_degree")
_REFUSED = {
    **dict.fromkeys(_PIPELINE_KEYS, _PIPELINE),
    **dict.fromkeys(_TENSOR_KEYS, _TENSOR),
    **dict.fromkeys(
        ("fsdp", "fsdp2", "use_fsdp", "dit_fsdp", "t5_fsdp", "shard_weights", "hsdp"), _SHARDED
    ),
}


def is_resolved(key: str) -> bool:
    """Whether a key is resolved together with others, and so is none of the schema."""
    parent, _, name = key.rpartition(".")
    state = parent.startswith("system.components.") and name in KEYS
    return key in COMPOUND or state


def canonical_key(key: str, value: str) -> str:
    """The key that an override `key=value` sets; compound aliases keep their own name.

    Raises ConfigError for parallel degrees that exist elsewhere and are not served.
    """
    _refuse_degrees(key)
    if key == "system.compile" and not value.startswith("{"):
        return "system.compile.mode"
    if key == "row_defaults.cache" and value.startswith("{"):
        return key
    return RENAMED.get(key, key)


def leaf_of(key: str) -> str:
    """The leaf of the schema that a key inside a short section is resolved to. Until then it stays
    as typed, so that it replaces what the job's own section says."""
    return key.replace(".cache.", ".cache_", 1) if key.startswith("row_defaults.cache.") else key


def resolve_aliases(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A composed job with every alias replaced by its canonical key.

    Raises ConfigError when an alias and its canonical key are both set and differ.
    """
    job = {key: _copied(value) for key, value in mapping.items()}
    parallel = _section(job, "system.parallel")
    for name in parallel if parallel is not None else ():
        _refuse_degrees(f"system.parallel.{name}")
    _cache_section(job)
    for alias, key in RENAMED.items():
        if _has(job, alias):
            _put(job, key, _take(job, alias), alias)
    system = job.get("system")
    if isinstance(system, dict) and not isinstance(system.get("compile"), (dict, type(None))):
        system["compile"] = {"mode": system["compile"]}
    _resolve_low_mem_level(job)
    resolve_states(job)
    _resolve_up_limit(job)
    _cache_off(job)
    _cache_params(job)
    _loras(job)
    return job


def _resolve_low_mem_level(job: dict[str, Any]) -> None:
    alias = "system.memory.low_mem_level"
    if not _has(job, alias):
        return
    level = _take(job, alias)
    if level is None:
        return
    if isinstance(level, bool) or level not in LOW_MEM_LEVELS:
        raise ConfigError(f"{alias}: {level!r} is not one of 0, 1, 2, 3")
    for key, value in LOW_MEM_LEVELS[level].items():
        _put(job, key, value, alias)


def _resolve_up_limit(job: dict[str, Any]) -> None:
    """`up_limit` caps the Ulysses degree; 1 leaves all of sequence parallelism to the ring. Of a
    degree by hand it is a check and no more."""
    key = "system.parallel.up_limit"
    section = _section(job, "system.parallel") or {}
    cap, degree = section.get("up_limit"), section.get("ulysses", "auto")
    if cap is None:
        return
    if not isinstance(cap, int) or isinstance(cap, bool) or cap < 1:
        raise ConfigError(f"{key}: {cap!r} is not an integer >= 1")
    if isinstance(degree, int) and degree > cap:
        raise ConfigError(f"system.parallel.ulysses: {degree} is above {key}: {cap}")
    if cap == 1:
        section["ulysses"] = 1
    if isinstance(section.get("ulysses"), int):
        section["up_limit"] = None


def _cache_off(job: dict[str, Any]) -> None:
    """A bare `off` reaches us as false; every spelling of no cache is recorded as `none`."""
    rows = _section(job, "row_defaults")
    if rows is not None and "cache_strategy" in rows:
        value = rows["cache_strategy"]
        spelt = "off" if value is False else value
        if isinstance(spelt, str) and spelt.strip().lower() in NO_CACHE:
            rows["cache_strategy"] = "none"


def _cache_section(job: dict[str, Any]) -> None:
    """`cache: {strategy: planned, ratio: 0.3}` is short for `cache_strategy`, `cache_ratio`."""
    alias = "row_defaults.cache"
    section = _section(job, alias)
    if section is not None:
        del job["row_defaults"]["cache"]
        for name, value in section.items():
            _put(job, f"{alias}_{name}", value, f"{alias}.{name}")


def _cache_params(job: dict[str, Any]) -> None:
    """Knobs may be given as a mapping; they are recorded as JSON, as rows give them."""
    rows = _section(job, "row_defaults")
    if rows is not None and isinstance(rows.get("cache_params"), dict):
        rows["cache_params"] = json.dumps(rows["cache_params"], sort_keys=True)


def _loras(job: dict[str, Any]) -> None:
    """LoRA files may be given as a list; they are recorded as one text, as rows give them."""
    rows = _section(job, "row_defaults")
    given = rows.get("lora") if rows is not None else None
    if rows is None or not isinstance(given, list):
        return
    for number, entry in enumerate(given):
        if not isinstance(entry, str) or "," in entry:
            raise ConfigError(
                f"row_defaults.lora[{number}]: {entry!r} is not path@strength, without a comma"
            )
    rows["lora"] = ",".join(given)


def _refuse_degrees(key: str) -> None:
    parent, _, name = key.rpartition(".")
    if parent == "system.parallel" and name in _REFUSED:
        raise ConfigError(
            f"{key}: {_REFUSED[name]}; to use many ranks, rows of a batch job are independent "
            "(dp), and one row is shared by cfg, ulysses and ring"
        )


# --------------------------------------------------------------------------------- dotted access
def _copied(value: Any) -> Any:
    return {k: _copied(v) for k, v in value.items()} if isinstance(value, dict) else value


def _section(job: dict[str, Any], key: str) -> dict[str, Any] | None:
    """The mapping at a dotted key; None when it is absent or not a mapping."""
    here: Any = job
    for part in key.split("."):
        here = here.get(part) if isinstance(here, dict) else None
    return here if isinstance(here, dict) else None


def _has(job: dict[str, Any], key: str) -> bool:
    parent, _, name = key.rpartition(".")
    section = _section(job, parent)
    return section is not None and name in section


def _take(job: dict[str, Any], key: str) -> Any:
    parent, _, name = key.rpartition(".")
    section = _section(job, parent)
    assert section is not None
    return section.pop(name)


def _put(job: dict[str, Any], key: str, value: Any, alias: str) -> None:
    """Set a canonical key from its alias unless something else is set there already."""
    here = job
    *parents, name = key.split(".")
    for part in parents:
        here = here.setdefault(part, {})
    present = here.get(name)
    if present not in (None, "auto", "none", value):
        raise ConfigError(f"{alias}: says {value!r}, but {key} says {present!r}; set one of them")
    here[name] = value
