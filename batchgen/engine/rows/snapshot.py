"""A row between two ticks as arrays on the host, and back."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from batchgen.engine.contract import Snapshot
from batchgen.numerics.solver import History

log = logging.getLogger(__name__)
LATENTS, SAMPLE, OUTPUT, CACHE = "latents", "sample", "output.", "cache."
IN = ":"  # in a name of what a cache had kept, before its precision
OLDER, VELOCITY = "older.", "velocity."  # .age, and .age.branch


def pack(
    step: int, latents: Tensor, history: History, kept: Mapping[str, Tensor], seconds: float
) -> Snapshot:
    """Everything that the next step takes from the ones before: float32, whatever precision the
    transformer has, so nothing is lost on the way. `kept`: by its cache, of which names say the
    precision that numpy lacks, since what follows is computed in it."""
    tensors = {LATENTS: latents}
    tensors |= {f"{OUTPUT}{age}": output for age, output in enumerate(history.outputs)}
    if history.sample is not None:
        tensors[SAMPLE] = history.sample
    tensors |= {f"{OLDER}{age}": older for age, older in enumerate(history.latents)}
    for age, branches in enumerate(history.velocities):
        tensors |= {f"{VELOCITY}{age}.{branch}": v for branch, v in enumerate(branches)}
    arrays = {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}
    arrays |= {f"{CACHE}{name}{_precision(t)}": _plain(t).cpu().numpy() for name, t in kept.items()}
    return Snapshot(step, seconds, arrays)


def fits(snapshot: Snapshot, latents: Tensor) -> bool:
    """Whether its latents have this shape: another version of the engine may have saved it."""
    saved = snapshot.arrays.get(LATENTS)
    if saved is not None and saved.shape == tuple(latents.shape):
        return True
    log.warning("a saved row starts anew: its latents are not %s", tuple(latents.shape))
    return False


def _plain(tensor: Tensor) -> Tensor:
    """In a precision that numpy has."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _precision(tensor: Tensor) -> str:
    """What a name says of it: nothing, where it is saved in its own."""
    if tensor.dtype == _plain(tensor).dtype:
        return ""
    return f"{IN}{tensor.dtype}".replace("torch.", "")


def _as_kept(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Name and tensor as the cache had them."""
    own, _, precision = name.removeprefix(CACHE).partition(IN)
    return own, tensor.to(getattr(torch, precision)) if precision else tensor


def unpack(snapshot: Snapshot, device: torch.device) -> tuple[Tensor, History, dict[str, Tensor]]:
    """Latents and solver history on `device`, and what a cache had kept."""
    tensors = {
        name: torch.from_numpy(array.copy()).to(device) for name, array in snapshot.arrays.items()
    }
    history = History(
        outputs=_row(tensors, OUTPUT),
        sample=tensors.get(SAMPLE),
        latents=_row(tensors, OLDER),
        velocities=_velocities(tensors),
    )
    kept = dict(_as_kept(k, v) for k, v in tensors.items() if k.startswith(CACHE))
    return tensors[LATENTS], history, kept


def _row(tensors: Mapping[str, Tensor], prefix: str) -> tuple[Tensor, ...]:
    """Those named by the prefix and a number, in order."""
    return tuple(tensors[f"{prefix}{i}"] for i in range(sum(n.startswith(prefix) for n in tensors)))


def _velocities(tensors: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], ...]:
    ages = {name.split(".")[1] for name in tensors if name.startswith(VELOCITY)}
    return tuple(_row(tensors, f"{VELOCITY}{age}.") for age in sorted(ages))
