"""Autoencoders whose layers are called one by one here, instead of their own decode."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from batchgen.errors import ConfigError


def is_as_made(vae: Any, modules: Iterable[nn.Module]) -> bool:
    """Whether it does what its class says: it is not trained, cuts nothing itself, and nobody has
    hung something into these modules, which he wants to be called. What is private to torch is
    looked at here alone."""
    hooked = any(
        module._forward_pre_hooks or module._forward_hooks or "forward" in vars(module)
        for module in modules
    )
    return not (vae.training or vae.use_tiling or vae.use_slicing or hooked)


def check_known(known: bool) -> None:
    """Raise ConfigError where tiles are asked of an autoencoder that has layers which nobody here
    follows."""
    if not known:
        raise ConfigError("system.vae.tiled: this autoencoder has layers that are not known here")
