"""DiffSynth's way to say where a component lives, resolved to ours when a job is composed.

There a component has four states, each with a device and a dtype: *offload* (not its turn),
*onload* (its stage runs), *preparing* (its layers, while `vram_limit` has room) and *computation*.
Here they are keys of `system.components.<name>`, `offload_device` to `computation_dtype`; states
that are not given are as computation, as there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchgen.errors import ConfigError

STATES = ("offload", "onload", "preparing", "computation")
KEYS = tuple(f"{state}_{kind}" for state in STATES for kind in ("device", "dtype"))
_DEVICES = ("cuda", "cpu", "disk")
_FP8 = ("float8_e4m3fn", "fp8")
_DTYPES = ("bfloat16", "float16", "float32")


def resolve_states(job: dict[str, Any]) -> None:
    """Replace the states of each component by `memory` and `dtype`, and by
    `system.memory.store_dtype`. Raises ConfigError for what has no counterpart."""
    system = job.get("system")
    components = system.get("components") if isinstance(system, dict) else None
    for name, own in components.items() if isinstance(components, dict) else ():
        if isinstance(own, dict) and set(KEYS) & own.keys():
            states = {key: own.pop(key) for key in KEYS if key in own}
            _resolve(job, f"system.components.{name}", own, states)


def _resolve(
    job: dict[str, Any], where: str, own: dict[str, Any], given: Mapping[str, Any]
) -> None:
    if given.get("computation_device", "cuda") != "cuda":
        raise ConfigError(
            f"{where}.computation_device: {given['computation_device']!r}: all compute on the "
            "device of their rank; legal: cuda"
        )
    devices = {state: _device(where, given, state) for state in STATES}
    memory = job["system"].setdefault("memory", {})
    _set(own, "memory", _place(devices, memory.get("vram_limit")), where)
    computed = _dtype(where, given, "computation")
    if computed is not None:
        _set(own, "dtype", computed, where)
    for state in STATES[:3]:
        stored = _dtype(where, given, state)
        if stored == "fp8":
            _set(memory, "store_dtype", "fp8", f"{where}.{state}_dtype")
        elif stored not in (None, computed):
            raise ConfigError(
                f"{where}.{state}_dtype: {stored!r}: weights are kept in the precision that they "
                f"are computed in, or in fp8; legal: {computed or 'null'}, {', '.join(_FP8)}"
            )


def _place(devices: Mapping[str, str], limit: float | None) -> str:
    """A layer is prepared while there is room: without a limit there is for all of them."""
    if "disk" in (devices["offload"], devices["onload"], devices["preparing"]):
        return "disk"
    if devices["offload"] == "cuda":
        return "resident"
    prepared = devices["preparing"] == "cuda" and limit is None
    return "model" if devices["onload"] == "cuda" or prepared else "stream"


def _device(where: str, given: Mapping[str, Any], state: str) -> str:
    device = str(given.get(f"{state}_device", "cuda"))
    if device not in _DEVICES:
        legal = ", ".join(_DEVICES)
        raise ConfigError(f"{where}.{state}_device: {device!r} is not one of {legal}")
    return device


def _dtype(where: str, given: Mapping[str, Any], state: str) -> str | None:
    """None: not given, or left to the file."""
    dtype = given.get(f"{state}_dtype")
    name = str(dtype).removeprefix("torch.")
    if dtype is None or (name == "disk" and state != "computation"):
        return None
    if name in _FP8 and state != "computation":
        return "fp8"
    if name not in _DTYPES:
        raise ConfigError(
            f"{where}.{state}_dtype: {dtype!r} is not one of {', '.join((*_DTYPES, *_FP8))}"
        )
    return name


def _set(section: dict[str, Any], key: str, value: str, where: str) -> None:
    present = section.get(key)
    if present not in (None, "same", value):
        raise ConfigError(f"{where}: its states say {key} {value}, but {key} says {present!r}")
    section[key] = value
